use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Link, UpperLayerError};
use crate::codec::pdu::{
    self, AeTitle, HEADER_BYTES, Part, Pdu, PduError, VALUE_HEADER_BYTES, kind,
};

/// Longest association request or acceptance. 128 contexts with fifty transfer syntaxes each fit in it.
const MAX_ASSOCIATE_BYTES: usize = 1 << 20;

/// Longest PDU of the kinds that have a fixed length of four.
const MAX_FIXED_BYTES: usize = 1 << 10;

/// Largest fragment of a data set in one PDU, whatever the peer would take.
const MAX_FRAGMENT_BYTES: usize = 128 << 10;

/// A message leaves in pieces of about this size.
const PIECE_BYTES: usize = 256 << 10;

/// A read takes at most this much at once.
const READ_BYTES: usize = 64 << 10;

/// What this side lets an association have.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest P-DATA-TF PDU that is taken, as announced to the peer.
    pub max_pdu_bytes: u32,
    /// Longest wait for the connection to take what is written.
    pub write_timeout: Duration,
}

/// A presentation context that both sides agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    pub id: u8,
    pub abstract_syntax: String,
    pub transfer_syntax: String,
}

/// An established association.
pub struct Association {
    pub(super) wire: Framed,
    pub(super) called: AeTitle,
    pub(super) calling: AeTitle,
    pub(super) contexts: Vec<Context>,
    /// Of a fragment, so that its PDU is one that the peer takes.
    pub(super) room: usize,
}

/// How an association is aborted (PS3.8 section 9.3.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Abort {
    User,
    UnrecognizedPdu,
    UnexpectedPdu,
    InvalidParameter,
}

impl Abort {
    pub(super) fn pdu(self) -> Pdu {
        let (source, reason) = match self {
            Self::User => (0, 0),
            Self::UnrecognizedPdu => (2, 1),
            Self::UnexpectedPdu => (2, 2),
            Self::InvalidParameter => (2, 6),
        };
        Pdu::Abort { source, reason }
    }
}

impl Association {
    #[must_use]
    pub fn calling(&self) -> &AeTitle {
        &self.calling
    }

    #[must_use]
    pub fn called(&self) -> &AeTitle {
        &self.called
    }

    /// Those that were accepted.
    #[must_use]
    pub fn contexts(&self) -> &[Context] {
        &self.contexts
    }

    /// The next PDU. May be given up and asked for again: nothing is lost.
    ///
    /// # Errors
    /// If the connection ends, or what comes is no PDU or too long.
    pub async fn receive(&mut self) -> Result<Pdu, UpperLayerError> {
        self.wire.receive().await
    }

    /// Sends a message: a command and the data set that belongs to it.
    ///
    /// # Errors
    /// If the connection does not take it.
    pub async fn send(
        &mut self,
        context: u8,
        command: &[u8],
        data: Option<&[u8]>,
    ) -> Result<(), UpperLayerError> {
        let mut out = Vec::new();
        for (part, bytes) in [(Part::Command, Some(command)), (Part::Data, data)] {
            let mut fragments = bytes.unwrap_or_default().chunks(self.room).peekable();
            while let Some(fragment) = fragments.next() {
                pdu::put_fragment(&mut out, context, part, fragments.peek().is_none(), fragment);
                if out.len() >= PIECE_BYTES {
                    self.wire.write(&out).await?;
                    out.clear();
                }
            }
        }
        if out.is_empty() { Ok(()) } else { self.wire.write(&out).await }
    }

    /// Asks the peer for the end of the association and waits for its word. What else comes before it is dropped.
    ///
    /// # Errors
    /// If the connection ends before.
    pub async fn release(mut self) -> Result<(), UpperLayerError> {
        self.wire.write(&Pdu::ReleaseRequest.encode()).await?;
        loop {
            match self.wire.receive().await? {
                Pdu::ReleaseResponse => return Ok(()),
                // Both sides asked at once (PS3.8 section 9.2, AR-8).
                Pdu::ReleaseRequest => {
                    self.wire.write(&Pdu::ReleaseResponse.encode()).await?;
                }
                Pdu::Abort { .. } => return Err(UpperLayerError::Aborted),
                _ => {}
            }
        }
    }

    /// Answers the peer's wish to end the association. The connection is the peer's to close.
    ///
    /// # Errors
    /// If the connection does not take it.
    pub async fn answer_release(&mut self) -> Result<(), UpperLayerError> {
        self.wire.write(&Pdu::ReleaseResponse.encode()).await
    }

    /// Breaks the association off.
    pub async fn abort(mut self) {
        let _ = self.wire.write(&Abort::User.pdu().encode()).await;
        let _ = self.wire.link.shutdown().await;
    }

    /// Breaks the association off because of `error`, and tells the peer as much as PS3.8 has codes for.
    pub async fn abort_for(mut self, error: &UpperLayerError) {
        let _ = self.wire.write(&Abort::from(error).pdu().encode()).await;
        let _ = self.wire.link.shutdown().await;
    }
}

impl From<&UpperLayerError> for Abort {
    fn from(error: &UpperLayerError) -> Self {
        match error {
            UpperLayerError::Pdu(PduError::UnknownType(_)) => Self::UnrecognizedPdu,
            UpperLayerError::Pdu(_) | UpperLayerError::TooLong { .. } => Self::InvalidParameter,
            UpperLayerError::Unexpected => Self::UnexpectedPdu,
            _ => Self::User,
        }
    }
}

/// PDUs on a connection.
pub(super) struct Framed {
    pub(super) link: Box<dyn Link>,
    limits: Limits,
    received: BytesMut,
}

impl Framed {
    pub(super) fn new(link: Box<dyn Link>, limits: Limits) -> Self {
        Self { link, limits, received: BytesMut::new() }
    }

    pub(super) async fn receive(&mut self) -> Result<Pdu, UpperLayerError> {
        let (kind, body) = self.frame().await?;
        Ok(Pdu::parse(kind, body)?)
    }

    /// Type and body of the next PDU.
    pub(super) async fn frame(&mut self) -> Result<(u8, Bytes), UpperLayerError> {
        loop {
            let mut missing = HEADER_BYTES;
            if let Some((kind, length)) = pdu::header(&self.received) {
                let limit = self.limit(kind)?;
                if length > limit {
                    return Err(UpperLayerError::TooLong { kind, length, limit });
                }
                if self.received.len() >= HEADER_BYTES + length {
                    let pdu = self.received.split_to(HEADER_BYTES + length).freeze();
                    return Ok((kind, pdu.slice(HEADER_BYTES..)));
                }
                missing += length;
            }
            self.received.reserve((missing - self.received.len()).clamp(1 << 12, READ_BYTES));
            if self.link.read_buf(&mut self.received).await? == 0 {
                // In the midst of a PDU it is no orderly end.
                let cut = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                let orderly = self.received.is_empty();
                return Err(if orderly { UpperLayerError::Closed } else { cut.into() });
            }
        }
    }

    /// Of the body of a PDU.
    fn limit(&self, kind: u8) -> Result<usize, UpperLayerError> {
        match kind {
            kind::ASSOCIATE_RQ | kind::ASSOCIATE_AC => Ok(MAX_ASSOCIATE_BYTES),
            kind::DATA => Ok(self.limits.max_pdu_bytes as usize),
            kind::ASSOCIATE_RJ | kind::RELEASE_RQ | kind::RELEASE_RP | kind::ABORT => {
                Ok(MAX_FIXED_BYTES)
            }
            kind => Err(PduError::UnknownType(kind).into()),
        }
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), UpperLayerError> {
        let write = async {
            self.link.write_all(bytes).await?;
            self.link.flush().await
        };
        match tokio::time::timeout(self.limits.write_timeout, write).await {
            Ok(written) => Ok(written?),
            Err(_) => Err(UpperLayerError::Timeout),
        }
    }

    /// After the last word: lets the peer close first, so that what was sent to it is not cut off. The caller bounds the
    /// wait.
    pub(super) async fn wait_for_end(&mut self) {
        let _ = self.link.shutdown().await;
        let mut rest = [0; 1 << 10];
        while self.link.read(&mut rest).await.is_ok_and(|count| count > 0) {}
    }
}

/// Room for a fragment in a PDU of at most `max_length` bytes; even, as fragments are (PS3.8 annex E.2).
pub(super) fn room(max_length: u32) -> Result<usize, UpperLayerError> {
    let unlimited = max_length == 0; // PS3.8 section D.1.1
    let longest = if unlimited { usize::MAX } else { max_length as usize };
    let room = longest.saturating_sub(VALUE_HEADER_BYTES).min(MAX_FRAGMENT_BYTES) & !1;
    if room == 0 { Err(UpperLayerError::NoRoom(max_length)) } else { Ok(room) }
}
