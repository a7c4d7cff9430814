//! Durable work: what came in, what is to be done with it, what is to be sent where.
//!
//! Limits: one owner per spool directory (held by a lock file), and beside it any number of [`Desk`]s that change
//! states alone; one `SQLite` database; a payload is one file; every call blocks on the disk, so async callers go
//! through `spawn_blocking`. Intake stops at a quota and at a floor of free disk space, with a low watermark each;
//! objects under way then may pass it by their own size.
//!
//! Invariants, at every moment including a power cut:
//! 1. A row names only payload files that are whole and synced: temp file → fsync → rename → fsync of the
//!    directory → row committed (WAL, synced). `store` returns after that, never before.
//! 2. A payload's name begins with the SHA-256 of its content. A file without a row was never promised to anyone.
//! 3. An accepted instance belongs to a job that has not started, or to one that ran with it.
//! 4. A job is `done` in the same transaction that records its deliveries.
//! 5. Jobs and deliveries change state only along `JobState::next` and `DeliveryState::next`. A delivery leaves
//!    `pending` only when its destination confirmed it or refused it for good, when it got too old (then it is dead,
//!    not gone), or when a person gave it up.
//! 6. Only finished series are removed, with everything delivered to every destination or given up by a person: rows
//!    first, files after. What failed, is in quarantine or dead waits for a person, however full the disk is.
//! 7. A product is named by a delivery. One that goes nowhere is recorded as sent to the spool itself, under the
//!    empty destination, so that it can be fetched.
//! 8. A sender is told that an object is safe only of what is accepted and on the disk at that moment.
//! 9. Where devices share a queue ([`shared`]), this is what lies before it: a ready job becomes `shared` once all its
//!    objects are on the server, and not if another came meanwhile.
//! 10. Who was promised something waits for the disk: `store`, an operator's command, the removal of payloads.
//!     Completing, claiming, finishing and delivering do not. A power cut may undo the last of them, always from the
//!     latest back, since the log is one; they are then done again, with the same result under the same UIDs.
//!
//! ```text
//! <directory>/lock        held while a process uses the spool
//!             spool.db    instances, jobs, deliveries, accounts of destinations, storage commitment both ways
//!             incoming/   *.part: being written; removed at start
//!             instances/  <sha256>.<extension>: received objects
//!             products/   <sha256>.<extension>: what the worker made
//!             borrowed/   payloads of the shared queue while they are worked on; removed at start
//! ```
//!
//! Called by `ingest` (store, what peers ask and report), `daemon` (complete, claim, finish), `deliver` (next, sent,
//! postpone, bury, storage commitment), `http` (the reports) and `cli` (the desk).

mod commitments;
mod config;
mod content;
mod custody;
mod deliveries;
mod desk;
mod error;
mod handover;
mod instances;
mod jobs;
mod queue;
mod recovery;
mod report;
mod retention;
mod room;
pub mod shared;
mod state;
mod store;
#[cfg(test)]
mod tests;

use crate::domain::Uid;

pub use commitments::{Commitment, Held};
pub use config::Config;
pub use content::Content;
pub use custody::{Inquiry, Verdict};
pub use deliveries::{Account, Delivery, Next, Statement};
pub use desk::{Desk, Identity, Item, Letter};
pub use error::SpoolError;
pub use instances::{Arrival, Stored};
pub use jobs::{Claim, Count, JobId, Retry};
pub use queue::Queue;
pub use recovery::Recovery;
pub use report::{DeliveryReport, DestinationReport, JobReport, Place, ProductReport};
pub use retention::Tidied;
pub use room::Usage;
pub use shared::Shared;
pub use state::{DeliveryState, InstanceState, JobState};
pub use store::{Spool, now_ms};

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
    /// What whoever uses it should know, such as images that were left out; empty for nothing. Becomes the job's reason: no
    /// patient data, no UID.
    pub warning: String,
}

/// The warnings of a job's products, each once; `None` without any.
fn warnings(products: &[Product]) -> Option<String> {
    let mut said: Vec<&str> = products.iter().map(|product| product.warning.as_str()).collect();
    said.retain(|warning| !warning.is_empty());
    said.dedup();
    (!said.is_empty()).then(|| said.join("; "))
}

/// How a Part-10 file is announced to a DICOM peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DicomObject {
    pub sop_class_uid: Uid,
    pub sop_instance_uid: Uid,
    pub transfer_syntax: Uid,
}
