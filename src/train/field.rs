//! Smooth random fields: uniform cubic B-splines over normally distributed control points.

use ndarray::{Array2, Axis};

use crate::sampler::{Draw, Noise, Philox};

/// ∫ of the squared cubic B-spline: the variance of a spline over control points of variance 1, averaged.
const SPLINE_POWER: f32 = 151.0 / 315.0;

/// A field [H, W] of mean 0 and variance 1 that bends over `spacing` pixels; drawn by `number` and `purpose`.
pub(super) fn smooth_field(
    noise: Philox,
    number: usize,
    purpose: usize,
    [height, width]: [usize; 2],
    spacing: f32,
) -> Array2<f32> {
    let (rows, columns) = (Taps::over(height, spacing), Taps::over(width, spacing));
    let mut control = Array2::zeros((rows.points, columns.points));
    let drawn = control.as_slice_mut().expect("a fresh array is contiguous");
    noise.fill(number, purpose, Draw::Start, drawn);
    // One factor for each axis.
    control /= SPLINE_POWER;

    let mut field = Array2::zeros((height, width));
    for (&(row, down), mut line) in rows.of.iter().zip(field.outer_iter_mut()) {
        let mut across = control.row(row).mapv(|value| value * down[0]);
        for (tap, &weight) in down.iter().enumerate().skip(1) {
            across.scaled_add(weight, &control.index_axis(Axis(0), row + tap));
        }
        let across = across.as_slice().expect("a fresh array is contiguous");
        for (&(column, right), value) in columns.of.iter().zip(line.iter_mut()) {
            let near = &across[column..column + 4];
            *value = right.iter().zip(near).map(|(weight, value)| weight * value).sum();
        }
    }
    field
}

/// Which control points bear on each pixel of an axis.
struct Taps {
    /// Control points of the axis.
    points: usize,
    /// For each pixel the first of its four control points and their weights.
    of: Vec<(usize, [f32; 4])>,
}

impl Taps {
    fn over(length: usize, spacing: f32) -> Self {
        let of: Vec<(usize, [f32; 4])> = (0..length)
            .map(|pixel| {
                let at = pixel as f32 / spacing;
                let t = at.fract();
                let u = 1.0 - t;
                let weights = [
                    u * u * u,
                    3.0 * t * t * t - 6.0 * t * t + 4.0,
                    3.0 * u * u * u - 6.0 * u * u + 4.0,
                    t * t * t,
                ];
                (at as usize, weights.map(|weight| weight / 6.0))
            })
            .collect();
        Self { points: of.last().map_or(0, |last| last.0 + 4), of }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_smooth_has_variance_one_and_its_own_draw() {
        let field = |number| smooth_field(Philox::new(3, 4), number, 22, [90, 130], 9.0);
        let mut power = 0.0;
        for number in 0..20 {
            let field = field(number);
            power += field.mapv(|v| v * v).mean().unwrap() / 20.0;
            let steepest = field
                .windows((1, 2))
                .into_iter()
                .map(|two| (two[[0, 0]] - two[[0, 1]]).abs())
                .fold(0.0, f32::max);
            assert!(steepest < 0.6, "{steepest}");
        }
        assert!((power - 1.0).abs() < 0.1, "{power}");
        assert_ne!(field(0), field(1));
        assert_eq!(field(0), field(0));
    }

    #[test]
    fn weights_of_every_pixel_sum_to_one() {
        for (_, weights) in Taps::over(40, 7.3).of {
            assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }
}
