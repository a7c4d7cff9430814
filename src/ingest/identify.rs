//! What an object is, and whether it can be read to its end: asked at every door before its sender hears of success.

use std::path::Path;

use super::dicom::{DECODABLE, IMAGES};
use super::{Received, Refusal};
use crate::codec::dicom::{self, identify};
use crate::codec::{self, Format};
use crate::domain::Uid;
use crate::durable::Synced;

/// Checks that a file is the object that was announced, and whole. Returns its `SeriesInstanceUID`.
pub(super) fn series_of(received: &Received, file: &Path) -> Result<Uid, Refusal> {
    let identity = identify(file)?;
    if identity.sop_instance != received.sop_instance_uid {
        return Err(Refusal::Mismatch("SOPInstanceUID"));
    }
    if identity.sop_class != received.sop_class_uid {
        return Err(Refusal::Mismatch("SOPClassUID"));
    }
    dicom::check_whole(file)?;
    Ok(identity.series)
}

/// A file that came without an announcement, whole, and the names under which it is kept.
#[derive(Debug)]
pub struct Examined {
    pub(super) file: Synced,
    pub(super) series: Uid,
    pub(super) instance: Uid,
    /// SOP class of a DICOM image.
    pub(super) class: Option<Uid>,
    pub(super) extension: &'static str,
}

/// Identity of a DICOM image by its UIDs, of any other image by its content.
pub(super) fn examine(file: Synced) -> Result<Examined, Refusal> {
    let format = codec::sniff(file.path())?;
    let extension = match format {
        Some(Format::Dicom) => return dicom_image(file),
        Some(Format::Nifti) => "nii",
        Some(Format::Png) => "png",
        Some(Format::Tiff) => "tif",
        Some(Format::Nifti2) => {
            return Err(Refusal::NotAnImage("NIfTI-2 is not supported; convert it to NIfTI-1"));
        }
        Some(Format::Analyze) => {
            return Err(Refusal::NotAnImage(
                "ANALYZE 7.5 and NIfTI pairs (.hdr and .img) are not supported; convert it to one .nii file",
            ));
        }
        None => return Err(Refusal::NotAnImage("give a DICOM, NIfTI, PNG or TIFF file")),
    };
    if let Some(format) = format {
        codec::check_whole(file.path(), format)?;
    }
    let instance = Uid::derived(&["image", &file.sha256]);
    Ok(Examined { file, series: instance.clone(), instance, class: None, extension })
}

fn dicom_image(file: Synced) -> Result<Examined, Refusal> {
    let found = identify(file.path())?;
    if !IMAGES.contains(&found.sop_class.as_str()) {
        return Err(Refusal::NotAnImage("the object is no image that can be segmented"));
    }
    if !DECODABLE.contains(&found.transfer_syntax.as_str()) {
        return Err(Refusal::NotAnImage(
            "its transfer syntax is not supported; send it uncompressed",
        ));
    }
    dicom::check_whole(file.path())?;
    Ok(Examined {
        file,
        series: found.series,
        instance: found.sop_instance,
        class: Some(found.sop_class),
        extension: "dcm",
    })
}
