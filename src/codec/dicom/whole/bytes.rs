//! The bytes of a data set as a stream that can tell where it ends.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use flate2::{Decompress, FlushDecompress, Status};

/// Bytes behind the File Meta Information. What is skipped is not read where the file allows it.
pub(super) enum Bytes {
    Plain { file: BufReader<File>, left: u64 },
    Inflated(BufReader<Inflate>),
}

impl Bytes {
    /// Of `file` from `start` on.
    pub(super) fn plain(mut file: File, start: u64) -> io::Result<Self> {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(start))?;
        Ok(Self::Plain { file: BufReader::new(file), left: length.saturating_sub(start) })
    }

    /// The same of a deflated data set (PS3.5 section A.5).
    pub(super) fn inflated(mut file: File, start: u64) -> io::Result<Self> {
        file.seek(SeekFrom::Start(start))?;
        let inflate = Inflate {
            packed: BufReader::new(file),
            state: Decompress::new(false),
            has_ended: false,
        };
        Ok(Self::Inflated(BufReader::new(inflate)))
    }

    /// How many bytes are left, where that is known beforehand.
    pub(super) fn left(&self) -> Option<u64> {
        match self {
            Self::Plain { left, .. } => Some(*left),
            Self::Inflated(_) => None,
        }
    }

    /// Fills `into` as far as there are bytes; says how many there were.
    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < into.len() {
            let count = match self {
                Self::Plain { file, left } => {
                    let count = file.read(&mut into[filled..])?;
                    *left = left.saturating_sub(count as u64);
                    count
                }
                Self::Inflated(data) => data.read(&mut into[filled..])?,
            };
            if count == 0 {
                break;
            }
            filled += count;
        }
        Ok(filled)
    }

    /// Passes over `length` bytes, or as many as there are; says how many.
    pub(super) fn skip(&mut self, length: u64) -> io::Result<u64> {
        match self {
            Self::Plain { file, left } => {
                let step = length.min(*left);
                file.seek_relative(step as i64)?;
                *left -= step;
                Ok(step)
            }
            Self::Inflated(data) => io::copy(&mut data.take(length), &mut io::sink()),
        }
    }

    pub(super) fn is_at_end(&mut self) -> io::Result<bool> {
        match self {
            Self::Plain { left, .. } => Ok(*left == 0),
            Self::Inflated(data) => Ok(data.fill_buf()?.is_empty()),
        }
    }
}

/// Inflates, and takes a stream that breaks off for an error, where `flate2`'s own reader takes it for an end.
pub(super) struct Inflate {
    packed: BufReader<File>,
    state: Decompress,
    has_ended: bool,
}

impl Read for Inflate {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while !self.has_ended && !into.is_empty() {
            let (before, given) = (self.state.total_in(), self.state.total_out());
            let packed = self.packed.fill_buf()?;
            let is_cut = packed.is_empty();
            let status = self.state.decompress(packed, into, FlushDecompress::None);
            let status =
                status.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            self.packed.consume((self.state.total_in() - before) as usize);
            self.has_ended = status == Status::StreamEnd;
            let count = (self.state.total_out() - given) as usize;
            if count > 0 {
                return Ok(count);
            }
            if is_cut && !self.has_ended {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(0)
    }
}
