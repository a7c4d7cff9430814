//! Validation by the real sampler, with the network as it stands.

use ndarray::{Array1, Array4, ArrayView2, ArrayView4, Axis, concatenate};

use super::{Held, Inputs, TrainError, TrainingSession};
use crate::{
    bundle::{Assembly, Manifest},
    sampler::{Ballot, Denoiser, Philox, Schedule, Shape, Tally, sample},
    truth::metrics::Overlap,
};

/// Mean Dice of each label over the `cases` whose truth holds it; `None` where none does.
pub(super) fn mean_dice(
    session: &mut TrainingSession,
    manifest: &Manifest,
    schedule: &Schedule,
    cases: &[Held],
) -> Result<Vec<Option<f64>>, TrainError> {
    let mut of_label = vec![Vec::new(); manifest.labels.len()];
    for case in cases {
        let mask = segment(session, manifest, schedule, case)?;
        for (label, found) in manifest.labels.iter().zip(&mut of_label) {
            found.extend(Overlap::count(mask.view(), case.truth.view(), label.value).dice());
        }
    }
    let mean = |found: &Vec<f64>| found.iter().sum::<f64>() / found.len() as f64;
    Ok(of_label.iter().map(|found| (!found.is_empty()).then(|| mean(found))).collect())
}

/// The mask of a case by the network under training, on the case's own grid.
fn segment(
    session: &mut TrainingSession,
    manifest: &Manifest,
    schedule: &Schedule,
    case: &Held,
) -> Result<ndarray::Array3<u8>, TrainError> {
    const BATCH: usize = 16;
    let prepared = &case.prepared;
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
            let mut denoiser = UnderTraining { session, case };
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
    case: &'a Held,
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
        let prepared = &self.case.prepared;
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
