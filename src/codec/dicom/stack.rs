//! From planes in space to one regular grid. Pure; faults name planes by index.
//!
//! A grid is accepted if every plane lies where the grid says, up to these bounds: across the slices a tenth of their
//! spacing (0.2 mm where that is more, never more than a quarter of the spacing), within the slices likewise of the
//! pixel spacing (never more than half of it). Positions that a writer rounded to 0.1 mm, and the jitter of a table,
//! stay below; a slice that is missing or comes twice does not.

use crate::domain::Geometry;

/// Directions further apart than this (per component) are different orientations.
const ORIENTATION_TOLERANCE: f64 = 1e-3;
/// Shares by which `PixelSpacing` may differ.
const PIXEL_SPACING_TOLERANCE: f64 = 1e-3;
/// Where every plane is within this many mm, or this share of the spacing, of the line from the first to the last,
/// the grid is that line.
const EXACT_MM: f64 = 0.01;
const EXACT: f64 = 0.01;
/// How far a plane may lie off its place: this share of the spacing, or this many mm where that is more.
const JITTER: f64 = 0.1;
const JITTER_MM: f64 = 0.2;
/// What it may never exceed, so that neighbours stay apart and a pixel keeps its place.
const MOST_OF_STEP: f64 = 0.25;
const MOST_OF_PIXEL: f64 = 0.5;
/// Gaps below this share of the wide ones are those of planes that share a place.
const SHARED_PLACE: f64 = 0.15;
/// Largest angle between the stacking direction and the planes' normal, degrees. Beyond it the grid is sheared.
pub(in crate::codec) const MAX_SHEAR_DEGREES: f64 = 1.0;
/// No part of a patient lies this many mm from the origin of its frame of reference.
const FARTHEST_MM: f64 = 1e6;
/// Slice spacing of a single plane that names no thickness, mm.
const DEFAULT_THICKNESS: f64 = 1.0;

/// Where one frame lies (PS3.3 C.7.6.2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plane {
    /// `ImagePositionPatient`: centre of the first pixel, mm, LPS.
    pub position: [f64; 3],
    /// `ImageOrientationPatient`: along which the column, then the row index grows.
    pub orientation: [[f64; 3]; 2],
    /// `PixelSpacing` as it stands: between rows, then between columns, mm.
    pub spacing: [f64; 2],
    /// `SliceThickness`, mm.
    pub thickness: Option<f64>,
}

impl Plane {
    pub(super) fn normal(&self) -> [f64; 3] {
        cross(self.orientation[0], self.orientation[1])
    }

    /// Angle between the two planes as surfaces, whichever way their normals point, degrees from 0 to 90.
    pub(super) fn inclination(&self, other: &Self) -> f64 {
        dot(self.normal(), other.normal()).abs().min(1.0).acos().to_degrees()
    }

    /// Whether rows and columns run the same way.
    pub(super) fn is_parallel(&self, other: &Self) -> bool {
        let components = |plane: &Self| plane.orientation.concat();
        let pairs = components(self).into_iter().zip(components(other));
        pairs.into_iter().all(|(a, b)| (a - b).abs() <= ORIENTATION_TOLERANCE)
    }

    fn has_spacing_of(&self, other: &Self) -> bool {
        (0..2).all(|i| (self.spacing[i] / other.spacing[i] - 1.0).abs() <= PIXEL_SPACING_TOLERANCE)
    }

    /// The larger of the angles by which rows and columns are turned against those of `other`, degrees.
    fn turn(&self, other: &Self) -> f64 {
        let angle =
            |i: usize| dot(self.orientation[i], other.orientation[i]).clamp(-1.0, 1.0).acos();
        angle(0).max(angle(1)).to_degrees()
    }
}

/// How far a plane may lie off its place on a grid: along the normal and within the plane, mm. `spacing` as in
/// [`Geometry`].
#[must_use]
pub fn tolerance(spacing: [f64; 3]) -> [f64; 2] {
    let [columns, rows, step] = spacing;
    let pixel = columns.min(rows);
    [
        (JITTER * step).max(JITTER_MM).min(MOST_OF_STEP * step),
        (JITTER * pixel).max(JITTER_MM).min(MOST_OF_PIXEL * pixel),
    ]
}

/// Why planes form no grid. Plane indices are those given to [`arrange`]; `plane` is the culprit as far as the others
/// can tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Misfit {
    NotOrthonormal {
        plane: usize,
    },
    OutOfReach {
        plane: usize,
    },
    Spacing {
        plane: usize,
        other: usize,
    },
    Orientation {
        plane: usize,
        other: usize,
        degrees: f64,
    },
    Duplicate {
        plane: usize,
        other: usize,
    },
    Uneven {
        plane: usize,
        other: usize,
        gap: f64,
        usual: f64,
    },
    /// Within its own plane beside where the others say it should be.
    Astray {
        plane: usize,
        other: usize,
        distance: f64,
    },
    Sheared {
        plane: usize,
        degrees: f64,
    },
}

/// The order of the planes along their normal, and the grid they form. `planes` is not empty.
pub(super) fn arrange(planes: &[Plane]) -> Result<(Vec<usize>, Geometry), Misfit> {
    for (plane, candidate) in planes.iter().enumerate() {
        check(plane, candidate)?;
    }
    // What most planes have is right, so that the others are named.
    let first = most_common(planes, Plane::is_parallel);
    let reference = &planes[first];
    if let Some(plane) = planes.iter().position(|plane| !plane.is_parallel(reference)) {
        let degrees = planes[plane].turn(reference);
        return Err(Misfit::Orientation { plane, other: first, degrees });
    }
    let other = most_common(planes, Plane::has_spacing_of);
    if let Some(plane) = planes.iter().position(|plane| !plane.has_spacing_of(&planes[other])) {
        return Err(Misfit::Spacing { plane, other });
    }

    let [_, _, normal] = axes(reference);
    let height = |plane: usize| dot(planes[plane].position, normal);
    let mut order: Vec<usize> = (0..planes.len()).collect();
    order.sort_by(|&a, &b| height(a).total_cmp(&height(b)));
    let [right, down] = reference.orientation;
    let [rows, columns] = planes[other].spacing;
    let line = match order.as_slice() {
        [only] => Line {
            origin: planes[*only].position,
            step: planes[*only].thickness.unwrap_or(DEFAULT_THICKNESS),
            direction: normal,
        },
        _ => Stack { planes, order: &order, axes: axes(reference) }.line(columns.min(rows))?,
    };
    let geometry = Geometry {
        origin: line.origin,
        direction: [right, down, line.direction],
        spacing: [columns, rows, line.step],
    };
    Ok((order, geometry))
}

/// Where slices begin, and how far and which way from each other they lie.
struct Line {
    origin: [f64; 3],
    step: f64,
    direction: [f64; 3],
}

/// At least two parallel planes in order.
struct Stack<'a> {
    planes: &'a [Plane],
    order: &'a [usize],
    /// [`axes`] of the planes.
    axes: [[f64; 3]; 3],
}

impl Stack<'_> {
    fn position(&self, k: usize) -> [f64; 3] {
        self.planes[self.order[k]].position
    }

    fn gap(&self, k: usize) -> f64 {
        dot(subtract(self.position(k + 1), self.position(k)), self.axes[2])
    }

    fn line(&self, pixel: f64) -> Result<Line, Misfit> {
        let gaps: Vec<f64> = (0..self.order.len() - 1).map(|k| self.gap(k)).collect();
        let mut sorted = gaps.clone();
        sorted.sort_by(f64::total_cmp);
        let (usual, wide) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() * 3 / 4]);
        let shared = EXACT_MM.min(0.1 * pixel).max(SHARED_PLACE * wide);
        if let Some(k) = gaps.iter().position(|gap| *gap < shared) {
            return Err(Misfit::Duplicate { plane: self.order[k + 1], other: self.order[k] });
        }
        match self.exact_line(pixel) {
            Some(line) => self.upright(line),
            None => self.fitted_line(pixel, usual),
        }
    }

    /// The line from the first plane to the last, if all others lie on it.
    fn exact_line(&self, pixel: f64) -> Option<Line> {
        let (first, last) = (self.position(0), self.position(self.order.len() - 1));
        let path = subtract(last, first);
        let length = dot(path, path).sqrt();
        let direction = path.map(|component| component / length);
        let step = length / (self.order.len() - 1) as f64;
        let bound = EXACT_MM.max(EXACT * step).min(MOST_OF_STEP * step).min(MOST_OF_PIXEL * pixel);
        let lies = |k: usize| {
            let place = direction.map(|d| d * step * k as f64);
            let off = subtract(subtract(self.position(k), first), place);
            dot(off, off).sqrt() <= bound
        };
        (0..self.order.len()).all(lies).then_some(Line { origin: first, step, direction })
    }

    /// The line with the least squared distances to the planes' places, if all of them are within tolerance.
    fn fitted_line(&self, pixel: f64, usual: f64) -> Result<Line, Misfit> {
        let count = self.order.len();
        let middle = (count - 1) as f64 / 2.0;
        // Places along (row, column, normal) relative to the first plane, which keeps the numbers small.
        let places: Vec<[f64; 3]> = (0..count)
            .map(|k| {
                let from_first = subtract(self.position(k), self.position(0));
                self.axes.map(|axis| dot(from_first, axis))
            })
            .collect();
        let mean: [f64; 3] =
            std::array::from_fn(|a| places.iter().map(|p| p[a]).sum::<f64>() / count as f64);
        let spread: f64 = (0..count).map(|k| (k as f64 - middle).powi(2)).sum();
        let slope: [f64; 3] = std::array::from_fn(|a| {
            places.iter().enumerate().map(|(k, p)| (k as f64 - middle) * p[a]).sum::<f64>() / spread
        });
        let [across, within] = tolerance([pixel, pixel, slope[2]]);
        let off = |k: usize, slope: [f64; 3]| -> [f64; 3] {
            std::array::from_fn(|a| places[k][a] - mean[a] - slope[a] * (k as f64 - middle))
        };
        if (0..count).any(|k| off(k, slope)[2].abs() > across) {
            return Err(self.uneven(usual));
        }
        let beside = |slope: [f64; 3]| {
            let aside = |k: usize| off(k, slope)[0].hypot(off(k, slope)[1]);
            (0..count).map(|k| (k, aside(k))).max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, 0.0))
        };
        let (farthest, distance) = beside(slope);
        if distance > within {
            let neighbour = if farthest == 0 { 1 } else { farthest - 1 };
            let (plane, other) = (self.order[farthest], self.order[neighbour]);
            return Err(Misfit::Astray { plane, other, distance });
        }
        // Jitter of a short stack looks like a tilt; it is none where the planes lie above each other without it.
        let straight = [0.0, 0.0, slope[2]];
        let upright = beside(straight).1 <= within;
        let slope = if upright { straight } else { slope };
        let patient = |v: [f64; 3]| -> [f64; 3] {
            std::array::from_fn(|axis| (0..3).map(|a| v[a] * self.axes[a][axis]).sum())
        };
        let start = patient(std::array::from_fn(|a| mean[a] - slope[a] * middle));
        let path = patient(slope);
        let step = dot(path, path).sqrt();
        let origin = std::array::from_fn(|axis| self.position(0)[axis] + start[axis]);
        self.upright(Line { origin, step, direction: path.map(|p| p / step) })
    }

    /// Names the gap that differs most from the usual one.
    fn uneven(&self, usual: f64) -> Misfit {
        let gaps = (0..self.order.len() - 1).map(|k| (k, self.gap(k)));
        let (k, gap) = gaps
            .max_by(|a, b| (a.1 - usual).abs().total_cmp(&(b.1 - usual).abs()))
            .expect("a stack has a gap");
        Misfit::Uneven { plane: self.order[k + 1], other: self.order[k], gap, usual }
    }

    /// Refuses slices that do not follow each other along their normal.
    fn upright(&self, line: Line) -> Result<Line, Misfit> {
        let across = cross(line.direction, self.axes[2]);
        let degrees = dot(across, across).sqrt().min(1.0).asin().to_degrees();
        if degrees > MAX_SHEAR_DEGREES {
            return Err(Misfit::Sheared { plane: self.order[self.order.len() - 1], degrees });
        }
        Ok(line)
    }
}

/// Unit vectors at right angles along the rows, along the columns and along the normal: files round theirs.
fn axes(plane: &Plane) -> [[f64; 3]; 3] {
    let unit = |v: [f64; 3]| v.map(|component| component / dot(v, v).sqrt());
    let right = unit(plane.orientation[0]);
    let normal = unit(cross(right, plane.orientation[1]));
    [right, cross(normal, right), normal]
}

fn check(plane: usize, candidate: &Plane) -> Result<(), Misfit> {
    let [right, down] = candidate.orientation;
    let unit = |v: [f64; 3]| (dot(v, v) - 1.0).abs() < 1e-3;
    if !(unit(right) && unit(down) && dot(right, down).abs() < 1e-3) {
        return Err(Misfit::NotOrthonormal { plane });
    }
    let near = |values: &[f64]| values.iter().all(|v| v.abs() < FARTHEST_MM);
    let apart = |values: &[f64]| values.iter().all(|v| *v > 1.0 / FARTHEST_MM);
    let sizes = [candidate.spacing.as_slice(), candidate.thickness.as_slice()].concat();
    if near(&candidate.position) && near(&sizes) && apart(&sizes) {
        Ok(())
    } else {
        Err(Misfit::OutOfReach { plane })
    }
}

/// The first item of the largest group of items that are alike.
pub(super) fn most_common<T>(items: &[T], alike: impl Fn(&T, &T) -> bool) -> usize {
    let mut groups: Vec<(usize, usize)> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        match groups.iter_mut().find(|(first, _)| alike(item, &items[*first])) {
            Some((_, count)) => *count += 1,
            None => groups.push((index, 1)),
        }
    }
    // The earliest of equally large groups.
    groups.iter().rev().max_by_key(|(_, count)| *count).map_or(0, |(first, _)| *first)
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
        assert!(arrange(&[axial(0.0), turned(5e-4)]).is_ok());
        let found = arrange(&[axial(0.0), turned(0.5)]).unwrap_err();
        assert!(
            matches!(found, Misfit::Orientation { plane: 1, other: 0, degrees } if (degrees - 30.0).abs() < 1e-6)
        );
    }

    #[test]
    fn a_tilted_gantry_is_refused_with_its_angle() {
        for degrees in [1.5_f64, 5.0, 15.0] {
            let tilt = degrees.to_radians().tan();
            let tilted = |k: f64| Plane { position: [0.0, k * tilt, k], ..axial(0.0) };
            for count in [2, 3, 40] {
                let planes: Vec<Plane> = (0..count).map(|k| tilted(f64::from(k))).collect();
                let found = arrange(&planes).unwrap_err();
                let Misfit::Sheared { degrees: named, .. } = found else { panic!("{found:?}") };
                assert!((named - degrees).abs() < 0.01, "{named} for {degrees}");
            }
        }
    }

    #[test]
    fn positions_rounded_to_a_tenth_of_a_millimetre_form_the_grid_that_was_meant() {
        for step in [0.5, 0.625, 1.0, 1.25, 3.3] {
            let rounded = |k: i32| ((f64::from(k) * step - 17.23) * 10.0).round() / 10.0;
            let (order, grid) = stack(&(0..40).map(rounded).collect::<Vec<_>>()).unwrap();
            assert_eq!(order, (0..40).collect::<Vec<_>>());
            assert!((grid.spacing[2] - step).abs() < 0.003, "{} for {step}", grid.spacing[2]);
            assert!((grid.origin[2] + 17.23).abs() < 0.05);
            assert_eq!(grid.direction[2], [0.0, 0.0, 1.0]);
        }
    }

    #[test]
    fn a_slice_that_lies_beside_the_others_is_named() {
        let mut planes: Vec<Plane> = (0..20).map(|k| axial(f64::from(k))).collect();
        planes[7].position[0] += 3.0;
        let found = arrange(&planes).unwrap_err();
        assert!(
            matches!(found, Misfit::Astray { plane: 7, distance, .. } if distance > 2.0),
            "{found:?}"
        );
    }

    #[test]
    fn the_slice_that_differs_is_named_even_if_it_comes_first() {
        let mut planes: Vec<Plane> = (0..5).map(|k| axial(f64::from(k))).collect();
        planes[0].spacing = [0.5, 0.8];
        assert!(matches!(arrange(&planes).unwrap_err(), Misfit::Spacing { plane: 0, .. }));
        planes[0] = Plane { orientation: [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], ..axial(0.0) };
        assert!(matches!(arrange(&planes).unwrap_err(), Misfit::Orientation { plane: 0, .. }));
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

        #[test]
        fn jittered_planes_lie_within_tolerance_of_the_grid_or_are_refused(
            step in 0.4_f64..6.0,
            pixel in 0.3_f64..2.0,
            jitter in 0.0_f64..0.4,
            offsets in prop::collection::vec([-1.0_f64..1.0, -1.0..1.0, -1.0..1.0], 2..40),
            missing in 0_usize..80,
        ) {
            let planes: Vec<Plane> = offsets
                .iter()
                .enumerate()
                .filter(|(k, _)| *k != missing || *k == 0)
                .map(|(k, off)| Plane {
                    position: [off[0] * jitter, off[1] * jitter, k as f64 * step + off[2] * jitter],
                    spacing: [pixel; 2],
                    ..axial(0.0)
                })
                .collect();
            let hole = missing > 0 && missing + 1 < offsets.len();
            match arrange(&planes) {
                Ok((order, grid)) => {
                    prop_assert!(!hole || planes.len() < 3, "a hole is taken for a grid");
                    let [across, within] = tolerance(grid.spacing);
                    for (k, &plane) in order.iter().enumerate() {
                        let off = subtract(planes[plane].position, grid.position(k as f64, 0.0, 0.0));
                        prop_assert!(off[2].abs() <= across + 1e-9, "{off:?}");
                        prop_assert!(off[0].hypot(off[1]) <= within + 1e-9, "{off:?}");
                    }
                }
                Err(misfit) => {
                    let small = jitter <= 0.1 && pixel > 0.3 && step > 0.9 && !hole;
                    prop_assert!(!small || planes.len() < 4, "{misfit:?}");
                }
            }
        }
    }
}
