//! Whether a DICOM file can be read to its end: what has to be known of an object before anybody is told that it is
//! safe here.
//!
//! The data set is walked from its first byte to its last. Lengths have to fit into the file and into each other, and
//! an image has to hold as many pixels as its attributes say: native ones by their length (PS3.5 section 8.1.1),
//! encapsulated ones by their frames (section A.4), each of which ends as its codestream should. Nothing is
//! decompressed, no value is kept but a few short ones, and no declared length is believed: the memory that this takes
//! grows with the number of fragments alone. What follows the last element (zeros, Data Set Trailing Padding, PS3.10
//! section 7.2) is no part of the object.
//!
//! Called by `ingest` at every door, and before storage commitment is given.

mod bytes;
mod pixels;
mod walk;

use std::fs::File;
use std::path::Path;

use dicom_core::Tag;
use dicom_core::dictionary::{UidDictionary, UidDictionaryEntry};
use dicom_dictionary_std::sop_class::StandardSopClassDictionary;
use dicom_dictionary_std::{tags, uids};

use self::bytes::Bytes;
use self::walk::{Coding, Found, Walk, name};
use super::head::{Identity, identify};
use super::instance::NOT_IMAGES;
use crate::codec::CodecError;

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
    let found = examine(path)?;
    let class = found.text(tags::SOP_CLASS_UID);
    let is_result = class.is_some_and(|class| NOT_IMAGES.contains(&class.as_str()));
    Ok(found.has(tags::ROWS) && !is_result)
}

fn examine(path: &Path) -> Result<Found, CodecError> {
    let read = |source| CodecError::Read { path: path.to_owned(), source };
    let Identity { transfer_syntax, data_set, .. } = identify(path)?;
    let (file, start) = (File::open(path).map_err(read)?, data_set as u64);
    let syntax = transfer_syntax.as_str();
    let coding = Coding {
        implicit: syntax == uids::IMPLICIT_VR_LITTLE_ENDIAN,
        big_endian: syntax == "1.2.840.10008.1.2.2", // retired, still met
    };
    let bytes = match syntax {
        uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN => Bytes::inflated(file, start),
        _ => Bytes::plain(file, start),
    };
    let found = Walk::new(path, bytes.map_err(read)?, coding).run()?;
    check_contents(&found, syntax, coding)
        .map_err(|reason| CodecError::malformed(path, "DICOM", reason))?;
    Ok(found)
}

/// Whether what an object of this kind cannot be without is there: a data set that was cut between two elements still
/// parses.
fn check_contents(found: &Found, syntax: &str, coding: Coding) -> Result<(), String> {
    let class = found.text(tags::SOP_CLASS_UID);
    let class = class.as_deref().and_then(|uid| StandardSopClassDictionary.by_uid(uid));
    let class = class.map_or("", UidDictionaryEntry::name);
    let required = |tag: Tag| {
        let missing = || format!("{} is missing, which a {class} object has", name(tag));
        found.has(tag).then_some(()).ok_or_else(missing)
    };
    if class.starts_with("Encapsulated ") {
        return required(tags::ENCAPSULATED_DOCUMENT);
    }
    if class.contains("Waveform Storage") || class.contains("ECG") {
        return required(tags::WAVEFORM_SEQUENCE);
    }
    if class.ends_with(" SR Storage") {
        return required(tags::VALUE_TYPE);
    }
    match class {
        "RT Structure Set Storage" => return required(tags::STRUCTURE_SET_ROI_SEQUENCE),
        "MR Spectroscopy Storage" => return required(tags::SPECTROSCOPY_DATA),
        _ => {}
    }
    let is_image = class.contains("Image Storage")
        || class == "Segmentation Storage"
        || class == "Label Map Segmentation Storage"
        || class == "Parametric Map Storage";
    let has_rows = found.has(tags::ROWS);
    if found.pixels.is_none() && found.has(tags::PIXEL_DATA_PROVIDER_URL) {
        return Ok(());
    }
    if is_image || (has_rows && !class.is_empty()) || (has_rows && found.pixels.is_some()) {
        return pixels::check(found, syntax, coding);
    }
    Ok(())
}
