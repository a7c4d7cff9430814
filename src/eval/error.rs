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
