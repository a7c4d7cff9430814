//! Sending end of the serial link; the frames are in `codec::serial`.
//!
//! A window of frames is under way; the receiver acknowledges by offset and asks again for what is missing.
//! Silence is answered with a new offer, which brings both ends back to the same offset. Success means that the
//! receiver has the file on its disk.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::{Outcome, SerialConfig};
use crate::codec::serial::{Frame, Kind, Offer, Splitter};
use crate::spool::Delivery;

/// How a line is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Payload of one frame; at most `codec::serial::MAX_PAYLOAD_BYTES`.
    pub payload_bytes: usize,
    /// Frames under way.
    pub window: usize,
    /// Silence after which the file is offered again.
    pub silence: Duration,
    /// Time without progress after which the attempt ends.
    pub give_up: Duration,
}

impl Pace {
    #[must_use]
    pub fn new(give_up: Duration) -> Self {
        let silence = Duration::from_secs(1).min(give_up / 4);
        Self { payload_bytes: 1024, window: 8, silence, give_up }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("serial line: {0}")]
    Line(#[from] std::io::Error),
    #[error("no progress on the serial line for {0:?}")]
    Stalled(Duration),
    #[error("the receiver refuses the file")]
    Refused,
}

/// Opens the port, sends one file and closes it. Blocks.
pub(super) fn send(config: &SerialConfig, delivery: &Delivery, bytes: &[u8]) -> Outcome {
    let path = config.path.to_string_lossy();
    let mut port =
        match serialport::new(path, config.baud).timeout(Duration::from_millis(20)).open() {
            Ok(port) => port,
            Err(error) => return Outcome::Unreachable(format!("open the serial port: {error}")),
        };
    match push(&mut port, &delivery.name, bytes, Pace::new(config.timeout)) {
        Ok(()) => Outcome::Sent,
        Err(LinkError::Refused) => Outcome::Never(LinkError::Refused.to_string()),
        Err(error) => Outcome::Unreachable(error.to_string()),
    }
}

/// Sends `bytes` as file `name` over `line`, whose reads return `TimedOut` or `WouldBlock` after a short silence.
///
/// # Errors
/// If the line is lost, nothing moves any more, or the receiver refuses the file.
pub fn push(
    line: &mut (impl Read + Write),
    name: &str,
    bytes: &[u8],
    pace: Pace,
) -> Result<(), LinkError> {
    let offer = Offer { name: name.to_owned(), sha256: Sha256::digest(bytes).into() };
    let mut sender = Sender {
        line,
        bytes,
        transfer: offer.transfer(),
        offer: offer.encode(),
        pace,
        sequence: 0,
        sent: 0,
        acknowledged: None,
    };
    sender.run()
}

struct Sender<'a, L> {
    line: &'a mut L,
    bytes: &'a [u8],
    transfer: u64,
    offer: Vec<u8>,
    pace: Pace,
    sequence: u32,
    /// Next offset to send.
    sent: u64,
    /// `None` while the offer is not answered.
    acknowledged: Option<u64>,
}

enum Step {
    /// The receiver has more than before.
    Progress,
    Nothing,
    Done,
}

impl<L: Read + Write> Sender<'_, L> {
    fn run(&mut self) -> Result<(), LinkError> {
        let mut splitter = Splitter::default();
        let mut buffer = [0; 1024];
        let mut best = None;
        let mut progress = Instant::now();
        let mut heard = Instant::now();
        self.offer()?;
        loop {
            self.fill_window()?;
            let count = match self.line.read(&mut buffer) {
                Ok(0) => return Err(std::io::Error::from(ErrorKind::UnexpectedEof).into()),
                Ok(count) => count,
                Err(error) if is_silence(&error) => 0,
                Err(error) => return Err(error.into()),
            };
            for frame in splitter.push(&buffer[..count]).into_iter().flatten() {
                if frame.header.transfer != self.transfer {
                    continue;
                }
                heard = Instant::now();
                match self.hear(&frame)? {
                    Step::Done => return Ok(()),
                    Step::Progress if self.acknowledged > best => {
                        best = self.acknowledged;
                        progress = Instant::now();
                    }
                    _ => {}
                }
            }
            if progress.elapsed() >= self.pace.give_up {
                return Err(LinkError::Stalled(self.pace.give_up));
            }
            if heard.elapsed() >= self.pace.silence {
                heard = Instant::now();
                self.offer()?;
            }
        }
    }

    fn hear(&mut self, frame: &Frame) -> Result<Step, LinkError> {
        let offset = frame.header.offset;
        match frame.header.kind {
            Kind::Done => return Ok(Step::Done),
            Kind::Refused => return Err(LinkError::Refused),
            Kind::Unknown => self.offer()?,
            Kind::Ack | Kind::Nak if offset <= self.bytes.len() as u64 => {
                let first = self.acknowledged.is_none();
                if first || frame.header.kind == Kind::Nak {
                    self.sent = offset;
                }
                self.acknowledged = Some(offset);
                self.sent = self.sent.max(offset);
                return Ok(Step::Progress);
            }
            _ => {}
        }
        Ok(Step::Nothing)
    }

    fn offer(&mut self) -> Result<(), LinkError> {
        self.acknowledged = None;
        self.write(Kind::Offer, self.bytes.len() as u64, self.offer.clone())
    }

    fn fill_window(&mut self) -> Result<(), LinkError> {
        let Some(acknowledged) = self.acknowledged else { return Ok(()) };
        let window = (self.pace.window * self.pace.payload_bytes) as u64;
        while self.sent < self.bytes.len() as u64 && self.sent < acknowledged + window {
            let rest = &self.bytes[self.sent as usize..];
            let payload = rest[..rest.len().min(self.pace.payload_bytes)].to_vec();
            let offset = self.sent;
            self.sent += payload.len() as u64;
            self.write(Kind::Data, offset, payload)?;
        }
        Ok(())
    }

    fn write(&mut self, kind: Kind, offset: u64, payload: Vec<u8>) -> Result<(), LinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let frame = Frame::new(kind, self.transfer, self.sequence, offset, payload).encode();
        let mut rest = frame.as_slice();
        let started = Instant::now();
        while !rest.is_empty() {
            match self.line.write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if is_silence(&error) && started.elapsed() < self.pace.give_up => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn is_silence(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
