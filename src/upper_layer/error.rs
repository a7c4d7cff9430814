use crate::codec::pdu::{AeTitle, PduError, Rejection};

use super::Refusal;

/// Why there is no association, or no more. No message quotes the peer but for AE titles, which are escaped.
#[derive(Debug, thiserror::Error)]
pub enum UpperLayerError {
    #[error("the peer closed the connection")]
    Closed,
    #[error("connection lost: {0}")]
    Lost(#[from] std::io::Error),
    #[error("no answer in time")]
    Timeout,
    #[error("a PDU could not be read: {0}")]
    Pdu(#[from] PduError),
    #[error("a PDU of type {kind:#04X} announces {length} bytes; {limit} are taken")]
    TooLong { kind: u8, length: usize, limit: usize },
    #[error("{0} came where an association request was expected")]
    NoRequest(&'static str),
    #[error(
        "the peer speaks TLS and this port does not; switch TLS off there, or configure it here"
    )]
    TlsExpected,
    #[error("TLS handshake failed: {0}")]
    Handshake(std::io::Error),
    /// By this side.
    #[error("association rejected: {refusal}")]
    Refused { calling: AeTitle, called: AeTitle, refusal: Refusal },
    /// By the peer.
    #[error("association rejected {}", meaning(*.0))]
    Rejected(Rejection),
    #[error("the peer aborted the association")]
    Aborted,
    #[error("the peer accepts none of the presentation contexts")]
    NoContext,
    #[error("the peer's answer to the association request is another PDU")]
    Unexpected,
    #[error("the peer takes PDUs of {0} bytes at most, which leaves no room for a value")]
    NoRoom(u32),
}

/// In words: result, source and reason of an A-ASSOCIATE-RJ (PS3.8 table 9-21).
fn meaning(Rejection { result, source, reason }: Rejection) -> String {
    let how = if result == Rejection::PERMANENT { "for good" } else { "for now" };
    let why = match (source, reason) {
        (1 | 2, 1) => "no reason given",
        (1, 2) => "application context name not supported",
        (1, 3) => "calling AE title not recognised; check calling_ae_title and the peer's list",
        (1, 7) => "called AE title not recognised; check ae_title",
        (2, 2) => "protocol version not supported",
        (3, 1) => "temporary congestion",
        (3, 2) => "local limit exceeded",
        _ => return format!("{how}: source {source}, reason {reason}"),
    };
    format!("{how}: {why}")
}
