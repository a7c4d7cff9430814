use std::path::Path;

use dicom_core::Tag;
use dicom_dictionary_std::tags;
use dicom_object::{DefaultDicomObject, OpenFileOptions};

use super::dicom::{DECODABLE, IMAGES};
use super::{Received, Refusal};
use crate::codec::{self, Format};
use crate::domain::Uid;
use crate::spool::durable::Synced;

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

/// Under which names a file that came without an announcement is kept.
pub(super) struct Identity {
    pub(super) series: Uid,
    pub(super) instance: Uid,
    pub(super) extension: &'static str,
}

/// Identity of a DICOM image by its UIDs, of any other image by its content.
pub(super) fn file(file: &Synced) -> Result<Identity, Refusal> {
    let unreadable = |_| Refusal::NotUnderstood("the file cannot be read");
    let extension = match codec::sniff(file.path()).map_err(unreadable)? {
        Some(Format::Dicom) => return dicom(file.path()),
        Some(Format::Nifti) => "nii",
        Some(Format::Png) => "png",
        Some(Format::Tiff) => "tif",
        Some(Format::Nifti2) => {
            return Err(Refusal::NotAnImage("NIfTI-2 is not supported; convert it to NIfTI-1"));
        }
        None => return Err(Refusal::NotAnImage("give a DICOM, NIfTI, PNG or TIFF file")),
    };
    let instance = Uid::derived(&["image", &file.sha256]);
    Ok(Identity { series: instance.clone(), instance, extension })
}

fn dicom(path: &Path) -> Result<Identity, Refusal> {
    let object = OpenFileOptions::new()
        .read_until(BEHIND_SERIES_INSTANCE_UID)
        .open_file(path)
        .map_err(|_| Refusal::NotUnderstood("it is not a readable DICOM file (PS3.10)"))?;
    let trim = |text: &str| text.trim_end_matches(['\0', ' ']).to_owned();
    let class = uid(&object, tags::SOP_CLASS_UID)?;
    if !IMAGES.contains(&class.as_str()) {
        return Err(Refusal::NotAnImage("the object is no image that can be segmented"));
    }
    if !DECODABLE.contains(&trim(&object.meta().transfer_syntax).as_str()) {
        return Err(Refusal::NotAnImage(
            "its transfer syntax is not supported; send it uncompressed",
        ));
    }
    Ok(Identity {
        series: uid(&object, tags::SERIES_INSTANCE_UID)?,
        instance: uid(&object, tags::SOP_INSTANCE_UID)?,
        extension: "dcm",
    })
}
