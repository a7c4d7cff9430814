//! One DICOM file (PS3.10) as a data set: its beginning is recognised, its transfer syntax found, its structure checked.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use dicom_core::VR;
use dicom_dictionary_std::uids;
use dicom_encoding::{TransferSyntax, TransferSyntaxIndex};
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;

use super::data_set::DataSet;
use super::parse::{self, Coding};
use crate::codec::CodecError;

const PREAMBLE: usize = 128;
/// Largest file taken into memory, bytes; also what a deflated data set may inflate to.
const MAX_FILE: u64 = 4 << 30;
/// Retired, still met.
const EXPLICIT_VR_BIG_ENDIAN: &str = "1.2.840.10008.1.2.2";

/// A file's data set, its structure whole.
pub(super) struct Part10 {
    data_set: DataSet,
    pub(super) transfer_syntax: &'static TransferSyntax,
}

/// Where a file's data set begins and how it is written.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) data_set: usize,
    pub(super) transfer_syntax: String,
}

/// Whether a file that begins with `head` (some hundred bytes of it) is a DICOM file: by its mark, or, where an old writer
/// left preamble and mark away, by the elements that it begins with.
pub(in crate::codec) fn is_dicom(head: &[u8]) -> bool {
    begin(head).is_some()
}

/// How a file begins.
enum Beginning {
    /// File meta information, at this byte.
    Meta(usize),
    /// A data set, in this transfer syntax.
    DataSet(&'static str),
}

fn begin(head: &[u8]) -> Option<Beginning> {
    let marked = |at: usize| head.get(at..at + 4) == Some(b"DICM");
    if let Some(at) = [PREAMBLE, 0].into_iter().find(|&at| marked(at)) {
        return Some(Beginning::Meta(at + 4));
    }
    // Group 0002 is in Explicit VR; its first elements are the length and the version.
    let is_meta = |at: usize| {
        matches!(head.get(at..at + 6), Some([2, 0, 0, 0, b'U', b'L'] | [2, 0, 1, 0, b'O', b'B']))
    };
    if let Some(at) = [0, PREAMBLE].into_iter().find(|&at| is_meta(at)) {
        return Some(Beginning::Meta(at));
    }
    [uids::EXPLICIT_VR_LITTLE_ENDIAN, uids::IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN]
        .into_iter()
        .find(|syntax| parse::begins(head, coding_of(syntax)))
        .map(Beginning::DataSet)
}

impl Start {
    /// Of a file of which `bytes` are the first; the file meta information must be among them.
    pub(super) fn find(path: &Path, bytes: &[u8]) -> Result<Self, CodecError> {
        match begin(bytes) {
            Some(Beginning::Meta(at)) => {
                let (data_set, transfer_syntax) = read_meta(path, bytes, at)?;
                Ok(Self { data_set, transfer_syntax })
            }
            Some(Beginning::DataSet(syntax)) => {
                Ok(Self { data_set: 0, transfer_syntax: syntax.to_owned() })
            }
            None => Err(malformed(
                path,
                "it has no DICM mark at byte 128 and does not begin with a DICOM element",
            )),
        }
    }
}

/// How elements are written in a transfer syntax.
pub(super) fn coding_of(transfer_syntax: &str) -> Coding {
    Coding {
        explicit: transfer_syntax != uids::IMPLICIT_VR_LITTLE_ENDIAN,
        big_endian: transfer_syntax == EXPLICIT_VR_BIG_ENDIAN,
    }
}

/// As [`coding_of`], unless the first element of the data set contradicts it: several writers name one syntax and use
/// another.
pub(super) fn coding_in(transfer_syntax: &str, data: &[u8]) -> Coding {
    let declared = coding_of(transfer_syntax);
    let other = if declared.explicit { Coding::IMPLICIT } else { Coding::EXPLICIT };
    let has_vr = data.get(4..6).is_some_and(|vr| VR::from_binary([vr[0], vr[1]]).is_some());
    if has_vr != declared.explicit && parse::begins(data, other) { other } else { declared }
}

impl Part10 {
    pub(super) fn open(path: &Path) -> Result<Self, CodecError> {
        Self::from_bytes(path, whole_file(path)?)
    }

    pub(super) fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, CodecError> {
        let (data_set, syntax) = any(path, bytes)?;
        let transfer_syntax = TransferSyntaxRegistry.get(&syntax).ok_or_else(|| {
            CodecError::unsupported(
                path,
                "its private or unknown transfer syntax",
                "have the sender use Explicit VR Little Endian",
            )
        })?;
        Ok(Self { data_set, transfer_syntax })
    }

    pub(super) fn data_set(&self) -> &DataSet {
        &self.data_set
    }

    pub(super) fn into_data_set(self) -> DataSet {
        self.data_set
    }
}

/// A file's data set and its transfer syntax, which may be one whose pixels cannot be decoded here.
pub(super) fn read_any(path: &Path) -> Result<(DataSet, String), CodecError> {
    any(path, whole_file(path)?)
}

fn any(path: &Path, bytes: Vec<u8>) -> Result<(DataSet, String), CodecError> {
    let mut start = Start::find(path, &bytes)?;
    let mut bytes = Bytes::from(bytes);
    if start.transfer_syntax == uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN {
        bytes = inflate(path, &bytes[start.data_set..])?.into();
        start.data_set = 0;
        uids::EXPLICIT_VR_LITTLE_ENDIAN.clone_into(&mut start.transfer_syntax);
    }
    let data = bytes.slice(start.data_set..);
    let coding = coding_in(&start.transfer_syntax, &data);
    let data_set = parse::parse(path, &data, start.data_set, coding)?;
    Ok((data_set, start.transfer_syntax))
}

fn whole_file(path: &Path) -> Result<Vec<u8>, CodecError> {
    let read = |source| CodecError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(read)?;
    let length = file.metadata().map_err(read)?.len();
    if length > MAX_FILE {
        return Err(CodecError::unsupported(path, "a file above 4 GiB", "split or crop it"));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(read)?;
    Ok(bytes)
}

/// A data set that came without a file around it. `what` stands for the file in errors.
pub(in crate::codec) fn read_data_set(
    what: &str,
    data: Vec<u8>,
    transfer_syntax: &str,
) -> Result<DataSet, CodecError> {
    parse::parse(Path::new(what), &data.into(), 0, coding_of(transfer_syntax))
}

fn malformed(path: &Path, reason: impl Into<String>) -> CodecError {
    CodecError::malformed(path, "DICOM", reason)
}

/// Walks group 0002 (always Explicit VR Little Endian) from `at`; gives its end and the transfer syntax. The group length
/// is not believed: several writers get it wrong.
fn read_meta(path: &Path, bytes: &[u8], mut at: usize) -> Result<(usize, String), CodecError> {
    let mut uid = None;
    while let Some(head) = bytes.get(at..at + 8) {
        if head[..2] != [2, 0] {
            break;
        }
        let (value, length) = if matches!(&head[4..6], b"OB" | b"OW" | b"UN" | b"SQ" | b"UT") {
            let long = bytes.get(at + 8..at + 12).unwrap_or(&[0xff; 4]);
            (at + 12, u32::from_le_bytes([long[0], long[1], long[2], long[3]]) as usize)
        } else {
            (at + 8, usize::from(u16::from_le_bytes([head[6], head[7]])))
        };
        let Some(content) = bytes.get(value..value.saturating_add(length)) else {
            let reason = format!("its file meta information is cut off at byte {at}");
            return Err(malformed(path, reason));
        };
        if head[2..4] == [0x10, 0] {
            let text = String::from_utf8_lossy(content);
            uid = Some(text.trim_matches(['\0', ' ']).to_owned());
        }
        at = value + length;
    }
    let missing = "TransferSyntaxUID (0002,0010) is missing in its file meta information";
    let uid = uid.ok_or_else(|| malformed(path, missing))?;
    Ok((at, uid))
}

fn inflate(path: &Path, deflated: &[u8]) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::new();
    flate2::read::DeflateDecoder::new(deflated)
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|_| malformed(path, "its deflated data set is damaged or ends too early"))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(CodecError::unsupported(path, "a data set above 4 GiB", "split or crop it"));
    }
    Ok(bytes)
}
