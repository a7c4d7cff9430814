use std::net::IpAddr;

use crate::codec::CodecError;
use crate::codec::commitment::{Report, Request};
use crate::codec::dimse::status;
use crate::codec::pdu::AeTitle;
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
    #[error("the object is incomplete or damaged: {0}")]
    Broken(String),
    #[error("not an image that can be segmented: {0}")]
    NotAnImage(&'static str),
}

impl From<DurableError> for Refusal {
    fn from(error: DurableError) -> Self {
        SpoolError::from(error).into()
    }
}

/// Says what is wrong with the object's content, and not where it lay: a path may name a patient.
impl From<CodecError> for Refusal {
    fn from(error: CodecError) -> Self {
        match error {
            CodecError::Read { path, source } => DurableError::of("read", path)(source).into(),
            error => Self::Broken(error.reason()),
        }
    }
}

impl Refusal {
    /// C-STORE status (PS3.4 table B.2-1).
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::OutOfResources(_) | Self::TooLarge { .. } => status::OUT_OF_RESOURCES,
            Self::Mismatch(_) => status::DATA_SET_MISMATCH,
            Self::NotUnderstood(_) | Self::Broken(_) | Self::NotAnImage(_) => {
                status::CANNOT_UNDERSTAND
            }
        }
    }
}

/// Why a word about storage commitment was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Declined {
    #[error("storage commitment is not offered here")]
    NotOffered,
    #[error(
        "no [[commitment.requester]] has this AE title, so nobody knows where to report to; add it"
    )]
    UnknownRequester,
    #[error("out of resources: {0}")]
    OutOfResources(#[from] SpoolError),
}

impl Declined {
    /// N-ACTION and N-EVENT-REPORT status (PS3.7 annex C).
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::NotOffered => status::UNRECOGNIZED_OPERATION,
            Self::UnknownRequester => status::NOT_AUTHORIZED,
            Self::OutOfResources(_) => status::RESOURCE_LIMITATION,
        }
    }
}

/// Who opened an association. AE titles are no patient's and may be logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Unique within a run of the process.
    pub association: u64,
    pub address: IpAddr,
    pub calling: AeTitle,
}

/// Keeps a series from being taken for idle.
pub type Hold = Box<dyn Send + Sync>;

/// Where objects stay. Every call may block on the disk.
pub trait Sink: Send + Sync + 'static {
    /// Whether a new association makes sense now.
    fn admits(&self) -> bool {
        true
    }

    /// An association was accepted; its objects follow.
    fn association_began(&self, _source: &Source) {}

    /// A temporary file on the file system where the object will stay.
    ///
    /// # Errors
    /// If there is no room.
    fn begin(&self) -> Result<Incoming, Refusal>;

    /// An object of `series` has begun to arrive. While what this returns lives, the series is not idle.
    fn receiving(&self, _series: &Uid) -> Option<Hold> {
        None
    }

    /// Keeps the object, if it can be read to its end. It survives a power cut when this returns.
    ///
    /// # Errors
    /// If it cannot be kept; the sender is told.
    fn store(&self, received: &Received, file: Synced) -> Result<(), Refusal>;

    /// The sender with the AE title `requester` asks which of its objects are safe here. When this returns, it will be
    /// told, even after a power cut.
    ///
    /// # Errors
    /// If it cannot be told; it hears that now.
    fn ask_commitment(&self, _requester: &str, _request: &Request) -> Result<(), Declined> {
        Err(Declined::NotOffered)
    }

    /// A destination tells which of the objects that it got are safe with it.
    ///
    /// # Errors
    /// If that cannot be kept; the destination is told, and reports again.
    fn report_commitment(&self, _report: &Report) -> Result<(), Declined> {
        Err(Declined::NotOffered)
    }

    /// The last object of an association has been stored; `released` says that its end was an orderly one.
    fn association_ended(&self, _association: u64, _released: bool) {}
}
