//! What an object is, from its first elements: nothing behind them is read.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;
use dicom_core::Tag;
use dicom_dictionary_std::{tags, uids};

use super::data_set::DataSet;
use super::parse::parse_head;
use super::part10::{Start, coding_in};
use crate::codec::CodecError;
use crate::domain::Uid;

/// What a file is and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub sop_class: Uid,
    pub sop_instance: Uid,
    pub series: Uid,
    /// Where it has one.
    pub study: Option<Uid>,
    pub transfer_syntax: Uid,
    /// Where its data set begins, bytes.
    pub data_set: usize,
}

/// Preamble and file meta information fit into this, and mostly what identifies an object, too.
const FIRST_BYTES: usize = 64 << 10;

/// Where the search ends in an object that is damaged in front of its identity.
const MOST_BYTES: usize = 256 << 20;

/// The last of the attributes that are looked for.
const LAST: Tag = tags::SERIES_INSTANCE_UID;

/// Reads a file's identity, so that files can be gathered into series.
///
/// # Errors
/// If it is no DICOM file, is damaged, or lacks one of the UIDs.
pub fn identify(file: &Path) -> Result<Identity, CodecError> {
    let failed = |source| CodecError::Read { path: file.to_owned(), source };
    let mut stream = File::open(file).map_err(failed)?;
    let mut head = Vec::new();
    stream.by_ref().take(FIRST_BYTES as u64).read_to_end(&mut head).map_err(failed)?;
    let start = Start::find(file, &head)?;
    let found = look(head.split_off(start.data_set), stream, &start).map_err(failed)?;
    let uid = |tag: Tag, name: &str| {
        uid_in(&found, tag).ok_or_else(|| {
            CodecError::malformed(file, "DICOM", format!("its {name} is missing or no UID"))
        })
    };
    let syntax = Uid::parse(&start.transfer_syntax)
        .map_err(|_| CodecError::malformed(file, "DICOM", "its TransferSyntaxUID is no UID"))?;
    Ok(Identity {
        sop_class: uid(tags::SOP_CLASS_UID, "SOPClassUID")?,
        sop_instance: uid(tags::SOP_INSTANCE_UID, "SOPInstanceUID")?,
        series: uid(tags::SERIES_INSTANCE_UID, "SeriesInstanceUID")?,
        study: uid_in(&found, tags::STUDY_INSTANCE_UID),
        transfer_syntax: syntax,
        data_set: start.data_set,
    })
}

/// The `SeriesInstanceUID` of a data set of which the first bytes are there, if it is among them.
#[must_use]
pub fn series_in(head: &[u8], transfer_syntax: &Uid) -> Option<Uid> {
    let syntax = transfer_syntax.as_str();
    let mut inflated = Vec::new();
    let head = if syntax == uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN {
        // What came so far ends anywhere; what it held until there is used.
        let _ = flate2::read::DeflateDecoder::new(head)
            .take(2 * FIRST_BYTES as u64)
            .read_to_end(&mut inflated);
        &inflated
    } else {
        head
    };
    let (found, _) = parse_head(&Bytes::copy_from_slice(head), coding_in(syntax, head), LAST);
    uid_in(&found, LAST)
}

/// Reads on in `stream`, behind `head`, until the elements up to the last one looked for are there.
fn look(head: Vec<u8>, stream: impl Read, start: &Start) -> io::Result<DataSet> {
    let source = io::Cursor::new(head).chain(stream);
    if start.transfer_syntax == uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN {
        search(flate2::read::DeflateDecoder::new(source), &start.transfer_syntax)
    } else {
        search(source, &start.transfer_syntax)
    }
}

fn search(mut source: impl Read, transfer_syntax: &str) -> io::Result<DataSet> {
    let mut bytes = Vec::new();
    let mut wanted = FIRST_BYTES;
    loop {
        let missing = wanted - bytes.len();
        // Damage behind what is looked for does not matter, and is found when the object is read.
        let is_whole = match source.by_ref().take(missing as u64).read_to_end(&mut bytes) {
            Ok(read) => read < missing,
            Err(error) if is_damage(&error) => true,
            Err(error) => return Err(error),
        };
        let data = Bytes::from(std::mem::take(&mut bytes));
        let (found, passed) = parse_head(&data, coding_in(transfer_syntax, &data), LAST);
        if is_whole || passed || uid_in(&found, LAST).is_some() || wanted >= MOST_BYTES {
            return Ok(found);
        }
        drop(found);
        bytes = data.into();
        wanted *= 2;
    }
}

/// Whether the file could be read and could not be inflated.
fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof)
}

fn uid_in(data_set: &DataSet, tag: Tag) -> Option<Uid> {
    let text = data_set.text(tag).ok().flatten()?;
    Uid::parse(&text).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXPLICIT: &str = uids::EXPLICIT_VR_LITTLE_ENDIAN;

    fn explicit(tag: Tag, vr: [u8; 2], value: &[u8]) -> Vec<u8> {
        let mut out = [tag.group(), tag.element()].map(u16::to_le_bytes).concat();
        out.extend(vr);
        out.extend((value.len() as u16).to_le_bytes());
        out.extend(value);
        out
    }

    /// (0008,1140) of undefined length with one item of undefined length that holds another series' UID.
    fn sequence(vr: [u8; 2], inner: Vec<u8>) -> Vec<u8> {
        let mut out = vec![0x08, 0, 0x40, 0x11];
        out.extend(vr);
        out.extend([0, 0, 0xff, 0xff, 0xff, 0xff]);
        out.extend([0xfe, 0xff, 0x00, 0xe0, 0xff, 0xff, 0xff, 0xff]);
        out.extend(inner);
        out.extend([0xfe, 0xff, 0x0d, 0xe0, 0, 0, 0, 0]);
        out.extend([0xfe, 0xff, 0xdd, 0xe0, 0, 0, 0, 0]);
        out
    }

    #[test]
    fn the_series_is_found_behind_sequences_and_not_inside_them() {
        let decoy = explicit(tags::SERIES_INSTANCE_UID, *b"UI", b"9.9.9\0");
        let mut implicit_decoy = vec![0x20, 0, 0x0e, 0, 6, 0, 0, 0];
        implicit_decoy.extend(b"9.9.9\0");
        for hidden in [sequence(*b"SQ", decoy), sequence(*b"UN", implicit_decoy)] {
            let mut data = explicit(tags::SOP_INSTANCE_UID, *b"UI", b"1.2.3\0");
            data.extend(hidden);
            data.extend(explicit(tags::SERIES_INSTANCE_UID, *b"UI", b"1.2.4\0"));
            let whole = data.len();
            data.extend(explicit(tags::STUDY_ID, *b"SH", b"1 "));
            let found = search(data.as_slice(), EXPLICIT).unwrap();
            assert_eq!(uid_in(&found, tags::SOP_INSTANCE_UID), Uid::parse("1.2.3").ok());
            assert_eq!(uid_in(&found, LAST), Uid::parse("1.2.4").ok());
            // Of a data set that is still arriving it is found as soon as it is there, and nothing before.
            for length in 0..data.len() {
                let found = series_in(&data[..length], &Uid::parse(EXPLICIT).unwrap());
                assert_eq!(found.is_some(), length >= whole, "{length}");
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_end_the_search(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            for syntax in [EXPLICIT, uids::IMPLICIT_VR_LITTLE_ENDIAN, "1.2.840.10008.1.2.2",
                           uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN] {
                let _ = series_in(&bytes, &Uid::parse(syntax).unwrap());
                let start = Start { data_set: 0, transfer_syntax: syntax.to_owned() };
                look(bytes.clone(), io::empty(), &start).unwrap();
            }
        }
    }
}
