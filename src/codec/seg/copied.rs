//! What a result takes over from its source: values as they stand there, and a character set that holds them all.
//!
//! Text keeps the bytes and the `SpecificCharacterSet` that it came with, so that a viewer shows the same name for image
//! and result, and a name that nobody can decode costs no result. Plain ASCII is declared as Unicode, of which it is a
//! part. Text in another set becomes Unicode only where the program's own text is not ASCII, and all of it can be decoded.

use dicom_core::value::DataSetSequence;
use dicom_core::{DataElement, DicomValue, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;

use super::element::put;
use crate::codec::dicom::DicomSource;
use crate::domain::{Label, Provenance};

/// Longest value of the short form of Explicit VR (PS3.5 section 7.1.2), even.
const LONGEST_SHORT: usize = 0xFFFE;

/// Type 1 and 2 attributes of patient and study: present even where the source has none.
const PATIENT_AND_STUDY: [(Tag, VR); 9] = [
    (tags::PATIENT_NAME, VR::PN),
    (tags::PATIENT_ID, VR::LO),
    (tags::PATIENT_BIRTH_DATE, VR::DA),
    (tags::PATIENT_SEX, VR::CS),
    (tags::STUDY_DATE, VR::DA),
    (tags::STUDY_TIME, VR::TM),
    (tags::STUDY_ID, VR::SH),
    (tags::ACCESSION_NUMBER, VR::SH),
    (tags::REFERRING_PHYSICIAN_NAME, VR::PN),
];
const WHERE_PRESENT: [(Tag, VR); 4] = [
    (tags::ISSUER_OF_PATIENT_ID, VR::LO),
    (tags::STUDY_DESCRIPTION, VR::LO),
    (tags::PATIENT_AGE, VR::AS),
    (tags::TIMEZONE_OFFSET_FROM_UTC, VR::SH),
];
/// Copied by [`Copied::put_position_reference_indicator`].
const POSITION: (Tag, VR) = (tags::POSITION_REFERENCE_INDICATOR, VR::LO);

/// Copies from one source into one result.
pub(in crate::codec) struct Copied<'a> {
    source: &'a DicomSource,
    repertoire: Repertoire,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Repertoire {
    /// What is copied is ASCII.
    Ascii,
    /// What is copied is decoded.
    Decoded,
    /// What is copied keeps its bytes, and the result takes the source's character set.
    Source,
}

impl<'a> Copied<'a> {
    /// `labels` and `provenance`: from which the result's own text comes.
    pub(in crate::codec) fn new(
        source: &'a DicomSource,
        labels: &[Label],
        provenance: &Provenance,
    ) -> Self {
        let copied = || PATIENT_AND_STUDY.iter().chain(&WHERE_PRESENT).chain([&POSITION]);
        let is_plain = |bytes: Vec<u8>| bytes.iter().all(|byte| (b' '..=b'}').contains(byte));
        let repertoire = if copied().all(|(tag, _)| source.bytes(*tag).is_none_or(is_plain)) {
            Repertoire::Ascii
        } else if !is_ascii(labels, provenance)
            && copied().all(|(tag, _)| source.text(*tag).is_ok())
        {
            Repertoire::Decoded
        } else {
            Repertoire::Source
        };
        Self { source, repertoire }
    }

    /// Patient and study: the source's, so that the result is filed beside it; and the character set.
    pub(in crate::codec) fn put_patient_and_study(&self, object: &mut InMemDicomObject) {
        match self.repertoire {
            Repertoire::Ascii | Repertoire::Decoded => {
                put(object, tags::SPECIFIC_CHARACTER_SET, VR::CS, "ISO_IR 192");
            }
            Repertoire::Source => {
                put_where_present(object, self.source, tags::SPECIFIC_CHARACTER_SET, VR::CS);
            }
        }
        for (tag, vr) in PATIENT_AND_STUDY {
            self.put_text(object, tag, vr);
        }
        for (tag, vr) in WHERE_PRESENT {
            if self.source.bytes(tag).is_some() {
                self.put_text(object, tag, vr);
            }
        }
    }

    pub(super) fn put_position_reference_indicator(&self, object: &mut InMemDicomObject) {
        self.put_text(object, POSITION.0, POSITION.1);
    }

    /// The object as it is written: its own text in ASCII where the source's character set holds for it.
    pub(in crate::codec) fn finish(&self, object: InMemDicomObject) -> InMemDicomObject {
        if self.repertoire == Repertoire::Source { in_ascii(object) } else { object }
    }

    fn put_text(&self, object: &mut InMemDicomObject, tag: Tag, vr: VR) {
        let decoded = (self.repertoire == Repertoire::Decoded).then(|| self.source.text(tag));
        match decoded {
            Some(Ok(text)) => put_bytes(object, tag, vr, text.unwrap_or_default().into_bytes()),
            _ => put_bytes(object, tag, vr, self.source.bytes(tag).unwrap_or_default()),
        }
    }
}

/// A value as it stands in the source, for attributes without patient's text.
pub(in crate::codec) fn put_where_present(
    object: &mut InMemDicomObject,
    source: &DicomSource,
    tag: Tag,
    vr: VR,
) {
    if let Some(bytes) = source.bytes(tag) {
        put_bytes(object, tag, vr, bytes);
    }
}

/// A value that is too long for its VR's length field is written as UN, which has a longer one and holds the same bytes
/// (PS3.5 section 6.2.2).
pub(super) fn put_bytes(object: &mut InMemDicomObject, tag: Tag, vr: VR, mut bytes: Vec<u8>) {
    let vr = if bytes.len() > LONGEST_SHORT { VR::UN } else { vr };
    if !bytes.len().is_multiple_of(2) {
        bytes.push(b' ');
    }
    if matches!(vr, VR::DS | VR::IS) {
        // The writer takes bytes under these for numbers.
        put(object, tag, vr, String::from_utf8_lossy(&bytes).into_owned());
    } else {
        put(object, tag, vr, PrimitiveValue::from(bytes));
    }
}

fn is_ascii(labels: &[Label], provenance: &Provenance) -> bool {
    let of_labels = labels.iter().flat_map(|label| {
        [&label.name, &label.category.meaning, &label.kind.meaning].map(String::as_str)
    });
    let Provenance { model, model_version, software_version, configuration, .. } = provenance;
    let of_model = [model, model_version, software_version, configuration].map(String::as_str);
    of_labels.chain(of_model).all(str::is_ascii)
}

fn in_ascii(object: InMemDicomObject) -> InMemDicomObject {
    let folded = |text: &String| text.replace(|c: char| !c.is_ascii(), "?");
    let elements = object.into_iter().map(|element| {
        let (tag, vr) = (element.header().tag, element.header().vr);
        let value = match element.into_value() {
            DicomValue::Sequence(items) => {
                let items: Vec<_> = items.into_items().into_iter().map(in_ascii).collect();
                return DataElement::new(tag, VR::SQ, DataSetSequence::from(items));
            }
            DicomValue::Primitive(PrimitiveValue::Str(text)) => PrimitiveValue::Str(folded(&text)),
            DicomValue::Primitive(PrimitiveValue::Strs(texts)) => {
                PrimitiveValue::Strs(texts.iter().map(folded).collect())
            }
            value => return DataElement::new(tag, vr, value),
        };
        DataElement::new(tag, vr, value)
    });
    InMemDicomObject::from_element_iter(elements)
}
