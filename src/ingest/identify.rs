use std::path::Path;

use dicom_core::Tag;
use dicom_dictionary_std::tags;
use dicom_object::{DefaultDicomObject, OpenFileOptions};

use super::{Received, Refusal};
use crate::domain::Uid;

/// Study ID, the first element behind the identifiers that are wanted.
const BEHIND_SERIES_INSTANCE_UID: Tag = tags::STUDY_ID;

/// Reads the `SeriesInstanceUID` from the head of a file, and checks that the data set is the object that was
/// announced.
pub(super) fn series_of(received: &Received, file: &Path) -> Result<Uid, Refusal> {
    let object = OpenFileOptions::new()
        .read_until(BEHIND_SERIES_INSTANCE_UID)
        .open_file(file)
        .map_err(|_| Refusal::NotUnderstood("it is not a DICOM data set in its transfer syntax"))?;
    if uid(&object, tags::SOP_INSTANCE_UID)? != received.sop_instance_uid {
        return Err(Refusal::Mismatch("SOPInstanceUID"));
    }
    if uid(&object, tags::SOP_CLASS_UID)? != received.sop_class_uid {
        return Err(Refusal::Mismatch("SOPClassUID"));
    }
    uid(&object, tags::SERIES_INSTANCE_UID)
}

fn uid(object: &DefaultDicomObject, tag: Tag) -> Result<Uid, Refusal> {
    object.element(tag).ok().and_then(|element| Uid::parse(&element.to_str().ok()?).ok()).ok_or(
        Refusal::NotUnderstood("SOPClassUID, SOPInstanceUID or SeriesInstanceUID is missing"),
    )
}
