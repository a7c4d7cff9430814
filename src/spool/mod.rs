//! Durable work: what came in, what is to be done with it, what is to be sent where.
//!
//! Limits: one process per spool directory (held by a lock file); one `SQLite` database, one connection;
//! a payload is one file; every call blocks on the disk, so async callers go through `spawn_blocking`.
//!
//! Invariants, at every moment including a power cut:
//! 1. A row names only payload files that are whole and synced: temp file → fsync → rename → fsync of the
//!    directory → row committed (WAL, `synchronous = FULL`). `store` returns after that, never before.
//! 2. A payload's name is the SHA-256 of its content. A file without a row was never promised to anyone.
//! 3. An accepted instance belongs to a job that has not started, or to one that ran with it.
//! 4. A job is `done` in the same transaction that records its deliveries.
//! 5. A delivery leaves `pending` only when its destination confirmed it or refused it for good. Nothing that
//!    is pending or dead is ever removed.
//! 6. A product is named by a delivery. One that goes nowhere is recorded as sent to the spool itself, under the
//!    empty destination, so that it can be fetched.
//!
//! ```text
//! <directory>/lock        held while a process uses the spool
//!             spool.db    instances, jobs, deliveries
//!             incoming/   *.part: being written; removed at start
//!             instances/  <sha256>.<extension>: received objects
//!             products/   <sha256>.<extension>: what the worker made
//! ```
//!
//! Called by `ingest` (store), `daemon` (complete, claim, finish), `deliver` (next, sent, postpone, bury) and `http`
//! (the reports).

pub mod durable;

mod deliveries;
mod error;
mod instances;
mod jobs;
mod recovery;
mod report;
mod state;
mod store;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::{Fault, Uid};

pub use deliveries::{Account, Delivery, Next};
pub use error::SpoolError;
pub use instances::{Arrival, Stored};
pub use jobs::{Claim, Count, JobId, Retry};
pub use recovery::Recovery;
pub use report::{DeliveryReport, DestinationReport, JobReport, ProductFile};
pub use state::{DeliveryState, InstanceState, JobState};
pub use store::{Spool, now_ms};

/// Section `[spool]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Made if it is not there.
    pub directory: PathBuf,
    /// Below this much free disk space nothing more is taken in.
    #[serde(default = "default_min_free_bytes")]
    pub min_free_bytes: u64,
    /// How often a job is started before it is given up, crashes of the process included.
    #[serde(default = "default_max_attempts")]
    pub max_attempts: u32,
}

fn default_min_free_bytes() -> u64 {
    1 << 30
}

fn default_max_attempts() -> u32 {
    3
}

impl Config {
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            min_free_bytes: default_min_free_bytes(),
            max_attempts: default_max_attempts(),
        }
    }

    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self.directory.as_os_str().is_empty() {
            faults.push(Fault::new("directory", "is empty; name a folder on a local disk"));
        }
        if self.max_attempts == 0 {
            faults.push(Fault::new("max_attempts", "must be at least 1"));
        }
        faults
    }
}

/// One object the worker made, to be sent to every destination that takes its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product {
    /// File name for destinations that have files; letters, digits, `.`, `-` and `_`. Unique in its job.
    pub name: String,
    /// `None` for a file of another format, such as a `NIfTI` mask.
    pub dicom: Option<DicomObject>,
    /// The whole file.
    pub bytes: Vec<u8>,
    /// A few words for the log: no patient data, no UID.
    pub summary: String,
}

/// How a Part-10 file is announced to a DICOM peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DicomObject {
    pub sop_class_uid: Uid,
    pub sop_instance_uid: Uid,
    pub transfer_syntax: Uid,
}
