use std::path::PathBuf;

use crate::codec::CodecError;

/// Why images and truths cannot be had from a folder.
#[derive(Debug, thiserror::Error)]
pub enum TruthError {
    #[error("{}: {reason}; images and their truths stand in images/ and labels/ of one folder", path.display())]
    Folder { path: PathBuf, reason: String },
    #[error("{}: it names no image", .0.display())]
    Empty(PathBuf),
    #[error("{}: {reason}; a split file is {{\"train\": [stems], \"val\": [stems]}}", path.display())]
    Split { path: PathBuf, reason: String },
    #[error(
        "{}: {} without a label in labels/ ({}), {} without an image in images/ ({}); \
         names must agree up to the extension and a \"_mask\" of the label, or give --split",
        folder.display(), images.len(), first(images), labels.len(), first(labels)
    )]
    Unmatched { folder: PathBuf, images: Vec<String>, labels: Vec<String> },
    #[error("{} and {} would be the same case; keep one of them", a.display(), b.display())]
    Ambiguous { a: PathBuf, b: PathBuf },
    #[error("{}: holds {cases} images where a case is one; keep one series a folder", path.display())]
    NotOne { path: PathBuf, cases: usize },
    #[error(
        "{case}: the label is {found:?} and the image {expected:?} (slices, rows, columns); \
         bring the label to the image's grid"
    )]
    Size { case: String, found: [usize; 3], expected: [usize; 3] },
    #[error(
        "{case}: the label lies up to {distance:.2} mm away from the image; resample it to the image's grid"
    )]
    Place { case: String, distance: f64 },
    #[error("{}: the label holds {}; it may hold {accepted}", path.display(), some(values))]
    LabelValue { path: PathBuf, values: Vec<f32>, accepted: String },
    #[error("{}: the label is a picture in colour; give one in grey, or an indexed PNG", .0.display())]
    ColouredLabel(PathBuf),
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// A few values of many.
fn some(values: &[f32]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = values.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = if values.len() > SHOWN { ", …" } else { "" };
    let plural = if values.len() == 1 { "" } else { "s" };
    format!("the value{plural} {}{more}", shown.join(", "))
}

/// A few names of many.
fn first(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => "none".into(),
        n if n <= SHOWN => shown,
        _ => format!("{shown}, …"),
    }
}
