//! The forward process and its posterior on batches, under the addressed draws of a step.

use ndarray::{Array, Array1, Array4, Axis, RemoveAxis, ShapeBuilder, Zip};

use super::draws::{PairDraws, index, uniforms};
use crate::sampler::{Draw, Noise, Philox, Schedule};

/// Noised labels at neighbouring time-steps.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pair {
    /// [N].
    pub t: Array1<i64>,
    /// [N, L, H, W].
    pub x_t: Array4<f32>,
    /// [N, L, H, W].
    pub x_tp1: Array4<f32>,
}

/// q(x_t | x_{t+1}, x_0) for predictions x_0 to come: x_pos = `x0_weight`·x_0 + `rest`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PosteriorDraw {
    /// [N, 1, 1, 1].
    pub x0_weight: Array4<f32>,
    /// The rest of the mean, and the noise: [N, L, H, W].
    pub rest: Array4<f32>,
}

impl PosteriorDraw {
    pub fn of(self, x0: &Array4<f32>) -> Array4<f32> {
        self.rest + self.x0_weight * x0
    }
}

/// A pair of `label` at time-steps drawn for each slice.
pub(super) fn pair(
    schedule: &Schedule,
    noise: Philox,
    draws: PairDraws,
    label: &Array4<f32>,
) -> Pair {
    let times = (0..label.dim().0).map(|n| {
        let [uniform] = uniforms(noise, n, draws.time);
        index(uniform, schedule.steps()) as i64
    });
    pair_at(schedule, noise, draws.noise, times.collect(), label)
}

/// x_t = a_cum\[t\]·x_0 + σ_cum\[t\]·ε, x_{t+1} = a\[t+1\]·x_t + σ\[t+1\]·ε'.
pub(super) fn pair_at(
    schedule: &Schedule,
    noise: Philox,
    [first, second]: [usize; 2],
    t: Array1<i64>,
    label: &Array4<f32>,
) -> Pair {
    let (mut x_t, mut x_tp1) =
        (normals(noise, first, label.dim()), normals(noise, second, label.dim()));
    for (n, &t) in t.iter().enumerate() {
        let t = t as usize;
        Zip::from(x_t.index_axis_mut(Axis(0), n))
            .and(x_tp1.index_axis_mut(Axis(0), n))
            .and(label.index_axis(Axis(0), n))
            .for_each(|x_t, x_tp1, x0| {
                *x_t = schedule.a_cum[t] * x0 + schedule.sigma_cum[t] * *x_t;
                *x_tp1 = schedule.a[t + 1] * *x_t + schedule.sigma[t + 1] * *x_tp1;
            });
    }
    Pair { t, x_t, x_tp1 }
}

/// A draw from the posterior of each slice; without noise at t = 0, as when sampling.
pub(super) fn posterior(
    schedule: &Schedule,
    noise: Philox,
    purpose: usize,
    t: &Array1<i64>,
    x_tp1: &Array4<f32>,
) -> PosteriorDraw {
    let mut x0_weight = Array4::zeros((t.len(), 1, 1, 1));
    let mut rest = normals(noise, purpose, x_tp1.dim());
    for (n, &t) in t.iter().enumerate() {
        let posterior = schedule.posterior[t as usize];
        x0_weight[[n, 0, 0, 0]] = posterior.x0_weight;
        let deviation = if t == 0 { 0.0 } else { posterior.deviation() };
        Zip::from(rest.index_axis_mut(Axis(0), n))
            .and(x_tp1.index_axis(Axis(0), n))
            .for_each(|rest, x| *rest = posterior.x_weight * x + deviation * *rest);
    }
    PosteriorDraw { x0_weight, rest }
}

/// Standard normal numbers, drawn for each entry of the first axis by its number.
pub(super) fn normals<D: RemoveAxis>(
    noise: Philox,
    purpose: usize,
    shape: impl ShapeBuilder<Dim = D>,
) -> Array<f32, D> {
    let mut drawn = Array::zeros(shape);
    for (n, mut entry) in drawn.axis_iter_mut(Axis(0)).enumerate() {
        let entry = entry.as_slice_mut().expect("a fresh array is contiguous");
        noise.fill(n, purpose, Draw::Start, entry);
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::Variance;

    #[test]
    fn a_pair_and_its_posterior_are_those_of_the_schedule() {
        let schedule = Schedule::new(4, Variance::Preserving { beta_min: 0.1, beta_max: 20.0 });
        let noise = Philox::new(3, 5);
        let label =
            Array4::from_shape_fn((8, 1, 4, 4), |(n, _, y, x)| (n + y * x) as f32 / 8.0 - 1.0);
        let drawn = pair(&schedule, noise, crate::train::draws::DISCRIMINATOR, &label);
        assert!(drawn.t.iter().any(|&t| t == 0) && drawn.t.iter().any(|&t| t > 1), "{}", drawn.t);

        // At t = 0 the label is as yet without noise, and the posterior adds none.
        let x0 = Array4::from_elem(label.dim(), 0.5);
        let x_pos = posterior(&schedule, noise, 36, &drawn.t, &drawn.x_tp1).of(&x0);
        let epsilon = normals(noise, 36, label.dim());
        for (n, &t) in drawn.t.iter().enumerate() {
            let posterior = schedule.posterior[t as usize];
            for (at, &x_t) in drawn.x_t.index_axis(Axis(0), n).indexed_iter() {
                let at = (n, at.0, at.1, at.2);
                if t == 0 {
                    assert!((x_t - label[at]).abs() < 1e-3, "{x_t} {}", label[at]);
                }
                let noise = if t == 0 { 0.0 } else { epsilon[at] };
                let mean = posterior.x0_weight * x0[at] + posterior.x_weight * drawn.x_tp1[at];
                assert!((x_pos[at] - mean - posterior.deviation() * noise).abs() < 1e-5);
            }
        }
        assert_eq!(drawn, pair(&schedule, noise, crate::train::draws::DISCRIMINATOR, &label));
    }
}
