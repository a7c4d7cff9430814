use std::path::Path;

use ::nifti::NiftiHeader;

use crate::codec::{CodecError, MAX_SHEAR_DEGREES};
use crate::domain::Geometry;

/// Unit of lengths in `xyzt_units` (nifti1.h): the low three bits.
const UNIT_OF_LENGTH: u8 = 0b111;
/// No grid is this much finer or coarser than a millimetre.
const FINEST_MM: f64 = 1e-6;
const COARSEST_MM: f64 = 1e6;

/// The spatial fields of a `NIfTI` header, kept as they stood: a mask written with them lies exactly on
/// its image in every tool, whichever of the fields that tool reads.
#[derive(Debug, Clone, PartialEq)]
pub struct NiftiGrid {
    pub(super) qform_code: i16,
    pub(super) sform_code: i16,
    /// qfac, then the sizes of columns, rows, slices.
    pub(super) pixdim: [f32; 4],
    /// Quaternion b, c, d and offset x, y, z.
    pub(super) quatern: [f32; 6],
    pub(super) srow: [[f32; 4]; 3],
    pub(super) xyzt_units: u8,
}

impl NiftiGrid {
    /// 1 mm voxels that claim no place in space.
    pub(super) fn unplaced() -> Self {
        Self {
            qform_code: 0,
            sform_code: 0,
            pixdim: [1.0; 4],
            quatern: [0.0; 6],
            srow: [[0.0; 4]; 3],
            xyzt_units: 2,
        }
    }

    pub(super) fn from_header(header: &NiftiHeader) -> Self {
        let pixdim = &header.pixdim;
        Self {
            qform_code: header.qform_code,
            sform_code: header.sform_code,
            pixdim: [pixdim[0], pixdim[1], pixdim[2], pixdim[3]],
            quatern: [
                header.quatern_b,
                header.quatern_c,
                header.quatern_d,
                header.quatern_x,
                header.quatern_y,
                header.quatern_z,
            ],
            srow: [header.srow_x, header.srow_y, header.srow_z],
            xyzt_units: header.xyzt_units,
        }
    }

    /// The fields that say the same as `geometry`: both forms, as scanner coordinates in mm.
    pub(super) fn from_geometry(geometry: &Geometry) -> Self {
        let mut rows = [[0.0; 4]; 3];
        for (axis, row) in rows.iter_mut().enumerate() {
            let sign = ras_sign(axis);
            for (index, value) in row[..3].iter_mut().enumerate() {
                *value = sign * geometry.direction[index][axis] * geometry.spacing[index];
            }
            row[3] = sign * geometry.origin[axis];
        }
        let (quatern, qfac) = quaternion(&rows, geometry.spacing);
        let [x, y, z] = geometry.spacing.map(|s| s as f32);
        Self {
            qform_code: 1,
            sform_code: 1,
            pixdim: [qfac, x, y, z],
            quatern: [
                quatern[0],
                quatern[1],
                quatern[2],
                rows[0][3] as f32,
                rows[1][3] as f32,
                rows[2][3] as f32,
            ],
            srow: rows.map(|row| row.map(|value| value as f32)),
            xyzt_units: 2,
        }
    }

    /// Millimetres in the header's unit of length; one that is unknown counts as the millimetre, as is the custom.
    fn millimetres(&self) -> f64 {
        match self.xyzt_units & UNIT_OF_LENGTH {
            1 => 1e3,
            3 => 1e-3,
            _ => 1.0,
        }
    }

    /// Voxel indices to RAS in the header's unit: sform before qform before plain sizes, as the standard orders them.
    fn affine(&self) -> [[f64; 4]; 3] {
        if self.sform_code > 0 {
            return self.srow.map(|row| row.map(f64::from));
        }
        let size: [f64; 3] = std::array::from_fn(|i| f64::from(self.pixdim[i + 1].abs()));
        if self.qform_code <= 0 {
            return std::array::from_fn(|i| {
                let mut row = [0.0; 4];
                row[i] = size[i];
                row
            });
        }
        let [b, c, d, ..] = self.quatern.map(f64::from);
        let a = (1.0 - b * b - c * c - d * d).max(0.0).sqrt();
        let norm = (a * a + b * b + c * c + d * d).sqrt();
        let [a, b, c, d] = [a, b, c, d].map(|v| v / norm);
        let rotation = [
            [a * a + b * b - c * c - d * d, 2.0 * (b * c - a * d), 2.0 * (b * d + a * c)],
            [2.0 * (b * c + a * d), a * a + c * c - b * b - d * d, 2.0 * (c * d - a * b)],
            [2.0 * (b * d - a * c), 2.0 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ];
        let qfac = if self.pixdim[0] < 0.0 { -1.0 } else { 1.0 };
        let scale = [size[0], size[1], size[2] * qfac];
        std::array::from_fn(|axis| {
            let [x, y, z] = std::array::from_fn(|index| rotation[axis][index] * scale[index]);
            [x, y, z, f64::from(self.quatern[3 + axis])]
        })
    }

    pub(super) fn geometry(&self, path: &Path, slices: usize) -> Result<Geometry, CodecError> {
        let scale = self.millimetres();
        let affine = self.affine().map(|row| row.map(|value| value * scale));
        let unusable =
            || CodecError::malformed(path, "NIfTI", "its affine is singular or not finite");
        if affine.iter().flatten().any(|value| !value.is_finite()) {
            return Err(unusable());
        }
        let lps = |index: usize| -> [f64; 3] {
            std::array::from_fn(|axis| ras_sign(axis) * affine[axis][index])
        };
        let mut steps = [lps(0), lps(1), lps(2)];
        let length = |v: [f64; 3]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        if slices == 1 && length(steps[2]) == 0.0 {
            // A 2-D image need not say where a second slice would be.
            let [a, b] = [0, 1].map(|i| steps[i].map(|x| x / length(steps[i])));
            steps[2] =
                [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
        }
        let spacing = steps.map(length);
        if !spacing.iter().all(|s| (FINEST_MM..COARSEST_MM).contains(s)) {
            return Err(unusable());
        }
        let direction: [[f64; 3]; 3] = std::array::from_fn(|i| steps[i].map(|x| x / spacing[i]));
        let off_right_angle = |(a, b): (usize, usize)| -> f64 {
            let cosine: f64 = (0..3).map(|axis| direction[a][axis] * direction[b][axis]).sum();
            cosine.abs().min(1.0).asin().to_degrees()
        };
        let degrees = [(0, 1), (0, 2), (1, 2)].map(off_right_angle).into_iter().fold(0.0, f64::max);
        // Axes that run in one plane span no volume, however long they are.
        if degrees > 89.9 {
            return Err(unusable());
        }
        if degrees > MAX_SHEAR_DEGREES {
            return Err(CodecError::Sheared { path: path.to_owned(), degrees });
        }
        Ok(Geometry { origin: lps(3), direction, spacing })
    }
}

/// RAS and LPS differ in the sign of x and y.
fn ras_sign(axis: usize) -> f64 {
    if axis == 2 { 1.0 } else { -1.0 }
}

/// b, c, d of the rotation in `rows`, and qfac: -1 where the axes are left-handed.
fn quaternion(rows: &[[f64; 4]; 3], spacing: [f64; 3]) -> ([f32; 3], f32) {
    let mut r: [[f64; 3]; 3] =
        std::array::from_fn(|axis| std::array::from_fn(|index| rows[axis][index] / spacing[index]));
    let determinant = r[0][0] * (r[1][1] * r[2][2] - r[1][2] * r[2][1])
        - r[0][1] * (r[1][0] * r[2][2] - r[1][2] * r[2][0])
        + r[0][2] * (r[1][0] * r[2][1] - r[1][1] * r[2][0]);
    let qfac = if determinant < 0.0 { -1.0 } else { 1.0 };
    for row in &mut r {
        row[2] *= qfac;
    }
    // The largest component is taken from the diagonal, the others from sums and differences with it.
    let squares = [
        1.0 + r[0][0] + r[1][1] + r[2][2],
        1.0 + r[0][0] - r[1][1] - r[2][2],
        1.0 - r[0][0] + r[1][1] - r[2][2],
        1.0 - r[0][0] - r[1][1] + r[2][2],
    ];
    let largest = (0..4).max_by(|&i, &j| squares[i].total_cmp(&squares[j])).expect("four squares");
    let twice = squares[largest].max(0.0).sqrt();
    let differences = [r[2][1] - r[1][2], r[0][2] - r[2][0], r[1][0] - r[0][1]];
    let sums = [r[1][0] + r[0][1], r[0][2] + r[2][0], r[2][1] + r[1][2]];
    let quaternion = match largest {
        0 => [twice * twice, differences[0], differences[1], differences[2]],
        1 => [differences[0], twice * twice, sums[0], sums[1]],
        2 => [differences[1], sums[0], twice * twice, sums[2]],
        _ => [differences[2], sums[1], sums[2], twice * twice],
    }
    .map(|value| value / (2.0 * twice));
    let sign = if quaternion[0] < 0.0 { -1.0 } else { 1.0 }; // a, which is not stored, is never negative
    let [_, b, c, d] = quaternion.map(|value| (sign * value) as f32);
    ([b, c, d], qfac as f32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rotated(angles: [f64; 3], flip: bool) -> Geometry {
        let [(s, c), (t, d), (u, e)] = angles.map(f64::sin_cos);
        let x = [c * d, s * d, -t];
        let y = [c * t * u - s * e, s * t * u + c * e, d * u];
        let z = [x[1] * y[2] - x[2] * y[1], x[2] * y[0] - x[0] * y[2], x[0] * y[1] - x[1] * y[0]];
        let z = if flip { z.map(|v| -v) } else { z };
        Geometry { origin: [-12.5, 40.0, 7.25], direction: [x, y, z], spacing: [0.5, 1.25, 3.0] }
    }

    fn close(a: &Geometry, b: &Geometry, tolerance: f64) -> bool {
        let all = |g: &Geometry| {
            [g.origin, g.direction[0], g.direction[1], g.direction[2], g.spacing].concat()
        };
        all(a).iter().zip(all(b)).all(|(x, y)| (x - y).abs() < tolerance)
    }

    proptest! {
        #[test]
        fn both_forms_say_what_the_geometry_says(
            angles in [-3.1_f64..3.1, -1.5_f64..1.5, -3.1_f64..3.1],
            flip: bool,
        ) {
            let geometry = rotated(angles, flip);
            let both = NiftiGrid::from_geometry(&geometry);
            let q_only = NiftiGrid { sform_code: 0, ..both.clone() };
            // Near half a turn the quaternion's first part is the root of a difference of 32-bit squares.
            for (grid, tolerance) in [(both, 2e-5), (q_only, 1e-3)] {
                let found = grid.geometry(Path::new("x"), 2).unwrap();
                prop_assert!(close(&found, &geometry, tolerance), "{found:?} for {geometry:?}");
            }
        }
    }

    #[test]
    fn sheared_and_singular_affines_are_refused() {
        let mut grid = NiftiGrid::from_geometry(&rotated([0.0; 3], false));
        grid.srow[0][1] = 0.1;
        let found = grid.geometry(Path::new("x"), 2).unwrap_err();
        assert!(matches!(found, CodecError::Sheared { degrees, .. } if degrees > 1.0), "{found}");
        grid.srow = [[0.0; 4]; 3];
        assert!(matches!(grid.geometry(Path::new("x"), 2), Err(CodecError::Malformed { .. })));
    }
}
