//! Affine maps between the voxel indices of two grids, and interpolation along them.
//!
//! Indices are [slice, row, column]; the centre of a voxel has whole indices. Called by `prepare` and `Grid`, which resample
//! an image onto a model's grid and shares of votes back.

use ndarray::{Array3, Array4, ArrayView3, ArrayView4, Axis};

use crate::domain::Geometry;

/// `at(index) = matrix · index + offset`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Affine {
    matrix: [[f64; 3]; 3],
    offset: [f64; 3],
}

impl Affine {
    /// From voxel indices to patient coordinates, mm, LPS.
    pub fn to_patient(geometry: &Geometry) -> Self {
        // A geometry's steps are in the order column, row, slice.
        let step = |index: usize, axis: usize| {
            geometry.spacing[2 - index] * geometry.direction[2 - index][axis]
        };
        let matrix = std::array::from_fn(|axis| std::array::from_fn(|index| step(index, axis)));
        Self { matrix, offset: geometry.origin }
    }

    pub fn at(&self, index: [f64; 3]) -> [f64; 3] {
        std::array::from_fn(|row| {
            self.offset[row]
                + (0..3).map(|column| self.matrix[row][column] * index[column]).sum::<f64>()
        })
    }

    /// First `self`, then `next`.
    pub fn then(&self, next: &Self) -> Self {
        let product = |row: usize, column: usize| {
            (0..3).map(|k| next.matrix[row][k] * self.matrix[k][column]).sum()
        };
        let matrix = std::array::from_fn(|row| std::array::from_fn(|column| product(row, column)));
        Self { matrix, offset: next.at(self.offset) }
    }

    /// The way back; `None` if the map is flat (a spacing of zero, or directions in one plane).
    pub fn inverse(&self) -> Option<Self> {
        let m = &self.matrix;
        let cofactor = |row: usize, column: usize| {
            let [a, b] = [(row + 1) % 3, (row + 2) % 3];
            let [c, d] = [(column + 1) % 3, (column + 2) % 3];
            m[a][c] * m[b][d] - m[a][d] * m[b][c]
        };
        let determinant: f64 = (0..3).map(|column| m[0][column] * cofactor(0, column)).sum();
        if !determinant.is_normal() {
            return None;
        }
        let matrix = std::array::from_fn(|row| {
            std::array::from_fn(|column| cofactor(column, row) / determinant)
        });
        let linear = Self { matrix, offset: [0.0; 3] };
        let offset = linear.at(self.offset).map(|component| -component);
        offset.iter().all(|component| component.is_finite()).then_some(Self { matrix, offset })
    }

    /// How far one voxel of the grid that this map comes from reaches along each axis of the grid that it goes to, in
    /// voxels of that grid.
    fn footprint(&self) -> [f64; 3] {
        self.matrix.map(|row| row.iter().map(|step| step * step).sum::<f64>().sqrt())
    }
}

/// `samples` [C, D, H, W] at the voxels of a grid of `shape` [D', H', W'], of which `to_samples` gives the place in
/// `samples`: trilinear, after smoothing along the axes on which the new voxels are coarser, so that detail does not
/// alias. Beyond the outermost voxels the nearest value is taken.
pub(super) fn interpolate(
    samples: ArrayView4<'_, f32>,
    to_samples: &Affine,
    shape: [usize; 3],
) -> Array4<f32> {
    let smoothed = smooth(samples, to_samples.footprint());
    let (channels, ..) = samples.dim();
    let [depth, rows, columns] = shape;
    let mut out = Array4::zeros((channels, depth, rows, columns));
    for (from, mut to) in smoothed.axis_iter(Axis(0)).zip(out.axis_iter_mut(Axis(0))) {
        for ((k, j, i), value) in to.indexed_iter_mut() {
            *value = trilinear(&from, to_samples.at([k, j, i].map(|index| index as f64)));
        }
    }
    out
}

/// Which voxels of a grid of `shape` lie within a field of `field` voxels, of which `to_field` gives the place.
pub(super) fn inside(to_field: &Affine, shape: [usize; 3], field: [usize; 3]) -> Array3<bool> {
    Array3::from_shape_fn(shape, |(k, j, i)| {
        let at = to_field.at([k, j, i].map(|index| index as f64));
        // The outermost voxels reach half a voxel beyond their centres; what is rounded there counts as inside.
        at.iter().zip(field).all(|(&at, count)| at > -0.5 - 1e-6 && at < count as f64 - 0.5 + 1e-6)
    })
}

fn trilinear(samples: &ArrayView3<'_, f32>, at: [f64; 3]) -> f32 {
    let mut low = [0; 3];
    let mut high = [0; 3];
    let mut share = [0.0_f32; 3];
    for axis in 0..3 {
        let last = samples.len_of(Axis(axis)) - 1;
        let place = at[axis].clamp(0.0, last as f64);
        low[axis] = place as usize;
        high[axis] = (low[axis] + 1).min(last);
        share[axis] = (place - low[axis] as f64) as f32;
    }
    let between = |a: f32, b: f32, share: f32| a + (b - a) * share;
    let line =
        |k: usize, j: usize| between(samples[[k, j, low[2]]], samples[[k, j, high[2]]], share[2]);
    let plane = |k: usize| between(line(k, low[1]), line(k, high[1]), share[1]);
    between(plane(low[0]), plane(high[0]), share[0])
}

/// A Gaussian along each axis whose full width at half maximum makes voxels of one voxel's width as wide as
/// `footprint`: widths of voxels add as squares (Cardoso et al., "Scale factor point spread function matching", MICCAI
/// 2015).
fn smooth(samples: ArrayView4<'_, f32>, footprint: [f64; 3]) -> Array4<f32> {
    const WIDTH_OF_SIGMA: f64 = 2.354_820_045; // 2·√(2·ln 2)
    const LEAST: f64 = 1.02;
    let mut smoothed = samples.to_owned();
    for (axis, width) in footprint.into_iter().enumerate() {
        if width > LEAST {
            let sigma = (width * width - 1.0).sqrt() / WIDTH_OF_SIGMA;
            smoothed = smooth_along(&smoothed, Axis(axis + 1), sigma);
        }
    }
    smoothed
}

fn smooth_along(samples: &Array4<f32>, axis: Axis, sigma: f64) -> Array4<f32> {
    let count = samples.len_of(axis);
    let reach = ((3.0 * sigma).ceil() as usize).min(count - 1);
    let weight = |distance: usize| (-0.5 * (distance as f64 / sigma).powi(2)).exp();
    let mut smoothed = Array4::zeros(samples.raw_dim());
    for at in 0..count {
        let taps = at.saturating_sub(reach)..=(at + reach).min(count - 1);
        // At the edges only what lies inside the image counts.
        let total: f64 = taps.clone().map(|from| weight(from.abs_diff(at))).sum();
        let mut out = smoothed.index_axis_mut(axis, at);
        for from in taps {
            let share = (weight(from.abs_diff(at)) / total) as f32;
            out.scaled_add(share, &samples.index_axis(axis, from));
        }
    }
    smoothed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rotated([yaw, pitch]: [f64; 2], spacing: [f64; 3]) -> Geometry {
        let ((s, c), (t, d)) = (yaw.sin_cos(), pitch.sin_cos());
        let [right, down] = [[c, s, 0.0], [-s * d, c * d, t]];
        let normal = [s * t, -c * t, d];
        Geometry { origin: [-12.5, 40.0, 7.0], direction: [right, down, normal], spacing }
    }

    #[test]
    fn a_voxel_lies_where_the_geometry_says() {
        let geometry = rotated([0.3, -0.4], [0.5, 0.7, 2.0]);
        let at = Affine::to_patient(&geometry).at([3.0, 2.0, 1.0]);
        let expected = geometry.position(3.0, 2.0, 1.0);
        assert!((0..3).all(|axis| (at[axis] - expected[axis]).abs() < 1e-12));
    }

    #[test]
    fn a_flat_map_has_no_way_back() {
        let flat = rotated([0.3, -0.4], [0.5, 0.0, 2.0]);
        assert_eq!(Affine::to_patient(&flat).inverse(), None);
    }

    #[test]
    fn a_linear_ramp_is_interpolated_exactly_and_a_constant_stays_one_when_it_shrinks() {
        let ramp = Array4::from_shape_fn((1, 4, 5, 6), |(_, k, j, i)| (k + 2 * j + 3 * i) as f32);
        let half = Affine {
            matrix: [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5]],
            offset: [0.25, 0.5, 0.75],
        };
        let fine = interpolate(ramp.view(), &half, [3, 4, 5]);
        for ((_, k, j, i), value) in fine.indexed_iter() {
            let [k, j, i] = half.at([k, j, i].map(|n| n as f64));
            assert!((f64::from(*value) - (k + 2.0 * j + 3.0 * i)).abs() < 1e-5);
        }
        let double =
            Affine { matrix: half.matrix.map(|row| row.map(|step| 4.0 * step)), offset: [0.5; 3] };
        let constant = Array4::from_elem((1, 4, 6, 8), 0.7_f32);
        let coarse = interpolate(constant.view(), &double, [2, 3, 4]);
        assert!(coarse.iter().all(|value| (value - 0.7).abs() < 1e-6));
    }

    #[test]
    fn detail_that_a_coarser_grid_cannot_show_is_averaged_and_not_picked_out() {
        let stripes = Array4::from_shape_fn((1, 1, 1, 64), |(.., i)| f32::from(i as u8 % 2));
        let coarser = Affine {
            matrix: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 4.0]],
            offset: [0.0, 0.0, 0.0],
        };
        let coarse = interpolate(stripes.view(), &coarser, [1, 1, 16]);
        assert!(coarse.iter().skip(1).all(|value| (value - 0.5).abs() < 0.05), "{coarse}");
    }

    proptest! {
        #[test]
        fn there_and_back_is_where_one_began(
            angles in [-3.0_f64..3.0, -1.5_f64..1.5],
            spacing in [0.1_f64..9.0, 0.1_f64..9.0, 0.1_f64..9.0],
            index in [-5.0_f64..400.0, -5.0_f64..400.0, -5.0_f64..400.0],
        ) {
            let there = Affine::to_patient(&rotated(angles, spacing));
            let same = there.then(&there.inverse().unwrap()).at(index);
            for axis in 0..3 {
                prop_assert!((same[axis] - index[axis]).abs() < 1e-9);
            }
        }
    }
}
