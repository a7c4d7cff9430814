//! Validation by the real sampler, with the network as it stands.

use ndarray::{Array1, Array4, ArrayView2, ArrayView4, Axis, concatenate};

use super::{Example, Inputs, TrainError, TrainingSession};
use crate::{
    bundle::{Assembly, Manifest},
    sampler::{Ballot, Denoiser, Philox, Schedule, Shape, Tally, sample},
};

/// Mean Dice of each label over `examples`.
pub(super) fn mean_dice(
    session: &mut TrainingSession,
    manifest: &Manifest,
    schedule: &Schedule,
    examples: &[Example],
) -> Result<Vec<f64>, TrainError> {
    let mut sums = vec![0.0; manifest.labels.len()];
    for example in examples {
        let mask = segment(session, manifest, schedule, example)?;
        for (label, sum) in sums.iter_mut().enumerate() {
            *sum += dice(&mask, &example.truth, label as u8 + 1);
        }
    }
    Ok(sums.iter().map(|sum| sum / examples.len().max(1) as f64).collect())
}

/// The mask of a case by the network under training, on the case's own grid.
fn segment(
    session: &mut TrainingSession,
    manifest: &Manifest,
    schedule: &Schedule,
    example: &Example,
) -> Result<ndarray::Array3<u8>, TrainError> {
    const BATCH: usize = 16;
    let prepared = &example.prepared;
    let [h, w] = prepared.size;
    let shape =
        Shape { label: [manifest.network.label_channels, h, w], latent: manifest.network.latent };
    let noise = Philox::new(0, prepared.case_key);
    let mut assembly = Assembly::new(shape.label[0], &prepared.grid);
    let numbers: Vec<usize> = (0..prepared.samples.len()).collect();
    for numbers in numbers.chunks(BATCH) {
        let mut tallies = vec![Tally::new(shape.label); numbers.len()];
        for vote in 0..manifest.votes {
            let ballots: Vec<_> = numbers.iter().map(|&image| Ballot { image, vote }).collect();
            let mut denoiser = UnderTraining { session, example };
            let x = sample(&mut denoiser, schedule, shape, &noise, &ballots, |_, _, _| ())?;
            for (tally, x0) in tallies.iter_mut().zip(x.axis_iter(Axis(0))) {
                tally.add(x0);
            }
        }
        for (&number, tally) in numbers.iter().zip(&tallies) {
            let crop = prepared.crops[prepared.samples[number].crop];
            assembly.add(crop, tally.mean().view(), tally.mask().view());
        }
    }
    Ok(assembly.finish(manifest, &prepared.grid).mask)
}

/// The eval graph as a denoiser: it sees the whole image each time, the condition is not shared.
struct UnderTraining<'a> {
    session: &'a mut TrainingSession,
    example: &'a Example,
}

impl Denoiser for UnderTraining<'_> {
    type Error = TrainError;

    fn denoise(
        &mut self,
        images: &[usize],
        step: usize,
        x: ArrayView4<'_, f32>,
        z: ArrayView2<'_, f32>,
    ) -> Result<Array4<f32>, TrainError> {
        let prepared = &self.example.prepared;
        let pixels: Vec<_> = images
            .iter()
            .map(|&image| prepared.pixels(prepared.crops[prepared.samples[image].crop]))
            .collect();
        let image = concatenate(Axis(0), &pixels).expect("crops share one shape");
        let t = Array1::from_elem(images.len(), step as i64);
        // Artifacts of earlier versions ask for a target as well.
        let inputs = Inputs::new()
            .floats("x", x)
            .integers("t", t.view())
            .floats("image", image.view())
            .floats("z", z)
            .floats("target", x);
        let predicted = self.session.evaluate(&inputs)?.take("x0")?;
        predicted.into_dimensionality().map_err(|e| TrainError::Runtime(e.to_string()))
    }
}

/// 2|A∩B| / (|A|+|B|) of one label; 1 where neither has it.
fn dice(a: &ndarray::Array3<u8>, b: &ndarray::Array3<u8>, label: u8) -> f64 {
    let (mut both, mut sum) = (0_u64, 0_u64);
    for (&a, &b) in a.iter().zip(b) {
        both += u64::from(a == label && b == label);
        sum += u64::from(a == label) + u64::from(b == label);
    }
    if sum == 0 { 1.0 } else { 2.0 * both as f64 / sum as f64 }
}
