//! Bytes to domain and back: images in, masks out. Sync; knows no network, no model, no job.
//!
//! Whatever bytes come in, a reader gives a case or an error that says what is wrong and what to do:
//! it does not panic, does not hang, and takes memory in proportion to the file. Values are finite and
//! as acquired (no normalisation). Called by `cli` for one-shot runs and by `ingest` and `deliver`.

pub mod capture;
pub mod commitment;
pub mod dicom;
pub mod dimse;
mod error;
mod input;
pub mod mask_png;
pub mod nifti;
pub mod overlay;
pub mod part10;
pub mod pdu;
mod raster;
pub mod seg;
pub mod serial;
pub mod stow;
mod whole;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use ndarray::ArrayView3;

use crate::domain::Volume;

pub use self::dicom::DicomSource;
use self::dicom::MAX_SHEAR_DEGREES;
pub use self::error::CodecError;
pub use self::input::{Format, is_image, read, read_files, sniff};
pub use self::nifti::NiftiGrid;
pub use self::whole::{check_named, check_whole};

/// Largest volume taken in, samples over all channels: 2 GiB once decoded.
pub const MAX_SAMPLES: u64 = 512 << 20;

/// One image to segment, and what its result must refer to.
#[derive(Debug)]
pub struct Case {
    /// From the file or folder, unique among the cases read together.
    pub name: String,
    pub volume: Volume,
    pub source: Source,
    /// What whoever uses the result should know: what was left out or assumed. Names of files, nothing of the patient.
    pub warnings: Vec<String>,
}

/// Where an image came from: what is needed to write a result beside it.
#[derive(Debug)]
pub enum Source {
    Dicom(Box<DicomSource>),
    Nifti(Box<NiftiGrid>),
    /// PNG or TIFF: nothing but pixels.
    Raster,
}

/// The name without its last extension; also without `.nii` before a `.gz`.
#[must_use]
pub fn file_stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    if stem.is_empty() { name.to_owned() } else { stem.to_owned() }
}

/// Runs another crate's parser or decoder on outside bytes; `None` if it panics. Those of DICOM data sets,
/// JPEG and JPEG 2000 do where a damaged file contradicts itself. Needs unwinding panics.
fn contain<T>(decode: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(decode)).ok()
}

/// Index of the first value that is NaN or infinite.
fn first_not_finite(values: &ArrayView3<'_, f32>) -> Option<[usize; 3]> {
    if values.iter().all(|value| value.is_finite()) {
        return None;
    }
    values.indexed_iter().find(|(_, value)| !value.is_finite()).map(|((a, b, c), _)| [a, b, c])
}
