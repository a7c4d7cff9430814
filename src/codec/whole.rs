//! Whether a file can be read to its end, whatever its format: asked before anybody is told that it is safe.

use std::path::Path;

use super::{CodecError, Format, dicom, nifti, raster, sniff};

/// Checks that nothing of an image is missing, in little memory. What is whole and is not supported passes: its
/// refusal has another reason, and comes from where it is read.
///
/// # Errors
/// If the file breaks off, contradicts itself, or cannot be read.
pub fn check_whole(path: &Path, format: Format) -> Result<(), CodecError> {
    let checked = match format {
        Format::Dicom => dicom::check_whole(path),
        Format::Nifti => nifti::check_whole(path),
        Format::Png => raster::check_png(path),
        Format::Tiff => raster::check_tiff(path),
        Format::Nifti2 | Format::Analyze => Ok(()),
    };
    match checked {
        Err(CodecError::Unsupported { .. } | CodecError::TooLarge { .. }) => Ok(()),
        other => other,
    }
}

/// The same of a file that came under `name`: one that is named as an image has to be one.
///
/// # Errors
/// As [`check_whole`].
pub fn check_named(path: &Path, name: &str) -> Result<(), CodecError> {
    match sniff(path)? {
        Some(format) => check_whole(path, format),
        None if super::input::is_named_as_image(Path::new(name)) => {
            Err(super::input::misnamed(path))
        }
        None => Ok(()),
    }
}
