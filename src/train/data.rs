//! Batches of slices with their labels. A batch is a pure function of the run's seed and the step, which is
//! what makes a resumed run the same as one that was never stopped.

use std::{
    num::NonZero,
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
    thread,
};

use ndarray::{Array1, Array2, Array3, Array4, Axis};
use sha2::{Digest, Sha256};

use super::{
    Augmentation, Config, Data, Example, Inputs, TrainError, Validator,
    augment::augment,
    cases,
    diffusion::{Pair, normals, pair},
    draws::{CASE, GENERATOR, SLICE, index, uniforms},
    sameness::hex,
};
use crate::{
    bundle::Manifest,
    phantom::{Phantom, phantom},
    sampler::{Philox, Schedule},
};

/// One step's worth of training input.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Noised label `x_t` [N, L, H, W].
    pub x_t: Array4<f32>,
    /// Noised once more: `x_{t+1}` [N, L, H, W].
    pub x: Array4<f32>,
    /// [N].
    pub t: Array1<i64>,
    /// [N, C, H, W].
    pub image: Array4<f32>,
    /// [N, nz].
    pub z: Array2<f32>,
    /// Clean label in [-1, 1], [N, L, H, W].
    pub target: Array4<f32>,
}

impl Batch {
    /// What the generator's graph takes, with `x` for x_{t+1}.
    pub(super) fn inputs<'a>(&'a self, x: &'a Array4<f32>) -> Inputs<'a> {
        Inputs::new()
            .floats("x", x.view())
            .integers("t", self.t.view())
            .floats("image", self.image.view())
            .floats("z", self.z.view())
            .floats("target", self.target.view())
    }
}

/// All that a batch depends on.
#[derive(Debug, Clone)]
pub struct Batches {
    manifest: Manifest,
    source: Arc<Source>,
    augmentation: Augmentation,
    seed: u64,
    size: usize,
    steps: u64,
}

#[derive(Debug)]
enum Source {
    Phantom { first_seed: u64 },
    Cached { training: Vec<Example> },
}

/// Slices taken of one generated case.
const SLICES_OF_A_CASE: usize = 4;

impl Batches {
    /// Batches and the cases to validate on, as the run's configuration says.
    ///
    /// # Errors
    /// If a case cannot be read, does not suit the model, or has a label that the model does not know.
    pub fn open(config: &Config, manifest: Manifest) -> Result<(Self, Validator), TrainError> {
        let mut validator = Validator::new(&config.validation, &manifest);
        let source = match &config.data {
            Data::Phantom { first_seed, validation_first_seed: first, validation_cases } => {
                let held = |seed| {
                    let Phantom { volume, truth, .. } = phantom(seed);
                    validator.hold(format!("phantom-{seed:05}"), volume, truth)
                };
                validator.cases =
                    (*first..first + validation_cases).map(held).collect::<Result<_, _>>()?;
                Source::Phantom { first_seed: *first_seed }
            }
            Data::Pairs { folder, split, validation_cases } => {
                let hold = |name, volume, truth| validator.hold(name, volume, truth);
                let (training, held) =
                    cases::read(&manifest, folder, split.as_deref(), *validation_cases, hold)?;
                validator.cases = held;
                Source::Cached { training }
            }
        };
        let batches = Self {
            manifest,
            source: Arc::new(source),
            augmentation: config.augmentation,
            seed: config.model.seed,
            size: config.optimiser.batch,
            steps: config.optimiser.steps,
        };
        Ok((batches, validator))
    }

    /// Number of training cases; `None` where they are generated.
    #[must_use]
    pub fn cases(&self) -> Option<usize> {
        match self.source.as_ref() {
            Source::Phantom { .. } => None,
            Source::Cached { training } => Some(training.len()),
        }
    }

    /// SHA-256 over the training cases and their labels; of nothing where they are generated.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        if let Source::Cached { training } = self.source.as_ref() {
            for example in training {
                hash.update(example.prepared.case_key.to_le_bytes());
                let labels = &example.working_truth;
                hash.update(labels.as_slice().expect("a truth is laid on a fresh grid"));
            }
        }
        hex(&hash.finalize())
    }

    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The batch of a step.
    ///
    /// # Errors
    /// If a generated case does not suit the model.
    pub fn batch(&self, schedule: &Schedule, step: u64) -> Result<Batch, TrainError> {
        let noise = Philox::new(self.seed, step);
        let slices = match self.source.as_ref() {
            Source::Phantom { first_seed } => {
                let cases = self.size.div_ceil(SLICES_OF_A_CASE);
                let examples = self.spread(cases, |case| {
                    let seed = first_seed + step * cases as u64 + case as u64;
                    let Phantom { volume, truth, .. } = phantom(seed);
                    Example::new(&self.manifest, &volume, &truth)
                });
                let examples = examples.into_iter().collect::<Result<Vec<_>, _>>()?;
                self.spread(self.size, |number| {
                    self.slice(&examples[number / SLICES_OF_A_CASE], noise, number)
                })
            }
            Source::Cached { training } => self.spread(self.size, |number| {
                let [which] = uniforms(noise, number, CASE);
                self.slice(&training[index(which, training.len())], noise, number)
            }),
        };
        let (images, targets): (Vec<_>, Vec<_>) = slices.into_iter().unzip();
        let stack = |parts: &[Array3<f32>]| {
            let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
            ndarray::stack(Axis(0), &views).expect("slices share one shape")
        };
        let (image, target) = (stack(&images), stack(&targets));
        let Pair { t, x_t, x_tp1: x } = pair(schedule, noise, GENERATOR, &target);
        let z = normals(noise, GENERATOR.latent, (self.size, self.manifest.network.latent));
        Ok(Batch { x_t, x, t, image, z, target })
    }

    /// What `work` makes of 0 to `count`, in that order. Large slices are spread over threads, which changes nothing
    /// but the time: each is a pure function of its number.
    fn spread<T: Send>(&self, count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
        const LARGE: usize = 128 * 128;
        const MOST: usize = 4;
        let [height, width] = self.manifest.input.size;
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let threads = if height * width < LARGE { 1 } else { cores.min(MOST).min(count) };
        if threads == 1 {
            return (0..count).map(work).collect();
        }
        let share = count.div_ceil(threads);
        thread::scope(|scope| {
            let parts: Vec<_> = (0..count)
                .step_by(share)
                .map(|first| {
                    let work = &work;
                    let numbers = first..(first + share).min(count);
                    scope.spawn(move || numbers.map(work).collect::<Vec<T>>())
                })
                .collect();
            let done = |part: thread::ScopedJoinHandle<'_, Vec<T>>| {
                part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            parts.into_iter().flat_map(done).collect()
        })
    }

    /// Image [C, H, W] and label [L, H, W] of a slice of a case, augmented by draw `number` of the step.
    fn slice(&self, example: &Example, noise: Philox, number: usize) -> (Array3<f32>, Array3<f32>) {
        let [telling, which] = uniforms(noise, number, SLICE);
        let crop = example.choose(telling, which);
        let (image, label) = augment(&self.augmentation, example, crop, noise, number);
        (image, self.manifest.target(label.view()))
    }

    /// Batches from `step` on, made ahead on a thread of their own.
    #[must_use]
    pub fn stream(&self, schedule: Schedule, step: u64) -> Receiver<Result<Batch, TrainError>> {
        let (ready, batches) = sync_channel(4);
        let source = self.clone();
        thread::spawn(move || {
            for step in step..source.steps {
                if ready.send(source.batch(&schedule, step)).is_err() {
                    return; // the trainer has stopped
                }
            }
        });
        batches
    }
}
