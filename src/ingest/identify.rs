use std::path::Path;

use super::dicom::{DECODABLE, IMAGES};
use super::{Received, Refusal};
use crate::codec::dicom::identify;
use crate::codec::{self, Format};
use crate::domain::Uid;
use crate::durable::Synced;

/// Reads the `SeriesInstanceUID` from the head of a file, and checks that the data set is the object that was
/// announced.
pub(super) fn series_of(received: &Received, file: &Path) -> Result<Uid, Refusal> {
    let identity = identify(file).map_err(|_| {
        Refusal::NotUnderstood("SOPClassUID, SOPInstanceUID or SeriesInstanceUID is missing")
    })?;
    if identity.sop_instance != received.sop_instance_uid {
        return Err(Refusal::Mismatch("SOPInstanceUID"));
    }
    if identity.sop_class != received.sop_class_uid {
        return Err(Refusal::Mismatch("SOPClassUID"));
    }
    Ok(identity.series)
}

/// Under which names a file that came without an announcement is kept.
pub(super) struct Identity {
    pub(super) series: Uid,
    pub(super) instance: Uid,
    /// SOP class of a DICOM image.
    pub(super) class: Option<Uid>,
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
    Ok(Identity { series: instance.clone(), instance, class: None, extension })
}

fn dicom(path: &Path) -> Result<Identity, Refusal> {
    let found = identify(path)
        .map_err(|_| Refusal::NotUnderstood("it is not a readable DICOM file (PS3.10)"))?;
    if !IMAGES.contains(&found.sop_class.as_str()) {
        return Err(Refusal::NotAnImage("the object is no image that can be segmented"));
    }
    if !DECODABLE.contains(&found.transfer_syntax.as_str()) {
        return Err(Refusal::NotAnImage(
            "its transfer syntax is not supported; send it uncompressed",
        ));
    }
    Ok(Identity {
        series: found.series,
        instance: found.sop_instance,
        class: Some(found.sop_class),
        extension: "dcm",
    })
}
