//! Model bundles: the manifest, its digests, and pre- and postprocessing as data.
//!
//! A bundle is a folder with `bundle.toml`, two graphs, a golden case and a model card. All that distinguishes
//! one dataset from another (normalisation, windows, label polarity, schedule) stands in the manifest, so that
//! a new dataset needs no code. Nothing here runs a network. Called by `segmenter`, `train`, `cli`, `daemon`.

mod affine;
mod assemble;
mod faults;
mod grid;
mod manifest;
mod open;
mod prepare;
mod resize;
mod targets;

pub use assemble::Assembly;
pub use grid::Grid;
pub use manifest::{
    Decision, Diffusion, FileDigest, Golden, GraphFiles, Input, InputKind, Manifest, Network,
    Normalisation, Orientation, Plan, Polarity, Provenance, Rounding, VarianceKind, Variant,
    Windows,
};
pub use open::Bundle;
pub use prepare::{Crop, Prepared, Sample, prepare};

use std::path::PathBuf;

/// What is wrong with a bundle, or with an image for it.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("{path}: {reason}; a bundle is a folder made by `python -m cdal_onnx export`")]
    Unreadable { path: PathBuf, reason: String },
    #[error("{path}: {reason}")]
    Manifest { path: PathBuf, reason: String },
    #[error("{path}: SHA-256 is {found} but bundle.toml says {expected}; copy the bundle again")]
    Digest { path: PathBuf, found: String, expected: String },
    #[error("the image has {found} colour channels and the model {model} takes {expected}")]
    Channels { model: String, found: usize, expected: usize },
    #[error(
        "the image is {found}, larger than the {largest} that the model {model} was made for; crop it to the structure"
    )]
    TooLarge { model: String, found: String, largest: String },
    #[error(
        "the model {model} works in millimetres and the image does not say how far apart its voxels are; give it as DICOM or NIfTI with its spacing"
    )]
    SpacingUnknown { model: String },
    #[error(
        "the model {model} takes single images and this case has {slices} slices; send one slice a case"
    )]
    Slices { model: String, slices: usize },
}
