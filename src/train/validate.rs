//! Validation by the real sampler, with the network as it stands.

use ndarray::{Array1, Array3, Array4, ArrayView2, ArrayView4, ArrayViewMut4, Axis, concatenate};

use super::{Held, Inputs, TrainError, TrainingSession, Validation};
use crate::{
    bundle::{Assembly, BundleError, Manifest, Plan, Windows},
    domain::{Segmentation, Volume},
    sampler::{Ballot, Denoiser, Philox, Schedule, Shape, Tally, sample},
    truth::metrics::Overlap,
};

/// Cases held back, and how thoroughly they are sampled.
#[derive(Debug, Clone)]
pub struct Validator {
    /// The model's, with the votes and windows of validation.
    manifest: Manifest,
    pub cases: Vec<Held>,
}

impl Validator {
    /// Without cases yet.
    pub(super) fn new(asked: &Validation, manifest: &Manifest) -> Self {
        let mut manifest = manifest.clone();
        manifest.votes = asked.votes.unwrap_or(manifest.votes);
        if let (Windows::Sliding { overlap, plan, .. }, Some(asked)) =
            (&mut manifest.windows, asked.overlap)
        {
            *overlap = asked;
            *plan = Plan::EachSliceOnce;
        }
        Self { manifest, cases: Vec::new() }
    }

    /// # Errors
    /// If the case does not suit the model.
    pub(super) fn hold(
        &self,
        name: String,
        volume: Volume,
        truth: Array3<u8>,
    ) -> Result<Held, BundleError> {
        Held::new(&self.manifest, name, volume, truth)
    }

    /// Mean Dice of each label over the cases whose truth holds it; `None` where none does. `see` is shown the
    /// segmentation of each case, by its number.
    pub(super) fn mean_dice(
        &self,
        session: &mut TrainingSession,
        schedule: &Schedule,
        mut see: impl FnMut(usize, &Held, &Segmentation) -> Result<(), TrainError>,
    ) -> Result<Vec<Option<f64>>, TrainError> {
        let labels = &self.manifest.labels;
        let mut of_label = vec![Vec::new(); labels.len()];
        for (number, case) in self.cases.iter().enumerate() {
            let found = segment(session, &self.manifest, schedule, case)?;
            for (label, of_label) in labels.iter().zip(&mut of_label) {
                let overlap = Overlap::count(found.mask.view(), case.truth.view(), label.value);
                of_label.extend(overlap.dice());
            }
            see(number, case, &found)?;
        }
        let mean = |found: &Vec<f64>| found.iter().sum::<f64>() / found.len() as f64;
        Ok(of_label.iter().map(|found| (!found.is_empty()).then(|| mean(found))).collect())
    }
}

/// Pixels of x that one call of the eval graph takes at most.
const BATCH_PIXELS: usize = 32 * 1024;

/// A case by the network under training, on the case's own grid.
fn segment(
    session: &mut TrainingSession,
    manifest: &Manifest,
    schedule: &Schedule,
    case: &Held,
) -> Result<Segmentation, TrainError> {
    let prepared = &case.prepared;
    let [h, w] = prepared.size;
    let batch = (BATCH_PIXELS / (h * w)).max(1);
    let shape =
        Shape { label: [manifest.network.label_channels, h, w], latent: manifest.network.latent };
    let noise = Philox::new(0, prepared.case_key);
    let mut assembly = Assembly::new(shape.label[0], &prepared.grid);
    let numbers: Vec<usize> = (0..prepared.samples.len()).collect();
    for numbers in numbers.chunks(batch) {
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
    Ok(assembly.finish(manifest, &prepared.grid))
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
        mut x0: ArrayViewMut4<'_, f32>,
    ) -> Result<(), TrainError> {
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
        let predicted: Array4<f32> =
            predicted.into_dimensionality().map_err(|e| TrainError::Runtime(e.to_string()))?;
        x0.assign(&predicted);
        Ok(())
    }
}
