//! Segmentations of others, and our own, back into masks.

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::Array3;

use crate::codec::dicom::{self, Frame, Plane, Segment, StoredSegmentation};
use crate::codec::{Case, CodecError, Source};
use crate::domain::{Geometry, Label};

/// How far off a voxel's centre a pixel's may lie, voxels.
const OFF_CENTRE: f64 = 0.25;

/// Whether a file is a Segmentation object; what is no DICOM file is none.
///
/// # Errors
/// If the file cannot be read, or is a damaged DICOM file.
pub fn is_segmentation(path: &Path) -> Result<bool, CodecError> {
    dicom::is_segmentation(path)
}

/// Reads a BINARY Segmentation object as a mask [D, H, W] of label values on the grid of `image`. Frames are found by
/// where they lie, or, where nothing lies in space, by the instance and frame they were made from; slices without a
/// frame are background.
///
/// A segment is the label whose type code it bears. If several labels bear that code, the one of them with the
/// segment's number; if no segment's code is known, numbers alone decide.
///
/// # Errors
/// If the file is damaged or of another kind, a segment is none of `labels`, segments overlap, or a frame does not
/// lie on the voxels of the image.
pub fn read(path: &Path, image: &Case, labels: &[Label]) -> Result<Array3<u8>, CodecError> {
    let stored = StoredSegmentation::read(path)?;
    let value_of = values(path, &stored.segments, labels)?;
    let (_, slices, rows, columns) = image.volume.samples.dim();
    let mut mask = Array3::zeros((slices, rows, columns));
    for (number, frame) in stored.frames.iter().enumerate() {
        let refuse = |what: String, remedy| CodecError::unsupported(path, what, remedy);
        let &value = value_of.get(&frame.segment).ok_or_else(|| {
            let reason = format!("frame {} shows a segment that is not described", number + 1);
            CodecError::malformed(path, "DICOM", reason)
        })?;
        let set = |pixel: &(usize, &u8)| *pixel.1 != 0;
        let mut pixels = frame.pixels.iter().enumerate().filter(set).peekable();
        if pixels.peek().is_none() {
            continue;
        }
        let size = [stored.rows, stored.columns];
        let placement = Placement::find(frame, size, image);
        for (pixel, _) in pixels {
            let at =
                placement.and_then(|p| p.voxel(pixel / stored.columns, pixel % stored.columns));
            let Some(voxel) = at.and_then(|at| mask.get_mut(at)) else {
                let what =
                    format!("frame {}, which marks what is no voxel of the image,", number + 1);
                return Err(refuse(what, "resample the segmentation to the image's grid"));
            };
            if *voxel != 0 && *voxel != value {
                let what = format!("an overlap of labels {voxel} and {value}");
                return Err(refuse(what, "leave one label a voxel"));
            }
            *voxel = value;
        }
    }
    Ok(mask)
}

/// The label value of each segment number.
fn values(
    path: &Path,
    segments: &[Segment],
    labels: &[Label],
) -> Result<BTreeMap<u16, u8>, CodecError> {
    let bears = |segment: &Segment, label: &Label| {
        let code = segment.kind.as_ref().map(|(value, scheme)| (value.as_str(), scheme.as_str()));
        code == Some((&label.kind.value, &label.kind.scheme))
    };
    let is_coded = segments.iter().any(|s| labels.iter().any(|label| bears(s, label)));
    let mut found = BTreeMap::new();
    for segment in segments {
        let candidates: Vec<&Label> =
            labels.iter().filter(|label| !is_coded || bears(segment, label)).collect();
        let label = match candidates.as_slice() {
            [only] if is_coded => Some(*only),
            several => several.iter().copied().find(|l| u16::from(l.value) == segment.number),
        };
        let Some(label) = label else {
            let what = format!(
                "segment {} ({}), which is none of the model's labels,",
                segment.number, segment.name
            );
            let remedy = "leave it out, or give it the type code or the number of a label";
            return Err(CodecError::unsupported(path, what, remedy));
        };
        found.insert(segment.number, label.value);
    }
    Ok(found)
}

/// Which voxel (slice, row, column) the first pixel of a frame is, and how far a step along its rows (the row index
/// grows) and its columns leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Placement {
    first: [i64; 3],
    down: [i64; 3],
    right: [i64; 3],
}

impl Placement {
    /// `None` if the pixels are not voxels of the image.
    fn find(frame: &Frame, size: [usize; 2], image: &Case) -> Option<Self> {
        if let (Some(plane), Some(grid)) = (&frame.plane, &image.volume.geometry) {
            return Self::in_space(plane, size, grid);
        }
        let (_, slices, rows, columns) = image.volume.samples.dim();
        if size != [rows, columns] {
            return None;
        }
        let slice = match &image.source {
            Source::Dicom(source) => source.slices.iter().position(|slice| {
                let instance = &source.instances[slice.instance].sop_instance;
                frame.sources.iter().any(|(uid, frame)| {
                    uid == instance && (slice.frame.is_none() || *frame == slice.frame)
                })
            }),
            _ => None,
        };
        let slice = slice.or((slices == 1 && frame.sources.is_empty()).then_some(0))?;
        Some(Self { first: [slice as i64, 0, 0], down: [0, 1, 0], right: [0, 0, 1] })
    }

    fn in_space(plane: &Plane, [rows, columns]: [usize; 2], grid: &Geometry) -> Option<Self> {
        // Corners of the frame as fractional voxel indices.
        let corner = |row: usize, column: usize| {
            let (down, right) = (row as f64 * plane.spacing[0], column as f64 * plane.spacing[1]);
            let [along, across] = plane.orientation;
            let from_origin: [f64; 3] = std::array::from_fn(|axis| {
                plane.position[axis] + right * along[axis] + down * across[axis] - grid.origin[axis]
            });
            // Arrays are slice, row, column; a geometry's axes are column, row, slice.
            [2, 1, 0].map(|index: usize| {
                let direction = grid.direction[index];
                let distance: f64 = (0..3).map(|axis| from_origin[axis] * direction[axis]).sum();
                distance / grid.spacing[index]
            })
        };
        let step = |from: [f64; 3], to: [f64; 3], count: usize| {
            let steps = (count - 1).max(1) as f64;
            std::array::from_fn(|axis| ((to[axis] - from[axis]) / steps).round() as i64)
        };
        let first = corner(0, 0);
        let (below, beside) = (corner(rows - 1, 0), corner(0, columns - 1));
        let placement = Self {
            first: first.map(|index| index.round() as i64),
            down: step(first, below, rows),
            right: step(first, beside, columns),
        };
        let meets = |at: [f64; 3], row: usize, column: usize| {
            let voxel = placement.at(row, column);
            (0..3).all(|axis| (at[axis] - voxel[axis] as f64).abs() <= OFF_CENTRE)
        };
        let fits = meets(first, 0, 0) && meets(below, rows - 1, 0) && meets(beside, 0, columns - 1);
        fits.then_some(placement)
    }

    fn at(&self, row: usize, column: usize) -> [i64; 3] {
        std::array::from_fn(|axis| {
            self.first[axis] + row as i64 * self.down[axis] + column as i64 * self.right[axis]
        })
    }

    /// `None` before the first slice, row or column.
    fn voxel(&self, row: usize, column: usize) -> Option<[usize; 3]> {
        let at = self.at(row, column);
        at.iter().all(|&index| index >= 0).then(|| at.map(|index| index as usize))
    }
}
