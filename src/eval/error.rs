use crate::{codec::CodecError, segmenter::SegmenterError, truth::TruthError};

/// Why an evaluation cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error(transparent)]
    Truth(#[from] TruthError),
    #[error("{case}: {source}")]
    Case { case: String, source: SegmenterError },
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl EvalError {
    /// Whether no other case can be segmented either.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Case { source, .. } if source.is_final())
    }
}
