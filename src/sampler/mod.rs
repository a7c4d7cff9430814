//! The few-step sampler: schedule, posterior, noise, votes.
//!
//! Pure arithmetic over a [`Denoiser`]; it knows no runtime, no bundle and no file. Called by `segmenter`
//! for masks and by `train` for validation. What is drawn is fixed by the [`Noise`] given, bit for bit.

mod noise;
mod schedule;
mod stopping;
mod votes;

pub use noise::{Draw, Noise, Philox, Recorded};
pub use schedule::{Posterior, Schedule, Variance};
pub use stopping::{Agreement, Stopping, reachable};
pub use votes::Tally;

use ndarray::{Array2, Array4, ArrayView2, ArrayView4, Axis, Zip};

/// The generator with its condition features already computed: G(x_{t+1}, t, I, z) → x_0.
pub trait Denoiser {
    type Error;

    /// Predicts x_0 [B, L, H, W] for a batch.
    ///
    /// * `images`: for each of the B entries the number of the image it belongs to.
    /// * `x`: x_{t+1} [B, L, H, W]; `step`: the time-step t; `z`: latents [B, nz].
    ///
    /// # Errors
    /// Whatever stopped the network from running.
    fn denoise(
        &mut self,
        images: &[usize],
        step: usize,
        x: ArrayView4<'_, f32>,
        z: ArrayView2<'_, f32>,
    ) -> Result<Array4<f32>, Self::Error>;
}

/// One independent sample to draw: vote number `vote` on image number `image`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ballot {
    pub image: usize,
    pub vote: usize,
}

/// Shape of what is sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// [L, H, W] of x.
    pub label: [usize; 3],
    /// nz.
    pub latent: usize,
}

/// Draws one sample x_0 in [-1, 1] for each ballot: [B, L, H, W].
///
/// `observe` sees the prediction x_0 and the draw x of each time-step as they are made.
///
/// # Errors
/// The denoiser's.
pub fn sample<D: Denoiser>(
    denoiser: &mut D,
    schedule: &Schedule,
    shape: Shape,
    noise: &dyn Noise,
    ballots: &[Ballot],
    mut observe: impl FnMut(usize, &Array4<f32>, &Array4<f32>),
) -> Result<Array4<f32>, D::Error> {
    let [channels, height, width] = shape.label;
    let images: Vec<usize> = ballots.iter().map(|ballot| ballot.image).collect();
    let mut x = Array4::zeros((ballots.len(), channels, height, width));
    let mut epsilon = Array4::zeros(x.raw_dim());
    let mut z = Array2::zeros((ballots.len(), shape.latent));
    draw_all(noise, ballots, Draw::Start, &mut x);

    for step in (schedule.end..schedule.steps()).rev() {
        draw_all(noise, ballots, Draw::Latent(step), &mut z);
        let x0 = denoiser.denoise(&images, step, x.view(), z.view())?;
        let posterior = schedule.posterior[step];
        if step == schedule.end && step > 0 {
            x.assign(&x0);
        } else if step == 0 {
            Zip::from(&mut x).and(&x0).for_each(|x, &x0| {
                *x = posterior.x0_weight * x0 + posterior.x_weight * *x;
            });
        } else {
            draw_all(noise, ballots, Draw::Posterior(step), &mut epsilon);
            let deviation = posterior.deviation();
            Zip::from(&mut x).and(&x0).and(&epsilon).for_each(|x, &x0, &epsilon| {
                *x = posterior.x0_weight * x0 + posterior.x_weight * *x + deviation * epsilon;
            });
        }
        observe(step, &x0, &x);
    }
    Ok(x)
}

fn draw_all<D: ndarray::RemoveAxis>(
    noise: &dyn Noise,
    ballots: &[Ballot],
    draw: Draw,
    out: &mut ndarray::Array<f32, D>,
) {
    for (ballot, mut row) in ballots.iter().zip(out.axis_iter_mut(Axis(0))) {
        let row = row.as_slice_mut().expect("a fresh array is contiguous");
        noise.fill(ballot.image, ballot.vote, draw, row);
    }
}
