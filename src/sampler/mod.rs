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
pub use stopping::{Agreement, Stopping, Turnovers, Voice, reachable, upset};
pub use votes::Tally;

use ndarray::{
    Array2, Array4, ArrayView2, ArrayView4, ArrayViewMut, ArrayViewMut4, Dimension, Zip, s,
};

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

/// Normal numbers from which on it is worth to wake other threads for them: what a GPU's batches take, and no CPU's.
const WORTH_THREADS: usize = 128 * 1024;

/// Draws samples in buffers that it keeps: once the largest batch has been seen, no step allocates.
#[derive(Debug)]
pub struct Sampler {
    shape: Shape,
    /// That draw the noise of a large batch.
    threads: usize,
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
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { shape, threads, images: Vec::new(), x: empty(), x0: empty(), epsilon: empty(), z }
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
        let draw_all = |draw, out: &mut [f32]| draw_all(noise, ballots, draw, out, self.threads);
        draw_all(Draw::Start, values(&mut x));

        for step in (schedule.end..schedule.steps()).rev() {
            draw_all(Draw::Latent(step), values(&mut z));
            denoiser.denoise(&self.images, step, x.view(), z.view(), x0.view_mut())?;
            let posterior = schedule.posterior[step];
            if step == schedule.end && step > 0 {
                x.assign(&x0);
            } else if step == 0 {
                Zip::from(&mut x).and(&x0).for_each(|x, &x0| {
                    *x = posterior.x0_weight * x0 + posterior.x_weight * *x;
                });
            } else {
                draw_all(Draw::Posterior(step), values(&mut epsilon));
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

/// Fills `out`, a row for each ballot. What is drawn is the same whoever draws it.
fn draw_all(noise: &dyn Noise, ballots: &[Ballot], draw: Draw, out: &mut [f32], threads: usize) {
    if out.is_empty() {
        return;
    }
    let each = out.len() / ballots.len();
    let fill = |ballots: &[Ballot], rows: &mut [f32]| {
        for (ballot, row) in ballots.iter().zip(rows.chunks_exact_mut(each)) {
            noise.fill(ballot.image, ballot.vote, draw, row);
        }
    };
    if out.len() < WORTH_THREADS || threads == 1 {
        return fill(ballots, out);
    }
    let share = ballots.len().div_ceil(threads);
    std::thread::scope(|scope| {
        for (ballots, rows) in ballots.chunks(share).zip(out.chunks_mut(share * each)) {
            scope.spawn(move || fill(ballots, rows));
        }
    });
}

fn values<'a, D: Dimension>(rows: &'a mut ArrayViewMut<'_, f32, D>) -> &'a mut [f32] {
    rows.as_slice_mut().expect("the first entries of an array are contiguous")
}
