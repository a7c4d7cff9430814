//! Whether a DICOM file can be read to its end: what has to be known of an object before anybody is told that it is
//! safe here.
//!
//! The file is read as it is read to segment it, so that nothing is refused here which is read there. Beyond that an
//! object has to hold what its kind cannot be without, and an image as many pixels as its attributes say: native ones by
//! their length (PS3.5 section 8.1.1), encapsulated ones by their frames (section A.4), each of which ends as its
//! codestream should. Nothing is decompressed. It takes memory as large as the file; of large files one is read at a time.
//!
//! Called by `ingest` at every door, and before storage commitment is given.

mod pixels;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use dicom_core::Tag;
use dicom_core::dictionary::{DataDictionary, UidDictionary, UidDictionaryEntry};
use dicom_dictionary_std::sop_class::StandardSopClassDictionary;
use dicom_dictionary_std::{StandardDataDictionary, tags};

use super::data_set::DataSet;
use super::{instance, part10};
use crate::codec::CodecError;

/// From this size on files are read one at a time, so that many senders do not take many times this much memory.
const LARGE: u64 = 32 << 20;
static LARGE_ONE: Mutex<()> = Mutex::new(());

/// Checks that nothing of the object is missing.
///
/// # Errors
/// If the file is no DICOM file, breaks off, contradicts itself, or holds fewer pixels than it says. The message says
/// which, by the names of attributes.
pub fn check_whole(path: &Path) -> Result<(), CodecError> {
    examine(path).map(drop)
}

/// Whether an object that is whole holds an image to segment: reports, segmentations, structure sets and the like are
/// passed over beside a series.
///
/// # Errors
/// As [`check_whole`].
pub fn is_image(path: &Path) -> Result<bool, CodecError> {
    examine(path)
}

fn examine(path: &Path) -> Result<bool, CodecError> {
    let read = |source| CodecError::Read { path: path.to_owned(), source };
    let is_large = std::fs::metadata(path).map_err(read)?.len() > LARGE;
    let _turn = is_large.then(|| LARGE_ONE.lock().unwrap_or_else(PoisonError::into_inner));
    let (data_set, syntax) = part10::read_any(path)?;
    check_contents(&data_set, &syntax)
        .map_err(|reason| CodecError::malformed(path, "DICOM", reason))?;
    instance::is_image(&data_set)
}

/// Whether what an object of this kind cannot be without is there: a data set that was cut between two elements still
/// parses.
fn check_contents(data_set: &DataSet, syntax: &str) -> Result<(), String> {
    let class = data_set.text(tags::SOP_CLASS_UID).ok().flatten().unwrap_or_default();
    let class = StandardSopClassDictionary.by_uid(&class).map_or("", UidDictionaryEntry::name);
    let required = |tag: Tag| {
        let missing = || format!("{} is missing, which a {class} object has", keyword(tag));
        data_set.get(tag).map(drop).ok_or_else(missing)
    };
    match class {
        "RT Structure Set Storage" => return required(tags::STRUCTURE_SET_ROI_SEQUENCE),
        "MR Spectroscopy Storage" => return required(tags::SPECTROSCOPY_DATA),
        _ if class.starts_with("Encapsulated ") => return required(tags::ENCAPSULATED_DOCUMENT),
        _ if class.ends_with(" Waveform Storage") => return required(tags::WAVEFORM_SEQUENCE),
        _ if class.ends_with(" SR Storage") => {
            required(tags::VALUE_TYPE)?;
            return readable(data_set, tags::CONTENT_SEQUENCE);
        }
        _ => {}
    }
    let has = |tag| data_set.get(tag).is_some();
    let has_pixels = PIXELS.into_iter().any(has);
    if !has_pixels && has(tags::PIXEL_DATA_PROVIDER_URL) {
        return Ok(());
    }
    let is_image = class.contains("Image Storage")
        || ["Segmentation Storage", "Label Map Segmentation Storage", "Parametric Map Storage"]
            .contains(&class);
    if is_image || (has(tags::ROWS) && (has_pixels || !class.is_empty())) {
        return pixels::check(data_set, syntax);
    }
    Ok(())
}

/// Where pixels may be (PS3.3 C.7.6.3, C.7.6.24, C.7.6.25).
const PIXELS: [Tag; 3] = [tags::PIXEL_DATA, tags::FLOAT_PIXEL_DATA, tags::DOUBLE_FLOAT_PIXEL_DATA];

fn readable(data_set: &DataSet, tag: Tag) -> Result<(), String> {
    let damaged = |_| format!("its {} is damaged", keyword(tag));
    data_set.items(tag).map(drop).map_err(damaged)
}

/// The standard's keyword, or the tag where it has none: never a value.
pub(super) fn keyword(tag: Tag) -> String {
    let entry = StandardDataDictionary.by_tag(tag);
    entry.map_or_else(|| format!("the element {tag}"), |entry| entry.alias.to_owned())
}
