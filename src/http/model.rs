use crate::domain::{Segmentation, Volume};

/// The model behind the Open Inference Protocol, and what the status page says of it.
pub trait Model: Send + Sync + 'static {
    fn describe(&self) -> Description;

    /// Segments one image. Blocks; calls stand in line behind each other and behind the spool's jobs.
    ///
    /// # Errors
    /// Whether the image or the model is at fault.
    fn infer(&self, volume: &Volume, ask: Ask) -> Result<Segmentation, InferError>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    pub name: String,
    pub version: String,
    /// SHA-256 of the bundle, hexadecimal.
    pub digest: String,
    /// Channels C of an image.
    pub channels: usize,
    /// Of the labels, in the order of their values from 1.
    pub labels: Vec<String>,
    /// If none are asked for.
    pub votes: usize,
    /// Of the configuration in force.
    pub revision: String,
    pub engine: Engine,
}

/// Who runs the model, and what is under way.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Engine {
    /// The execution provider that runs it now, and the one that was asked for.
    pub provider: String,
    pub wanted: String,
    /// `settled`, `building` (the wanted one's engine, while another serves) or `failed`.
    pub progress: &'static str,
    /// Why the wanted one does not serve.
    pub reason: Option<String>,
}

/// What a request may choose; `None` is what the configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ask {
    pub votes: Option<usize>,
    pub seed: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// Another image may do better.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Failed(String),
}
