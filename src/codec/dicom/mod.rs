//! DICOM files in: every series becomes a volume on a regular grid, or is refused with the reason.
//!
//! Files are read twice, headers first, so that a series is known to form a grid within the limits
//! before its pixels take memory. Slices are ordered by where they lie, never by file name or number.

mod codestream;
mod frames;
mod image;
mod lut;
mod part10;
mod rle;
mod samples;
mod segmentation;
mod series;
mod source;
mod stack;
mod synthetic;
mod unknown;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use dicom_core::Tag;
use dicom_dictionary_std::tags;
use tracing::debug;

use self::part10::Part10;
use self::series::Instance;
use super::{Case, CodecError};
use crate::domain::Uid;

pub(super) use self::part10::is_dicom;
pub(super) use self::segmentation::{
    Frame, Segment, Segmentation as StoredSegmentation, is_segmentation,
};
pub use self::source::DicomSource;
pub(super) use self::source::SourceSlice;
pub(super) use self::stack::Plane;
pub use self::synthetic::encode_mr_series;

/// To which study, series and instance a file belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub study: Uid,
    pub series: Uid,
    pub instance: Uid,
}

/// Reads a file's identity, so that files can be gathered into series.
///
/// # Errors
/// If it is no DICOM file, is damaged, or lacks one of the UIDs.
pub fn identify(file: &Path) -> Result<Identity, CodecError> {
    let header = Part10::open(file)?.header(file)?;
    let uid = |tag: Tag, name: &str| {
        let text = part10::text(&header, tag).unwrap_or_default();
        Uid::parse(&text)
            .map_err(|error| CodecError::malformed(file, "DICOM", format!("its {name} is {error}")))
    };
    Ok(Identity {
        study: uid(tags::STUDY_INSTANCE_UID, "StudyInstanceUID")?,
        series: uid(tags::SERIES_INSTANCE_UID, "SeriesInstanceUID")?,
        instance: uid(tags::SOP_INSTANCE_UID, "SOPInstanceUID")?,
    })
}

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
    series.sort_by_key(|instances| instances[0].number);
    let several = series.len() > 1;
    let mut cases = Vec::new();
    for instances in series {
        cases.extend(series::read(instances, several)?);
    }
    Ok(cases)
}
