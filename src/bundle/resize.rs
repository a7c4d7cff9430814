//! Resizing of images and masks.

use ndarray::{Array3, Array4, ArrayView4, Axis};

/// Bilinear resize of every slice to [H, W] with half-pixel centres; when it shrinks, each output pixel averages
/// over the pixels it covers (a triangle as wide as the step), so that detail does not alias. At the edges only
/// what lies inside the image counts, as in Pillow and `PyTorch`.
pub(super) fn resize_bilinear(
    samples: ArrayView4<'_, f32>,
    [height, width]: [usize; 2],
) -> Array4<f32> {
    let (channels, depth, rows, columns) = samples.dim();
    if [rows, columns] == [height, width] {
        return samples.to_owned();
    }
    let mut narrow = Array4::zeros((channels, depth, rows, width));
    for (column, taps) in triangle_taps(columns, width).into_iter().enumerate() {
        let mut out = narrow.index_axis_mut(Axis(3), column);
        for (from, weight) in taps {
            out.scaled_add(weight, &samples.index_axis(Axis(3), from));
        }
    }
    let mut resized = Array4::zeros((channels, depth, height, width));
    for (row, taps) in triangle_taps(rows, height).into_iter().enumerate() {
        let mut out = resized.index_axis_mut(Axis(2), row);
        for (from, weight) in taps {
            out.scaled_add(weight, &narrow.index_axis(Axis(2), from));
        }
    }
    resized
}

/// For each of `target` positions the source positions and weights (sum 1) of a triangle filter.
fn triangle_taps(source: usize, target: usize) -> Vec<Vec<(usize, f32)>> {
    let step = source as f64 / target as f64;
    let reach = step.max(1.0);
    (0..target)
        .map(|index| {
            let centre = (index as f64 + 0.5) * step - 0.5;
            let first = (centre - reach).ceil().max(0.0) as usize;
            let last = ((centre + reach).floor() as usize).min(source - 1);
            let taps: Vec<(usize, f64)> = (first..=last)
                .map(|position| (position, 1.0 - (position as f64 - centre).abs() / reach))
                .collect();
            let total: f64 = taps.iter().map(|tap| tap.1).sum();
            taps.into_iter().map(|(at, weight)| (at, (weight / total) as f32)).collect()
        })
        .collect()
}

pub(super) fn resize_nearest<T: Copy>(mask: &Array3<T>, [height, width]: [usize; 2]) -> Array3<T> {
    let (depth, rows, columns) = mask.dim();
    let nearest = |index: usize, target: usize, source: usize| {
        (((index as f64 + 0.5) * source as f64 / target as f64) as usize).min(source - 1)
    };
    Array3::from_shape_fn((depth, height, width), |(slice, row, column)| {
        mask[[slice, nearest(row, height, rows), nearest(column, width, columns)]]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resizing_keeps_a_constant_and_shrinking_averages() {
        let flat = Array4::from_elem((1, 1, 7, 5), 3.0);
        assert!(resize_bilinear(flat.view(), [16, 3]).iter().all(|v| (v - 3.0).abs() < 1e-5));
        let stripes = Array4::from_shape_fn((1, 1, 1, 8), |(_, _, _, x)| (x % 2) as f32);
        let half = resize_bilinear(stripes.view(), [1, 4]);
        assert!(half.iter().all(|v| (v - 0.5).abs() < 0.13), "{half}");
    }

    #[test]
    fn the_edge_of_a_shrunk_image_averages_what_is_there() {
        assert_eq!(triangle_taps(4, 2)[0], [(0, 3.0 / 7.0), (1, 3.0 / 7.0), (2, 1.0 / 7.0)]);
        assert_eq!(triangle_taps(1, 3), [[(0, 1.0)], [(0, 1.0)], [(0, 1.0)]]);
    }
}
