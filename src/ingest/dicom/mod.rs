//! DICOM storage and verification SCP: C-ECHO and C-STORE (PS3.4 annexes A and B). Storage commitment (annex J): takes
//! senders' requests, to be reported on by `deliver`, and destinations' reports.
//!
//! Limits: `max_associations` at once, the next is rejected as transient; who is not in `allow_addresses` is not
//! heard at all; PDUs up to `max_pdu_bytes`; objects up
//! to `max_object_bytes`, streamed to the disk with at most 1 MiB of each in memory; every read has a timeout.

mod association;
mod commitment;
mod config;
mod network;
mod serve;
mod syntaxes;

pub use config::{CalledAeTitle, Completion, Config, OnRelease};
pub use network::Network;
pub use serve::{Scp, serve};
pub use syntaxes::Storage;
pub(super) use syntaxes::{DECODABLE, IMAGES};
