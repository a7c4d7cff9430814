//! DICOM files in: every series becomes a volume on a regular grid, or is refused with the reason.
//!
//! Files are read twice, headers first, so that a series is known to form a grid within the limits
//! before its pixels take memory. Slices are ordered by where they lie, never by file name or number.

mod attributes;
mod character_set;
mod codestream;
pub mod composition;
mod data_set;
mod frames;
mod head;
mod image;
mod instance;
mod lut;
mod parse;
mod part10;
mod rle;
mod same;
mod samples;
mod segmentation;
mod series;
mod source;
mod stack;
mod synthetic;
mod traits;
mod voi;
mod whole;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use tracing::debug;

use self::instance::Instance;
use super::{Case, CodecError};

pub(super) use self::data_set::DataSet;
pub use self::head::{Identity, identify, series_in};
pub(super) use self::part10::{is_dicom, read_data_set};
pub use self::same::differences;
pub(super) use self::segmentation::{
    Frame, Segment, Segmentation as StoredSegmentation, is_segmentation,
};
pub use self::source::DicomSource;
pub(super) use self::source::SourceSlice;
pub(super) use self::stack::{MAX_SHEAR_DEGREES, Plane};
pub use self::synthetic::encode_mr_series;
pub use self::whole::{check_whole, is_image};

/// Reads the series that `files` hold, ordered by series number: a case for each volume ([`composition`]); images
/// without a place in space (radiographs, captures) are a case each. Segmentations, reports, structure sets and
/// presentation states among them are passed over; localizers are too, with a warning.
///
/// # Errors
/// If a file is damaged, no file holds an image, or a series forms no regular grid.
pub fn read_files(files: &[PathBuf]) -> Result<Vec<Case>, CodecError> {
    let mut series: BTreeMap<String, Vec<Instance>> = BTreeMap::new();
    let mut seen = HashSet::new();
    let mut contradicting = Vec::new();
    let mut other = None;
    for file in files {
        match Instance::read(file)? {
            Some(instance) => {
                let known = series.entry(instance.series.clone()).or_default();
                let is_new = seen.insert(instance.sop_uid.clone());
                match known.iter().find(|first| !is_new && first.is_same_image(&instance)) {
                    Some(first) if has_same_bytes(&first.path, file)? => {
                        debug!("an instance is there twice; its second file is passed over");
                    }
                    Some(_) => contradicting.push(instance.label()),
                    // Under one SOPInstanceUID there may be several images, if their writer cut it off.
                    None => known.push(instance),
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
    let mut localizers = Vec::new();
    if series.len() > 1 && !series.iter().all(|instances| series::is_localizer(instances)) {
        let beside = series.extract_if(.., |instances| series::is_localizer(instances));
        localizers = beside.flatten().map(|instance| instance.label()).collect();
    }
    // Series without a number come last.
    series.sort_by_key(|instances| (instances[0].number.is_none(), instances[0].number));
    let several = series.len() > 1;
    let mut cases = Vec::new();
    for instances in series {
        cases.extend(series::read(&instances, several)?);
    }
    let sentences = [
        series::left_out_sentence(localizers, "of a localizer beside the series"),
        series::left_out_sentence(contradicting, "whose SOPInstanceUID and place another file has"),
    ];
    if let Some(first) = cases.first_mut() {
        first.warnings.extend(sentences.into_iter().flatten());
    }
    Ok(cases)
}

fn has_same_bytes(a: &Path, b: &Path) -> Result<bool, CodecError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|source| CodecError::Read { path: path.to_owned(), source })
    };
    Ok(read(a)? == read(b)?)
}
