//! Receiving end of the serial link; the frames are in `codec::serial`.
//!
//! Limits: one transfer at a time, held in memory up to `MAX_FILE_BYTES`. What has arrived of it survives a
//! pulled cable, not a restart. A transfer is acknowledged (`Done`) when its hash is right and it is stored; an image
//! that cannot be read to its end is refused.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::{FolderSink, IngestError, Refusal, Via};
use crate::codec::serial::{Frame, FrameError, Kind, MAX_PAYLOAD_BYTES, Offer, Splitter};
use crate::durable;

/// Largest file that is taken. At 115200 baud it takes more than an hour.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

/// After asking for an offset again, this many frames may pass before it is asked for once more: they were
/// under way already.
const FRAMES_BETWEEN_NAKS: u32 = 16;

/// Transfers that are remembered as done, for senders that did not hear it.
const REMEMBERED: usize = 64;

/// How often the loop looks whether it should end.
const POLL: Duration = Duration::from_millis(100);

/// Opens the port at `path`, again after every loss, and takes files from it until `shutdown`. Blocks.
///
/// # Errors
/// If the port cannot be opened the first time.
pub fn receive(
    path: &str,
    baud: u32,
    sink: Arc<FolderSink>,
    shutdown: &CancellationToken,
) -> Result<(), IngestError> {
    let open = || {
        serialport::new(path, baud)
            .timeout(POLL)
            .open()
            .map_err(|source| IngestError::SerialPort { path: path.to_owned(), source })
    };
    let mut port = Some(open()?);
    let mut receiver = Receiver::new(move |name, bytes| sink.keep_as(name, bytes, Via::Serial));
    while !shutdown.is_cancelled() {
        if let Some(line) = &mut port {
            if let Err(error) = receiver.run(line, shutdown) {
                tracing::warn!(%error, "serial line lost");
                port = None;
            }
        } else {
            std::thread::sleep(5 * POLL);
            port = open().ok();
        }
    }
    Ok(())
}

/// The receiving side of the conversation, whatever carries it.
pub struct Receiver<S> {
    /// Stores a whole file durably.
    store: S,
    splitter: Splitter,
    partial: Option<Partial>,
    done: VecDeque<u64>,
    sequence: u32,
}

struct Partial {
    transfer: u64,
    offer: Offer,
    length: u64,
    bytes: Vec<u8>,
    frames_since_nak: Option<u32>,
}

impl<S: FnMut(&str, &[u8]) -> Result<(), Refusal>> Receiver<S> {
    pub fn new(store: S) -> Self {
        let (splitter, done) = Default::default();
        Self { store, splitter, partial: None, done, sequence: 0 }
    }

    /// Serves one open line until `shutdown`.
    ///
    /// # Errors
    /// If the line is lost; call again with a new one to go on where it broke.
    pub fn run(
        &mut self,
        line: &mut (impl Read + Write),
        shutdown: &CancellationToken,
    ) -> Result<(), IngestError> {
        self.splitter.clear();
        let mut buffer = [0; 4096];
        while !shutdown.is_cancelled() {
            let count = match line.read(&mut buffer) {
                Ok(0) => return Err(IngestError::SerialLine(ErrorKind::UnexpectedEof.into())),
                Ok(count) => count,
                Err(error) if is_silence(&error) => continue,
                Err(error) => return Err(IngestError::SerialLine(error)),
            };
            for frame in self.splitter.push(&buffer[..count]) {
                if let Some(answer) = self.take(frame) {
                    line.write_all(&answer.encode()).map_err(IngestError::SerialLine)?;
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, frame: Result<Frame, FrameError>) -> Option<Frame> {
        match frame {
            Ok(frame) => match frame.header.kind {
                Kind::Offer => self.offer(&frame),
                Kind::Data => self.data(&frame),
                _ => None,
            },
            Err(_) => self.ask_again(),
        }
    }

    fn offer(&mut self, frame: &Frame) -> Option<Frame> {
        let offer = Offer::decode(&frame.payload).ok()?;
        let (transfer, length) = (offer.transfer(), frame.header.offset);
        if transfer != frame.header.transfer {
            return None;
        }
        if self.done.contains(&transfer) {
            return Some(self.answer(Kind::Done, transfer, length, Vec::new()));
        }
        if !durable::is_file_name(&offer.name) {
            return Some(self.refuse(transfer, "the file name is not allowed"));
        }
        if length == 0 || length > MAX_FILE_BYTES {
            return Some(self.refuse(transfer, "the file is empty or too large"));
        }
        let known = self.partial.as_ref().is_some_and(|p| p.offer == offer && p.length == length);
        if !known {
            let bytes = Vec::new();
            self.partial = Some(Partial { transfer, offer, length, bytes, frames_since_nak: None });
        }
        let arrived = self.partial.as_ref().map_or(0, |partial| partial.bytes.len() as u64);
        Some(self.answer(Kind::Ack, transfer, arrived, Vec::new()))
    }

    fn data(&mut self, frame: &Frame) -> Option<Frame> {
        let transfer = frame.header.transfer;
        if self.done.contains(&transfer) {
            return Some(self.answer(Kind::Done, transfer, frame.header.offset, Vec::new()));
        }
        let Some(partial) = self.partial.as_mut().filter(|p| p.transfer == transfer) else {
            return Some(self.answer(Kind::Unknown, transfer, 0, Vec::new()));
        };
        let arrived = partial.bytes.len() as u64;
        if frame.header.offset > arrived {
            return self.ask_again();
        }
        let fits = frame.payload.len() as u64 <= partial.length - arrived;
        if frame.header.offset == arrived && fits {
            partial.bytes.extend_from_slice(&frame.payload);
            partial.frames_since_nak = None;
        }
        let arrived = partial.bytes.len() as u64;
        if arrived < partial.length {
            return Some(self.answer(Kind::Ack, transfer, arrived, Vec::new()));
        }
        Some(self.finish())
    }

    /// The last byte is here.
    fn finish(&mut self) -> Frame {
        let partial = self.partial.take().expect("called with a partial transfer");
        let transfer = partial.transfer;
        if Sha256::digest(&partial.bytes).as_slice() != partial.offer.sha256 {
            tracing::warn!(
                "a file came over the serial line with a wrong hash; asking for it again"
            );
            return self.answer(Kind::Unknown, transfer, 0, Vec::new());
        }
        if let Err(refusal) = (self.store)(&partial.offer.name, &partial.bytes) {
            if !matches!(refusal, Refusal::OutOfResources(_)) {
                return self.refuse(transfer, &refusal.to_string());
            }
            tracing::error!(%refusal, "a file from the serial line could not be stored");
            // Kept in memory: the sender's next offer finds all but its last byte here.
            let mut bytes = partial.bytes;
            bytes.pop();
            self.partial = Some(Partial { bytes, ..partial });
            return self.answer(Kind::Ack, transfer, partial.length - 1, Vec::new());
        }
        if self.done.len() == REMEMBERED {
            self.done.pop_front();
        }
        self.done.push_back(transfer);
        self.answer(Kind::Done, transfer, partial.length, Vec::new())
    }

    fn ask_again(&mut self) -> Option<Frame> {
        let partial = self.partial.as_mut()?;
        if let Some(frames) = &mut partial.frames_since_nak
            && *frames < FRAMES_BETWEEN_NAKS
        {
            *frames += 1;
            return None;
        }
        partial.frames_since_nak = Some(0);
        let (transfer, arrived) = (partial.transfer, partial.bytes.len() as u64);
        Some(self.answer(Kind::Nak, transfer, arrived, Vec::new()))
    }

    fn refuse(&mut self, transfer: u64, reason: &str) -> Frame {
        tracing::warn!(reason, "a file offered over the serial line is refused");
        let told = &reason.as_bytes()[..reason.len().min(MAX_PAYLOAD_BYTES)];
        self.answer(Kind::Refused, transfer, 0, told.to_vec())
    }

    fn answer(&mut self, kind: Kind, transfer: u64, offset: u64, payload: Vec<u8>) -> Frame {
        debug_assert!(payload.len() <= MAX_PAYLOAD_BYTES);
        self.sequence = self.sequence.wrapping_add(1);
        Frame::new(kind, transfer, self.sequence, offset, payload)
    }
}

fn is_silence(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
