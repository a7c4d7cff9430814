//! Random numbers of a step, each addressed by what it is for.

use crate::sampler::{Draw, Noise, Philox};

/// What uniform draws of a step are for.
pub(super) const CASE: usize = 8;
pub(super) const SLICE: usize = 9;
pub(super) const AUGMENT: usize = 11;
pub(super) const GRAIN: usize = 12;
pub(super) const PLACE: usize = 16;
pub(super) const SHAPE: usize = 17;
pub(super) const LIGHT: usize = 18;
pub(super) const BIAS: usize = 19;
/// Displacements along rows and columns.
pub(super) const BEND: [usize; 2] = [20, 21];

/// The draws of a forward pair and of the latent that goes with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct PairDraws {
    pub time: usize,
    /// ε of x_t and ε' of x_{t+1}.
    pub noise: [usize; 2],
    pub latent: usize,
}

/// The generator's pair.
pub(super) const GENERATOR: PairDraws = PairDraws { time: 10, noise: [2, 3], latent: 4 };
/// The discriminator's.
pub(super) const DISCRIMINATOR: PairDraws = PairDraws { time: 32, noise: [33, 34], latent: 35 };
/// Posterior noise of what the discriminator is to tell from the real.
pub(super) const FAKE: usize = 36;
/// Noise of the pair of the attended label.
pub(super) const ATTENDED: [usize; 2] = [37, 38];
/// Posterior noise of the adversarial term in the generator's loss.
pub(super) const TERM: usize = 39;

/// Uniform numbers in (0, 1) for slice `number` of a step.
pub(super) fn uniforms<const N: usize>(noise: Philox, number: usize, purpose: usize) -> [f64; N] {
    let mut normals = [0.0_f32; N];
    noise.fill(number, purpose, Draw::Start, &mut normals);
    normals.map(|normal| 0.5 * libm::erfc(-f64::from(normal) / std::f64::consts::SQRT_2))
}

/// A uniform number to one of `count`.
pub(super) fn index(uniform: f64, count: usize) -> usize {
    ((uniform * count as f64) as usize).min(count - 1)
}
