//! Frames of the serial link.
//!
//! frame = COBS(postcard(`Header`) + payload + CRC-32 of both, little endian), then one zero byte. COBS leaves
//! no zero inside, so a reader finds the next frame after any damage. The link's conversation is in
//! `deliver::serial` (sending end) and `ingest::serial` (receiving end):
//!
//! | kind | way | meaning |
//! |---|---|---|
//! | `Offer` | → | a file: payload is an [`Offer`], `offset` its whole length |
//! | `Ack` | ← | everything below `offset` has arrived |
//! | `Nak` | ← | send again from `offset` |
//! | `Data` | → | payload is the file's bytes at `offset` |
//! | `Done` | ← | the file is whole, its hash right, and it is on the disk |
//! | `Unknown` | ← | no such transfer here: offer it again |
//! | `Refused` | ← | this file will never be taken: payload is the reason, UTF-8 |

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Longest payload of one frame. Longer ones are a damaged or hostile frame.
pub const MAX_PAYLOAD_BYTES: usize = 4096;

/// Longest encoded frame without its delimiter.
pub const MAX_FRAME_BYTES: usize = MAX_PAYLOAD_BYTES + 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Offer,
    Data,
    Ack,
    Nak,
    Done,
    Unknown,
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub kind: Kind,
    /// From the file's name and SHA-256: the same file is the same transfer after any restart.
    pub transfer: u64,
    /// Counts the frames of the sender; for people who read a recording of the line.
    pub sequence: u32,
    /// Byte position in the file; see the table above.
    pub offset: u64,
    /// Bytes of payload.
    pub length: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub header: Header,
    pub payload: Vec<u8>,
}

/// What is about to be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    pub name: String,
    pub sha256: [u8; 32],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("frame is not COBS encoded")]
    Cobs,
    #[error("frame is too short or its check sum is wrong")]
    Checksum,
    #[error("frame header cannot be read or contradicts the payload")]
    Header,
    #[error("no delimiter within {MAX_FRAME_BYTES} bytes")]
    TooLong,
}

impl Frame {
    #[must_use]
    pub fn new(kind: Kind, transfer: u64, sequence: u32, offset: u64, payload: Vec<u8>) -> Self {
        let length = payload.len() as u32;
        Self { header: Header { kind, transfer, sequence, offset, length }, payload }
    }

    /// The frame and its delimiter, as they go over the line.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut plain =
            postcard::to_stdvec(&self.header).expect("a header of plain numbers serializes");
        plain.extend_from_slice(&self.payload);
        plain.extend_from_slice(&crc32fast::hash(&plain).to_le_bytes());
        let mut line = cobs::encode_vec(&plain);
        line.push(0);
        line
    }

    /// Reads what stood between two delimiters.
    ///
    /// # Errors
    /// If it is not a frame, or a damaged one.
    pub fn decode(line: &[u8]) -> Result<Self, FrameError> {
        if line.len() > MAX_FRAME_BYTES {
            return Err(FrameError::TooLong);
        }
        let plain = cobs::decode_vec(line).map_err(|_| FrameError::Cobs)?;
        let (body, sum) = plain.split_last_chunk::<4>().ok_or(FrameError::Checksum)?;
        if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
            return Err(FrameError::Checksum);
        }
        let (header, payload) =
            postcard::take_from_bytes::<Header>(body).map_err(|_| FrameError::Header)?;
        if header.length as usize != payload.len() || payload.len() > MAX_PAYLOAD_BYTES {
            return Err(FrameError::Header);
        }
        Ok(Self { header, payload: payload.to_vec() })
    }
}

impl Offer {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("text and a byte array serialize")
    }

    /// # Errors
    /// If `payload` is not an offer.
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        postcard::from_bytes(payload).map_err(|_| FrameError::Header)
    }

    /// See [`Header::transfer`].
    #[must_use]
    pub fn transfer(&self) -> u64 {
        let digest = Sha256::digest(self.encode());
        u64::from_le_bytes(std::array::from_fn(|index| digest[index]))
    }
}

/// Cuts a byte stream into frames.
#[derive(Debug, Default)]
pub struct Splitter {
    line: Vec<u8>,
    /// The line has run past its limit; skip to the next delimiter.
    overrun: bool,
}

impl Splitter {
    /// Takes `bytes` in and returns what they completed, damaged frames included. Keeps at most
    /// [`MAX_FRAME_BYTES`].
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Result<Frame, FrameError>> {
        let mut frames = Vec::new();
        for &byte in bytes {
            if byte != 0 {
                self.overrun |= self.line.len() == MAX_FRAME_BYTES;
                if !self.overrun {
                    self.line.push(byte);
                }
            } else if self.overrun {
                frames.push(Err(FrameError::TooLong));
                self.clear();
            } else if !self.line.is_empty() {
                frames.push(Frame::decode(&self.line));
                self.clear();
            }
        }
        frames
    }

    /// Forgets a half-received frame, as when the line was closed.
    pub fn clear(&mut self) {
        self.line.clear();
        self.overrun = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame() -> impl Strategy<Value = Frame> {
        let kind = prop_oneof![Just(Kind::Offer), Just(Kind::Data), Just(Kind::Refused)];
        let payload = prop::collection::vec(any::<u8>(), 0..=MAX_PAYLOAD_BYTES);
        (kind, any::<u64>(), any::<u32>(), any::<u64>(), payload).prop_map(
            |(kind, transfer, sequence, offset, payload)| {
                Frame::new(kind, transfer, sequence, offset, payload)
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn frames_are_found_in_a_stream_whatever_the_pieces(
            frames in prop::collection::vec(frame(), 1..4),
            piece in 1_usize..700,
        ) {
            let line: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
            let mut splitter = Splitter::default();
            let found: Vec<_> = line.chunks(piece).flat_map(|bytes| splitter.push(bytes)).collect();
            prop_assert_eq!(found, frames.into_iter().map(Ok).collect::<Vec<_>>());
        }

        #[test]
        fn the_longest_frame_fits_its_limit(frame in frame()) {
            prop_assert!(frame.encode().len() <= MAX_FRAME_BYTES + 1);
        }

        #[test]
        fn a_flipped_bit_is_never_taken_for_the_frame(frame in frame(), at: usize, bit in 0_u8..8) {
            let mut line = frame.encode();
            line.pop();
            let at = at % line.len();
            line[at] ^= 1 << bit;
            let found = Splitter::default().push(&[&line[..], &[0]].concat());
            prop_assert!(found.iter().all(Result::is_err), "{:?}", found);
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_stay_bounded(
            bytes in prop::collection::vec(any::<u8>(), 0..20_000),
        ) {
            let mut splitter = Splitter::default();
            splitter.push(&bytes);
            prop_assert!(splitter.line.len() <= MAX_FRAME_BYTES);
            let _ = Offer::decode(&bytes);
        }
    }

    #[test]
    fn a_good_frame_follows_an_overlong_one() {
        let frame = Frame::new(Kind::Ack, 1, 2, 3, Vec::new());
        let mut line = vec![7; 3 * MAX_FRAME_BYTES];
        line.push(0);
        line.extend(frame.encode());
        assert_eq!(Splitter::default().push(&line), [Err(FrameError::TooLong), Ok(frame)]);
    }
}
