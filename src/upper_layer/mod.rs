//! Associations of the DICOM Upper Layer (PS3.8) over TCP or TLS, from either side: [`accept`] and [`request`].
//!
//! What always holds: no PDU is buffered beyond the limit that was announced; every P-DATA-TF PDU is as short as the peer
//! asked for; a message leaves in as few segments as possible, and whatever is read is acknowledged at once ([`Wire`]), so
//! that neither side's Nagle algorithm waits for the other's delayed acknowledgement. Reading may be given up at any
//! time and begun again. Time limits for reading are the caller's.
//!
//! Called by `ingest` as acceptor and by `deliver` as requestor; by `bench` as either.

mod accept;
mod association;
mod error;
mod request;
mod wire;

pub use accept::{Acceptor, Refusal, Unmet, accept, refuse};
pub use association::{Association, Context, Limits};
pub use error::UpperLayerError;
pub use request::{Proposal, request};
pub use wire::{Acknowledge, Link, Wire};
