use ndarray::{Array4, Axis};
use safetensors::SafeTensors;

use super::{RecordedNoise, SegmenterError, interface, recorded::tensor};
use crate::{
    bundle::{Bundle, Variant},
    engine::{Device, EngineError, Generator},
    sampler::{Ballot, Denoiser, Sampler, Shape, Tally},
};

/// Runs the bundle's golden case: recorded image and noise must give the recorded mean of votes. Returns the largest
/// difference.
pub(super) fn prove(bundle: &Bundle, device: &Device<Generator>) -> Result<f32, SegmenterError> {
    let manifest = &bundle.manifest;
    let tolerance = manifest.golden.as_ref().map_or(0.0, |golden| golden.tolerance);
    let Difference { largest: difference, .. } = run(bundle, device)?;
    if difference <= tolerance {
        Ok(difference)
    } else {
        Err(SegmenterError::Golden { bundle: manifest.name.clone(), difference, tolerance })
    }
}

/// A variant must come as near to the record as it did when it was admitted; machines round 8-bit sums differently, and
/// some saturate them. Returns the root mean square difference.
pub(super) fn prove_variant(
    bundle: &Bundle,
    variant: &Variant,
    device: &Device<Generator>,
) -> Result<f32, SegmenterError> {
    let tolerance = 1.5 * variant.golden_rms + 1e-3;
    let Difference { rms: difference, .. } = run(bundle, device)?;
    if difference <= tolerance {
        Ok(difference)
    } else {
        let bundle = format!("{} in {}", bundle.manifest.name, variant.precision.name());
        Err(SegmenterError::Golden { bundle, difference, tolerance })
    }
}

/// Of the mean of votes from the record.
struct Difference {
    largest: f32,
    rms: f32,
}

fn run(bundle: &Bundle, device: &Device<Generator>) -> Result<Difference, SegmenterError> {
    let manifest = &bundle.manifest;
    let damaged = |reason: String| SegmenterError::Noise(format!("golden case: {reason}"));
    let file = SafeTensors::deserialize(&bundle.golden).map_err(|e| damaged(e.to_string()))?;
    let noise = RecordedNoise {
        x_init: tensor(&file, "x_init", "[V, L, H, W]").map_err(damaged)?,
        z: tensor(&file, "z", "[T, V, nz]").map_err(damaged)?,
        noise: tensor(&file, "noise", "[T, V, L, H, W]").map_err(damaged)?,
    };
    let image: Array4<f32> = tensor(&file, "image", "[1, C, H, W]").map_err(damaged)?;
    let expected: Array4<f32> = tensor(&file, "mean", "[1, L, H, W]").map_err(damaged)?;
    let votes = noise.votes();
    let interface = interface(manifest);
    noise.check(&interface, manifest.diffusion.steps, votes)?;
    let [c, h, w] = interface.image;
    let [l, ..] = interface.label();
    if image.shape() != [1, c, h, w] || expected.shape() != [1, l, h, w] {
        return Err(damaged("image or mean has another shape than the bundle".into()));
    }

    let schedule = manifest.diffusion.schedule();
    let shape = Shape { label: interface.label(), latent: interface.latent };
    let mean = device.run(move |generator| {
        let batch = generator.batch();
        let features = generator.condition(image.view())?;
        generator.guide(features.view(), &[0])?;
        let mut denoiser = OneImage(generator);
        let mut tally = Tally::new(shape.label);
        let mut sampler = Sampler::new(shape);
        let ballots: Vec<_> = (0..votes).map(|vote| Ballot { image: 0, vote }).collect();
        let noise = noise.view();
        for ballots in ballots.chunks(batch) {
            let x = sampler.sample(&mut denoiser, &schedule, &noise, ballots, |_, _, _| ())?;
            x.axis_iter(Axis(0)).for_each(|x0| tally.add(x0));
        }
        Ok::<_, EngineError>(tally.mean())
    })??;
    let (mut largest, mut squares) = (0.0_f32, 0.0);
    for (found, recorded) in mean.iter().zip(&expected) {
        let difference = (found - recorded).abs();
        largest = largest.max(difference);
        squares += f64::from(difference).powi(2);
    }
    Ok(Difference { largest, rms: (squares / expected.len() as f64).sqrt() as f32 })
}

/// The generator bound to one image.
struct OneImage<'a>(&'a mut Generator);

impl Denoiser for OneImage<'_> {
    type Error = EngineError;

    fn denoise(
        &mut self,
        _images: &[usize],
        step: usize,
        x: ndarray::ArrayView4<'_, f32>,
        z: ndarray::ArrayView2<'_, f32>,
        x0: ndarray::ArrayViewMut4<'_, f32>,
    ) -> Result<(), Self::Error> {
        self.0.denoise(step, x, z, x0)
    }
}
