//! Bytes to a data set (PS3.5 section 7): Implicit and Explicit VR, either byte order, sequences and encapsulated pixels.
//!
//! The whole structure is checked while it is read: no declared length is believed before it is known to lie in the file,
//! nesting and element count have limits, and no value is copied. What other readers put up with is put up with here where
//! it has one meaning alone: value representations that are not known, sequences stored as UN, elements without a VR in
//! Explicit VR, a missing delimiter behind the last fragment, and whatever stands behind the pixels.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use dicom_core::dictionary::VirtualVr;
use dicom_core::{Tag, VR};
use dicom_dictionary_std::tags;

use super::character_set::CharacterSet;
use super::data_set::{Context, DataSet, Element, Fragments, Value, name, own_vr};
use crate::codec::CodecError;

/// Real objects nest about ten deep; each level costs stack.
const MAX_DEPTH: usize = 48;
/// An enhanced object with 2000 frames has about 100 000 elements.
const MAX_ELEMENTS: usize = 4_000_000;

const ITEM: Tag = Tag(0xFFFE, 0xE000);
const ITEM_END: Tag = Tag(0xFFFE, 0xE00D);
const SEQUENCE_END: Tag = Tag(0xFFFE, 0xE0DD);
const UNDEFINED: u32 = u32::MAX;

/// How elements are written: what a transfer syntax says beside the compression of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Coding {
    pub(super) explicit: bool,
    pub(super) big_endian: bool,
}

impl Coding {
    pub(super) const IMPLICIT: Self = Self { explicit: false, big_endian: false };
    pub(super) const EXPLICIT: Self = Self { explicit: true, big_endian: false };

    fn u16(self, bytes: &[u8], at: usize) -> Option<u16> {
        let bytes = bytes.get(at..at + 2)?.try_into().ok()?;
        Some(if self.big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    fn u32(self, bytes: &[u8], at: usize) -> Option<u32> {
        let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn tag(self, bytes: &[u8], at: usize) -> Option<Tag> {
        Some(Tag(self.u16(bytes, at)?, self.u16(bytes, at + 2)?))
    }
}

/// Reads the data set in `data`. `offset` is where it begins in the file `path`, both for errors.
pub(super) fn parse(
    path: &Path,
    data: &Bytes,
    offset: usize,
    coding: Coding,
) -> Result<DataSet, CodecError> {
    let mut parser = Parser::new(path, data, offset);
    let mut elements = Vec::new();
    parser.root(coding, None, &mut elements)?;
    Ok(parser.finish(elements))
}

/// The elements up to `last` that are whole in `data`, of which the end may be missing, and whether all are there.
pub(super) fn parse_head(data: &Bytes, coding: Coding, last: Tag) -> (DataSet, bool) {
    let mut parser = Parser::new(Path::new(""), data, 0);
    let mut elements = Vec::new();
    // The end of the data or of its sense ends the search; what was found stays found.
    let passed = parser.root(coding, Some(last), &mut elements).unwrap_or(false);
    (parser.finish(elements), passed)
}

/// Whether `head` can be the beginning of a data set written like this: its first element is one that stands first.
pub(super) fn begins(head: &[u8], coding: Coding) -> bool {
    const LONGEST: usize = 1024;
    let Some(tag @ Tag(0x0008, 0x0000..=0x0070)) = coding.tag(head, 0) else { return false };
    let Some(own) = own_vr(tag).and_then(VirtualVr::exact) else { return false };
    let declared = head.get(4..6).and_then(|vr| VR::from_binary([vr[0], vr[1]]));
    let (value, length) = match declared {
        Some(VR::UN) if coding.explicit => (12, coding.u32(head, 8)),
        Some(vr) if coding.explicit && vr == own => (8, coding.u16(head, 6).map(u32::from)),
        _ if coding.explicit => return false,
        _ => (8, coding.u32(head, 4)),
    };
    let Some(length) = length.map(|length| length as usize).filter(|length| *length <= LONGEST)
    else {
        return false;
    };
    // The next one stands behind it, where so much of the file is there.
    coding.tag(head, value + length).is_none_or(|next| next > tag && next <= tags::PIXEL_DATA)
}

struct Parser<'a> {
    data: &'a Bytes,
    offset: usize,
    context: Arc<Context>,
    /// Seen so far, also in what was read in vain.
    elements: usize,
}

struct Header {
    tag: Tag,
    declared: Option<VR>,
    /// Whether what was declared is UN, or not known.
    unknown: bool,
    big_endian: bool,
    /// Where the value begins.
    value: usize,
    /// `None` if undefined.
    length: Option<usize>,
}

/// Where the elements of a data set end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    At(usize),
    /// At an item delimiter.
    Delimiter,
}

impl<'a> Parser<'a> {
    fn new(path: &Path, data: &'a Bytes, offset: usize) -> Self {
        let characters = Arc::new(CharacterSet::default());
        let context = Arc::new(Context { path: Arc::from(path), characters, signed: None });
        Self { data, offset, context, elements: 0 }
    }

    fn finish(self, elements: Vec<Element>) -> DataSet {
        let mut data_set = DataSet::new(elements, &self.context);
        data_set.settle(&self.context);
        data_set
    }

    /// Whether an element behind `last` was met.
    fn root(
        &mut self,
        coding: Coding,
        last: Option<Tag>,
        elements: &mut Vec<Element>,
    ) -> Result<bool, CodecError> {
        let end = self.data.len();
        let (mut at, mut has_pixels) = (0, false);
        while at < end {
            // Disks and tapes fill their last block with zeros.
            if self.data[at] == 0 && self.data[at..].iter().all(|&byte| byte == 0) {
                break;
            }
            let element = self.element(at, end, coding, 0);
            match element {
                Ok((element, next)) => {
                    if last.is_some_and(|last| element.tag > last) {
                        return Ok(true);
                    }
                    has_pixels |= element.tag == tags::PIXEL_DATA;
                    elements.push(element);
                    at = next;
                }
                // Padding and the like: no attribute of an image stands behind its pixels.
                Err(_) if has_pixels => break,
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// The elements of an item from `at`, and where they end.
    fn item(
        &mut self,
        mut at: usize,
        limit: End,
        coding: Coding,
        depth: usize,
    ) -> Result<(DataSet, usize), CodecError> {
        let end = if let End::At(end) = limit { end } else { self.data.len() };
        let mut elements = Vec::new();
        loop {
            if at == end {
                if limit == End::Delimiter {
                    return Err(self.fault(at, None, "an item ends without a delimiter"));
                }
                break;
            }
            if coding.tag(self.data, at) == Some(ITEM_END) && at + 8 <= end {
                at += 8;
                // An item of defined length needs no delimiter, but has one here and there.
                if limit == End::Delimiter || at == end {
                    break;
                }
            }
            let (element, next) = self.element(at, end, coding, depth)?;
            elements.push(element);
            at = next;
        }
        Ok((DataSet::new(elements, &self.context), at))
    }

    /// The element at `at`, which ends before `end`, and where the next one begins.
    fn element(
        &mut self,
        at: usize,
        end: usize,
        coding: Coding,
        depth: usize,
    ) -> Result<(Element, usize), CodecError> {
        self.elements += 1;
        if depth > MAX_DEPTH || self.elements > MAX_ELEMENTS {
            return Err(self.fault(at, None, "sequences are nested or repeated beyond reason"));
        }
        let header = self.header(at, end, coding)?;
        let (value, next) = self.value(at, end, &header, coding, depth)?;
        let Header { tag, declared, big_endian, .. } = header;
        Ok((Element { tag, declared, big_endian, value }, next))
    }

    fn value(
        &mut self,
        at: usize,
        end: usize,
        header: &Header,
        coding: Coding,
        depth: usize,
    ) -> Result<(Value, usize), CodecError> {
        let Header { tag, value, .. } = *header;
        let is_sequence = header.declared == Some(VR::SQ)
            || own_vr(tag).and_then(VirtualVr::exact) == Some(VR::SQ);
        let Some(length) = header.length else {
            let is_bulk =
                matches!(header.declared, Some(VR::OB | VR::OW)) || tag == tags::PIXEL_DATA;
            if is_bulk && !is_sequence {
                let (fragments, next) = self.fragments(value, end, tag, coding)?;
                return Ok((Value::Fragments(fragments), next));
            }
            let (items, next) = self.sequence(header, None, end, coding, depth)?;
            return Ok((Value::Items(items), next));
        };
        let next = value + length;
        if next > end {
            return Err(self.beyond(at, header, next, end));
        }
        if !is_sequence {
            return Ok((Value::Bytes(self.data.slice(value..next)), next));
        }
        let items = self.sequence(header, Some(next), end, coding, depth);
        let items = items
            .map_or(Value::Unreadable("is no sequence of items"), |(items, _)| Value::Items(items));
        Ok((items, next))
    }

    /// The items of a sequence. Those in a value of VR UN are in Implicit VR (PS3.5 section 6.2.2); not all writers know.
    fn sequence(
        &mut self,
        header: &Header,
        next: Option<usize>,
        end: usize,
        coding: Coding,
        depth: usize,
    ) -> Result<(Vec<DataSet>, usize), CodecError> {
        let first = if header.unknown { Coding::IMPLICIT } else { coding };
        let other = match (first.explicit, coding.explicit) {
            (false, true) => Some(coding),
            (true, _) => Some(Coding::IMPLICIT),
            (false, false) => None,
        };
        let read = self.items(header, next, end, first, depth + 1);
        match (read, other) {
            (Err(error), Some(other)) => {
                self.items(header, next, end, other, depth + 1).map_err(|_| error)
            }
            (read, _) => read,
        }
    }

    fn items(
        &mut self,
        header: &Header,
        next: Option<usize>,
        end: usize,
        coding: Coding,
        depth: usize,
    ) -> Result<(Vec<DataSet>, usize), CodecError> {
        let mut at = header.value;
        let end = next.unwrap_or(end);
        let mut items = Vec::new();
        while next != Some(at) {
            let tag = coding.tag(self.data, at).filter(|_| at + 8 <= end);
            let (Some(tag), Some(length)) = (tag, coding.u32(self.data, at + 4)) else {
                return Err(self.fault(at, Some(header.tag), "ends without a delimiter"));
            };
            at += 8;
            let limit = match (tag, length) {
                (SEQUENCE_END, _) if next.is_none() => return Ok((items, at)),
                // A sequence of defined length needs no delimiter, but has one here and there.
                (SEQUENCE_END, _) if next == Some(at) => break,
                (ITEM, UNDEFINED) => End::Delimiter,
                (ITEM, length) => End::At(at + length as usize),
                _ => return Err(self.fault(at - 8, Some(header.tag), "holds what is no item")),
            };
            if let End::At(last) = limit
                && last > end
            {
                return Err(self.beyond(at - 8, header, last, end));
            }
            let (item, after) = self.item(at, limit, coding, depth)?;
            items.push(item);
            at = after;
        }
        Ok((items, at))
    }

    fn fragments(
        &mut self,
        mut at: usize,
        end: usize,
        pixels: Tag,
        coding: Coding,
    ) -> Result<(Fragments, usize), CodecError> {
        let mut found = Vec::new();
        let mut closed = false;
        loop {
            let rest = &self.data[at..end];
            let tag = coding.tag(self.data, at).filter(|_| rest.len() >= 8);
            match tag {
                Some(SEQUENCE_END) => {
                    (at, closed) = (at + 8, true);
                    break;
                }
                Some(ITEM) => {}
                _ if rest.iter().all(|&byte| byte == 0) => break,
                // The delimiter is missing, and something stands behind the pixels.
                Some(tag) if tag > pixels && !found.is_empty() => break,
                _ => return Err(self.fault(at, Some(pixels), "holds what is no fragment")),
            }
            self.elements += 1;
            let length = coding.u32(self.data, at + 4).unwrap_or(UNDEFINED) as usize;
            let (value, next) = (at + 8, at + 8 + length);
            if next > end {
                return Err(self.truncated(at, "a fragment of ", pixels, next, end));
            }
            found.push(self.data.slice(value..next));
            at = next;
        }
        let mut found = found.into_iter();
        let offsets = found.next().unwrap_or_default();
        Ok((Fragments { offsets, parts: found.collect(), closed }, at))
    }

    fn header(&self, at: usize, end: usize, coding: Coding) -> Result<Header, CodecError> {
        let cut = || self.fault(at, None, "the bytes there are no element");
        if end - at < 8 {
            return Err(cut());
        }
        let tag = coding.tag(self.data, at).ok_or_else(cut)?;
        if matches!(tag, ITEM_END | SEQUENCE_END) {
            return Err(self.fault(
                at,
                None,
                "an item or a sequence ends there that has not begun",
            ));
        }
        if tag == ITEM {
            return Err(self.fault(at, None, "an item stands there in no sequence"));
        }
        let plain = |length: u32| Header {
            tag,
            declared: None,
            unknown: false,
            big_endian: coding.big_endian,
            value: at + 8,
            length: (length != UNDEFINED).then_some(length as usize),
        };
        let length = coding.u32(self.data, at + 4).ok_or_else(cut)?;
        if !coding.explicit {
            return Ok(plain(length));
        }
        let vr = [self.data[at + 4], self.data[at + 5]];
        if !vr.iter().all(u8::is_ascii_uppercase) {
            // Some writers leave single elements in Implicit VR.
            let next = at + 8 + length as usize;
            return if length == UNDEFINED || self.can_follow(next, end, tag, coding) {
                Ok(plain(length))
            } else {
                Err(self.fault(at, Some(tag), "has no value representation"))
            };
        }
        let declared = VR::from_binary(vr);
        let unknown = declared.is_none_or(|vr| vr == VR::UN);
        let (value, length) = self.length(at, end, tag, declared, coding)?;
        // The bytes of UN are those of Implicit VR Little Endian in every transfer syntax (PS3.5 section 6.2.2).
        let big_endian = coding.big_endian && !unknown;
        Ok(Header {
            tag,
            declared: declared.filter(|_| !unknown),
            unknown,
            big_endian,
            value,
            length,
        })
    }

    /// Where an element's value begins in Explicit VR, and its length, `None` if undefined.
    fn length(
        &self,
        at: usize,
        end: usize,
        tag: Tag,
        declared: Option<VR>,
        coding: Coding,
    ) -> Result<(usize, Option<usize>), CodecError> {
        let short = coding.u16(self.data, at + 6).map_or(0, usize::from);
        let short_end = at + 8 + short;
        if declared.is_some_and(|vr| !is_long(vr)) {
            return Ok((at + 8, Some(short)));
        }
        let long = coding.u32(self.data, at + 8).filter(|_| at + 12 <= end);
        let long = long.map(|length| (length != UNDEFINED).then_some(length as usize));
        // The bytes between VR and length are reserved and zero.
        let reserved = short == 0;
        match long {
            Some(None) if reserved => return Ok((at + 12, None)),
            Some(length @ Some(bytes)) => {
                let fits = self.can_follow(at + 12 + bytes, end, tag, coding);
                if reserved && (declared.is_some() || fits) {
                    return Ok((at + 12, length));
                }
            }
            _ => {}
        }
        // A VR from before or after its writer's time can have the short form (PS3.5 section 7.1.2).
        if self.can_follow(short_end, end, tag, coding) {
            return Ok((at + 8, Some(short)));
        }
        let what = if declared.is_some() {
            "has a length that does not fit"
        } else {
            "has an unknown value representation, and a length that does not fit"
        };
        Err(self.fault(at, Some(tag), what))
    }

    /// Whether an element with `tag` can end at `next`: the data set does, or an element with a greater tag follows.
    fn can_follow(&self, next: usize, end: usize, tag: Tag, coding: Coding) -> bool {
        if next >= end {
            return next == end;
        }
        let Some(found) = coding.tag(self.data, next).filter(|_| next + 8 <= end) else {
            return false;
        };
        if matches!(found, ITEM_END | SEQUENCE_END) {
            return true;
        }
        let vr_fits =
            || !coding.explicit || self.data[next + 4..next + 6].iter().all(u8::is_ascii_uppercase);
        found > tag && vr_fits()
    }

    fn beyond(&self, at: usize, header: &Header, next: usize, end: usize) -> CodecError {
        if end == self.data.len() {
            self.truncated(at, "", header.tag, next, end)
        } else {
            self.fault(at, Some(header.tag), "reaches beyond the item that it stands in")
        }
    }

    fn truncated(&self, at: usize, what: &str, tag: Tag, next: usize, end: usize) -> CodecError {
        let at_byte = self.offset + at;
        CodecError::Truncated {
            path: self.context.path.to_path_buf(),
            what: format!("{what}{} at byte {at_byte}", name(tag)).into(),
            needed: (next - at) as u64,
            present: (end - at) as u64,
        }
    }

    fn fault(&self, at: usize, tag: Option<Tag>, reason: &str) -> CodecError {
        let at = self.offset + at;
        let reason = match tag {
            Some(tag) => format!("{} at byte {at} {reason}", name(tag)),
            None => format!("its data set is damaged at byte {at}: {reason}"),
        };
        CodecError::malformed(&self.context.path, "DICOM", reason)
    }
}

/// Value representations with a 32-bit length in Explicit VR (PS3.5 table 7.1-1).
fn is_long(vr: VR) -> bool {
    matches!(
        vr,
        VR::OB
            | VR::OD
            | VR::OF
            | VR::OL
            | VR::OV
            | VR::OW
            | VR::SQ
            | VR::SV
            | VR::UC
            | VR::UN
            | VR::UR
            | VR::UT
            | VR::UV
    )
}
