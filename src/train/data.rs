//! Batches of slices with their labels. A batch is a pure function of the run's seed and the step, which is
//! what makes a resumed run the same as one that was never stopped.

use std::{
    sync::mpsc::{Receiver, sync_channel},
    thread,
};

use ndarray::{Array1, Array2, Array3, Array4, Axis, s};

use super::{Data, TrainError};
use crate::{
    bundle::{self, Manifest, Prepared},
    domain::Volume,
    phantom::phantom,
    sampler::{Draw, Noise, Philox, Schedule},
};

/// One step's worth of training input.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Noised label `x_{t+1}` [N, L, H, W].
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

/// A case with its truth, as the network sees them.
#[derive(Debug, Clone)]
pub struct Example {
    pub volume: Volume,
    /// [D, H, W] on the volume's grid.
    pub truth: Array3<u8>,
    pub prepared: Prepared,
    /// [D, H, W] on the working grid; padding is background.
    pub working_truth: Array3<u8>,
}

/// All that a batch depends on.
#[derive(Debug, Clone)]
pub struct Batches {
    pub manifest: Manifest,
    pub data: Data,
    pub seed: u64,
    pub size: usize,
    /// Steps of the whole run; the stream of [`Batches::stream`] ends there.
    pub steps: u64,
}

/// Slices taken of one generated case.
const SLICES_OF_A_CASE: usize = 4;

impl Batches {
    /// The batch of a step.
    ///
    /// # Errors
    /// If a case does not suit the model.
    pub fn batch(&self, schedule: &Schedule, step: u64) -> Result<Batch, TrainError> {
        let Data::Phantom { first_seed, .. } = self.data;
        let noise = Philox::new(self.seed, step);
        let cases = self.size.div_ceil(SLICES_OF_A_CASE);
        let mut choice = vec![0.0_f32; 2 * self.size];
        noise.fill(0, 0, Draw::Latent(0), &mut choice);
        let (mut images, mut targets) = (Vec::new(), Vec::new());
        for case in 0..cases {
            let example =
                self.example(phantom(first_seed + step * cases as u64 + case as u64).into())?;
            let count = SLICES_OF_A_CASE.min(self.size - images.len());
            for _ in 0..count {
                let crop = example.choose(&choice[2 * images.len()..]);
                images.push(example.prepared.pixels(crop).index_axis(Axis(0), 0).to_owned());
                targets.push(one_hot(&example.label(crop), self.manifest.network.label_channels));
            }
        }
        let stack = |parts: &[Array3<f32>]| {
            let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
            ndarray::stack(Axis(0), &views).expect("slices share one shape")
        };
        Ok(self.noised(schedule, noise, stack(&images), stack(&targets)))
    }

    /// Draws t and the forward pair, x_t = a_cum\[t\]·x_0 + σ_cum\[t\]·ε, x_{t+1} = a\[t+1\]·x_t + σ\[t+1\]·ε'.
    fn noised(
        &self,
        schedule: &Schedule,
        noise: Philox,
        image: Array4<f32>,
        target: Array4<f32>,
    ) -> Batch {
        let mut x = target.clone();
        let mut z = Array2::zeros((self.size, self.manifest.network.latent));
        let mut t = Array1::zeros(self.size);
        let pixels = target.len() / self.size;
        let (mut first, mut second) = (vec![0.0; pixels], vec![0.0; pixels]);
        for (n, mut x) in x.axis_iter_mut(Axis(0)).enumerate() {
            let mut uniform = [0.0; 1];
            noise.fill(n, 1, Draw::Latent(0), &mut uniform);
            let step = unit(uniform[0], schedule.steps());
            t[n] = step as i64;
            noise.fill(n, 2, Draw::Start, &mut first);
            noise.fill(n, 3, Draw::Start, &mut second);
            for (x, (e, f)) in x.iter_mut().zip(first.iter().zip(&second)) {
                let at_t = schedule.a_cum[step] * *x + schedule.sigma_cum[step] * e;
                *x = schedule.a[step + 1] * at_t + schedule.sigma[step + 1] * f;
            }
            let mut row = z.row_mut(n);
            noise.fill(n, 4, Draw::Start, row.as_slice_mut().expect("fresh rows are contiguous"));
        }
        Batch { x, t, image, z, target }
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

    /// The cases that are validated on.
    ///
    /// # Errors
    /// If a case does not suit the model.
    pub fn validation(&self) -> Result<Vec<Example>, TrainError> {
        let Data::Phantom { validation_first_seed, validation_cases, .. } = self.data;
        (0..validation_cases)
            .map(|n| self.example(phantom(validation_first_seed + n).into()))
            .collect()
    }

    fn example(&self, (volume, truth): (Volume, Array3<u8>)) -> Result<Example, TrainError> {
        let prepared = bundle::prepare(&self.manifest, &volume)?;
        let labels = truth.view().insert_axis(Axis(0)).to_owned();
        let (oriented, _) = bundle::to_canonical(&self.manifest, &labels, volume.geometry.as_ref());
        let [d, h, w] = prepared.grid.working;
        let [a, b, c] = prepared.grid.offset;
        let mut working_truth = Array3::zeros((d, h, w));
        let (_, d, h, w) = oriented.dim();
        working_truth
            .slice_mut(s![a..a + d, b..b + h, c..c + w])
            .assign(&oriented.index_axis(Axis(0), 0));
        Ok(Example { volume, truth, prepared, working_truth })
    }
}

impl From<crate::phantom::Phantom> for (Volume, Array3<u8>) {
    fn from(phantom: crate::phantom::Phantom) -> Self {
        (phantom.volume, phantom.truth)
    }
}

impl Example {
    /// A crop by two normal numbers: five in six show the structure, where there is one.
    fn choose(&self, normals: &[f32]) -> bundle::Crop {
        let crops = &self.prepared.crops;
        let telling: Vec<_> =
            crops.iter().filter(|crop| self.label(**crop).iter().any(|&value| value > 0)).collect();
        if telling.is_empty() || unit(normals[1], 6) == 0 {
            crops[unit(normals[0], crops.len())]
        } else {
            *telling[unit(normals[0], telling.len())]
        }
    }

    /// [H, W] label values of a crop.
    fn label(&self, crop: bundle::Crop) -> ndarray::Array2<u8> {
        let [h, w] = self.prepared.size;
        self.working_truth
            .slice(s![crop.slice, crop.row..crop.row + h, crop.column..crop.column + w])
            .to_owned()
    }
}

/// -1 and 1 for each of `channels` label values, [L, H, W].
fn one_hot(label: &Array2<u8>, channels: usize) -> Array3<f32> {
    let (h, w) = label.dim();
    Array3::from_shape_fn((channels, h, w), |(channel, row, column)| {
        if usize::from(label[[row, column]]) == channel { 1.0 } else { -1.0 }
    })
}

/// A normal number to a uniform choice among `count`.
fn unit(normal: f32, count: usize) -> usize {
    let share = 0.5 * libm::erfc(-f64::from(normal) / std::f64::consts::SQRT_2);
    ((share * count as f64) as usize).min(count - 1)
}
