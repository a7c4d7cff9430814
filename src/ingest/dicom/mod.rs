//! DICOM storage and verification SCP: C-ECHO and C-STORE (PS3.4 annexes A and B).
//!
//! Limits: `max_associations` at once, the next is rejected as transient; who is not in `allow_addresses` is not
//! heard at all; PDUs up to `max_pdu_bytes`; objects up
//! to `max_object_bytes`, streamed to the disk with at most 1 MiB of each in memory; every read has a timeout.

mod association;
mod config;
mod network;
mod serve;
mod syntaxes;

pub use config::{CalledAeTitle, Completion, Config, OnRelease};
pub use network::Network;
pub use serve::serve;
pub use syntaxes::Storage;
pub(super) use syntaxes::{DECODABLE, IMAGES};
