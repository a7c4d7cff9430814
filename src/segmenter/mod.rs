//! One case in, one segmentation out: wires `bundle`, `sampler` and `engine`.
//!
//! A [`Segmenter`] owns a bundle and the device that runs it. The condition features of a crop are computed
//! once and shared by all votes and steps. The result depends on the case, the bundle, the seed and the
//! number of votes alone, never on batch sizes or threads. Called by `cli`, `daemon` and the benchmarks.

mod conditioned;
mod golden;
mod recorded;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use ndarray::Axis;

pub use conditioned::Conditioned;
pub use recorded::RecordedNoise;

use crate::{
    bundle::{Assembly, Bundle, BundleError, Manifest, Prepared, prepare},
    domain::{Provenance, Segmentation, Volume},
    engine::{Device, EngineError, Generator, Graphs, Interface, Options, Runtime},
    sampler::{Ballot, Noise, Philox, Schedule, Shape, Tally, sample},
};

/// What keeps a case from being segmented.
#[derive(Debug, thiserror::Error)]
pub enum SegmenterError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("recorded noise: {0}")]
    Noise(String),
    #[error(
        "the golden case of {bundle} came out {difference:.2e} away from its record, {tolerance:.0e} is allowed; the bundle and this runtime do not belong together"
    )]
    Golden { bundle: String, difference: f32, tolerance: f32 },
}

/// What is asked of the sampler for one case.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// `None`: as many as the bundle says.
    pub votes: Option<usize>,
    /// `None`: all T. Fewer end a sample early, with the x_0 that the last step taken predicts.
    pub steps: Option<usize>,
    pub seed: u64,
    /// Noise recorded elsewhere, in place of the seed's.
    pub noise: Option<Arc<RecordedNoise>>,
}

/// A segmentation and what it took.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub segmentation: Segmentation,
    pub votes: usize,
    /// Evaluations of the denoiser for one vote.
    pub steps: usize,
    pub stages: Stages,
}

/// Time spent in each stage of one case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stages {
    pub prepare: Duration,
    pub condition: Duration,
    pub denoise: Duration,
    pub assemble: Duration,
}

/// A bundle loaded on a device.
#[derive(Debug)]
pub struct Segmenter {
    bundle: Arc<Bundle>,
    device: Device<Generator>,
}

impl Segmenter {
    /// Loads the bundle's graphs on the device's own thread.
    ///
    /// # Errors
    /// If the provider cannot be had or the graphs are not what the manifest says.
    pub fn load(
        runtime: Arc<Runtime>,
        bundle: Bundle,
        options: Options,
    ) -> Result<Self, SegmenterError> {
        let bundle = Arc::new(bundle);
        let owned = Arc::clone(&bundle);
        let device = Device::start(move || {
            let graphs =
                Graphs { condition: owned.condition.clone(), denoiser: owned.denoiser.clone() };
            Generator::load(&runtime, &graphs, interface(&owned.manifest), &options)
        })?;
        Ok(Self { bundle, device })
    }

    /// Opens the bundle in `folder`, loads it and runs its golden case.
    ///
    /// # Errors
    /// As [`Bundle::open`] and [`Segmenter::load`], or if the golden case comes out differently.
    pub fn open(
        runtime: Arc<Runtime>,
        folder: &Path,
        options: Options,
    ) -> Result<Self, SegmenterError> {
        let segmenter = Self::load(runtime, Bundle::open(folder)?, options)?;
        segmenter.check_golden()?;
        Ok(segmenter)
    }

    #[must_use]
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Segments one case.
    ///
    /// # Errors
    /// If the model does not take such a case, or the engine fails.
    pub fn segment(&self, volume: &Volume, request: &Request) -> Result<Outcome, SegmenterError> {
        let started = Instant::now();
        let prepared = prepare(&self.bundle.manifest, volume)?;
        let recorded = request.noise.as_ref().map(|noise| noise.votes());
        let votes = request.votes.or(recorded).unwrap_or(self.bundle.manifest.votes).max(1);
        if let Some(noise) = &request.noise {
            noise.check(
                &interface(&self.bundle.manifest),
                self.bundle.manifest.diffusion.steps,
                votes,
            )?;
        }
        let prepare = started.elapsed();
        let (bundle, request) = (Arc::clone(&self.bundle), request.clone());
        let mut outcome = self.device.run(move |generator| {
            let philox = Philox::new(request.seed, prepared.case_key);
            let recorded = request.noise.as_ref().map(|noise| noise.view());
            let noise: &dyn Noise = match &recorded {
                Some(recorded) => recorded,
                None => &philox,
            };
            let diffusion = &bundle.manifest.diffusion;
            let schedule = diffusion.schedule().cut_short(request.steps.unwrap_or(diffusion.steps));
            vote(generator, &bundle.manifest, &schedule, &prepared, noise, votes)
        })??;
        outcome.stages.prepare = prepare;
        Ok(outcome)
    }

    /// What a result of `request` must carry to be computed again.
    #[must_use]
    pub fn provenance(&self, outcome: &Outcome, seed: u64, configuration: &str) -> Provenance {
        let manifest = &self.bundle.manifest;
        Provenance {
            model: manifest.name.clone(),
            model_version: manifest.version.clone(),
            model_digest: self.bundle.digest.clone(),
            steps: outcome.steps,
            votes: outcome.votes,
            seed,
            software_version: env!("CARGO_PKG_VERSION").into(),
            configuration: configuration.into(),
        }
    }

    /// Runs `work` with the generator on the device's thread; for benchmarks of the inner pieces.
    ///
    /// # Errors
    /// If the device's thread has ended.
    pub fn with_generator<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Generator) -> R + Send + 'static,
    ) -> Result<R, EngineError> {
        self.device.run(work)
    }
}

/// Shapes that the graphs of a bundle must have.
#[must_use]
pub fn interface(manifest: &Manifest) -> Interface {
    let Manifest { input, network, .. } = manifest;
    Interface {
        image: [input.channels, input.size[0], input.size[1]],
        label_channels: network.label_channels,
        features: network.features,
        latent: network.latent,
    }
}

/// Pixels of x that one call of the denoiser takes at most: enough to keep every core busy, little enough
/// that activations stay near the cache.
const BATCH_PIXELS: usize = 32 * 1024;
/// Values of condition features that are held at once (256 MiB); at least one crop's.
const HELD_FEATURES: usize = 64 << 20;

fn vote(
    generator: &mut Generator,
    manifest: &Manifest,
    schedule: &Schedule,
    prepared: &Prepared,
    noise: &dyn Noise,
    votes: usize,
) -> Result<Outcome, SegmenterError> {
    let label = interface(manifest).label();
    let shape = Shape { label, latent: manifest.network.latent };
    let batch = (BATCH_PIXELS / (label[1] * label[2])).max(1);
    let held = (HELD_FEATURES / (manifest.network.features * label[1] * label[2])).max(1);
    let mut assembly = Assembly::new(label[0], &prepared.grid);
    let mut stages = Stages::default();

    let mut samples_of = vec![Vec::new(); prepared.crops.len()];
    for (number, sample) in prepared.samples.iter().enumerate() {
        samples_of[sample.crop].push(number);
    }
    for (chunk, crops) in prepared.crops.chunks(held).enumerate() {
        let first = chunk * held;
        let started = Instant::now();
        let mut conditioned = Conditioned::encode(generator, prepared, first, crops, batch)?;
        stages.condition += started.elapsed();

        let started = Instant::now();
        let numbers: Vec<usize> = (first..first + crops.len())
            .flat_map(|crop| samples_of[crop].iter().copied())
            .collect();
        let ballots: Vec<Ballot> = numbers
            .iter()
            .flat_map(|&image| (0..votes).map(move |vote| Ballot { image, vote }))
            .collect();
        let mut tallies = std::collections::HashMap::new();
        for ballots in ballots.chunks(batch) {
            let drawn = sample(&mut conditioned, schedule, shape, noise, ballots, |_, _, _| ())?;
            for (ballot, x0) in ballots.iter().zip(drawn.axis_iter(Axis(0))) {
                tallies.entry(ballot.image).or_insert_with(|| Tally::new(label)).add(x0);
            }
        }
        stages.denoise += started.elapsed();

        let started = Instant::now();
        for image in numbers {
            let tally = &tallies[&image];
            let crop = prepared.crops[prepared.samples[image].crop];
            assembly.add(crop, tally.mean().view(), tally.mask().view());
        }
        stages.assemble += started.elapsed();
    }
    let started = Instant::now();
    let segmentation = assembly.finish(manifest, &prepared.grid);
    stages.assemble += started.elapsed();
    Ok(Outcome { segmentation, votes, steps: schedule.steps() - schedule.end, stages })
}
