//! One DICOM file (PS3.10) as data sets: what stands before the pixels, and the pixels.
//!
//! The parser underneath believes declared lengths (it reserves and zeroes them before reading) and
//! descends into sequences by recursion. Every data set is therefore walked once, cheaply, before it is
//! parsed: lengths must fit in the file, nesting and element count have limits. Where the parser would go on at another
//! place than the walk, what was walked says nothing, and the data set is refused: it reads whole numbers alone, whatever
//! their length says, and passes over the end of an item that has not begun.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufReader, Cursor, Read};
use std::path::Path;

use dicom_core::{Tag, VR};
use dicom_dictionary_std::uids;
use dicom_encoding::{Endianness, TransferSyntax, TransferSyntaxIndex};
use dicom_object::InMemDicomObject;
use dicom_object::collector::DicomCollectorOptions;
use dicom_object::file::ReadPreamble;
use dicom_parser::StatefulDecode;
use dicom_parser::dataset::LazyDataToken;
use dicom_parser::dataset::lazy_read::LazyDataSetReader;
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;

use super::unknown;
use crate::codec::{CodecError, contain};

const PREAMBLE: usize = 128;
/// Largest file taken into memory, bytes; also what a deflated data set may inflate to.
const MAX_FILE: u64 = 4 << 30;
/// Real objects nest about ten deep; each level costs stack in the parser.
const MAX_DEPTH: usize = 48;
/// An enhanced object with 2000 frames has about 100 000 elements.
const MAX_ELEMENTS: usize = 4_000_000;

/// A file's bytes, checked so that parsing them is safe.
pub(super) struct Part10 {
    bytes: Vec<u8>,
    /// Where the data set begins in `bytes`.
    start: usize,
    pub(super) transfer_syntax: &'static TransferSyntax,
}

/// Whether a file that begins with `head` (at least 132 bytes of it) is a DICOM file.
pub(in crate::codec) fn is_dicom(head: &[u8]) -> bool {
    head.get(PREAMBLE..PREAMBLE + 4) == Some(b"DICM")
}

impl Part10 {
    pub(super) fn open(path: &Path) -> Result<Self, CodecError> {
        let read = |source| CodecError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        let length = file.metadata().map_err(read)?.len();
        if length > MAX_FILE {
            return Err(CodecError::unsupported(path, "a file above 4 GiB", "split or crop it"));
        }
        let mut bytes = Vec::with_capacity(length as usize);
        file.take(MAX_FILE).read_to_end(&mut bytes).map_err(read)?;
        Self::from_bytes(path, bytes)
    }

    pub(super) fn from_bytes(path: &Path, mut bytes: Vec<u8>) -> Result<Self, CodecError> {
        if !is_dicom(&bytes) {
            return Err(malformed(path, "no DICM mark after the preamble"));
        }
        let (mut start, uid) = read_meta(path, &bytes)?;
        let mut transfer_syntax = TransferSyntaxRegistry.get(&uid).ok_or_else(|| {
            CodecError::unsupported(
                path,
                "its private or unknown transfer syntax",
                "have the sender use Explicit VR Little Endian",
            )
        })?;
        if transfer_syntax.uid() == uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN {
            bytes = inflate(path, &bytes[start..])?;
            start = 0;
            transfer_syntax = TransferSyntaxRegistry
                .get(uids::EXPLICIT_VR_LITTLE_ENDIAN)
                .expect("the registry holds the default syntaxes");
        }
        if transfer_syntax.uid() != uids::IMPLICIT_VR_LITTLE_ENDIAN
            && transfer_syntax.endianness() == Endianness::Little
        {
            unknown::close(&mut bytes[start..]);
        }
        contained(path, || walk(path, &bytes[start..], transfer_syntax))?;
        Ok(Self { bytes, start, transfer_syntax })
    }

    /// All elements before the pixel data.
    pub(super) fn header(&self, path: &Path) -> Result<InMemDicomObject, CodecError> {
        contained(path, || {
            let mut header = InMemDicomObject::new_empty();
            DicomCollectorOptions::new()
                .expected_ts(self.transfer_syntax.uid())
                .read_preamble(ReadPreamble::Never)
                .from_reader(BufReader::new(Cursor::new(&self.bytes[self.start..])))
                .read_dataset_up_to_pixeldata(&mut header)
                .map_err(|error| malformed(path, innermost(&error)))?;
            Ok(header)
        })
    }

    /// All elements, the pixel data among them.
    pub(super) fn whole(&self, path: &Path) -> Result<InMemDicomObject, CodecError> {
        contained(path, || {
            InMemDicomObject::read_dataset_with_ts(&self.bytes[self.start..], self.transfer_syntax)
                .map_err(|error| malformed(path, innermost(&error)))
        })
    }
}

/// A data set that came without a file around it. `what` stands for the file in errors.
pub(in crate::codec) fn read_data_set(
    what: &str,
    data: Vec<u8>,
    transfer_syntax: &'static TransferSyntax,
) -> Result<InMemDicomObject, CodecError> {
    let path = Path::new(what);
    contained(path, || walk(path, &data, transfer_syntax))?;
    Part10 { bytes: data, start: 0, transfer_syntax }.whole(path)
}

fn malformed(path: &Path, reason: impl Into<String>) -> CodecError {
    CodecError::malformed(path, "DICOM", reason)
}

fn contained<T>(
    path: &Path,
    parse: impl FnOnce() -> Result<T, CodecError>,
) -> Result<T, CodecError> {
    contain(parse).unwrap_or_else(|| Err(malformed(path, "its structure contradicts itself")))
}

/// The cause at the bottom: the parser's own messages above it only repeat that reading failed.
fn innermost(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |e| e.source()).last().unwrap_or(error).to_string()
}

/// Walks group 0002 (always Explicit VR Little Endian); gives its end and the transfer syntax. The
/// group length is not believed: several writers get it wrong.
pub(super) fn read_meta(path: &Path, bytes: &[u8]) -> Result<(usize, String), CodecError> {
    let mut at = PREAMBLE + 4;
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
            return Err(malformed(path, "its file meta information is cut off"));
        };
        if head[2..4] == [0x10, 0] {
            uid = Some(String::from_utf8_lossy(content).trim_end_matches(['\0', ' ']).to_owned());
        }
        at = value + length;
    }
    let uid = uid.ok_or_else(|| malformed(path, "its TransferSyntaxUID is missing"))?;
    Ok((at, uid))
}

fn inflate(path: &Path, deflated: &[u8]) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::new();
    flate2::read::DeflateDecoder::new(deflated)
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| malformed(path, error.to_string()))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(CodecError::unsupported(path, "a data set above 4 GiB", "split or crop it"));
    }
    Ok(bytes)
}

/// Checks lengths, nesting and element count.
fn walk(path: &Path, data: &[u8], ts: &TransferSyntax) -> Result<(), CodecError> {
    let failed = |error: &dyn std::error::Error| malformed(path, innermost(error));
    let mut reader =
        LazyDataSetReader::new_with_ts(Cursor::new(data), ts).map_err(|error| failed(&error))?;
    let (mut depth, mut items, mut elements) = (0_usize, 0_usize, 0_usize);
    let unbegun = || malformed(path, "an item or a sequence ends that has not begun");
    // The first item of a pixel sequence holds numbers, the others bytes (PS3.5 section A.4).
    let mut offsets_next = false;
    while let Some(token) = reader.advance() {
        let token = token.map_err(|error| failed(&error))?;
        let (length, unit, position) = match &token {
            LazyDataToken::LazyValue { header, decoder } => {
                (header.len.0, bytes_of_number(header.vr), decoder.position())
            }
            LazyDataToken::LazyItemValue { len, decoder } => {
                let unit = if std::mem::take(&mut offsets_next) { 4 } else { 1 };
                (*len, unit, decoder.position())
            }
            LazyDataToken::SequenceStart { .. } | LazyDataToken::PixelSequenceStart => {
                depth += 1;
                offsets_next = matches!(token, LazyDataToken::PixelSequenceStart);
                (0, 1, 0)
            }
            LazyDataToken::SequenceEnd => {
                depth = depth.checked_sub(1).ok_or_else(unbegun)?;
                (0, 1, 0)
            }
            LazyDataToken::ItemStart { .. } => {
                (items, elements) = (items + 1, elements + 1);
                (0, 1, 0)
            }
            LazyDataToken::ItemEnd => {
                items = items.checked_sub(1).ok_or_else(unbegun)?;
                offsets_next = false; // an empty table has no value
                (0, 1, 0)
            }
            _ => {
                elements += 1;
                (0, 1, 0)
            }
        };
        if depth > MAX_DEPTH || elements > MAX_ELEMENTS {
            return Err(malformed(path, "its sequences are nested or repeated beyond reason"));
        }
        if !length.is_multiple_of(unit) {
            return Err(malformed(path, "an element holds a part of a number"));
        }
        let needed = position + u64::from(length);
        if needed > data.len() as u64 {
            return Err(CodecError::Truncated {
                path: path.to_owned(),
                what: "an element of the data set",
                needed,
                present: data.len() as u64,
            });
        }
        token.skip().map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// How long one value is, where a value is a number (PS3.5 table 6.2-1).
fn bytes_of_number(vr: VR) -> u32 {
    match vr {
        VR::US | VR::SS | VR::OW => 2,
        VR::UL | VR::SL | VR::FL | VR::AT | VR::OL | VR::OF => 4,
        VR::UV | VR::SV | VR::FD | VR::OV | VR::OD => 8,
        _ => 1,
    }
}

/// The text of an element, without padding; empty values count as absent.
pub(in crate::codec) fn text(object: &InMemDicomObject, tag: Tag) -> Option<Cow<'_, str>> {
    let text = object.get(tag)?.to_str().ok()?;
    let trimmed = text.trim_matches(['\0', ' ']);
    match trimmed.len() {
        0 => None,
        n if n == text.len() => Some(text),
        _ => Some(Cow::Owned(trimmed.to_owned())),
    }
}

/// The numbers of an element; `None` if absent, empty, unreadable or not finite.
pub(super) fn numbers(object: &InMemDicomObject, tag: Tag) -> Option<Vec<f64>> {
    let values = object.get(tag)?.value().to_multi_float64().ok()?;
    (!values.is_empty() && values.iter().all(|v| v.is_finite())).then_some(values)
}

pub(super) fn number(object: &InMemDicomObject, tag: Tag) -> Option<f64> {
    numbers(object, tag)?.first().copied()
}

/// The items of a sequence; none if it is absent.
pub(in crate::codec) fn items(object: &InMemDicomObject, tag: Tag) -> &[InMemDicomObject] {
    object.get(tag).and_then(|element| element.items()).unwrap_or_default()
}
