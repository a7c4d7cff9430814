//! Slices as they might have been acquired: turned, scaled, shifted, brighter or darker, noisier.

use ndarray::{Array2, Array3, ArrayView2, Axis};

use super::{
    Augmentation, Example,
    draws::{AUGMENT, GRAIN, uniforms},
};
use crate::{
    bundle::Crop,
    sampler::{Draw, Noise, Philox},
};

/// Image [C, H, W] and label values [H, W] of a crop under draw `number` of a step's noise.
///
/// Image and label move together: the image is interpolated linearly, the label takes the nearest value.
/// What comes from outside the working grid is its corner's value, the padding, and background.
pub(super) fn augment(
    by: &Augmentation,
    example: &Example,
    crop: Crop,
    noise: Philox,
    number: usize,
) -> (Array3<f32>, Array2<u8>) {
    let drawn: [f64; 5] = uniforms(noise, number, AUGMENT);
    let [turn, zoom, down, right, gamma] = drawn.map(|uniform| (2.0 * uniform - 1.0) as f32);
    let (sine, cosine) = (turn * by.rotation_degrees.to_radians()).sin_cos();
    let zoom = 1.0 / (1.0 + zoom * by.scale);
    let [height, width] = example.prepared.size;
    let middle = [(height - 1) as f32 / 2.0, (width - 1) as f32 / 2.0];
    let source = |row: usize, column: usize| {
        let (y, x) = (row as f32 - middle[0], column as f32 - middle[1]);
        [
            crop.row as f32 + middle[0] + zoom * (cosine * y - sine * x) + down * by.shift_pixels,
            crop.column as f32
                + middle[1]
                + zoom * (sine * y + cosine * x)
                + right * by.shift_pixels,
        ]
    };
    let channels = example.prepared.working.dim().0;
    let mut image = Array3::zeros((channels, height, width));
    for (channel, mut out) in image.axis_iter_mut(Axis(0)).enumerate() {
        let plane = example.prepared.working.index_axis(Axis(0), channel);
        let plane = plane.index_axis(Axis(0), crop.slice);
        for ((row, column), value) in out.indexed_iter_mut() {
            *value = linear(plane, source(row, column));
        }
    }
    let truth = example.working_truth.index_axis(Axis(0), crop.slice);
    let label =
        Array2::from_shape_fn((height, width), |(row, column)| nearest(truth, source(row, column)));

    if by.gamma > 0.0 {
        // On the range of the image itself, so that any normalisation keeps its ends.
        let (low, high) = image
            .iter()
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
        let span = (high - low).max(1e-6);
        let power = (gamma * by.gamma).exp();
        image.mapv_inplace(|v| low + span * ((v - low) / span).powf(power));
    }
    if by.noise > 0.0 {
        let mut grain = vec![0.0; image.len()];
        noise.fill(number, GRAIN, Draw::Start, &mut grain);
        for (value, grain) in image.iter_mut().zip(grain) {
            *value += by.noise * grain;
        }
    }
    (image, label)
}

fn linear(plane: ArrayView2<'_, f32>, [y, x]: [f32; 2]) -> f32 {
    let (rows, columns) = plane.dim();
    let (top, left) = (y.floor(), x.floor());
    let (down, right) = (y - top, x - left);
    let outside = plane[[0, 0]];
    let at = |row: f32, column: f32| {
        let inside = row >= 0.0 && column >= 0.0 && row < rows as f32 && column < columns as f32;
        if inside { plane[[row as usize, column as usize]] } else { outside }
    };
    let upper = at(top, left) * (1.0 - right) + at(top, left + 1.0) * right;
    let lower = at(top + 1.0, left) * (1.0 - right) + at(top + 1.0, left + 1.0) * right;
    upper * (1.0 - down) + lower * down
}

fn nearest(plane: ArrayView2<'_, u8>, [y, x]: [f32; 2]) -> u8 {
    let (rows, columns) = plane.dim();
    let (row, column) = (y.round(), x.round());
    let inside = row >= 0.0 && column >= 0.0 && row < rows as f32 && column < columns as f32;
    if inside { plane[[row as usize, column as usize]] } else { 0 }
}
