//! One case in, one segmentation out: wires `bundle`, `sampler` and `engine`.
//!
//! A [`Segmenter`] owns a bundle and the device that runs it. The condition features of a crop are computed
//! once and shared by all votes and steps. The result depends on the case, the bundle, the seed and the
//! number of votes alone, never on batch sizes or threads; a vote that ends early does so between the device's
//! rounds, and within its bound may end elsewhere on another. Called by `cli`, `daemon`, `eval` and `bench`.

mod choose;
mod conditioned;
mod forecast;
mod golden;
mod preview;
mod recorded;
mod vote;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;

pub use conditioned::Conditioned;
pub use preview::Preview;
pub use recorded::RecordedNoise;
use vote::Election;

use crate::{
    bundle::{Bundle, BundleError, Manifest, prepare},
    domain::{Precision, Provenance, Segmentation, Volume},
    engine::{
        EngineError, Engines, Generator, Graphs, Interface, Options, Provider, Runtime, Serving,
        Standby,
    },
    sampler::{Noise, Philox, Stopping},
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
    #[error(
        "{bundle} has no denoiser in {asked} that may be used; make one with `python -m cdal_onnx quantize`, or choose precision = \"auto\""
    )]
    Precision { bundle: String, asked: String },
}

impl SegmenterError {
    /// Whether no other case can be segmented either, until the program is started again.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Engine(EngineError::Gone))
    }
}

/// What is asked of the sampler for one case.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// `None`: as many as the bundle says.
    pub votes: Option<usize>,
    /// `None`: all T. Fewer end a sample early, with the x_0 that the last step taken predicts.
    pub steps: Option<usize>,
    /// Whether a vote may end before its last sample.
    pub stopping: Stopping,
    /// When the mask must be there: a vote that would take longer ends with what is drawn, but not before the first
    /// sample of every image.
    pub deadline: Option<Duration>,
    pub seed: u64,
    /// Noise recorded elsewhere, in place of the seed's.
    pub noise: Option<Arc<RecordedNoise>>,
    /// Sees the mask grow.
    pub preview: Option<Preview>,
}

/// A segmentation and what it took.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub segmentation: Segmentation,
    /// Votes that were asked for; fewer may have been drawn.
    pub votes: usize,
    pub ending: Ending,
    /// Of the denoiser that drew the votes.
    pub precision: Precision,
    /// Evaluations of the denoiser for one vote.
    pub steps: usize,
    pub stages: Stages,
}

/// How a vote ended.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ending {
    pub rule: Stopping,
    /// Samples drawn for each image, on average; at most the votes asked for.
    pub votes_drawn: f64,
    /// The deadline ended the vote, not the rule.
    #[serde(rename = "cut_by_deadline")]
    pub is_cut: bool,
    /// Dice of the mask against that of the full vote, of the label that has least: expected to be this for
    /// `adaptive`, otherwise at least this.
    pub dice: f64,
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rule, votes_drawn, is_cut, dice } = self;
        if *rule == Stopping::Never && !is_cut {
            return Ok(());
        }
        let cut = if *is_cut { " deadline" } else { "" };
        write!(f, "{rule}{cut} drawn={votes_drawn:.2} dice={dice:.4}")
    }
}

/// Time spent in each stage of one case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stages {
    pub prepare: Duration,
    pub condition: Duration,
    /// Drawing samples and counting them as votes.
    pub denoise: Duration,
    /// Of `denoise`: each time-step by its number t, over all samples; zero for those that were cut off.
    pub steps: Vec<Duration>,
    pub assemble: Duration,
}

impl Stages {
    /// Of `denoise`: counting votes and deciding whether more are needed.
    #[must_use]
    pub fn vote(&self) -> Duration {
        self.denoise.saturating_sub(self.steps.iter().sum())
    }
}

/// A bundle loaded on a device.
#[derive(Debug)]
pub struct Segmenter {
    bundle: Arc<Bundle>,
    device: Standby<Generator>,
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
        let device = choose::start(&runtime, &bundle, graphs(&bundle), options)?;
        Ok(Self { bundle, device: Standby::settled(device, options.provider) })
    }

    /// Opens the bundle in `folder`, loads it and runs its golden case. TensorRT's engines are built first where they are
    /// not there yet, which takes minutes.
    ///
    /// # Errors
    /// As [`Bundle::open`] and [`Segmenter::load`], or if the golden case comes out differently.
    pub fn open(
        runtime: Arc<Runtime>,
        folder: &Path,
        options: Options,
    ) -> Result<Self, SegmenterError> {
        let bundle = Arc::new(Bundle::open(folder)?);
        let device = choose::fastest(&runtime, &bundle, options)?;
        Ok(Self { bundle, device: Standby::settled(device, options.provider) })
    }

    /// As [`Segmenter::open`], but ready at once: where TensorRT's engines must be built first, CUDA serves until they are
    /// and have given the golden case. [`Segmenter::serving`] tells how that stands.
    ///
    /// # Errors
    /// As [`Segmenter::open`].
    pub fn open_at_once(
        runtime: Arc<Runtime>,
        folder: &Path,
        options: Options,
    ) -> Result<Self, SegmenterError> {
        let is_built =
            |engines: Option<Engines>| engines.is_some_and(|engines| engines.are_whole());
        let bundle = Arc::new(Bundle::open(folder)?);
        let wanted = options.provider;
        if wanted != Provider::TensorRt
            || is_built(Engines::of(&runtime, &graphs(&bundle), &options))
        {
            let device = choose::fastest(&runtime, &bundle, options)?;
            return Ok(Self { bundle, device: Standby::settled(device, wanted) });
        }
        let interim = Options { provider: Provider::Cuda, ..options };
        let device = choose::fastest(&runtime, &bundle, interim)?;
        let of = Arc::clone(&bundle);
        let work =
            move || choose::fastest(&runtime, &of, options).map_err(|error| error.to_string());
        let device = Standby::building(device, interim.provider, wanted, work)?;
        Ok(Self { bundle, device })
    }

    /// Runs the bundle's golden case: recorded image and noise must give the recorded mean of votes.
    ///
    /// # Errors
    /// [`SegmenterError::Golden`] with the difference, or the engine's error.
    pub fn check_golden(&self) -> Result<f32, SegmenterError> {
        let precision = self.precision()?;
        let device = self.device.current();
        match self.bundle.manifest.variants.iter().find(|v| v.precision == precision) {
            Some(variant) => golden::prove_variant(&self.bundle, variant, &device),
            None => golden::prove(&self.bundle, &device),
        }
    }

    /// Of the denoiser that runs.
    ///
    /// # Errors
    /// If the device's thread has ended.
    pub fn precision(&self) -> Result<Precision, SegmenterError> {
        Ok(self.device.run(|generator| generator.precision())?)
    }

    /// The graphs that run.
    ///
    /// # Errors
    /// If the device's thread has ended, or the bundle's folder has changed since.
    pub fn graphs(&self) -> Result<Graphs, SegmenterError> {
        let precision = self.precision()?;
        let variant = self.bundle.manifest.variants.iter().find(|v| v.precision == precision);
        Ok(match variant {
            Some(variant) => {
                let denoiser = self.bundle.variant(variant)?;
                Graphs { denoiser, precision, ..graphs(&self.bundle) }
            }
            None => graphs(&self.bundle),
        })
    }

    /// Who runs the graphs, and whether that is to change.
    #[must_use]
    pub fn serving(&self) -> Serving {
        self.device.serving()
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
            let steps = request.steps.unwrap_or(diffusion.steps);
            let election = Election {
                manifest: &bundle.manifest,
                schedule: diffusion.schedule().cut_short(steps),
                prepared: &prepared,
                noise,
                votes,
                stopping: request.stopping,
                deadline: request.deadline.map(|deadline| started + deadline),
                preview: request.preview.as_ref(),
            };
            election.run(generator)
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
            precision: outcome.precision,
            steps: outcome.steps,
            votes: outcome.votes,
            ending: outcome.ending.to_string(),
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

/// The two canonical graphs of a bundle.
#[must_use]
pub fn graphs(bundle: &Bundle) -> Graphs {
    Graphs {
        condition: bundle.condition.clone(),
        denoiser: bundle.denoiser.clone(),
        precision: Precision::Fp32,
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
