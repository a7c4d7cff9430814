//! Walks the elements of a data set from the first to the last byte (PS3.5 section 7) and notes what says how many
//! pixels there have to be.

use std::io;
use std::path::Path;

use dicom_core::dictionary::{DataDictionary, DataDictionaryEntry};
use dicom_core::{Tag, VR};
use dicom_dictionary_std::{StandardDataDictionary, tags};

use super::bytes::Bytes;
use crate::codec::CodecError;

const ITEM: Tag = Tag(0xFFFE, 0xE000);
const ITEM_END: Tag = Tag(0xFFFE, 0xE00D);
const SEQUENCE_END: Tag = Tag(0xFFFE, 0xE0DD);
const DATA_SET_TRAILING_PADDING: Tag = Tag(0xFFFC, 0xFFFC);
const UNDEFINED: u32 = u32::MAX;
/// Real objects nest about ten deep.
const MAX_DEPTH: usize = 48;
/// An enhanced object with 2000 frames has about 100 000 elements.
const MAX_ELEMENTS: usize = 4_000_000;

/// Longest value that is noted: a UID with generous padding.
const MAX_NOTED: u32 = 128;
/// So much of a fragment's end is looked at for the end of a codestream: padding may stand behind it.
const TAIL: u32 = 32;

/// VRs with a 32-bit length in Explicit VR (PS3.5 table 7.1-1).
const LONG: [&[u8; 2]; 13] =
    [b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"];
/// And with a 16-bit one (table 7.1-2).
const SHORT: [&[u8; 2]; 21] = [
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN",
    b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US",
];

/// How elements are written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Coding {
    pub(super) implicit: bool,
    pub(super) big_endian: bool,
}

/// What stands at the root of the data set, as far as it matters here.
#[derive(Default)]
pub(super) struct Found {
    noted: Vec<(Tag, [u8; 2], Vec<u8>)>,
    pub(super) pixels: Option<Pixels>,
}

pub(super) enum Pixels {
    /// Length of the value, bytes.
    Native {
        tag: Tag,
        length: u64,
    },
    Encapsulated {
        offsets: Vec<u32>,
        fragments: Vec<Fragment>,
        is_delimited: bool,
    },
}

/// One item of encapsulated pixel data.
pub(super) struct Fragment {
    /// From the first byte of the first fragment's item tag, as offset tables count.
    pub(super) at: u64,
    pub(super) head: [u8; 4],
    /// Whether its end is that of a codestream: EOI or EOC, both FF D9.
    pub(super) ends_codestream: bool,
    pub(super) length: u32,
}

impl Found {
    pub(super) fn has(&self, tag: Tag) -> bool {
        self.noted.iter().any(|(noted, ..)| *noted == tag)
    }

    /// A text, without padding.
    pub(super) fn text(&self, tag: Tag) -> Option<String> {
        let (.., value) = self.noted.iter().find(|(noted, ..)| *noted == tag)?;
        let text = String::from_utf8_lossy(value);
        let first = text.split('\\').next().unwrap_or_default();
        Some(first.trim_matches([' ', '\0']).to_owned()).filter(|text| !text.is_empty())
    }

    /// A whole number, whether it stands there as a number or, as in NumberOfFrames, as a text.
    pub(super) fn number(&self, tag: Tag, coding: Coding) -> Option<u64> {
        let (_, vr, value) = self.noted.iter().find(|(noted, ..)| *noted == tag)?;
        let is_text = match vr {
            b"US" | b"UL" | b"SS" | b"SL" | b"OB" | b"OW" => false,
            b"UN" | [0, 0] => tag == tags::NUMBER_OF_FRAMES,
            _ => true,
        };
        if is_text {
            let number: f64 = self.text(tag)?.trim().parse().ok()?;
            return (number >= 0.0 && number.fract() == 0.0).then_some(number as u64);
        }
        let number = match (value.as_slice(), coding.big_endian) {
            (&[a, b], false) => u16::from_le_bytes([a, b]).into(),
            (&[a, b], true) => u16::from_be_bytes([a, b]).into(),
            (&[a, b, c, d], false) => u32::from_le_bytes([a, b, c, d]),
            (&[a, b, c, d], true) => u32::from_be_bytes([a, b, c, d]),
            _ => return None,
        };
        Some(number.into())
    }

    /// 64-bit numbers, as in the Extended Offset Table.
    pub(super) fn has_extended_offsets(&self) -> bool {
        self.has(tags::EXTENDED_OFFSET_TABLE)
    }
}

/// What stands at the root and is noted.
const NOTED: [Tag; 15] = [
    tags::SOP_CLASS_UID,
    tags::SAMPLES_PER_PIXEL,
    tags::PHOTOMETRIC_INTERPRETATION,
    tags::NUMBER_OF_FRAMES,
    tags::ROWS,
    tags::COLUMNS,
    tags::BITS_ALLOCATED,
    tags::PIXEL_DATA_PROVIDER_URL,
    tags::VALUE_TYPE,
    tags::ENCAPSULATED_DOCUMENT,
    tags::STRUCTURE_SET_ROI_SEQUENCE,
    tags::SPECTROSCOPY_DATA,
    tags::EXTENDED_OFFSET_TABLE,
    tags::WAVEFORM_SEQUENCE,
    tags::CONTENT_SEQUENCE,
];

pub(super) struct Walk<'a> {
    path: &'a Path,
    bytes: Bytes,
    coding: Coding,
    position: u64,
    open: Vec<Open>,
    elements: usize,
    found: Found,
}

/// A sequence or an item that has begun.
struct Open {
    tag: Tag,
    is_item: bool,
    end: Option<u64>,
    implicit: bool,
}

struct Head {
    tag: Tag,
    /// Zeros in Implicit VR.
    vr: [u8; 2],
    length: u32,
}

impl<'a> Walk<'a> {
    pub(super) fn new(path: &'a Path, bytes: Bytes, coding: Coding) -> Self {
        let (open, found) = Default::default();
        Self { path, bytes, coding, position: 0, open, elements: 0, found }
    }

    /// Goes to the end.
    ///
    /// # Errors
    /// If the data set ends before it should, or its lengths contradict each other.
    pub(super) fn run(mut self) -> Result<Found, CodecError> {
        loop {
            self.close()?;
            if self.at_end()? {
                return match self.open.last() {
                    None => Ok(self.found),
                    Some(open) => Err(self.broken(format!("it ends inside {}", name(open.tag)))),
                };
            }
            self.elements += 1;
            if self.elements > MAX_ELEMENTS || self.open.len() > 2 * MAX_DEPTH {
                return Err(self.broken("its sequences are nested or repeated beyond reason"));
            }
            if self.open.last().is_some_and(|open| !open.is_item) {
                self.item()?;
            } else if !self.element()? {
                return Ok(self.found);
            }
        }
    }

    /// Ends the sequences and items of known length that end here.
    fn close(&mut self) -> Result<(), CodecError> {
        while let Some(Open { tag, end: Some(end), .. }) = self.open.last() {
            if self.position < *end {
                return Ok(());
            }
            if self.position > *end {
                return Err(self.broken(format!("{} ends inside an element", name(*tag))));
            }
            self.open.pop();
        }
        Ok(())
    }

    fn item(&mut self) -> Result<(), CodecError> {
        let open = self.open.last().expect("called inside a sequence");
        let (tag, implicit, is_open_ended) = (open.tag, open.implicit, open.end.is_none());
        let mut head = [0; 8];
        self.read(&mut head, tag)?;
        let (found, length) = (self.tag(&head), self.long(&head[4..]));
        match found {
            ITEM => {
                let end = (length != UNDEFINED).then(|| self.position + u64::from(length));
                self.begin(Open { tag, is_item: true, end, implicit })
            }
            SEQUENCE_END if is_open_ended => {
                self.open.pop();
                Ok(())
            }
            _ => Err(self.broken(format!("{} holds something other than items", name(tag)))),
        }
    }

    /// `false` if nothing but padding follows.
    fn element(&mut self) -> Result<bool, CodecError> {
        let Some(head) = self.head()? else { return Ok(false) };
        let Head { tag, vr, length } = head;
        let is_root = self.open.is_empty();
        match tag {
            DATA_SET_TRAILING_PADDING if is_root => return Ok(false),
            ITEM_END if self.open.last().is_some_and(|open| open.end.is_none()) => {
                self.open.pop();
                return Ok(true);
            }
            Tag(0xFFFE, _) => {
                return Err(self.broken("an item or a sequence ends that has not begun"));
            }
            _ => {}
        }
        let implicit = self.implicit();
        let is_pixel_data = tag == tags::PIXEL_DATA;
        let is_sequence = match &vr {
            b"SQ" => true,
            b"UN" => length == UNDEFINED && !is_pixel_data,
            _ if implicit && !is_pixel_data => length == UNDEFINED || is_known_sequence(tag),
            _ => false,
        };
        if is_root && NOTED.contains(&tag) && (is_sequence || length > MAX_NOTED) {
            self.found.noted.push((tag, vr, Vec::new()));
        }
        if is_sequence {
            let end = (length != UNDEFINED).then(|| self.position + u64::from(length));
            let implicit = implicit || (&vr == b"UN" && length == UNDEFINED);
            self.begin(Open { tag, is_item: false, end, implicit })?;
        } else if length == UNDEFINED {
            let pixels = self.fragments(tag)?;
            if is_root && is_pixel_data {
                self.found.pixels = Some(pixels);
            }
        } else if is_root && NOTED.contains(&tag) && length <= MAX_NOTED {
            let mut value = vec![0; length as usize];
            self.read(&mut value, tag)?;
            self.found.noted.push((tag, vr, value));
        } else {
            self.skip(u64::from(length), tag)?;
            let is_pixels =
                [tags::PIXEL_DATA, tags::FLOAT_PIXEL_DATA, tags::DOUBLE_FLOAT_PIXEL_DATA];
            if is_root && is_pixels.contains(&tag) {
                self.found.pixels = Some(Pixels::Native { tag, length: length.into() });
            }
        }
        Ok(true)
    }

    fn begin(&mut self, open: Open) -> Result<(), CodecError> {
        if let Some(end) = open.end {
            self.check_room(end - self.position, open.tag)?;
        }
        self.open.push(open);
        Ok(())
    }

    /// `None` if only zeros are left, as where a file was padded to whole blocks of a disk.
    fn head(&mut self) -> Result<Option<Head>, CodecError> {
        let mut bytes = [0; 8];
        let count = self.bytes.read(&mut bytes).map_err(|error| self.unreadable(&error))?;
        self.position += count as u64;
        if self.open.is_empty() && bytes[..4] == [0; 4] && self.only_zeros_follow(&bytes)? {
            return Ok(None);
        }
        if count < bytes.len() {
            return Err(self.broken("it ends in the middle of an element"));
        }
        let tag = self.tag(&bytes);
        if self.implicit() || tag.group() == 0xFFFE {
            return Ok(Some(Head { tag, vr: [0; 2], length: self.long(&bytes[4..]) }));
        }
        let vr = [bytes[4], bytes[5]];
        let short = u32::from(self.short(&bytes[6..]));
        let is_known_short = SHORT.contains(&&vr);
        // A VR of a later edition has the long form, with two reserved bytes (PS3.5 section 7.1.2).
        if is_known_short || (!LONG.contains(&&vr) && short != 0) {
            return Ok(Some(Head { tag, vr, length: short }));
        }
        let mut long = [0; 4];
        self.read(&mut long, tag)?;
        Ok(Some(Head { tag, vr, length: self.long(&long) }))
    }

    fn only_zeros_follow(&mut self, begun: &[u8]) -> Result<bool, CodecError> {
        if begun.iter().any(|&byte| byte != 0) {
            return Ok(false);
        }
        let mut buffer = [0; 4096];
        loop {
            match self.bytes.read(&mut buffer).map_err(|error| self.unreadable(&error))? {
                0 => return Ok(true),
                count if buffer[..count].iter().all(|&byte| byte == 0) => {}
                _ => return Err(self.broken("an element has the tag (0000,0000)")),
            }
        }
    }

    /// The items of encapsulated pixel data (PS3.5 section A.4).
    fn fragments(&mut self, tag: Tag) -> Result<Pixels, CodecError> {
        let (mut offsets, mut fragments, mut first) = (None, Vec::new(), 0);
        loop {
            let mut head = [0; 8];
            let count = self.bytes.read(&mut head).map_err(|error| self.unreadable(&error))?;
            self.position += count as u64;
            let is_delimited = count == head.len() && self.tag(&head) == SEQUENCE_END;
            // Several writers leave the delimiter out: then the pixels themselves have to tell that they are complete.
            let is_cut = count < 4 || (count < head.len() && self.tag(&head) == SEQUENCE_END);
            if is_delimited || is_cut {
                let offsets = offsets.unwrap_or_default();
                return Ok(Pixels::Encapsulated { offsets, fragments, is_delimited });
            }
            if count < head.len() {
                return Err(self.broken(format!("it ends in the middle of {}", name(tag))));
            }
            if self.tag(&head) != ITEM {
                let reason = format!("{} holds something other than fragments", name(tag));
                return Err(self.broken(reason));
            }
            let length = self.long(&head[4..]);
            self.check_room(length.into(), tag)?;
            if offsets.is_none() {
                let mut table = Vec::new();
                for _ in 0..length / 4 {
                    let mut offset = [0; 4];
                    self.read(&mut offset, tag)?;
                    table.push(self.long(&offset));
                }
                self.skip(u64::from(length % 4), tag)?;
                (offsets, first) = (Some(table), self.position);
                continue;
            }
            self.elements += 1;
            if self.elements > MAX_ELEMENTS {
                return Err(self.broken("it has more fragments than is reasonable"));
            }
            let at = self.position - 8 - first;
            fragments.push(self.fragment(tag, at, length)?);
        }
    }

    fn fragment(&mut self, tag: Tag, at: u64, length: u32) -> Result<Fragment, CodecError> {
        let mut head = [0; 4];
        let begun = length.min(4);
        self.read(&mut head[..begun as usize], tag)?;
        let rest = length - begun;
        self.skip(u64::from(rest.saturating_sub(TAIL)), tag)?;
        let mut tail = [0; TAIL as usize];
        let tail = &mut tail[..rest.min(TAIL) as usize];
        self.read(tail, tag)?;
        let ends_codestream = tail.windows(2).any(|pair| pair == [0xFF, 0xD9]);
        Ok(Fragment { at, head, ends_codestream, length })
    }

    fn at_end(&mut self) -> Result<bool, CodecError> {
        self.bytes.is_at_end().map_err(|error| self.unreadable(&error))
    }

    fn read(&mut self, into: &mut [u8], tag: Tag) -> Result<(), CodecError> {
        let count = self.bytes.read(into).map_err(|error| self.unreadable(&error))?;
        let length = into.len() as u64;
        self.passed(count as u64, length, tag)
    }

    fn skip(&mut self, length: u64, tag: Tag) -> Result<(), CodecError> {
        self.check_room(length, tag)?;
        let count = self.bytes.skip(length).map_err(|error| self.unreadable(&error))?;
        self.passed(count, length, tag)
    }

    fn passed(&mut self, count: u64, length: u64, tag: Tag) -> Result<(), CodecError> {
        self.position += count;
        if count < length { Err(self.cut(tag, length, count)) } else { Ok(()) }
    }

    /// A length fits into what is left of the file, and into the item or sequence around it.
    fn check_room(&self, length: u64, tag: Tag) -> Result<(), CodecError> {
        if let Some(left) = self.bytes.left()
            && length > left
        {
            return Err(self.cut(tag, length, left));
        }
        let around = self.open.iter().rev().find_map(|open| Some((open.tag, open.end?)));
        match around {
            Some((outer, end)) if self.position + length > end => {
                let (inner, outer) = (name(tag), name(outer));
                Err(self.broken(format!("{inner} reaches beyond the end of {outer} around it")))
            }
            _ => Ok(()),
        }
    }

    fn implicit(&self) -> bool {
        self.open.last().map_or(self.coding.implicit, |open| open.implicit)
    }

    fn short(&self, bytes: &[u8]) -> u16 {
        let bytes = [bytes[0], bytes[1]];
        if self.coding.big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
    }

    fn long(&self, bytes: &[u8]) -> u32 {
        let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if self.coding.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }

    fn tag(&self, bytes: &[u8]) -> Tag {
        Tag(self.short(bytes), self.short(&bytes[2..]))
    }

    fn broken(&self, reason: impl Into<String>) -> CodecError {
        CodecError::malformed(self.path, "DICOM", reason)
    }

    fn cut(&self, tag: Tag, needed: u64, present: u64) -> CodecError {
        let missing = needed - present;
        self.broken(format!("it ends {missing} bytes before the end of {}", name(tag)))
    }

    fn unreadable(&self, error: &io::Error) -> CodecError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => self.broken("its deflated data set breaks off"),
            io::ErrorKind::InvalidData => self.broken("its deflated data set is damaged"),
            kind => CodecError::Read { path: self.path.to_owned(), source: kind.into() },
        }
    }
}

/// The standard's keyword, or the tag where it has none: never a value.
pub(super) fn name(tag: Tag) -> String {
    StandardDataDictionary
        .by_tag(tag)
        .map_or_else(|| format!("the element {tag}"), |entry| entry.alias().to_owned())
}

/// In Implicit VR the dictionary alone tells sequences from other values.
fn is_known_sequence(tag: Tag) -> bool {
    StandardDataDictionary.by_tag(tag).is_some_and(|entry| entry.vr().exact() == Some(VR::SQ))
}
