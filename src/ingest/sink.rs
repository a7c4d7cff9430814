use crate::codec::dimse::status;
use crate::domain::Uid;
use crate::durable::{DurableError, Incoming, Synced};
use crate::spool::SpoolError;

/// An object as its sender announced it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub sop_class_uid: Uid,
    pub sop_instance_uid: Uid,
    pub transfer_syntax: Uid,
    /// Unique within a run of the process.
    pub association: u64,
}

/// Why an object was not taken. Nothing of it is kept; the sender still has it.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("out of resources: {0}")]
    OutOfResources(#[from] SpoolError),
    #[error("larger than max_object_bytes = {max_object_bytes}")]
    TooLarge { max_object_bytes: u64 },
    #[error("the data set contradicts the request: {0}")]
    Mismatch(&'static str),
    #[error("the data set cannot be read: {0}")]
    NotUnderstood(&'static str),
    #[error("not an image that can be segmented: {0}")]
    NotAnImage(&'static str),
}

impl From<DurableError> for Refusal {
    fn from(error: DurableError) -> Self {
        SpoolError::from(error).into()
    }
}

impl Refusal {
    /// C-STORE status (PS3.4 table B.2-1).
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::OutOfResources(_) | Self::TooLarge { .. } => status::OUT_OF_RESOURCES,
            Self::Mismatch(_) => status::DATA_SET_MISMATCH,
            Self::NotUnderstood(_) | Self::NotAnImage(_) => status::CANNOT_UNDERSTAND,
        }
    }
}

/// Keeps a series from being taken for idle.
pub type Hold = Box<dyn Send + Sync>;

/// Where objects stay. Every call may block on the disk.
pub trait Sink: Send + Sync + 'static {
    /// Whether a new association makes sense now.
    fn admits(&self) -> bool {
        true
    }

    /// A temporary file on the file system where the object will stay.
    ///
    /// # Errors
    /// If there is no room.
    fn begin(&self) -> Result<Incoming, Refusal>;

    /// An object of `series` has begun to arrive. While what this returns lives, the series is not idle.
    fn receiving(&self, _series: &Uid) -> Option<Hold> {
        None
    }

    /// Keeps the object. It survives a power cut when this returns.
    ///
    /// # Errors
    /// If it cannot be kept; the sender is told.
    fn store(&self, received: &Received, file: Synced) -> Result<(), Refusal>;

    /// The last object of an association has been stored; `released` says that its end was an orderly one.
    fn association_ended(&self, _association: u64, _released: bool) {}
}
