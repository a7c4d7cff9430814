//! Short hands for putting elements into a data set.

use dicom_core::value::DataSetSequence;
use dicom_core::{DataElement, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::uids;
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};

use crate::codec::CodecError;
use crate::domain::Code;

pub(in crate::codec) fn put(
    object: &mut InMemDicomObject,
    tag: Tag,
    vr: VR,
    value: impl Into<PrimitiveValue>,
) {
    object.put(DataElement::new(tag, vr, value.into()));
}

/// Text cut to the `limit` characters its representation allows (PS3.5 table 6.2-1).
pub(in crate::codec) fn put_text(object: &mut InMemDicomObject, tag: Tag, vr: VR, text: &str) {
    let limit = match vr {
        VR::SH | VR::CS => 16,
        VR::ST => 1024,
        VR::LT => 10240,
        _ => 64,
    };
    // A backslash would split the value in two.
    let text: String = text.chars().take(limit).map(|c| if c == '\\' { '/' } else { c }).collect();
    put(object, tag, vr, text.trim_end());
}

pub(in crate::codec) fn put_items(
    object: &mut InMemDicomObject,
    tag: Tag,
    items: impl Into<Vec<InMemDicomObject>>,
) {
    object.put(DataElement::new(tag, VR::SQ, DataSetSequence::from(items.into())));
}

/// A decimal string: the shortest that reads back the same, or the closest in 16 characters.
pub(super) fn decimal(value: f64) -> String {
    let plain = format!("{value}");
    if plain.len() <= 16 {
        return plain;
    }
    let fixed = |digits: usize| format!("{value:.digits$}");
    let scientific = |digits: usize| format!("{value:.digits$e}");
    // Small and large numbers keep more digits with an exponent.
    let small_or_large = value.abs() < 1e-4 || value.abs() >= 1e14;
    let candidates =
        (0..16).rev().map(|digits| if small_or_large { scientific(digits) } else { fixed(digits) });
    candidates.into_iter().find(|text| text.len() <= 16).unwrap_or_else(|| "0".to_owned())
}

pub(super) fn decimals(values: &[f64]) -> PrimitiveValue {
    PrimitiveValue::Strs(values.iter().map(|&value| decimal(value)).collect())
}

/// An item of a code sequence.
pub(super) fn code(value: &str, scheme: &str, meaning: &str) -> InMemDicomObject {
    use dicom_dictionary_std::tags;
    let mut item = InMemDicomObject::new_empty();
    put_text(&mut item, tags::CODE_VALUE, VR::SH, value);
    put_text(&mut item, tags::CODING_SCHEME_DESIGNATOR, VR::SH, scheme);
    put_text(&mut item, tags::CODE_MEANING, VR::LO, meaning);
    item
}

pub(super) fn code_of(concept: &Code) -> InMemDicomObject {
    code(&concept.value, &concept.scheme, &concept.meaning)
}

/// The object as a file (PS3.10), Explicit VR Little Endian.
pub(in crate::codec) fn write(
    object: InMemDicomObject,
    format: &'static str,
) -> Result<Vec<u8>, CodecError> {
    let failed = |error: &dyn std::error::Error| CodecError::encode(format, error.to_string());
    let file = object
        .with_meta(FileMetaTableBuilder::new().transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN))
        .map_err(|error| failed(&error))?;
    let mut bytes = Vec::new();
    file.write_all(&mut bytes).map_err(|error| failed(&error))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn decimals_are_short_and_exact_where_they_can_be() {
        assert_eq!(decimal(1.0), "1");
        assert_eq!(decimal(-0.3125), "-0.3125");
        assert_eq!(decimal(0.0), "0");
        assert_eq!(decimal(-1.234_567_890_123_45e-10), "-1.234567890e-10");
    }

    proptest! {
        #[test]
        fn decimals_fit_sixteen_characters_and_read_back_close(value in -1e5_f64..1e5) {
            let text = decimal(value);
            prop_assert!(text.len() <= 16, "{}", text);
            prop_assert!((text.parse::<f64>().unwrap() - value).abs() < 1e-8);
        }
    }
}
