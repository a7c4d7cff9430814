//! DICOM files in: every series becomes a volume on a regular grid, or is refused with the reason.
//!
//! Files are read twice, headers first, so that a series is known to form a grid within the limits
//! before its pixels take memory. Slices are ordered by where they lie, never by file name or number.

mod attributes;
mod character_set;
mod codestream;
mod data_set;
mod frames;
mod head;
mod image;
mod lut;
mod parse;
mod part10;
mod rle;
mod samples;
mod segmentation;
mod series;
mod source;
mod stack;
mod synthetic;
mod whole;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use tracing::debug;

use self::series::Instance;
use super::{Case, CodecError};

pub(super) use self::data_set::DataSet;
pub use self::head::{Identity, identify, series_in};
pub(super) use self::part10::{is_dicom, read_data_set};
pub(super) use self::segmentation::{
    Frame, Segment, Segmentation as StoredSegmentation, is_segmentation,
};
pub use self::source::DicomSource;
pub(super) use self::source::SourceSlice;
pub(super) use self::stack::Plane;
pub use self::synthetic::encode_mr_series;
pub use self::whole::{check_whole, is_image};

/// Reads the series that `files` hold: one case for each, ordered by series number; images without a
/// place in space (radiographs, captures) are a case each. Segmentations, reports, structure sets and
/// presentation states among them are passed over, and so are localizers beside another series.
///
/// # Errors
/// If a file is damaged, no file holds an image, or a series forms no regular grid.
pub fn read_files(files: &[PathBuf]) -> Result<Vec<Case>, CodecError> {
    let mut series: BTreeMap<String, Vec<Instance>> = BTreeMap::new();
    let mut seen = HashSet::new();
    let mut other = None;
    for file in files {
        match Instance::read(file)? {
            Some(instance) => {
                if seen.insert(instance.sop_uid.clone()) {
                    series.entry(instance.series.clone()).or_default().push(instance);
                } else {
                    debug!("an instance is there twice; its second file is passed over");
                }
            }
            None => other = Some(file),
        }
    }
    if let (true, Some(path)) = (series.is_empty(), other) {
        return Err(CodecError::unsupported(
            path,
            "an object other than an image (segmentation, report, structure set, dose, ...)",
            "give the image series itself",
        ));
    }

    let mut series: Vec<Vec<Instance>> = series.into_values().collect();
    if series.len() > 1 && !series.iter().all(|instances| series::is_localizer(instances)) {
        series.retain(|instances| !series::is_localizer(instances));
    }
    // Series without a number come last.
    series.sort_by_key(|instances| (instances[0].number.is_none(), instances[0].number));
    let several = series.len() > 1;
    let mut cases = Vec::new();
    for instances in series {
        cases.extend(series::read(instances, several)?);
    }
    Ok(cases)
}
