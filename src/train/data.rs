//! Batches of slices with their labels. A batch is a pure function of the run's seed and the step, which is
//! what makes a resumed run the same as one that was never stopped.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
    thread,
};

use ndarray::{Array1, Array2, Array3, Array4, Axis};

use super::{
    Augmentation, Config, Data, Example, Held, Inputs, TrainError,
    augment::augment,
    cases,
    diffusion::{Pair, normals, pair},
    draws::{CASE, GENERATOR, SLICE, index, uniforms},
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
    pub fn open(config: &Config, manifest: Manifest) -> Result<(Self, Vec<Held>), TrainError> {
        let (source, validation) = match &config.data {
            Data::Phantom { first_seed, validation_first_seed: first, validation_cases } => {
                let held = |seed| {
                    let Phantom { volume, truth, .. } = phantom(seed);
                    Held::new(&manifest, format!("phantom-{seed:05}"), volume, truth)
                };
                let validation =
                    (*first..first + validation_cases).map(held).collect::<Result<_, _>>()?;
                (Source::Phantom { first_seed: *first_seed }, validation)
            }
            Data::Pairs { folder, split, validation_cases } => {
                let (training, validation) =
                    cases::read(&manifest, folder, split, *validation_cases)?;
                (Source::Cached { training }, validation)
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
        Ok((batches, validation))
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
        let mut slices = Vec::with_capacity(self.size);
        match self.source.as_ref() {
            Source::Phantom { first_seed } => {
                let cases = self.size.div_ceil(SLICES_OF_A_CASE) as u64;
                for case in 0..cases {
                    let seed = first_seed + step * cases + case;
                    let Phantom { volume, truth, .. } = phantom(seed);
                    let example = Example::new(&self.manifest, &volume, &truth)?;
                    for _ in 0..SLICES_OF_A_CASE.min(self.size - slices.len()) {
                        slices.push(self.slice(&example, noise, slices.len()));
                    }
                }
            }
            Source::Cached { training } => {
                for number in 0..self.size {
                    let [which] = uniforms(noise, number, CASE);
                    let example = &training[index(which, training.len())];
                    slices.push(self.slice(example, noise, number));
                }
            }
        }
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
