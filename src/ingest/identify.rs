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
    pub(super) extension: String,
}

/// Identity of a DICOM image by its UIDs, of any other image by its content. `name` is how its giver calls it: what has
/// no UIDs is found again by it.
pub(super) fn examine(file: Synced, name: Option<&str>) -> Result<Examined, Refusal> {
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
    let extension = match name.and_then(plain_stem) {
        Some(stem) => format!("{stem}.{extension}"),
        None => extension.to_owned(),
    };
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
        extension: "dcm".to_owned(),
    })
}

/// A file name without its extension, of the characters that every destination takes.
fn plain_stem(name: &str) -> Option<String> {
    const LONGEST: usize = 64;
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let stem: String = codec::file_stem(Path::new(name)).chars().map(plain).take(LONGEST).collect();
    let stem = stem.trim_matches('.');
    (!stem.is_empty()).then(|| stem.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_its_name_as_far_as_every_destination_takes_it() {
        for (name, stem) in [
            ("brain.nii.gz", Some("brain")),
            ("chest 1.png", Some("chest_1")),
            ("a.b.tif", Some("a.b")),
            ("..png", None),
            ("Röntgen.png", Some("R_ntgen")),
        ] {
            assert_eq!(plain_stem(name).as_deref(), stem, "{name}");
        }
    }
}
