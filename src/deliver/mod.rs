//! Ways out: each destination takes its pending deliveries from the spool, on its own, in order.
//!
//! At least once: a delivery stays pending until its destination confirms it, through crashes and outages; a
//! destination may see an object twice, with the same UID and the same bytes. In order: while the oldest pending
//! delivery waits for its next attempt (capped exponential backoff with jitter), those behind it wait too. An object
//! refused for good, or pending for longer than `give_up_after`, steps out of the line and is kept as a dead letter
//! for a person. One association carries all that is due. Where a destination is asked for its storage commitment, only
//! that is its confirmation: what it does not commit to in time is sent again.
//!
//! And the ways back: senders that asked whether their objects are safe here are told ([`Reporter`]).
//!
//! Called by `daemon`; `echo` by `cli::doctor`.

pub mod serial;

mod association;
mod backoff;
mod config;
mod dicom;
mod folder;
mod http;
mod report;
mod stow;
mod webhook;
mod worker;

use crate::telemetry::Delivered;

pub use config::{
    CALLING_AE_TITLE, Commitment, Config, DicomConfig, FolderConfig, HttpConfig, Kind, Route,
    SerialConfig,
};
pub use dicom::echo;
pub use report::{Holdings, ReportConfig, Reporter, Requester};
pub use worker::{Destination, Mode};

/// What came of one attempt. The reasons are logged: no patient data, no UID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The destination has it.
    Sent,
    /// The destination has it and will say whether it commits to keep it.
    Taken,
    /// The destination is there but cannot take this object now.
    Later(String),
    /// The destination cannot be reached or did not answer.
    Unreachable(String),
    /// The destination will never take this object.
    Never(String),
}

impl Outcome {
    /// As it is counted.
    fn kind(&self) -> Delivered {
        match self {
            Self::Sent => Delivered::Sent,
            Self::Taken => Delivered::Taken,
            Self::Later(_) => Delivered::Later,
            Self::Unreachable(_) => Delivered::Unreachable,
            Self::Never(_) => Delivered::Never,
        }
    }

    /// Why it is not with the destination, if it is not.
    fn reason(&self) -> &str {
        match self {
            Self::Sent | Self::Taken => "",
            Self::Later(reason) | Self::Unreachable(reason) | Self::Never(reason) => reason,
        }
    }
}
