use ndarray::{Array4, Axis};
use safetensors::SafeTensors;

use super::{RecordedNoise, SegmenterError, interface, recorded::tensor};
use crate::{
    bundle::Bundle,
    engine::{Device, EngineError, Generator},
    sampler::{Ballot, Denoiser, Sampler, Shape, Tally},
};

/// Runs the bundle's golden case: recorded image and noise must give the recorded mean of votes.
pub(super) fn prove(bundle: &Bundle, device: &Device<Generator>) -> Result<f32, SegmenterError> {
    let manifest = &bundle.manifest;
    let tolerance = manifest.golden.as_ref().map_or(0.0, |golden| golden.tolerance);
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
        let features = generator.condition(image.view())?;
        generator.guide(features.view(), &[0])?;
        let mut denoiser = OneImage(generator);
        let mut tally = Tally::new(shape.label);
        let mut sampler = Sampler::new(shape);
        let ballots: Vec<_> = (0..votes).map(|vote| Ballot { image: 0, vote }).collect();
        let noise = noise.view();
        for ballots in ballots.chunks(interface.batch()) {
            let x = sampler.sample(&mut denoiser, &schedule, &noise, ballots, |_, _, _| ())?;
            x.axis_iter(Axis(0)).for_each(|x0| tally.add(x0));
        }
        Ok::<_, EngineError>(tally.mean())
    })??;
    let difference = mean
        .iter()
        .zip(&expected.index_axis(Axis(0), 0))
        .fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs()));
    if difference <= tolerance {
        Ok(difference)
    } else {
        Err(SegmenterError::Golden { bundle: manifest.name.clone(), difference, tolerance })
    }
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
