//! From planes in space to one regular grid. Pure; faults name planes by index.

use crate::domain::Geometry;

/// Directions further apart than this (per component) are different orientations.
const ORIENTATION_TOLERANCE: f64 = 1e-4;
/// Distances within this many mm, or this share of the usual spacing, count as even.
const SPACING_TOLERANCE_MM: f64 = 0.01;
const SPACING_TOLERANCE: f64 = 0.01;
/// Sine of the largest angle between the stacking direction and the planes' normal.
const SHEAR_TOLERANCE: f64 = 0.01;
/// Slice spacing of a single plane that names no thickness, mm.
const DEFAULT_THICKNESS: f64 = 1.0;

/// Where one frame lies (PS3.3 C.7.6.2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::codec) struct Plane {
    /// `ImagePositionPatient`: centre of the first pixel, mm, LPS.
    pub(in crate::codec) position: [f64; 3],
    /// `ImageOrientationPatient`: along which the column, then the row index grows.
    pub(in crate::codec) orientation: [[f64; 3]; 2],
    /// `PixelSpacing` as it stands: between rows, then between columns, mm.
    pub(in crate::codec) spacing: [f64; 2],
    /// `SliceThickness`, mm.
    pub(in crate::codec) thickness: Option<f64>,
}

/// Why planes form no grid. Plane indices are those given to [`arrange`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Misfit {
    NotOrthonormal { plane: usize },
    Spacing { plane: usize, other: usize },
    Orientation { plane: usize, other: usize, degrees: f64 },
    Duplicate { plane: usize, other: usize },
    Uneven { plane: usize, other: usize, gap: f64, usual: f64 },
    Sheared { plane: usize, degrees: f64 },
}

/// The order of the planes along their normal, and the grid they form. `planes` is not empty.
pub(super) fn arrange(planes: &[Plane]) -> Result<(Vec<usize>, Geometry), Misfit> {
    let reference = &planes[0];
    let [right, down] = reference.orientation;
    let normal = cross(right, down);
    for (plane, candidate) in planes.iter().enumerate() {
        check_directions(plane, candidate)?;
        if (0..2).any(|i| (candidate.spacing[i] / reference.spacing[i] - 1.0).abs() > 1e-3) {
            return Err(Misfit::Spacing { plane, other: 0 });
        }
        if differs(candidate, reference) {
            let cosine = dot(cross(candidate.orientation[0], candidate.orientation[1]), normal);
            let degrees = cosine.clamp(-1.0, 1.0).acos().to_degrees();
            return Err(Misfit::Orientation { plane, other: 0, degrees });
        }
    }

    let height = |plane: usize| dot(planes[plane].position, normal);
    let mut order: Vec<usize> = (0..planes.len()).collect();
    order.sort_by(|&a, &b| height(a).total_cmp(&height(b)));
    let (step, direction) = match order.as_slice() {
        [only] => (planes[*only].thickness.unwrap_or(DEFAULT_THICKNESS), normal),
        _ => stacking(planes, &order, normal)?,
    };
    let geometry = Geometry {
        origin: planes[order[0]].position,
        direction: [right, down, direction],
        spacing: [reference.spacing[1], reference.spacing[0], step],
    };
    Ok((order, geometry))
}

/// Slice spacing and the direction in which slices follow each other.
fn stacking(
    planes: &[Plane],
    order: &[usize],
    normal: [f64; 3],
) -> Result<(f64, [f64; 3]), Misfit> {
    let gaps: Vec<f64> = order
        .windows(2)
        .map(|pair| dot(subtract(planes[pair[1]].position, planes[pair[0]].position), normal))
        .collect();
    let pairs = || gaps.iter().zip(order.windows(2));
    let shared = SPACING_TOLERANCE_MM.min(0.1 * planes[order[0]].spacing[0]);
    if let Some((_, pair)) = pairs().find(|(gap, _)| **gap < shared) {
        return Err(Misfit::Duplicate { plane: pair[1], other: pair[0] });
    }
    let usual = median(&gaps);
    for (gap, pair) in pairs() {
        let (other, plane) = (pair[0], pair[1]);
        if (gap - usual).abs() > SPACING_TOLERANCE_MM.max(SPACING_TOLERANCE * usual) {
            return Err(Misfit::Uneven { plane, other, gap: *gap, usual });
        }
    }
    let (first, last) = (order[0], order[order.len() - 1]);
    let path = subtract(planes[last].position, planes[first].position);
    let length = dot(path, path).sqrt();
    let direction = path.map(|component| component / length);
    let step = length / gaps.len() as f64;
    for (k, &plane) in order.iter().enumerate() {
        let offset = subtract(planes[plane].position, planes[first].position);
        let off_line = subtract(offset, direction.map(|d| d * step * k as f64));
        let stray = dot(off_line, off_line).sqrt();
        if stray > SPACING_TOLERANCE_MM.max(SPACING_TOLERANCE * step) {
            return Err(Misfit::Sheared { plane, degrees: (stray / step).atan().to_degrees() });
        }
    }
    let sine = dot(cross(direction, normal), cross(direction, normal)).sqrt();
    if sine > SHEAR_TOLERANCE {
        return Err(Misfit::Sheared { plane: last, degrees: sine.min(1.0).asin().to_degrees() });
    }
    Ok((step, direction))
}

fn check_directions(plane: usize, candidate: &Plane) -> Result<(), Misfit> {
    let [right, down] = candidate.orientation;
    let unit = |v: [f64; 3]| (dot(v, v) - 1.0).abs() < 1e-3;
    if unit(right) && unit(down) && dot(right, down).abs() < 1e-3 {
        Ok(())
    } else {
        Err(Misfit::NotOrthonormal { plane })
    }
}

fn differs(a: &Plane, b: &Plane) -> bool {
    let components = |p: &Plane| p.orientation.concat();
    components(a).iter().zip(components(b)).any(|(x, y)| (x - y).abs() > ORIENTATION_TOLERANCE)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

fn subtract(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn axial(z: f64) -> Plane {
        Plane {
            position: [-10.0, 5.0, z],
            orientation: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
            spacing: [0.5, 0.75],
            thickness: Some(3.0),
        }
    }

    fn stack(heights: &[f64]) -> Result<(Vec<usize>, Geometry), Misfit> {
        arrange(&heights.iter().copied().map(axial).collect::<Vec<_>>())
    }

    #[test]
    fn slices_are_ordered_along_the_normal_whatever_order_they_came_in() {
        let (order, grid) = stack(&[4.0, -1.0, 1.5]).unwrap();
        assert_eq!(order, [1, 2, 0]);
        assert_eq!(grid.origin, [-10.0, 5.0, -1.0]);
        assert_eq!(grid.spacing, [0.75, 0.5, 2.5]);
        assert_eq!(grid.direction[2], [0.0, 0.0, 1.0]);
    }

    #[test]
    fn a_single_slice_takes_its_thickness_or_one_millimetre() {
        assert_eq!(stack(&[7.0]).unwrap().1.spacing[2], 3.0);
        let thin = Plane { thickness: None, ..axial(7.0) };
        assert_eq!(arrange(&[thin]).unwrap().1.spacing[2], 1.0);
    }

    #[test]
    fn a_missing_slice_is_named_with_its_neighbours() {
        let found = stack(&[0.0, 6.0, 2.0, 10.0, 4.0]).unwrap_err();
        assert_eq!(found, Misfit::Uneven { plane: 3, other: 1, gap: 4.0, usual: 2.0 });
    }

    #[test]
    fn two_slices_in_one_place_are_refused() {
        assert_eq!(stack(&[0.0, 2.0, 2.0]).unwrap_err(), Misfit::Duplicate { plane: 2, other: 1 });
    }

    #[test]
    fn another_orientation_is_refused_beyond_the_tolerance() {
        let turned = |sine: f64| {
            let cosine = (1.0 - sine * sine).sqrt();
            let orientation = [[1.0, 0.0, 0.0], [0.0, cosine, sine]];
            Plane { orientation, ..axial(2.0) }
        };
        assert!(arrange(&[axial(0.0), turned(5e-5)]).is_ok());
        let found = arrange(&[axial(0.0), turned(0.5)]).unwrap_err();
        assert!(
            matches!(found, Misfit::Orientation { plane: 1, other: 0, degrees } if (degrees - 30.0).abs() < 1e-6)
        );
    }

    #[test]
    fn a_tilted_gantry_is_refused() {
        let tilted = |k: f64| Plane { position: [0.0, k * 0.1_f64.tan(), k], ..axial(0.0) };
        let found = arrange(&[tilted(0.0), tilted(1.0), tilted(2.0)]).unwrap_err();
        assert!(matches!(found, Misfit::Sheared { degrees, .. } if (degrees - 5.73).abs() < 0.01));
    }

    #[test]
    fn another_pixel_spacing_is_refused() {
        let coarse = Plane { spacing: [0.5, 0.8], ..axial(2.0) };
        assert_eq!(
            arrange(&[axial(0.0), coarse]).unwrap_err(),
            Misfit::Spacing { plane: 1, other: 0 }
        );
    }

    proptest! {
        #[test]
        fn every_plane_lies_where_the_grid_says(
            angles in [-3.0_f64..3.0, -1.5_f64..1.5],
            step in 0.3_f64..9.0,
            count in 1_usize..30,
            turn in 0_usize..30,
        ) {
            let (s, c) = angles[0].sin_cos();
            let (t, d) = angles[1].sin_cos();
            let right = [c, s, 0.0];
            let down = [-s * d, c * d, t];
            let normal = cross(right, down);
            let planes: Vec<Plane> = (0..count)
                .map(|k| ((k + turn) % count) as f64 * step)
                .map(|h| Plane {
                    position: normal.map(|n| n * h + 1.0),
                    orientation: [right, down],
                    ..axial(0.0)
                })
                .collect();
            let (order, grid) = arrange(&planes).unwrap();
            for (k, &plane) in order.iter().enumerate() {
                let at = grid.position(k as f64, 0.0, 0.0);
                let off = subtract(at, planes[plane].position);
                prop_assert!(dot(off, off).sqrt() < 1e-6);
            }
        }
    }
}
