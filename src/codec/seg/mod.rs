//! Masks as DICOM Segmentation objects (PS3.3 A.51), BINARY, one segment for each label; and back.
//!
//! The same source, mask and provenance give the same bytes: UIDs are derived from them and dates are
//! the source's, so that sending again is recognised as such by whoever receives it.

mod bits;
mod element;
mod groups;
mod read;
mod segments;

use std::fmt::Write as _;

use dicom_core::{PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use ndarray::Axis;
use sha2::{Digest, Sha256};

use self::element::{put, put_items, put_text};
pub use self::read::{is_segmentation, read};
use self::segments::MANUFACTURER;
use super::{CodecError, DicomSource};
use crate::domain::{Geometry, Label, Provenance, Segmentation, Uid};

const FORMAT: &str = "DICOM segmentation";

/// A Segmentation object as the bytes of a DICOM file (PS3.10, Explicit VR Little Endian).
#[derive(Debug, Clone)]
pub struct Seg {
    pub sop_instance_uid: Uid,
    pub bytes: Vec<u8>,
}

/// Encodes `segmentation` of the volume read from `source`. Every label gets a frame for every slice,
/// empty ones too: viewers are surprised by missing frames.
///
/// # Errors
/// If the mask is not the size of the source, holds a value that no label has, or `labels` are not
/// numbered 1, 2, … in order; if the source lacks its study or series UID.
pub fn encode(
    source: &DicomSource,
    geometry: Option<&Geometry>,
    segmentation: &Segmentation,
    labels: &[Label],
    provenance: &Provenance,
) -> Result<Seg, CodecError> {
    check(source, segmentation, labels)?;
    let uids = Uids::derive(source, segmentation, provenance)?;
    let mut object = InMemDicomObject::new_empty();
    put_patient_and_study(&mut object, source);
    put_series_and_equipment(&mut object, source, provenance, &uids);
    let placed = geometry.is_some();
    if placed {
        put(&mut object, tags::FRAME_OF_REFERENCE_UID, VR::UI, uids.frame_of_reference.as_str());
        let indicator = source.text(tags::POSITION_REFERENCE_INDICATOR).unwrap_or_default();
        put_text(&mut object, tags::POSITION_REFERENCE_INDICATOR, VR::LO, &indicator);
    } else {
        // Which way the rows and columns run, where no frame of reference tells it.
        let orientation = source.text(tags::PATIENT_ORIENTATION).unwrap_or_default();
        put(&mut object, tags::PATIENT_ORIENTATION, VR::CS, orientation);
    }
    put_image(&mut object, source, &uids);
    put_lossy_history(&mut object, source);

    let items: Vec<_> = labels.iter().map(|label| segments::segment(label, provenance)).collect();
    put_items(&mut object, tags::SEGMENT_SEQUENCE, items);
    groups::put_dimensions(&mut object, &uids.dimensions, placed);
    let shared = groups::shared(source, geometry);
    put_items(&mut object, tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, [shared]);
    let slices = segmentation.mask.len_of(Axis(0));
    let frames: Vec<_> = labels
        .iter()
        .flat_map(|label| (0..slices).map(move |slice| (label, slice)))
        .map(|(label, slice)| groups::per_frame(source, placed, label, slice))
        .collect();
    put(&mut object, tags::NUMBER_OF_FRAMES, VR::IS, frames.len().to_string());
    put_items(&mut object, tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, frames);
    put_pixels(&mut object, segmentation, labels);

    let bytes = write(object)?;
    Ok(Seg { sop_instance_uid: uids.instance, bytes })
}

fn check(
    source: &DicomSource,
    segmentation: &Segmentation,
    labels: &[Label],
) -> Result<(), CodecError> {
    let side = |tag: Tag| source.text(tag).and_then(|text| text.parse().ok()).unwrap_or(0);
    let expected = vec![source.slices.len(), side(tags::ROWS), side(tags::COLUMNS)];
    let found = segmentation.mask.shape().to_vec();
    if found != expected {
        return Err(CodecError::Shape { what: "the mask's size", found, expected });
    }
    let numbers: Vec<usize> = labels.iter().map(|label| usize::from(label.value)).collect();
    let consecutive: Vec<usize> = (1..=labels.len().max(1)).collect();
    if numbers != consecutive {
        return Err(CodecError::Shape {
            what: "the labels' numbering",
            found: numbers,
            expected: consecutive,
        });
    }
    match segmentation.mask.iter().max() {
        Some(&value) if usize::from(value) > labels.len() => Err(CodecError::Shape {
            what: "the mask's largest value",
            found: vec![value.into()],
            expected: vec![labels.len()],
        }),
        _ => Ok(()),
    }
}

struct Uids {
    study: String,
    source_series: String,
    series: Uid,
    instance: Uid,
    dimensions: Uid,
    frame_of_reference: String,
}

impl Uids {
    fn derive(
        source: &DicomSource,
        segmentation: &Segmentation,
        provenance: &Provenance,
    ) -> Result<Self, CodecError> {
        let required = |tag: Tag, name: &str| {
            source
                .text(tag)
                .ok_or_else(|| CodecError::encode(FORMAT, format!("no {name} in the source")))
        };
        let source_series = required(tags::SERIES_INSTANCE_UID, "SeriesInstanceUID")?;
        // The mask takes part: another device may round differently, and another content under the
        // same UID would be a conflict in the archive.
        let mask: Vec<u8> = segmentation.mask.iter().copied().collect();
        let mask = Sha256::digest(&mask).iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let parameters = segments::parameters(provenance);
        let model = [&provenance.model, &provenance.model_version, &provenance.software_version];
        let mut parts: Vec<&str> = vec!["segmentation", &source_series, &parameters, &mask];
        parts.extend(model.map(String::as_str));
        parts.extend(source.instances.iter().map(|instance| instance.sop_instance.as_str()));
        let instance = Uid::derived(&parts);
        let frame_of_reference = source.text(tags::FRAME_OF_REFERENCE_UID).unwrap_or_else(|| {
            // Placed, but in no named frame: one that all results of the series share.
            Uid::derived(&["frame of reference", &source_series]).to_string()
        });
        Ok(Self {
            study: required(tags::STUDY_INSTANCE_UID, "StudyInstanceUID")?,
            series: Uid::derived(&[
                "segmentation series",
                &source_series,
                &provenance.model_digest,
            ]),
            dimensions: Uid::derived(&["dimension organization", instance.as_str()]),
            source_series,
            instance,
            frame_of_reference,
        })
    }
}

/// Type 1 and 2 attributes: present even where the source has none.
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

/// Patient and study: the source's, so that the result is filed beside it.
fn put_patient_and_study(object: &mut InMemDicomObject, source: &DicomSource) {
    // Source text was decoded by its own character set.
    put(object, tags::SPECIFIC_CHARACTER_SET, VR::CS, "ISO_IR 192");
    for (tag, vr) in PATIENT_AND_STUDY {
        put(object, tag, vr, source.text(tag).unwrap_or_default());
    }
    for (tag, vr) in WHERE_PRESENT {
        if let Some(text) = source.text(tag) {
            put(object, tag, vr, text);
        }
    }
}

fn put_series_and_equipment(
    object: &mut InMemDicomObject,
    source: &DicomSource,
    provenance: &Provenance,
    uids: &Uids,
) {
    put(object, tags::STUDY_INSTANCE_UID, VR::UI, uids.study.as_str());
    put(object, tags::SERIES_INSTANCE_UID, VR::UI, uids.series.as_str());
    put_text(object, tags::MODALITY, VR::CS, "SEG");
    // Scanners number what they derive from series n as n·100 + 1 and on.
    let number: i32 =
        source.text(tags::SERIES_NUMBER).and_then(|text| text.parse().ok()).unwrap_or(0);
    let number = number.max(0).saturating_mul(100).saturating_add(1);
    put(object, tags::SERIES_NUMBER, VR::IS, number.to_string());
    put_text(
        object,
        tags::SERIES_DESCRIPTION,
        VR::LO,
        &format!("Segmentation {}", provenance.model),
    );

    put_text(object, tags::MANUFACTURER, VR::LO, MANUFACTURER);
    put_text(object, tags::MANUFACTURER_MODEL_NAME, VR::LO, &provenance.model);
    let serial = provenance.model_digest.get(..16).unwrap_or(&provenance.model_digest);
    put_text(object, tags::DEVICE_SERIAL_NUMBER, VR::LO, serial);
    put_text(object, tags::SOFTWARE_VERSIONS, VR::LO, &provenance.software_version);
    let equipment = segments::equipment(provenance);
    put_items(object, tags::CONTRIBUTING_EQUIPMENT_SEQUENCE, [equipment]);

    let mut series = InMemDicomObject::new_empty();
    put(&mut series, tags::SERIES_INSTANCE_UID, VR::UI, uids.source_series.as_str());
    let instances: Vec<_> =
        (0..source.instances.len()).map(|instance| groups::reference(source, instance)).collect();
    put_items(&mut series, tags::REFERENCED_INSTANCE_SEQUENCE, instances);
    put_items(object, tags::REFERENCED_SERIES_SEQUENCE, [series]);
}

/// The Segmentation Image module (PS3.3 C.8.20.2) but for segments and pixels.
fn put_image(object: &mut InMemDicomObject, source: &DicomSource, uids: &Uids) {
    put(object, tags::SOP_CLASS_UID, VR::UI, uids::SEGMENTATION_STORAGE);
    put(object, tags::SOP_INSTANCE_UID, VR::UI, uids.instance.as_str());
    put(object, tags::IMAGE_TYPE, VR::CS, "DERIVED\\PRIMARY");
    put(object, tags::INSTANCE_NUMBER, VR::IS, "1");
    put_text(object, tags::CONTENT_LABEL, VR::CS, "SEGMENTATION");
    put_text(object, tags::CONTENT_DESCRIPTION, VR::LO, "Automatic segmentation");
    // A family and a given name: one component alone is the retired form of a person name.
    put_text(object, tags::CONTENT_CREATOR_NAME, VR::PN, "cdal^automatic");
    // The source's own moment, not the clock's: the same input must give the same bytes.
    let first = |candidates: &[Tag]| candidates.iter().find_map(|&tag| source.text(tag));
    let date = [tags::CONTENT_DATE, tags::ACQUISITION_DATE, tags::SERIES_DATE, tags::STUDY_DATE];
    let time = [tags::CONTENT_TIME, tags::ACQUISITION_TIME, tags::SERIES_TIME, tags::STUDY_TIME];
    put(object, tags::CONTENT_DATE, VR::DA, first(&date).unwrap_or_else(|| "19700101".to_owned()));
    put(object, tags::CONTENT_TIME, VR::TM, first(&time).unwrap_or_else(|| "000000".to_owned()));
    put_text(object, tags::SEGMENTATION_TYPE, VR::CS, "BINARY");
    put_text(object, tags::SEGMENTS_OVERLAP, VR::CS, "NO");
}

/// Once lossy, always lossy: what the source went through holds for what is derived from it.
fn put_lossy_history(object: &mut InMemDicomObject, source: &DicomSource) {
    let lossy = source.text(tags::LOSSY_IMAGE_COMPRESSION).is_some_and(|text| text == "01");
    put_text(object, tags::LOSSY_IMAGE_COMPRESSION, VR::CS, if lossy { "01" } else { "00" });
    let history = [
        (tags::LOSSY_IMAGE_COMPRESSION_RATIO, VR::DS),
        (tags::LOSSY_IMAGE_COMPRESSION_METHOD, VR::CS),
    ];
    for (tag, vr) in history {
        if let (true, Some(text)) = (lossy, source.text(tag)) {
            put(object, tag, vr, text);
        }
    }
}

fn put_pixels(object: &mut InMemDicomObject, segmentation: &Segmentation, labels: &[Label]) {
    let (_, rows, columns) = segmentation.mask.dim();
    put(object, tags::SAMPLES_PER_PIXEL, VR::US, 1_u16);
    put_text(object, tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2");
    put(object, tags::ROWS, VR::US, rows as u16);
    put(object, tags::COLUMNS, VR::US, columns as u16);
    put(object, tags::BITS_ALLOCATED, VR::US, 1_u16);
    put(object, tags::BITS_STORED, VR::US, 1_u16);
    put(object, tags::HIGH_BIT, VR::US, 0_u16);
    put(object, tags::PIXEL_REPRESENTATION, VR::US, 0_u16);
    let mask: Vec<u8> = segmentation.mask.iter().copied().collect();
    let pixels = (0..labels.len() * mask.len())
        .map(|index| mask[index % mask.len()] == labels[index / mask.len()].value);
    put(object, tags::PIXEL_DATA, VR::OB, PrimitiveValue::from(bits::pack(pixels)));
}

fn write(object: InMemDicomObject) -> Result<Vec<u8>, CodecError> {
    let failed = |error: &dyn std::error::Error| CodecError::encode(FORMAT, error.to_string());
    let file = object
        .with_meta(FileMetaTableBuilder::new().transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN))
        .map_err(|error| failed(&error))?;
    let mut bytes = Vec::new();
    file.write_all(&mut bytes).map_err(|error| failed(&error))?;
    Ok(bytes)
}
