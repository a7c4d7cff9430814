//! What an object is, from its first elements: nothing behind them is read, and no declared length is believed.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::path::Path;

use dicom_dictionary_std::uids;

use super::part10::{self, is_dicom};
use super::unknown::is_long;
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

/// Preamble and file meta information fit into this; what is behind them is read as a stream.
const META_BYTES: u64 = 64 << 10;

/// A UID takes at most 64 bytes (PS3.5 table 6.2-1); some writers pad it generously.
const MAX_UID_BYTES: u32 = 128;

const SOP_CLASS_UID: u32 = 0x0008_0016;
const SOP_INSTANCE_UID: u32 = 0x0008_0018;
const STUDY_INSTANCE_UID: u32 = 0x0020_000D;
const SERIES_INSTANCE_UID: u32 = 0x0020_000E;
const ITEM: u32 = 0xFFFE_E000;
const ITEM_END: u32 = 0xFFFE_E00D;
const SEQUENCE_END: u32 = 0xFFFE_E0DD;
const UNDEFINED: u32 = u32::MAX;

/// Reads a file's identity, so that files can be gathered into series.
///
/// # Errors
/// If it is no DICOM file, is damaged, or lacks one of the UIDs.
pub fn identify(file: &Path) -> Result<Identity, CodecError> {
    let failed = |source| CodecError::Read { path: file.to_owned(), source };
    let mut stream = BufReader::new(File::open(file).map_err(failed)?);
    let mut start = Vec::new();
    stream.by_ref().take(META_BYTES).read_to_end(&mut start).map_err(failed)?;
    if !is_dicom(&start) {
        return Err(CodecError::malformed(file, "DICOM", "no DICM mark after the preamble"));
    }
    let (end, transfer_syntax) = part10::read_meta(file, &start)?;
    let found = scan(Cursor::new(&start[end..]).chain(stream), &transfer_syntax);
    let uid = |uid: Option<Uid>, name: &str| {
        uid.ok_or_else(|| {
            CodecError::malformed(file, "DICOM", format!("its {name} is missing or no UID"))
        })
    };
    Ok(Identity {
        sop_class: uid(found.sop_class, "SOPClassUID")?,
        sop_instance: uid(found.sop_instance, "SOPInstanceUID")?,
        series: uid(found.series, "SeriesInstanceUID")?,
        study: found.study,
        transfer_syntax: uid(Uid::parse(&transfer_syntax).ok(), "TransferSyntaxUID")?,
        data_set: end,
    })
}

/// The `SeriesInstanceUID` of a data set of which the first bytes are there, if it is among them.
#[must_use]
pub fn series_in(head: &[u8], transfer_syntax: &Uid) -> Option<Uid> {
    scan(head, transfer_syntax.as_str()).series
}

#[derive(Default)]
struct Found {
    sop_class: Option<Uid>,
    sop_instance: Option<Uid>,
    study: Option<Uid>,
    series: Option<Uid>,
}

fn scan(data: impl Read, transfer_syntax: &str) -> Found {
    let mut found = Found::default();
    let implicit = transfer_syntax == uids::IMPLICIT_VR_LITTLE_ENDIAN;
    let big_endian = transfer_syntax == "1.2.840.10008.1.2.2"; // retired, still met
    // The end of the data or of its sense ends the search; what was found stays found.
    let _ = if transfer_syntax == uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN {
        let data = flate2::read::DeflateDecoder::new(data);
        Scan { data, big_endian, implicit }.run(&mut found)
    } else {
        Scan { data, big_endian, implicit }.run(&mut found)
    };
    found
}

struct Scan<R> {
    data: R,
    big_endian: bool,
    implicit: bool,
}

impl<R: Read> Scan<R> {
    /// Reads elements in order until one stands behind the `SeriesInstanceUID`. Items and sequences of undefined
    /// length are not descended into but counted.
    fn run(mut self, found: &mut Found) -> io::Result<()> {
        let mut depth = 0_u32;
        // Below a UN of undefined length everything is Implicit VR (PS3.5 section 6.2.2).
        let mut implicit_below = None;
        loop {
            let implicit = self.implicit || implicit_below.is_some();
            let (tag, length) = self.element(implicit)?;
            match tag {
                ITEM_END | SEQUENCE_END => {
                    depth = depth.saturating_sub(1);
                    if implicit_below.is_some_and(|below| depth <= below) {
                        implicit_below = None;
                    }
                    continue;
                }
                _ if length.value == UNDEFINED => {
                    if length.is_unknown && implicit_below.is_none() {
                        implicit_below = Some(depth);
                    }
                    depth += 1;
                    continue;
                }
                _ if depth == 0 && tag != ITEM && tag > SERIES_INSTANCE_UID => return Ok(()),
                _ => {}
            }
            let slot = match tag {
                SOP_CLASS_UID => &mut found.sop_class,
                SOP_INSTANCE_UID => &mut found.sop_instance,
                STUDY_INSTANCE_UID => &mut found.study,
                SERIES_INSTANCE_UID => &mut found.series,
                _ => {
                    self.skip(length.value)?;
                    continue;
                }
            };
            if depth > 0 || length.value > MAX_UID_BYTES {
                self.skip(length.value)?;
                continue;
            }
            let mut value = vec![0; length.value as usize];
            self.data.read_exact(&mut value)?;
            *slot = std::str::from_utf8(&value).ok().and_then(|text| Uid::parse(text).ok());
        }
    }

    /// Tag and length of the next element.
    fn element(&mut self, implicit: bool) -> io::Result<(u32, Length)> {
        let tag = u32::from(self.short()?) << 16 | u32::from(self.short()?);
        let known = |value| Length { value, is_unknown: false };
        if implicit || tag >> 16 == 0xFFFE {
            return Ok((tag, known(self.long()?)));
        }
        let mut vr = [0; 2];
        self.data.read_exact(&mut vr)?;
        let short = self.short()?;
        if !is_long(vr) {
            return Ok((tag, known(u32::from(short))));
        }
        Ok((tag, Length { value: self.long()?, is_unknown: &vr == b"UN" }))
    }

    fn short(&mut self) -> io::Result<u16> {
        let mut bytes = [0; 2];
        self.data.read_exact(&mut bytes)?;
        Ok(if self.big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    fn long(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.data.read_exact(&mut bytes)?;
        Ok(if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn skip(&mut self, length: u32) -> io::Result<()> {
        let skipped = io::copy(&mut self.data.by_ref().take(length.into()), &mut io::sink())?;
        if skipped == u64::from(length) { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

struct Length {
    value: u32,
    /// Of an element with VR UN.
    is_unknown: bool,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXPLICIT: &str = uids::EXPLICIT_VR_LITTLE_ENDIAN;

    fn explicit(tag: u32, vr: [u8; 2], value: &[u8]) -> Vec<u8> {
        let mut out = [(tag >> 16) as u16, tag as u16].map(u16::to_le_bytes).concat();
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
        let decoy = explicit(SERIES_INSTANCE_UID, *b"UI", b"9.9.9\0");
        let mut implicit_decoy = vec![0x20, 0, 0x0e, 0, 6, 0, 0, 0];
        implicit_decoy.extend(b"9.9.9\0");
        for hidden in [sequence(*b"SQ", decoy), sequence(*b"UN", implicit_decoy)] {
            let mut data = explicit(SOP_INSTANCE_UID, *b"UI", b"1.2.3\0");
            data.extend(hidden);
            data.extend(explicit(SERIES_INSTANCE_UID, *b"UI", b"1.2.4\0"));
            let whole = data.len();
            data.extend(explicit(0x0020_0010, *b"SH", b"1 "));
            let found = scan(data.as_slice(), EXPLICIT);
            assert_eq!(found.sop_instance, Uid::parse("1.2.3").ok());
            assert_eq!(found.series, Uid::parse("1.2.4").ok());
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
                let _ = scan(bytes.as_slice(), syntax);
            }
        }
    }
}
