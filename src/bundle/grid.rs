//! How a case lies on the grid that a model works on, and the way back.
//!
//! The way there is either a turn of whole axes (and, for images, a resize of rows and columns), which moves every sample
//! unchanged, or one affine map along which samples are interpolated. A case is resampled only where its spacing or its
//! direction differs from the model's by more than a tolerance, so that a case on the model's own grid is computed bit for bit
//! as published. Called by `prepare`, `Assembly` and training.

use ndarray::{Array3, Array4, ArrayView3, ArrayView4, Axis, Zip, s};

use super::{
    BundleError, Manifest, Orientation,
    affine::{Affine, inside, interpolate},
    resize::{resize_bilinear, resize_nearest},
};
use crate::domain::{Geometry, Volume};

/// A spacing counts as the model's within this share of it.
const SPACING_TOLERANCE: f64 = 0.02;
/// Directions count as the model's up to this angle, degrees. docs/accuracy.md has what a tilt costs.
const TILT_TOLERANCE: f64 = 5.0;
/// A part of a voxel that is not worth a voxel of its own on the model's grid.
const NEGLIGIBLE: f64 = 0.02;
/// Largest model's grid that a case is resampled to, voxels.
const MAX_VOXELS: f64 = 512.0 * 1024.0 * 1024.0;

/// For the working slice, row and column axis: the source axis (0 slice, 1 row, 2 column) it is, and whether it is reversed.
type Axes = [(usize, bool); 3];

/// How a case lies on the grid that the network works on, and the way back.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    pub(super) layout: Layout,
    /// [D, H, W] that windows are laid on: turned, resized or resampled, and padded.
    pub working: [usize; 3],
    /// Slices, rows and columns of padding in front.
    pub offset: [usize; 3],
    /// [D, H, W] without padding.
    pub(super) inner: [usize; 3],
}

/// The way from the source's grid to the model's, before padding.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layout {
    /// [D, H, W] of the source.
    source: [usize; 3],
    way: Way,
}

#[derive(Debug, Clone, PartialEq)]
enum Way {
    Turned {
        axes: Axes,
        /// [D, H, W] after turning, before resizing.
        oriented: [usize; 3],
        /// [H, W] to which rows and columns are resized.
        resize: Option<[usize; 2]>,
    },
    Resampled {
        /// From indices on the model's grid to indices on the source's.
        to_source: Affine,
        to_model: Affine,
        /// [D, H, W] on the model's grid.
        shape: [usize; 3],
    },
}

impl Manifest {
    /// The grid that the network works on, for images that come as plain arrays and are taken to lie on it; `None` where
    /// the model does not work in millimetres. Its origin is that of patient coordinates.
    #[must_use]
    pub fn own_geometry(&self) -> Option<Geometry> {
        let [rows, columns, slices] = self.input.spacing?;
        let orientation = self.input.orientation?;
        let direction = [2, 1, 0].map(|axis| unit(orientation, axis));
        Some(Geometry { origin: [0.0; 3], direction, spacing: [columns, rows, slices] })
    }
}

impl Layout {
    /// # Errors
    /// If the case is too large for the model, or the model works in millimetres and the case does not say where it lies.
    pub fn new(manifest: &Manifest, volume: &Volume) -> Result<Self, BundleError> {
        let (_, d, h, w) = volume.samples.dim();
        let source = [d, h, w];
        let input = &manifest.input;
        let axes = match (input.orientation, &volume.geometry) {
            (Some(orientation), Some(geometry)) => source_axes(orientation, geometry),
            _ => [(0, false), (1, false), (2, false)],
        };
        let oriented = axes.map(|(axis, _)| source[axis]);
        let turned = Self { source, way: Way::Turned { axes, oriented, resize: input.resize } };
        let Some([rows, columns, slices]) = input.spacing else {
            refuse_larger(manifest, oriented.map(|count| count as f64), "pixels")?;
            return Ok(turned);
        };
        let model = || manifest.name.clone();
        let geometry =
            volume.geometry.ok_or_else(|| BundleError::SpacingUnknown { model: model() })?;
        let to_patient = Affine::to_patient(&geometry);
        let Some(from_patient) = to_patient.inverse() else {
            return Err(BundleError::SpacingUnknown { model: model() });
        };
        let along = |axis: usize| geometry.spacing[2 - axes[axis].0];
        let wanted = [slices, rows, columns];
        let is_near = |axis: usize| {
            // An axis with one voxel has nothing to interpolate between.
            oriented[axis] == 1 || (along(axis) / wanted[axis] - 1.0).abs() <= SPACING_TOLERANCE
        };
        // A spacing that counts as the model's is no reason to find a case too large.
        let counted = |axis: usize| if is_near(axis) { wanted[axis] } else { along(axis) };
        let extent: [f64; 3] = std::array::from_fn(|axis| oriented[axis] as f64 * counted(axis));
        refuse_larger(manifest, extent, "mm")?;

        let tilt = input.orientation.map_or(0.0, |orientation| tilt(orientation, &geometry));
        let is_tilted = tilt > TILT_TOLERANCE && !source.contains(&1);
        if (0..3).all(is_near) && !is_tilted {
            return Ok(turned);
        }
        let directions = |axis: usize| {
            if let (Some(orientation), true) = (input.orientation, is_tilted) {
                return unit(orientation, axis);
            }
            let (from, reversed) = axes[axis];
            geometry.direction[2 - from].map(|d| if reversed { -d } else { d })
        };
        let step = |axis: usize| if oriented[axis] == 1 { along(axis) } else { wanted[axis] };
        let model_axes = std::array::from_fn(|axis| (directions(axis), step(axis)));
        let (to_patient_from_model, shape) = enclose(&to_patient, source, model_axes);
        let voxels: f64 = shape.iter().map(|&count| count as f64).product();
        let to_source = to_patient_from_model.then(&from_patient);
        match to_source.inverse() {
            Some(to_model) if voxels <= MAX_VOXELS => {
                Ok(Self { source, way: Way::Resampled { to_source, to_model, shape } })
            }
            _ => Err(BundleError::TooLarge {
                model: model(),
                found: extents(extent, "mm"),
                largest: "512 Mi voxels at its spacing".into(),
            }),
        }
    }

    /// Samples [C, D, H, W] of the source on the model's grid.
    pub fn lay(&self, samples: ArrayView4<'_, f32>) -> Array4<f32> {
        match &self.way {
            Way::Turned { axes, resize, .. } => {
                let turned = turn(samples, *axes);
                match resize {
                    Some(size) => resize_bilinear(turned, *size),
                    None => turned.as_standard_layout().into_owned(),
                }
            }
            Way::Resampled { to_source, shape, .. } => interpolate(samples, to_source, *shape),
        }
    }

    /// Which voxels of the model's grid, before padding, show anything of the source; `None` where all do.
    pub fn shown(&self) -> Option<Array3<bool>> {
        match &self.way {
            Way::Turned { .. } => None,
            Way::Resampled { to_source, shape, .. } => Some(inside(to_source, *shape, self.source)),
        }
    }
}

impl Grid {
    /// [D, H, W] of the source.
    #[must_use]
    pub fn source(&self) -> [usize; 3] {
        self.layout.source
    }

    /// [D, H, W] without padding.
    #[must_use]
    pub fn inner(&self) -> [usize; 3] {
        self.inner
    }

    /// Whether voxels of the source's grid lie between those of the model's, so that shares of votes are interpolated.
    #[must_use]
    pub fn is_resampled(&self) -> bool {
        matches!(self.layout.way, Way::Resampled { .. })
    }

    /// Carries what was decided [D, H, W] back to the source's grid: by nearest neighbour where the image was resized, as it is
    /// where the case was resampled, since there it is decided on the source's grid.
    #[must_use]
    pub fn mask_to_source(&self, decided: Array3<u8>) -> Array3<u8> {
        match &self.layout.way {
            Way::Turned { axes, oriented, .. } if self.inner == *oriented => {
                turn_back(&decided, *axes, self.source())
            }
            Way::Turned { axes, oriented: [_, h, w], .. } => {
                turn_back(&resize_nearest(&decided, [*h, *w]), *axes, self.source())
            }
            Way::Resampled { .. } => decided,
        }
    }

    /// Carries shares of votes [D, H, W] on the unpadded working grid back to the source's grid, by linear interpolation.
    #[must_use]
    pub fn shares_to_source(&self, inner: &Array3<f32>) -> Array3<f32> {
        let view = inner.view().insert_axis(Axis(0));
        match &self.layout.way {
            Way::Turned { axes, oriented: [_, h, w], .. } => {
                let resized = resize_bilinear(view, [*h, *w]).index_axis_move(Axis(0), 0);
                turn_back(&resized, *axes, self.source())
            }
            Way::Resampled { to_model, .. } => {
                interpolate(view, to_model, self.source()).index_axis_move(Axis(0), 0)
            }
        }
    }

    /// Lays a mask [D, H, W] of label values on the source's grid onto the working grid, turned, resized or resampled, and
    /// padded as the image was. Where that mixes labels, the one with the largest share is taken; padding is background.
    #[must_use]
    pub fn to_working(&self, mask: ArrayView3<'_, u8>) -> Array3<u8> {
        let inner = match &self.layout.way {
            Way::Turned { axes, oriented, .. } if self.inner == *oriented => {
                turn(mask.insert_axis(Axis(0)), *axes).index_axis_move(Axis(0), 0).to_owned()
            }
            _ => self.lay_labels(mask),
        };
        let mut working = Array3::zeros(self.working);
        let ([d, h, w], [a, b, c]) = (self.inner, self.offset);
        working.slice_mut(s![a..a + d, b..b + h, c..c + w]).assign(&inner);
        working
    }

    /// Every label's share of a voxel, by the filter that lays images, and the largest of them; the lower label where two are
    /// equal.
    fn lay_labels(&self, mask: ArrayView3<'_, u8>) -> Array3<u8> {
        let share = |label: u8| {
            let is_label = mask.mapv(|value| f32::from(u8::from(value == label)));
            self.layout.lay(is_label.insert_axis(Axis(0)).view()).index_axis_move(Axis(0), 0)
        };
        let mut best = share(0);
        let mut laid = Array3::zeros(best.raw_dim());
        for label in 1..=mask.iter().copied().max().unwrap_or(0) {
            Zip::from(&mut laid).and(&mut best).and(&share(label)).for_each(
                |value, best, &share| {
                    if share > *best {
                        (*value, *best) = (label, share);
                    }
                },
            );
        }
        laid
    }
}

/// `extent`: slices, rows and columns as oriented, in `unit`.
fn refuse_larger(manifest: &Manifest, extent: [f64; 3], unit: &str) -> Result<(), BundleError> {
    let Some([rows, columns, slices]) = manifest.input.largest else { return Ok(()) };
    let largest = [slices, rows, columns].map(|count| count as f64);
    if extent.iter().zip(largest).all(|(&extent, largest)| extent <= largest + 1e-6) {
        return Ok(());
    }
    Err(BundleError::TooLarge {
        model: manifest.name.clone(),
        found: extents(extent, unit),
        largest: extents(largest, unit),
    })
}

fn extents([slices, rows, columns]: [f64; 3], unit: &str) -> String {
    let round = |extent: f64| (extent * 10.0).round() / 10.0;
    let [r, c, s] = [rows, columns, slices].map(round);
    format!("{r} x {c} x {s} {unit} (rows, columns, slices as oriented)")
}

/// The unit vector (LPS) towards which the index of a working axis (slice, row, column) grows.
fn unit(orientation: Orientation, axis: usize) -> [f64; 3] {
    let [rows, columns, slices] = orientation.axes;
    let (patient_axis, is_positive) = [slices, rows, columns][axis];
    let mut unit = [0.0; 3];
    unit[patient_axis] = if is_positive { 1.0 } else { -1.0 };
    unit
}

/// The largest angle between an axis of the source and the axis of the model that it is taken for, degrees.
fn tilt(orientation: Orientation, geometry: &Geometry) -> f64 {
    let axes = source_axes(orientation, geometry);
    let angle = |axis: usize| {
        let unit = unit(orientation, axis);
        let direction = geometry.direction[2 - axes[axis].0];
        let cosine: f64 = (0..3).map(|k| unit[k] * direction[k]).sum();
        cosine.abs().min(1.0).acos().to_degrees()
    };
    (0..3).map(angle).fold(0.0, f64::max)
}

/// The smallest grid with these axes (direction, spacing) that holds every voxel of a grid of `source` voxels, centred on it: its
/// way to patient coordinates, and its shape.
fn enclose(
    to_patient: &Affine,
    source: [usize; 3],
    axes: [([f64; 3], f64); 3],
) -> (Affine, [usize; 3]) {
    let centre = source.map(|count| (count as f64 - 1.0) / 2.0);
    let model = Geometry {
        origin: to_patient.at(centre),
        direction: [2, 1, 0].map(|axis| axes[axis].0),
        spacing: [2, 1, 0].map(|axis| axes[axis].1),
    };
    let centred = Affine::to_patient(&model);
    let Some(to_centred) = centred.inverse() else { return (centred, [usize::MAX; 3]) };
    let to_centred = to_patient.then(&to_centred);
    let mut half = [0.0_f64; 3];
    for corner in 0..8_u8 {
        let index = std::array::from_fn(|axis| {
            let reach = source[axis] as f64 / 2.0;
            centre[axis] + if corner >> axis & 1 == 0 { -reach } else { reach }
        });
        let at = to_centred.at(index);
        half = std::array::from_fn(|axis| half[axis].max(at[axis].abs()));
    }
    let shape = half.map(|half| (2.0 * half - NEGLIGIBLE).ceil().max(1.0) as usize);
    let first = shape.map(|count| (1.0 - count as f64) / 2.0);
    (Affine::to_patient(&Geometry { origin: centred.at(first), ..model }), shape)
}

fn source_axes(orientation: Orientation, geometry: &Geometry) -> Axes {
    // closest_axes is in order column, row, slice; arrays are slice, row, column.
    let [column, row, slice] = geometry.closest_axes();
    let source = [slice, row, column];
    let [rows, columns, slices] = orientation.axes;
    [slices, rows, columns].map(|(patient_axis, towards)| {
        let axis = source
            .iter()
            .position(|&(axis, _)| axis == patient_axis)
            .expect("closest_axes takes every patient axis once");
        (axis, source[axis].1 != towards)
    })
}

/// Turns and flips whole axes, the last three of `samples`.
fn turn<T>(mut samples: ArrayView4<'_, T>, axes: Axes) -> ArrayView4<'_, T> {
    let order = axes.map(|(axis, _)| axis + 1);
    samples = samples.permuted_axes([0, order[0], order[1], order[2]]);
    for (axis, (_, reversed)) in axes.iter().enumerate() {
        if *reversed {
            samples.invert_axis(Axis(axis + 1));
        }
    }
    samples
}

fn turn_back<T: Copy + Default>(oriented: &Array3<T>, axes: Axes, source: [usize; 3]) -> Array3<T> {
    let mut turned = Array3::default(source);
    {
        let mut view = turned.view_mut().permuted_axes(axes.map(|(axis, _)| axis));
        for (axis, (_, reversed)) in axes.iter().enumerate() {
            if *reversed {
                view.invert_axis(Axis(axis));
            }
        }
        view.assign(oriented);
    }
    turned
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::bundle::{Prepared, prepare};

    /// The hippocampus preset with `from` replaced by `to`.
    fn manifest(from: &str, to: &str) -> Manifest {
        let preset = include_str!("../../onnx/cdal_onnx/presets/hippocampus.toml");
        assert!(preset.contains(from), "{from}");
        let network = "diffusion = { steps = 2, variance = \"preserving\", beta_min = 0.1, beta_max = 20.0 }\nnetwork = { label_channels = 3, features = 32, latent = 10 }";
        let text = preset.replace(from, to).replace("$size", "32").replace("$name", "a");
        let text = text.replace("$version", "1").replacen(
            "schema = 1",
            &format!("schema = 1\n{network}"),
            1,
        );
        Manifest::parse(&text, Path::new("p")).unwrap()
    }

    const SPACING: &str = "spacing = [1.0, 1.0, 1.0]";

    fn turned_by(degrees: f64, spacing: [f64; 3]) -> Geometry {
        let (s, c) = degrees.to_radians().sin_cos();
        Geometry {
            origin: [-20.0, -30.0, 10.0],
            direction: [[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]],
            spacing,
        }
    }

    /// A ball of 12 mm around `centre`, in patient coordinates, 1 within and 0 outside, on a grid of `shape`.
    fn ball(geometry: &Geometry, shape: [usize; 3]) -> Array3<u8> {
        let centre =
            geometry.position(shape[0] as f64 / 2.0, shape[1] as f64 / 2.0, shape[2] as f64 / 2.0);
        Array3::from_shape_fn(shape, |(k, j, i)| {
            let at = geometry.position(k as f64, j as f64, i as f64);
            let distance: f64 = (0..3).map(|axis| (at[axis] - centre[axis]).powi(2)).sum();
            u8::from(distance < 144.0)
        })
    }

    fn volume(geometry: Geometry, shape: [usize; 3]) -> Volume {
        let samples = ball(&geometry, shape).mapv(f32::from).insert_axis(Axis(0));
        Volume { samples, geometry: Some(geometry), nominal_range: None }
    }

    fn dice(a: &Array3<u8>, b: &Array3<u8>) -> f64 {
        let both = a.iter().zip(b).filter(|(a, b)| **a > 0 && **b > 0).count();
        let sizes = a.iter().chain(b).filter(|value| **value > 0).count();
        2.0 * both as f64 / sizes as f64
    }

    /// The share of the model's voxels in the ball, carried back to the source and decided there.
    fn there_and_back(prepared: &Prepared) -> Array3<u8> {
        let ([d, h, w], [a, b, c]) = (prepared.grid.inner, prepared.grid.offset);
        let inner = prepared.working.slice(s![0, a..a + d, b..b + h, c..c + w]);
        let share = inner.mapv(|value| f32::midpoint(value, 1.0));
        prepared.grid.shares_to_source(&share).mapv(|share| u8::from(share > 0.5))
    }

    #[test]
    fn a_case_on_the_models_grid_is_shown_to_the_network_bit_for_bit_as_without_a_spacing() {
        for (degrees, spacing) in [(0.0, [1.0; 3]), (4.0, [1.01, 0.99, 1.0])] {
            let volume = volume(turned_by(degrees, spacing), [36, 35, 50]);
            let with = prepare(&manifest(SPACING, SPACING), &volume).unwrap();
            let without = prepare(&manifest(SPACING, ""), &volume).unwrap();
            assert_eq!(with, without);
        }
    }

    #[test]
    fn voxels_of_another_size_are_shown_at_the_models_spacing_and_come_back_to_their_own() {
        for (spacing, inner) in [
            ([0.5, 0.5, 0.5], [36, 36, 36]),
            ([1.4, 1.4, 1.4], [101, 101, 101]),
            ([0.7, 0.7, 1.5], [108, 51, 51]),
        ] {
            let volume = volume(turned_by(0.0, spacing), [72, 72, 72]);
            let prepared = prepare(&manifest(SPACING, SPACING), &volume).unwrap();
            assert_eq!(prepared.grid.inner, inner, "{spacing:?}");
            let truth = volume.samples.index_axis(Axis(0), 0).mapv(|v| v as u8);
            let found = there_and_back(&prepared);
            assert!(dice(&found, &truth) > 0.97, "{spacing:?}: {}", dice(&found, &truth));
        }
    }

    #[test]
    fn a_tilted_case_is_shown_upright_and_crops_beyond_its_corners_are_left_out() {
        let volume = volume(turned_by(25.0, [1.0; 3]), [36, 50, 50]);
        let prepared = prepare(&manifest(SPACING, SPACING), &volume).unwrap();
        assert_eq!(prepared.grid.inner, [36, 67, 67]);
        let truth = volume.samples.index_axis(Axis(0), 0).mapv(|v| v as u8);
        assert!(dice(&there_and_back(&prepared), &truth) > 0.97);
        let upright = Volume { geometry: Some(turned_by(0.0, [1.0; 3])), ..volume };
        let whole = prepare(&manifest(SPACING, SPACING), &upright).unwrap();
        assert!(whole.crops.len() < prepared.crops.len());
    }

    #[test]
    fn labels_lie_where_the_image_does() {
        let volume = volume(turned_by(25.0, [0.7, 0.7, 1.5]), [24, 70, 70]);
        let prepared = prepare(&manifest(SPACING, SPACING), &volume).unwrap();
        let truth = volume.samples.index_axis(Axis(0), 0).mapv(|v| v as u8);
        let labels = prepared.grid.to_working(truth.view());
        let image = prepared.working.index_axis(Axis(0), 0).mapv(|v| u8::from(v > 0.0));
        assert!(dice(&labels, &image) > 0.999, "{}", dice(&labels, &image));
    }

    #[test]
    fn a_single_slice_keeps_its_plane_and_its_thickness() {
        let volume = volume(turned_by(25.0, [0.5, 0.5, 9.0]), [1, 64, 64]);
        let prepared = prepare(&manifest(SPACING, SPACING), &volume).unwrap();
        assert_eq!(prepared.grid.inner, [1, 32, 32]);
    }

    #[test]
    fn a_case_of_unknown_spacing_is_refused_by_a_model_that_works_in_millimetres() {
        let volume = Volume { geometry: None, ..volume(turned_by(0.0, [1.0; 3]), [4, 40, 40]) };
        let refused = prepare(&manifest(SPACING, SPACING), &volume).unwrap_err();
        assert!(matches!(refused, BundleError::SpacingUnknown { .. }), "{refused}");
        assert!(prepare(&manifest(SPACING, ""), &volume).is_ok());
    }

    #[test]
    fn a_plain_array_is_taken_to_lie_on_the_models_own_grid() {
        let manifest = manifest(SPACING, "spacing = [0.7, 0.8, 3.0]");
        let geometry = manifest.own_geometry().unwrap();
        assert_eq!(geometry.spacing, [0.8, 0.7, 3.0]);
        let volume = volume(geometry, [3, 40, 50]);
        let prepared = prepare(&manifest, &volume).unwrap();
        assert!(!prepared.grid.is_resampled());
        let turn = [(0, false), (1, false), (2, false)];
        assert!(matches!(prepared.grid.layout.way, Way::Turned { axes, .. } if axes == turn));
    }

    #[test]
    fn extents_are_compared_in_millimetres() {
        let fits = |spacing: f64, side: usize| {
            let volume = volume(turned_by(0.0, [spacing; 3]), [4, side, side]);
            prepare(&manifest(SPACING, SPACING), &volume).map(|_| ())
        };
        assert!(fits(0.5, 250).is_ok());
        assert!(fits(1.005, 128).is_ok());
        let refused = fits(2.0, 70).unwrap_err().to_string();
        assert!(refused.contains("140 x 140 x 8 mm"), "{refused}");
    }

    #[test]
    fn a_shrunk_pixel_takes_the_label_that_covers_most_of_it() {
        let shrunk = |size: [usize; 2]| {
            let source = [1, 2, 6];
            let axes = [(0, false), (1, false), (2, false)];
            let way = Way::Turned { axes, oriented: source, resize: Some(size) };
            let inner = [1, size[0], size[1]];
            let grid =
                Grid { layout: Layout { source, way }, working: inner, offset: [0; 3], inner };
            let mask = Array3::from_shape_vec(source, [[0, 0, 0, 2, 2, 1]; 2].concat()).unwrap();
            grid.to_working(mask.view()).into_raw_vec_and_offset().0
        };
        assert_eq!(shrunk([1, 2]), [0, 2]);
        assert_eq!(shrunk([1, 6]), [0, 0, 0, 2, 2, 1]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn every_voxel_of_a_case_is_shown_somewhere(
            degrees in 6.0_f64..44.0,
            spacing in [0.4_f64..2.0, 0.4_f64..2.0, 0.4_f64..2.0],
            shape in [2_usize..20, 2_usize..20, 2_usize..20],
        ) {
            let volume = volume(turned_by(degrees, spacing), shape);
            let prepared = prepare(&manifest(SPACING, SPACING), &volume).unwrap();
            let Way::Resampled { to_model, to_source, shape: model } = &prepared.grid.layout.way else {
                panic!("it is tilted")
            };
            for corner in 0..8_usize {
                let index = std::array::from_fn(|axis| {
                    if corner >> axis & 1 == 0 { 0.0 } else { shape[axis] as f64 - 1.0 }
                });
                let at = to_model.at(index);
                let back = to_source.at(at);
                for axis in 0..3 {
                    prop_assert!(at[axis] > -0.5 && at[axis] < model[axis] as f64 - 0.5);
                    prop_assert!((back[axis] - index[axis]).abs() < 1e-9);
                }
            }
        }
    }
}
