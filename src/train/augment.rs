//! Slices as they might have been acquired: turned, bent, scaled, shifted, brighter or darker, noisier.

use ndarray::{Array2, Array3, Axis};

use super::{
    Augmentation, Crops, Example,
    draws::{AUGMENT, BEND, BIAS, GRAIN, LIGHT, PLACE, SHAPE, index, uniforms},
    field::smooth_field,
};
use crate::{
    bundle::Crop,
    sampler::{Draw, Noise, Philox},
};

/// Image [C, H, W] and label values [H, W] of a crop under draw `number` of a step's noise.
///
/// Image and label move together: the image is interpolated linearly, the label takes the value with the largest
/// share of the same four pixels. Beyond the working grid its edge goes on.
pub(super) fn augment(
    by: &Augmentation,
    example: &Example,
    crop: Crop,
    noise: Philox,
    number: usize,
) -> (Array3<f32>, Array2<u8>) {
    let crop = match by.crops {
        Crops::Windows => crop,
        Crops::Anywhere => anywhere(example, crop, noise, number),
    };
    let (mut image, label) = warp(by, example, crop, noise, number);
    relight(by, &mut image, noise, number);
    if by.noise > 0.0 {
        let mut grain = vec![0.0; image.len()];
        noise.fill(number, GRAIN, Draw::Start, &mut grain);
        for (value, grain) in image.iter_mut().zip(grain) {
            *value += by.noise * grain;
        }
    }
    (image, label)
}

/// The crop's slice from any corner.
fn anywhere(example: &Example, crop: Crop, noise: Philox, number: usize) -> Crop {
    let [down, right] = uniforms(noise, number, PLACE);
    let [_, rows, columns] = example.prepared.grid.working;
    let [height, width] = example.prepared.size;
    Crop { row: index(down, rows - height + 1), column: index(right, columns - width + 1), ..crop }
}

/// Uniform draws in (-1, 1).
fn signed<const N: usize>(noise: Philox, number: usize, purpose: usize) -> [f32; N] {
    uniforms(noise, number, purpose).map(|uniform| (2.0 * uniform - 1.0) as f32)
}

fn warp(
    by: &Augmentation,
    example: &Example,
    crop: Crop,
    noise: Philox,
    number: usize,
) -> (Array3<f32>, Array2<u8>) {
    let [turn, zoom, down, right, _] = signed(noise, number, AUGMENT);
    let [tall, wide, flip_rows, flip_columns] = signed(noise, number, SHAPE);
    let (sine, cosine) = (turn * by.rotation_degrees.to_radians()).sin_cos();
    let zoom = 1.0 / (1.0 + zoom * by.scale);
    let mirror = |is_on: bool, drawn: f32| if is_on && drawn < 0.0 { -1.0 } else { 1.0 };
    let tall = zoom / (1.0 + tall * by.stretch) * mirror(by.flip_rows, flip_rows);
    let wide = zoom / (1.0 + wide * by.stretch) * mirror(by.flip_columns, flip_columns);
    let size = example.prepared.size;
    let bend = (by.elastic_pixels > 0.0).then(|| {
        let field = |purpose| smooth_field(noise, number, purpose, size, by.elastic_spacing);
        BEND.map(field)
    });
    let middle = size.map(|side| (side - 1) as f32 / 2.0);
    let start = [
        crop.row as f32 + middle[0] + down * by.shift_pixels,
        crop.column as f32 + middle[1] + right * by.shift_pixels,
    ];
    let source = |row: usize, column: usize| {
        let (mut y, mut x) = (row as f32 - middle[0], column as f32 - middle[1]);
        if let Some([down, right]) = &bend {
            y += by.elastic_pixels * down[[row, column]];
            x += by.elastic_pixels * right[[row, column]];
        }
        [start[0] + tall * (cosine * y - sine * x), start[1] + wide * (sine * y + cosine * x)]
    };

    let slice = example.prepared.working.index_axis(Axis(1), crop.slice);
    let truth = example.working_truth.index_axis(Axis(0), crop.slice);
    let truth = truth.to_slice().expect("a truth is laid on a fresh grid");
    let (channels, rows, columns) = slice.dim();
    let mut image = Array3::zeros((channels, size[0], size[1]));
    let mut label = Array2::zeros(size);
    for ((row, column), label) in label.indexed_iter_mut() {
        let tap = Tap::at(source(row, column), [rows, columns]);
        *label = tap.largest_share(truth);
        for channel in 0..channels {
            let [a, b, c, d] = tap.corners;
            let value = |at: usize| slice[[channel, at / columns, at % columns]];
            let [upper, lower] =
                [[a, b], [c, d]].map(|[l, r]| value(l) + tap.right * (value(r) - value(l)));
            image[[channel, row, column]] = upper + tap.down * (lower - upper);
        }
    }
    (image, label)
}

/// The four pixels around a place in a plane, and how far towards the lower and the right ones it lies.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Tap {
    /// Positions in the plane, row by row: upper left, upper right, lower left, lower right.
    corners: [usize; 4],
    down: f32,
    right: f32,
}

impl Tap {
    fn at([y, x]: [f32; 2], [rows, columns]: [usize; 2]) -> Self {
        let (y, x) = (y.clamp(0.0, (rows - 1) as f32), x.clamp(0.0, (columns - 1) as f32));
        let (top, left) = (y as usize, x as usize);
        let (bottom, beside) = ((top + 1).min(rows - 1), (left + 1).min(columns - 1));
        let at = |row: usize, column: usize| row * columns + column;
        Self {
            corners: [at(top, left), at(top, beside), at(bottom, left), at(bottom, beside)],
            down: y - top as f32,
            right: x - left as f32,
        }
    }

    /// The label value whose one-hot channel, interpolated linearly, is the largest.
    fn largest_share(&self, labels: &[u8]) -> u8 {
        let values = self.corners.map(|corner| labels[corner]);
        if values.iter().all(|&value| value == values[0]) {
            return values[0];
        }
        let (up, left) = (1.0 - self.down, 1.0 - self.right);
        let shares = [up * left, up * self.right, self.down * left, self.down * self.right];
        let mut best = (values[0], 0.0);
        for value in values {
            let of_value = |(other, share): (u8, f32)| if other == value { share } else { 0.0 };
            let share = values.into_iter().zip(shares).map(of_value).sum();
            if share > best.1 {
                best = (value, share);
            }
        }
        best.0
    }
}

/// Other light on the range of the image itself, so that it means the same under any normalisation.
fn relight(by: &Augmentation, image: &mut Array3<f32>, noise: Philox, number: usize) {
    let (low, high) = image
        .iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)));
    let span = (high - low).max(1e-6);
    if by.bias > 0.0 {
        let (_, height, width) = image.dim();
        // Two control points across the crop: as slow as the field of a coil.
        let spacing = height.max(width) as f32 / 2.0;
        let field = smooth_field(noise, number, BIAS, [height, width], spacing);
        let gain = field.mapv(|value| (by.bias * value).exp());
        for mut channel in image.outer_iter_mut() {
            channel.zip_mut_with(&gain, |v, gain| *v = low + (*v - low) * gain);
        }
    }
    if by.gamma > 0.0 {
        let [.., gamma] = signed::<5>(noise, number, AUGMENT);
        let power = (gamma * by.gamma).exp();
        image.mapv_inplace(|v| low + span * ((v - low).max(0.0) / span).powf(power));
    }
    if by.contrast > 0.0 || by.brightness > 0.0 || by.colour > 0.0 {
        let [contrast, brightness, own @ ..] = signed::<5>(noise, number, LIGHT);
        let factor = 1.0 + contrast * by.contrast;
        let mean = image.mean().unwrap_or(0.0);
        for (channel, mut plane) in image.outer_iter_mut().enumerate() {
            let own: f32 = own[channel % own.len()];
            let added = span * (brightness * by.brightness + own * by.colour);
            plane.mapv_inplace(|v| mean + factor * (v - mean) + added);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ndarray::s;

    use super::*;
    use crate::{bundle::Manifest, domain::Volume};

    /// 24 x 40 pixels of rising grey with a square of label 1, under a network that sees 16 x 16 of them.
    fn example() -> Example {
        let text = std::fs::read_to_string("onnx/phantom/bundle.toml").unwrap();
        let text =
            text.replace("size = [48, 48", "size = [16, 16").replace("votes = 5", "votes = 1");
        let manifest = Manifest::parse(&text, Path::new("b.toml")).unwrap();
        let samples =
            ndarray::Array4::from_shape_fn((1, 96, 24, 40), |(_, _, y, x)| (y * y + 2 * x) as f32);
        let volume = Volume { samples, geometry: None, nominal_range: None };
        let mut truth = Array3::zeros((96, 24, 40));
        truth.slice_mut(s![.., 8..16, 10..30]).fill(1);
        Example::new(&manifest, &volume, &truth).unwrap()
    }

    const CROP: Crop = Crop { slice: 3, row: 4, column: 12 };

    fn plain(example: &Example) -> (Array3<f32>, Array2<u8>) {
        augment(&Augmentation::default(), example, CROP, Philox::new(1, 2), 0)
    }

    #[test]
    fn nothing_asked_changes_nothing() {
        let example = example();
        let (image, label) = plain(&example);
        assert_eq!(image.insert_axis(Axis(0)), example.prepared.pixels(CROP));
        assert_eq!(label, example.working_truth.slice(s![3, 4..20, 12..28]));
    }

    #[test]
    fn every_kind_changes_the_image_by_its_own_draw_and_always_the_same_way() {
        let example = example();
        let (before, _) = plain(&example);
        let none = Augmentation::default();
        for (name, by) in [
            ("rotation", Augmentation { rotation_degrees: 20.0, ..none }),
            ("scale", Augmentation { scale: 0.2, ..none }),
            ("stretch", Augmentation { stretch: 0.2, ..none }),
            ("shift", Augmentation { shift_pixels: 3.0, ..none }),
            ("elastic", Augmentation { elastic_pixels: 2.0, ..none }),
            ("bias", Augmentation { bias: 0.3, ..none }),
            ("gamma", Augmentation { gamma: 0.4, ..none }),
            ("brightness", Augmentation { brightness: 0.3, ..none }),
            ("contrast", Augmentation { contrast: 0.3, ..none }),
            ("colour", Augmentation { colour: 0.3, ..none }),
            ("noise", Augmentation { noise: 0.1, ..none }),
            ("crops", Augmentation { crops: Crops::Anywhere, ..none }),
        ] {
            let at = |number| augment(&by, &example, CROP, Philox::new(1, 2), number);
            let (image, label) = at(0);
            assert!(image.iter().all(|v| v.is_finite()) && image != before, "{name}");
            assert_eq!((image.clone(), label), at(0), "{name}");
            assert_ne!(image, at(1).0, "{name}");
        }
    }

    #[test]
    fn flips_mirror_image_and_label_in_half_of_the_draws() {
        let example = example();
        let by = Augmentation { flip_columns: true, ..Augmentation::default() };
        let (image, label) = plain(&example);
        let mirrored = image.slice(s![.., .., ..;-1]).to_owned();
        let mut flipped = 0;
        for number in 0..60 {
            let found = augment(&by, &example, CROP, Philox::new(1, 2), number);
            if found.0 != image {
                assert!((&found.0 - &mirrored).iter().all(|v| v.abs() < 1e-5));
                assert_eq!(found.1, label.slice(s![.., ..;-1]));
                flipped += 1;
            }
        }
        assert!((15..45).contains(&flipped), "{flipped} of 60");
    }

    #[test]
    fn a_label_moves_with_its_pixels() {
        let example = example();
        // The square is where the image says: bright pixels of this image are its label.
        let mut example = example;
        let marked = example.working_truth.mapv(f32::from);
        example.prepared.working.index_axis_mut(Axis(0), 0).assign(&marked);
        let by = Augmentation {
            rotation_degrees: 30.0,
            scale: 0.3,
            stretch: 0.2,
            shift_pixels: 4.0,
            elastic_pixels: 1.5,
            elastic_spacing: 8.0,
            ..Augmentation::default()
        };
        for number in 0..20 {
            let (image, label) = augment(&by, &example, CROP, Philox::new(5, 6), number);
            for (v, &label) in image.iter().zip(&label) {
                assert!((v - 0.5).abs() < 1e-5 || (*v > 0.5) == (label == 1), "{v} {label}");
            }
        }
    }

    #[test]
    fn a_label_between_pixels_is_the_one_with_the_largest_share() {
        let labels = [0, 1, 2, 2];
        let share = |y, x| Tap::at([y, x], [2, 2]).largest_share(&labels);
        assert_eq!(share(0.0, 0.0), 0);
        assert_eq!(share(0.2, 0.9), 1);
        assert_eq!(share(0.45, 0.5), 2, "a quarter each, but two of them are 2");
        assert_eq!(share(-9.0, 7.0), 1, "the edge goes on");
    }
}
