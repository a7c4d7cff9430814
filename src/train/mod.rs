//! Training: batches, the session of ONNX Runtime's training API, checkpoints, the finished bundle.
//!
//! The graphs are made offline by the Python package `cdal_onnx`; everything else is here. A step trains
//! the generator on the denoising error, MSE(x_0, G(x_{t+1}, t, I, z)), and with an adversary first the
//! discriminator, whose attention weights the label that the generator sees noised. Invariants: a run that is
//! killed and resumed takes the same steps as one that was not; a checkpoint is whole or absent. Called by `cli`.

mod adversary;
mod augment;
mod cases;
mod checkpoint;
mod config;
mod data;
mod diffusion;
mod draws;
mod example;
mod field;
mod python;
mod run;
mod sameness;
mod samples;
mod session;
mod story;
mod tools;
mod validate;

pub use adversary::AdversaryLosses;
pub use config::{
    Adversary, Augmentation, Card, Config, Crops, Data, Model, Optimiser, Start, Validation,
};
pub use data::{Batch, Batches};
pub use example::{Example, Held};
pub use run::{Event, Orders, Outcome, Progress, train};
pub use session::{Inputs, Outputs, TrainingSession};
pub use validate::Validator;

/// What stops a training run.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error("{0}")]
    Config(String),
    #[error("{path}: {reason}")]
    File { path: std::path::PathBuf, reason: String },
    #[error("training runtime: {0}")]
    Runtime(String),
    #[error(transparent)]
    Truth(#[from] crate::truth::TruthError),
    #[error(transparent)]
    Engine(#[from] crate::engine::EngineError),
    /// What is wrong with each of some cases.
    #[error("{} of the cases cannot be used: {}", .0.len(), first(.0))]
    Cases(Vec<String>),
    #[error(transparent)]
    Codec(#[from] crate::codec::CodecError),
    #[error(transparent)]
    Bundle(#[from] crate::bundle::BundleError),
    #[error("cdal_onnx {command} failed: {reason}")]
    Python { command: String, reason: String },
    #[error(
        "the {network}'s loss became {loss} at step {step}; resume from the last checkpoint with a lower learning rate"
    )]
    Diverged { network: &'static str, loss: f32, step: u64 },
    /// Asked for, before there was anything to keep.
    #[error("stopped")]
    Stopped,
    #[error(
        "{0}: a run stands there already; give --resume to go on with it, or another run_folder"
    )]
    Exists(std::path::PathBuf),
    #[error(
        "{run_folder}: the run was begun with another configuration: {changes}; take that back to resume, or give \
         another run_folder"
    )]
    Changed { run_folder: std::path::PathBuf, changes: String },
}

/// A few faults of many, on one line.
fn first(faults: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = faults.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    match faults.len() {
        n if n <= SHOWN => shown,
        n => format!("{shown}; and {} more", n - SHOWN),
    }
}

impl From<ort::Error> for TrainError {
    fn from(error: ort::Error) -> Self {
        Self::Runtime(error.to_string())
    }
}
