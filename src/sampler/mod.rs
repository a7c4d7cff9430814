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

use ndarray::{Array2, Array4, ArrayView2, ArrayView4, ArrayViewMut4, Axis, Zip, s};

/// The generator with its condition features already computed: G(x_{t+1}, t, I, z) → x_0.
pub trait Denoiser {
    type Error;

    /// Predicts x_0 for a batch.
    ///
    /// * `images`: for each of the B entries the number of the image it belongs to.
    /// * `x`: x_{t+1} [B, L, H, W]; `step`: the time-step t; `z`: latents [B, nz].
    /// * `x0`: where the prediction [B, L, H, W] goes.
    ///
    /// # Errors
    /// Whatever stopped the network from running.
    fn denoise(
        &mut self,
        images: &[usize],
        step: usize,
        x: ArrayView4<'_, f32>,
        z: ArrayView2<'_, f32>,
        x0: ArrayViewMut4<'_, f32>,
    ) -> Result<(), Self::Error>;
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

/// Draws samples in buffers that it keeps: once the largest batch has been seen, no step allocates.
#[derive(Debug)]
pub struct Sampler {
    shape: Shape,
    /// Of each entry of the batch.
    images: Vec<usize>,
    /// [B, L, H, W]; a batch uses the first entries.
    x: Array4<f32>,
    x0: Array4<f32>,
    epsilon: Array4<f32>,
    /// [B, nz].
    z: Array2<f32>,
}

impl Sampler {
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let [channels, height, width] = shape.label;
        let empty = || Array4::zeros((0, channels, height, width));
        let z = Array2::zeros((0, shape.latent));
        Self { shape, images: Vec::new(), x: empty(), x0: empty(), epsilon: empty(), z }
    }

    /// Draws one sample x_0 in [-1, 1] for each ballot: [B, L, H, W].
    ///
    /// `observe` sees the prediction x_0 and the draw x of each time-step as they are made.
    ///
    /// # Errors
    /// The denoiser's.
    pub fn sample<D: Denoiser>(
        &mut self,
        denoiser: &mut D,
        schedule: &Schedule,
        noise: &dyn Noise,
        ballots: &[Ballot],
        mut observe: impl FnMut(usize, ArrayView4<'_, f32>, ArrayView4<'_, f32>),
    ) -> Result<ArrayView4<'_, f32>, D::Error> {
        self.make_room(ballots.len());
        self.images.clear();
        self.images.extend(ballots.iter().map(|ballot| ballot.image));
        let batch = ..ballots.len();
        let mut x = self.x.slice_mut(s![batch, .., .., ..]);
        let mut x0 = self.x0.slice_mut(s![batch, .., .., ..]);
        let mut epsilon = self.epsilon.slice_mut(s![batch, .., .., ..]);
        let mut z = self.z.slice_mut(s![batch, ..]);
        draw_all(noise, ballots, Draw::Start, x.view_mut());

        for step in (schedule.end..schedule.steps()).rev() {
            draw_all(noise, ballots, Draw::Latent(step), z.view_mut());
            denoiser.denoise(&self.images, step, x.view(), z.view(), x0.view_mut())?;
            let posterior = schedule.posterior[step];
            if step == schedule.end && step > 0 {
                x.assign(&x0);
            } else if step == 0 {
                Zip::from(&mut x).and(&x0).for_each(|x, &x0| {
                    *x = posterior.x0_weight * x0 + posterior.x_weight * *x;
                });
            } else {
                draw_all(noise, ballots, Draw::Posterior(step), epsilon.view_mut());
                let deviation = posterior.deviation();
                Zip::from(&mut x).and(&x0).and(&epsilon).for_each(|x, &x0, &epsilon| {
                    *x = posterior.x0_weight * x0 + posterior.x_weight * *x + deviation * epsilon;
                });
            }
            observe(step, x0.view(), x.view());
        }
        Ok(self.x.slice(s![batch, .., .., ..]))
    }

    fn make_room(&mut self, batch: usize) {
        if self.x.dim().0 < batch {
            let [channels, height, width] = self.shape.label;
            for buffer in [&mut self.x, &mut self.x0, &mut self.epsilon] {
                *buffer = Array4::zeros((batch, channels, height, width));
            }
            self.z = Array2::zeros((batch, self.shape.latent));
        }
    }
}

/// Draws one batch of samples, as [`Sampler::sample`], in buffers of its own.
///
/// # Errors
/// The denoiser's.
pub fn sample<D: Denoiser>(
    denoiser: &mut D,
    schedule: &Schedule,
    shape: Shape,
    noise: &dyn Noise,
    ballots: &[Ballot],
    observe: impl FnMut(usize, ArrayView4<'_, f32>, ArrayView4<'_, f32>),
) -> Result<Array4<f32>, D::Error> {
    let mut sampler = Sampler::new(shape);
    let drawn = sampler.sample(denoiser, schedule, noise, ballots, observe)?;
    Ok(drawn.to_owned())
}

fn draw_all<D: ndarray::RemoveAxis>(
    noise: &dyn Noise,
    ballots: &[Ballot],
    draw: Draw,
    mut out: ndarray::ArrayViewMut<'_, f32, D>,
) {
    for (ballot, mut row) in ballots.iter().zip(out.axis_iter_mut(Axis(0))) {
        let row = row.as_slice_mut().expect("the first entries of an array are contiguous");
        noise.fill(ballot.image, ballot.vote, draw, row);
    }
}
