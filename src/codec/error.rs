use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::MAX_SHEAR_DEGREES;

/// Why bytes could not become a case, or a result could not become bytes.
///
/// Messages name the file or folder, what is wrong with it and what to do; never a patient or a UID.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },

    #[error(
        "{}: no image found; give a DICOM, NIfTI, PNG or TIFF file, or a folder of them",
        path.display()
    )]
    NoImage { path: PathBuf },

    #[error("{}: not a readable {format} file: {reason}; export or copy it again", path.display())]
    Malformed { path: PathBuf, format: &'static str, reason: String },

    #[error(
        "{}: truncated: {what} needs {needed} bytes, {present} are there; export or copy it again",
        path.display()
    )]
    Truncated { path: PathBuf, what: Cow<'static, str>, needed: u64, present: u64 },

    #[error("{}: {attribute} {reason}; correct it, or have the sender write it anew", path.display())]
    Attribute { path: PathBuf, attribute: String, reason: String },

    #[error("{}: {what} is not supported; {remedy}", path.display())]
    Unsupported { path: PathBuf, what: String, remedy: &'static str },

    #[error(
        "{}: declares {declared} samples, more than the limit of {limit}; crop or resample it",
        path.display()
    )]
    TooLarge { path: PathBuf, declared: u64, limit: u64 },

    #[error(
        "{}: the value at slice {slice}, row {row}, column {column} is not a finite number; \
         replace such values before segmenting",
        path.display()
    )]
    NotFinite { path: PathBuf, slice: usize, row: usize, column: usize },

    #[error(
        "{}: {attribute} differs from {} of the same series; split the series",
        path.display(), other.display()
    )]
    MixedAttribute { path: PathBuf, other: PathBuf, attribute: &'static str },

    #[error(
        "{}: slices of the series point in different directions ({degrees:.2} degrees against {}){}",
        path.display(), other.display(),
        if *localizer {
            "; it is a localizer, give the series planned on it instead"
        } else {
            "; give one orientation at a time"
        }
    )]
    MixedOrientation { path: PathBuf, other: PathBuf, degrees: f64, localizer: bool },

    #[error(
        "{}: lies in the same place as {} of the series, and {}; give each volume as a series of its own",
        path.display(), other.display(), distinction(varying)
    )]
    DuplicatePosition { path: PathBuf, other: PathBuf, varying: Vec<&'static str> },

    #[error(
        "{}: the volume with {part} has {found} slices where another at the same place has {expected}; send \
         the rest, or give each volume as a series of its own",
        path.display()
    )]
    IncompleteVolume { path: PathBuf, part: String, found: usize, expected: usize },

    #[error(
        "{}: its {attribute} is missing or cannot be read, so that nobody can tell where the slice lies; \
         export the series again",
        path.display()
    )]
    NoPlane { path: PathBuf, attribute: &'static str },

    #[error(
        "{}: lies {distance:.2} mm beside where {} and the other slices of the series put it; correct its \
         ImagePositionPatient or resample the series",
        path.display(), other.display()
    )]
    Astray { path: PathBuf, other: PathBuf, distance: f64 },

    #[error(
        "{}: {gap:.3} mm behind its neighbour {} where the slices of the series are {usual:.3} mm \
         apart; {}",
        path.display(), other.display(),
        if *gap > 1.5 * *usual { "slices are missing, send the series again" }
        else { "resample the series to even spacing" }
    )]
    UnevenSpacing { path: PathBuf, other: PathBuf, gap: f64, usual: f64 },

    #[error(
        "{}: the grid is sheared by {degrees:.2} degrees, as with a tilted gantry (more than {} is not taken); \
         reconstruct it without tilt, or resample it to a right-angled grid",
        path.display(), MAX_SHEAR_DEGREES
    )]
    Sheared { path: PathBuf, degrees: f64 },

    #[error("{what} is {found:?} where {expected:?} was expected; this is a fault of the caller")]
    Shape { what: &'static str, found: Vec<usize>, expected: Vec<usize> },

    #[error("cannot write the {format}: {reason}")]
    Encode { format: &'static str, reason: String },
}

impl CodecError {
    /// What is wrong, without the name of the file, which may name a patient, and without a remedy.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::Read { source, .. } => format!("it cannot be read: {source}"),
            Self::Malformed { format, reason, .. } => {
                format!("it is no readable {format} file: {reason}")
            }
            Self::Truncated { what, needed, present, .. } => {
                format!("it is truncated: {what} needs {needed} bytes, {present} are there")
            }
            Self::Unsupported { what, remedy, .. } => format!("{what} is not supported; {remedy}"),
            Self::TooLarge { declared, limit, .. } => {
                format!("it declares {declared} samples, more than the limit of {limit}")
            }
            Self::Attribute { attribute, reason, .. } => format!("{attribute} {reason}"),
            other => other.to_string(),
        }
    }

    pub(super) fn malformed(path: &Path, format: &'static str, reason: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), format, reason: reason.into() }
    }

    pub(super) fn unsupported(path: &Path, what: impl Into<String>, remedy: &'static str) -> Self {
        Self::Unsupported { path: path.to_owned(), what: what.into(), remedy }
    }

    pub(super) fn encode(format: &'static str, reason: impl Into<String>) -> Self {
        Self::Encode { format, reason: reason.into() }
    }
}

/// What was tried to tell volumes at one place apart.
fn distinction(varying: &[&str]) -> String {
    if varying.is_empty() {
        return "no attribute tells them apart (two copies, or volumes without a time point or echo)".to_owned();
    }
    format!("{} differ but do not tell the volumes apart", varying.join(", "))
}
