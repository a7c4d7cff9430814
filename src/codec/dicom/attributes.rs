//! What the elements of a data set say. This is the only way in which attributes are read.
//!
//! Every attribute is read by its own value representation from the dictionary (PS3.6), whatever VR it was stored with. An
//! absent or empty value is `None`; a value that is there and cannot be read is an error that names attribute and file, and
//! is never taken for an absent one. Values stored as UN, or in Implicit VR, have the bytes of the attribute's own VR
//! (PS3.5 section 6.2.2). Values stored with another VR are read by what they can only mean, or are refused.
//!
//! Called by everything in `codec` that reads a data set.

use std::borrow::Cow;

use dicom_core::dictionary::VirtualVr;
use dicom_core::{Tag, VR};

use super::data_set::{DataSet, Element, Fragments, Value, name, own_vr};
use crate::codec::CodecError;

/// Pixels as they are stored.
pub(super) enum Pixels<'a> {
    /// Words are little-endian.
    Native(Cow<'a, [u8]>),
    Encapsulated(&'a Fragments),
}

impl DataSet {
    /// Whether the attribute has a value, readable or not.
    pub(in crate::codec) fn has(&self, tag: Tag) -> bool {
        self.get(tag).is_some_and(|element| match &element.value {
            Value::Bytes(bytes) => content(element, bytes).is_some(),
            Value::Items(items) => !items.is_empty(),
            Value::Fragments(_) | Value::Unreadable(_) => true,
        })
    }

    /// Text without padding, decoded from its character set. Several values stay joined by backslashes.
    pub(in crate::codec) fn text(&self, tag: Tag) -> Result<Option<String>, CodecError> {
        let Some((element, bytes)) = self.value(tag)? else { return Ok(None) };
        let text = match textual(element, bytes) {
            Some(bytes) => self.decode(element, trim(bytes)).map_err(|why| self.bad(tag, why))?,
            None => numeric(element, bytes, self.context().signed)
                .map_err(|why| self.bad(tag, why))?
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("\\"),
        };
        let text = text.trim_matches(PADDING);
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }

    /// The bytes of a text, for copying: without the padding behind it, in the character set of the data set.
    pub(in crate::codec) fn text_bytes(&self, tag: Tag) -> Option<Vec<u8>> {
        let (element, bytes) = self.value(tag).ok().flatten()?;
        let Some(bytes) = textual(element, bytes) else {
            return self.text(tag).ok().flatten().map(String::into_bytes);
        };
        // Spaces in front may belong to what people wrote, and nowhere else.
        let is_prose = own_vr(tag).and_then(VirtualVr::exact).is_some_and(is_prose);
        let last = bytes.iter().rposition(|byte| !matches!(byte, 0 | b' '));
        let bytes = if is_prose { &bytes[..last.map_or(0, |at| at + 1)] } else { trim(bytes) };
        (!bytes.is_empty()).then(|| bytes.to_vec())
    }

    /// All numbers of the attribute; every one of them is finite.
    pub(in crate::codec) fn numbers(&self, tag: Tag) -> Result<Option<Vec<f64>>, CodecError> {
        let Some((element, bytes)) = self.value(tag)? else { return Ok(None) };
        let values = match textual(element, bytes) {
            Some(text) => decimals(text).or_else(|why| self.misdeclared(element, bytes).ok_or(why)),
            None => numeric(element, bytes, self.context().signed),
        };
        let values = values.map_err(|why| self.bad(tag, why))?;
        if values.iter().any(|value| !value.is_finite()) {
            return Err(self.bad(tag, "is not finite"));
        }
        Ok((!values.is_empty()).then_some(values))
    }

    /// The first number of the attribute.
    pub(in crate::codec) fn number(&self, tag: Tag) -> Result<Option<f64>, CodecError> {
        let Some(values) = self.numbers(tag)? else { return Ok(None) };
        // Text of which the first two letters are taken for a number has more behind it.
        let is_padded = values[1..].iter().all(|&value| value == 0.0);
        let is_binary = own_vr(tag).is_some_and(|own| width(own.relaxed()).is_some());
        if is_binary && !is_padded {
            return Err(self.bad(tag, "holds several numbers where one belongs"));
        }
        Ok(values.first().copied())
    }

    /// A number that counts something: whole, and not negative.
    pub(in crate::codec) fn count(&self, tag: Tag) -> Result<Option<usize>, CodecError> {
        match self.number(tag)? {
            Some(value) if value < 0.0 || value.fract() != 0.0 || value > f64::from(u32::MAX) => {
                Err(self.bad(tag, "is no whole number from 0 on"))
            }
            value => Ok(value.map(|value| value as usize)),
        }
    }

    /// Items of a sequence; none if it is absent.
    pub(in crate::codec) fn items(&self, tag: Tag) -> Result<&[DataSet], CodecError> {
        match self.get(tag).map(|element| &element.value) {
            None => Ok(&[]),
            Some(Value::Items(items)) => Ok(items),
            Some(Value::Bytes(bytes)) if bytes.is_empty() => Ok(&[]),
            Some(Value::Unreadable(why)) => Err(self.bad(tag, why)),
            Some(_) => Err(self.bad(tag, "is no sequence of items")),
        }
    }

    /// Bytes of a table or of pixels; 16-bit words are little-endian.
    pub(super) fn bulk(&self, tag: Tag) -> Result<Option<Cow<'_, [u8]>>, CodecError> {
        let Some((element, bytes)) = self.value(tag)? else { return Ok(None) };
        let is_words = element.declared.is_none_or(|vr| matches!(vr, VR::OW | VR::US | VR::SS));
        Ok(Some(if element.big_endian && is_words {
            Cow::Owned(bytes.chunks_exact(2).flat_map(|word| [word[1], word[0]]).collect())
        } else {
            Cow::Borrowed(bytes)
        }))
    }

    pub(super) fn pixels(&self, tag: Tag) -> Result<Option<Pixels<'_>>, CodecError> {
        match self.get(tag).map(|element| &element.value) {
            Some(Value::Fragments(fragments)) => Ok(Some(Pixels::Encapsulated(fragments))),
            _ => Ok(self.bulk(tag)?.map(Pixels::Native)),
        }
    }

    /// The element and its bytes, if they say anything.
    fn value(&self, tag: Tag) -> Result<Option<(&Element, &[u8])>, CodecError> {
        let Some(element) = self.get(tag) else { return Ok(None) };
        match &element.value {
            Value::Bytes(bytes) => Ok(content(element, bytes).map(|bytes| (element, bytes))),
            Value::Items(_) | Value::Fragments(_) => {
                Err(self.bad(tag, "holds a sequence where a value belongs"))
            }
            Value::Unreadable(why) => Err(self.bad(tag, why)),
        }
    }

    fn decode(&self, element: &Element, bytes: &[u8]) -> Result<String, &'static str> {
        let is_name = own_vr(element.tag) == Some(VirtualVr::Exact(VR::PN));
        let decoded = self.context().characters.decode(bytes, is_name);
        decoded.ok_or("is not in the character set that SpecificCharacterSet names")
    }

    /// Numbers in the attribute's own binary form behind the VR of a text.
    fn misdeclared(&self, element: &Element, bytes: &[u8]) -> Option<Vec<f64>> {
        let own = own_vr(element.tag)?;
        width(own.relaxed())?;
        numbers_in(own, bytes, element.big_endian, self.context().signed)
    }

    fn bad(&self, tag: Tag, reason: &str) -> CodecError {
        CodecError::Attribute {
            path: self.context().path.to_path_buf(),
            attribute: name(tag),
            reason: reason.to_owned(),
        }
    }
}

const PADDING: [char; 5] = ['\0', ' ', '\t', '\r', '\n'];

fn trim(bytes: &[u8]) -> &[u8] {
    let is_padding = |byte: &u8| PADDING.contains(&char::from(*byte));
    let start = bytes.iter().position(|byte| !is_padding(byte)).unwrap_or(bytes.len());
    let end = bytes.iter().rposition(|byte| !is_padding(byte)).map_or(start, |at| at + 1);
    &bytes[start..end]
}

/// The bytes of a value, if they are more than padding.
fn content<'a>(element: &Element, bytes: &'a [u8]) -> Option<&'a [u8]> {
    let padding_counts = is_number(element);
    (!bytes.is_empty() && (padding_counts || !trim(bytes).is_empty())).then_some(bytes)
}

/// Bytes of one number in a binary VR that holds numbers; `None` for text, bytes and sequences.
fn width(vr: VR) -> Option<usize> {
    match vr {
        VR::US | VR::SS => Some(2),
        VR::UL | VR::SL | VR::FL => Some(4),
        VR::UV | VR::SV | VR::FD => Some(8),
        _ => None,
    }
}

fn is_text(vr: VR) -> bool {
    width(vr).is_none()
        && !matches!(
            vr,
            VR::AT | VR::OB | VR::OD | VR::OF | VR::OL | VR::OV | VR::OW | VR::SQ | VR::UN
        )
}

/// Text in the character set of the data set (PS3.5 section 6.1.2.3).
fn is_prose(vr: VR) -> bool {
    matches!(vr, VR::SH | VR::LO | VR::ST | VR::LT | VR::PN | VR::UC | VR::UT)
}

/// Whether zeros in the value say something: whether it is binary, by its declaration or else by its own VR.
fn is_number(element: &Element) -> bool {
    let own = || own_vr(element.tag).map(VirtualVr::relaxed);
    let vr = element.declared.filter(|vr| is_text(*vr) || width(*vr).is_some()).or_else(own);
    vr.is_some_and(|vr| !is_text(vr))
}

/// The value as text, if that is what it is: by its declaration, else by the attribute's own VR.
fn textual<'a>(element: &Element, bytes: &'a [u8]) -> Option<&'a [u8]> {
    let own_is_text = own_vr(element.tag).is_none_or(|own| is_text(own.relaxed()));
    match element.declared {
        Some(vr) if is_text(vr) => Some(bytes),
        Some(vr) if width(vr).is_some() => None,
        _ => own_is_text.then_some(bytes),
    }
}

/// Numbers of a binary value: as declared where that fits, else as is the attribute's own.
fn numeric(
    element: &Element,
    bytes: &[u8],
    signed: Option<bool>,
) -> Result<Vec<f64>, &'static str> {
    let own = own_vr(element.tag);
    if let Some(declared) = element.declared.filter(|vr| width(*vr).is_some()) {
        let own_is_text = own.is_some_and(|own| is_text(own.relaxed()));
        if own_is_text && decimals(bytes).is_ok_and(|values| !values.is_empty()) {
            return Err("can be read as text and as binary numbers");
        }
        // US and SS are told apart by PixelRepresentation where the attribute has either.
        let vr = match own {
            Some(own @ VirtualVr::Xs)
                if matches!(declared, VR::US | VR::SS) && signed.is_some() =>
            {
                own
            }
            _ => VirtualVr::Exact(declared),
        };
        if let Some(values) = numbers_in(vr, bytes, element.big_endian, signed) {
            return Ok(values);
        }
    }
    own.and_then(|own| numbers_in(own, bytes, element.big_endian, signed))
        .ok_or("does not hold whole numbers of its value representation")
}

fn numbers_in(
    vr: VirtualVr,
    bytes: &[u8],
    big_endian: bool,
    signed: Option<bool>,
) -> Option<Vec<f64>> {
    let vr = match vr {
        VirtualVr::Xs if signed == Some(true) => VR::SS,
        vr => vr.relaxed(),
    };
    let width = width(vr)?;
    if !bytes.len().is_multiple_of(width) {
        return None;
    }
    let number = |bytes: &[u8]| {
        let mut word = [0; 8];
        for (index, byte) in bytes.iter().enumerate() {
            word[if big_endian { width - 1 - index } else { index }] = *byte;
        }
        let bits = u64::from_le_bytes(word);
        match vr {
            VR::SS => f64::from(bits as u16 as i16),
            VR::SL => f64::from(bits as u32 as i32),
            VR::FL => f64::from(f32::from_bits(bits as u32)),
            VR::FD => f64::from_bits(bits),
            VR::SV => bits as i64 as f64,
            _ => bits as f64,
        }
    };
    Some(bytes.chunks_exact(width).map(number).collect())
}

/// Numbers in text (DS, IS). A comma is taken for the decimal point that it stands for in many languages: it is in neither
/// repertoire, and values are separated by backslashes. Empty values at the end are none.
fn decimals(text: &[u8]) -> Result<Vec<f64>, &'static str> {
    let text = std::str::from_utf8(text).map_err(|_| "is no number")?;
    let mut values: Vec<&str> = text.split('\\').map(|value| value.trim_matches(PADDING)).collect();
    while values.last().is_some_and(|value| value.is_empty()) {
        values.pop();
    }
    values.into_iter().map(|value| decimal(value).ok_or("is no number")).collect()
}

fn decimal(text: &str) -> Option<f64> {
    // Words for infinity and the like are no decimal strings.
    if !text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.,eE".contains(&byte)) {
        return None;
    }
    match text.matches(',').count() {
        0 => text.parse().ok(),
        1 if !text.contains('.') => text.replace(',', ".").parse().ok(),
        _ => None,
    }
}
