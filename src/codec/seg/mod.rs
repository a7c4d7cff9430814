//! Masks as DICOM Segmentation objects (PS3.3 A.51), BINARY or FRACTIONAL, one segment for each label; and back.
//!
//! The same source, mask and provenance give the same bytes: UIDs are derived from them and dates are
//! the source's, so that sending again is recognised as such by whoever receives it.

mod bits;
pub(in crate::codec) mod copied;
pub(in crate::codec) mod element;
mod groups;
mod read;
pub(in crate::codec) mod segments;

use std::fmt::Write as _;

use dicom_core::{PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;
use ndarray::Axis;
use sha2::{Digest, Sha256};

use self::copied::{Copied, put_bytes, put_where_present};
use self::element::{put, put_items, put_text};
pub use self::read::{is_segmentation, read};
use self::segments::MANUFACTURER;
use super::{CodecError, DicomSource};
use crate::domain::{Geometry, Label, Provenance, Segmentation, Uid};

const FORMAT: &str = "DICOM segmentation";

/// Whether a pixel says yes or no, or how far the votes agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// One bit: the mask.
    #[default]
    Binary,
    /// Eight bits, 255 for 1: `agreement`, as a PROBABILITY.
    Fractional,
}

/// Which of a series' segmentations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    pub kind: Kind,
    /// 1 for the first; late images make the next. It becomes the `InstanceNumber` in the series of this kind.
    pub revision: u32,
}

impl Default for Form {
    fn default() -> Self {
        Self { kind: Kind::Binary, revision: 1 }
    }
}

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
    form: Form,
    source: &DicomSource,
    geometry: Option<&Geometry>,
    segmentation: &Segmentation,
    labels: &[Label],
    provenance: &Provenance,
) -> Result<Seg, CodecError> {
    check(source, segmentation, labels)?;
    let copied = Copied::new(source, labels, provenance);
    let uids = Uids::derive(form, source, segmentation, provenance)?;
    let mut object = InMemDicomObject::new_empty();
    copied.put_patient_and_study(&mut object);
    put_series_and_equipment(&mut object, form, source, provenance, &uids);
    let placed = geometry.is_some();
    if placed {
        put(&mut object, tags::FRAME_OF_REFERENCE_UID, VR::UI, uids.frame_of_reference.as_str());
        copied.put_position_reference_indicator(&mut object);
    } else {
        // Which way the rows and columns run, where no frame of reference tells it.
        put(&mut object, tags::PATIENT_ORIENTATION, VR::CS, "");
        put_where_present(&mut object, source, tags::PATIENT_ORIENTATION, VR::CS);
    }
    put_image(&mut object, form, source, &uids);
    put_lossy_history(&mut object, source);

    let items: Vec<_> = labels.iter().map(|label| segments::segment(label, provenance)).collect();
    put_items(&mut object, tags::SEGMENT_SEQUENCE, items);
    groups::put_dimensions(&mut object, &uids.dimensions, placed);
    let shared = groups::shared(source, geometry)?;
    put_items(&mut object, tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, [shared]);
    let slices = segmentation.mask.len_of(Axis(0));
    let frames: Vec<_> = labels
        .iter()
        .flat_map(|label| (0..slices).map(move |slice| (label, slice)))
        .map(|(label, slice)| groups::per_frame(source, placed, label, slice))
        .collect();
    put(&mut object, tags::NUMBER_OF_FRAMES, VR::IS, frames.len().to_string());
    put_items(&mut object, tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, frames);
    put_pixels(&mut object, form.kind, segmentation, labels);

    let bytes = element::write(copied.finish(object), FORMAT)?;
    Ok(Seg { sop_instance_uid: uids.instance, bytes })
}

fn check(
    source: &DicomSource,
    segmentation: &Segmentation,
    labels: &[Label],
) -> Result<(), CodecError> {
    let side = |tag: Tag| Ok::<_, CodecError>(source.number(tag)?.unwrap_or(0.0) as usize);
    let expected = vec![source.slices.len(), side(tags::ROWS)?, side(tags::COLUMNS)?];
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
    let shares = [&[labels.len()], segmentation.mask.shape()].concat();
    if segmentation.agreement.shape() != shares {
        return Err(CodecError::Shape {
            what: "the size of the votes' agreement",
            found: segmentation.agreement.shape().to_vec(),
            expected: shares,
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
        form: Form,
        source: &DicomSource,
        segmentation: &Segmentation,
        provenance: &Provenance,
    ) -> Result<Self, CodecError> {
        let required = |tag: Tag, name: &str| {
            source
                .text(tag)?
                .ok_or_else(|| CodecError::encode(FORMAT, format!("no {name} in the source")))
        };
        let source_series = required(tags::SERIES_INSTANCE_UID, "SeriesInstanceUID")?;
        // The mask takes part: another device may round differently, and another content under the
        // same UID would be a conflict in the archive.
        let (kind, mask): (_, Vec<u8>) = match form.kind {
            Kind::Binary => ("segmentation", segmentation.mask.iter().copied().collect()),
            Kind::Fractional => ("fractional segmentation", fractions(segmentation).collect()),
        };
        let mask = Sha256::digest(&mask).iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let parameters = segments::parameters(provenance);
        let model = [&provenance.model, &provenance.model_version, &provenance.software_version];
        let mut parts: Vec<&str> = vec![kind, &source_series, &parameters, &mask];
        parts.extend(model.map(String::as_str));
        let revision = form.revision.to_string();
        parts.push(&revision);
        // Volumes of one multi-frame image have their instance in common.
        let part = source.part.to_string();
        parts.extend((!part.is_empty()).then_some(part.as_str()));
        parts.extend(source.instances.iter().map(|instance| instance.sop_instance.as_str()));
        let instance = Uid::derived(&parts);
        let frame_of_reference = source.text(tags::FRAME_OF_REFERENCE_UID)?.unwrap_or_else(|| {
            // Placed, but in no named frame: one that all results of the series share.
            Uid::derived(&["frame of reference", &source_series]).to_string()
        });
        Ok(Self {
            study: required(tags::STUDY_INSTANCE_UID, "StudyInstanceUID")?,
            series: Uid::derived(&[
                &format!("{kind} series"),
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

fn put_series_and_equipment(
    object: &mut InMemDicomObject,
    form: Form,
    source: &DicomSource,
    provenance: &Provenance,
    uids: &Uids,
) {
    put(object, tags::STUDY_INSTANCE_UID, VR::UI, uids.study.as_str());
    put(object, tags::SERIES_INSTANCE_UID, VR::UI, uids.series.as_str());
    put_text(object, tags::MODALITY, VR::CS, "SEG");
    let (offset, what) = match form.kind {
        Kind::Binary => (1, "Segmentation"),
        Kind::Fractional => (2, "Agreement"),
    };
    put_series_number(object, source, offset);
    let description = format!("{what} {}", provenance.model);
    put_text(object, tags::SERIES_DESCRIPTION, VR::LO, &description);

    put_equipment(object, provenance);

    let mut series = InMemDicomObject::new_empty();
    put(&mut series, tags::SERIES_INSTANCE_UID, VR::UI, uids.source_series.as_str());
    let instances: Vec<_> =
        (0..source.instances.len()).map(|instance| groups::reference(source, instance)).collect();
    put_items(&mut series, tags::REFERENCED_INSTANCE_SEQUENCE, instances);
    put_items(object, tags::REFERENCED_SERIES_SEQUENCE, [series]);
}

/// The Segmentation Image module (PS3.3 C.8.20.2) but for segments and pixels.
fn put_image(object: &mut InMemDicomObject, form: Form, source: &DicomSource, uids: &Uids) {
    put(object, tags::SOP_CLASS_UID, VR::UI, uids::SEGMENTATION_STORAGE);
    put(object, tags::SOP_INSTANCE_UID, VR::UI, uids.instance.as_str());
    put(object, tags::IMAGE_TYPE, VR::CS, "DERIVED\\PRIMARY");
    put(object, tags::INSTANCE_NUMBER, VR::IS, form.revision.to_string());
    put_text(object, tags::CONTENT_LABEL, VR::CS, "SEGMENTATION");
    let mut description = match form.kind {
        Kind::Binary => "Automatic segmentation".to_owned(),
        Kind::Fractional => "Agreement of the votes".to_owned(),
    };
    if form.revision > 1 {
        let _ = write!(description, ", revision {}", form.revision);
    }
    if !source.part.is_whole() {
        let _ = write!(description, ", {}", source.part);
    }
    put_text(object, tags::CONTENT_DESCRIPTION, VR::LO, &description);
    // A family and a given name: one component alone is the retired form of a person name.
    put_text(object, tags::CONTENT_CREATOR_NAME, VR::PN, "cdal^automatic");
    put_moment(object, source);
    match form.kind {
        Kind::Binary => {
            put_text(object, tags::SEGMENTATION_TYPE, VR::CS, "BINARY");
            put_text(object, tags::SEGMENTS_OVERLAP, VR::CS, "NO");
        }
        Kind::Fractional => {
            put_text(object, tags::SEGMENTATION_TYPE, VR::CS, "FRACTIONAL");
            put_text(object, tags::SEGMENTATION_FRACTIONAL_TYPE, VR::CS, "PROBABILITY");
            put(object, tags::MAXIMUM_FRACTIONAL_VALUE, VR::US, u16::from(u8::MAX));
            // Shares of several labels may well lie on one voxel.
            put_text(object, tags::SEGMENTS_OVERLAP, VR::CS, "YES");
        }
    }
}

/// The source's own moment, not the clock's: the same input must give the same bytes.
pub(in crate::codec) fn put_moment(object: &mut InMemDicomObject, source: &DicomSource) {
    let first = |candidates: &[Tag]| candidates.iter().find_map(|&tag| source.bytes(tag));
    let date = [tags::CONTENT_DATE, tags::ACQUISITION_DATE, tags::SERIES_DATE, tags::STUDY_DATE];
    let time = [tags::CONTENT_TIME, tags::ACQUISITION_TIME, tags::SERIES_TIME, tags::STUDY_TIME];
    let date = first(&date).unwrap_or_else(|| b"19700101".to_vec());
    let time = first(&time).unwrap_or_else(|| b"000000".to_vec());
    put_bytes(object, tags::CONTENT_DATE, VR::DA, date);
    put_bytes(object, tags::CONTENT_TIME, VR::TM, time);
}

/// Equipment module and the item of `ContributingEquipmentSequence` for this program.
pub(in crate::codec) fn put_equipment(object: &mut InMemDicomObject, provenance: &Provenance) {
    put_text(object, tags::MANUFACTURER, VR::LO, MANUFACTURER);
    put_text(object, tags::MANUFACTURER_MODEL_NAME, VR::LO, &provenance.model);
    let serial = provenance.model_digest.get(..16).unwrap_or(&provenance.model_digest);
    put_text(object, tags::DEVICE_SERIAL_NUMBER, VR::LO, serial);
    put_text(object, tags::SOFTWARE_VERSIONS, VR::LO, &provenance.software_version);
    let equipment = segments::equipment(provenance);
    put_items(object, tags::CONTRIBUTING_EQUIPMENT_SEQUENCE, [equipment]);
}

/// Scanners number what they derive from series n as n·100 + 1 and on.
pub(in crate::codec) fn put_series_number(
    object: &mut InMemDicomObject,
    source: &DicomSource,
    offset: i32,
) {
    // One that is no number costs no result.
    let number = source.number(tags::SERIES_NUMBER).ok().flatten().unwrap_or(0.0) as i32;
    let number = number.max(0).saturating_mul(100).saturating_add(offset);
    put(object, tags::SERIES_NUMBER, VR::IS, number.to_string());
}

/// Once lossy, always lossy: what the source went through holds for what is derived from it.
pub(in crate::codec) fn put_lossy_history(object: &mut InMemDicomObject, source: &DicomSource) {
    let lossy = source.bytes(tags::LOSSY_IMAGE_COMPRESSION).is_some_and(|text| text == b"01");
    put_text(object, tags::LOSSY_IMAGE_COMPRESSION, VR::CS, if lossy { "01" } else { "00" });
    let history = [
        (tags::LOSSY_IMAGE_COMPRESSION_RATIO, VR::DS),
        (tags::LOSSY_IMAGE_COMPRESSION_METHOD, VR::CS),
    ];
    for (tag, vr) in history {
        if lossy {
            put_where_present(object, source, tag, vr);
        }
    }
}

fn put_pixels(
    object: &mut InMemDicomObject,
    kind: Kind,
    segmentation: &Segmentation,
    labels: &[Label],
) {
    let (_, rows, columns) = segmentation.mask.dim();
    put(object, tags::SAMPLES_PER_PIXEL, VR::US, 1_u16);
    put_text(object, tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2");
    put(object, tags::ROWS, VR::US, rows as u16);
    put(object, tags::COLUMNS, VR::US, columns as u16);
    let (bits, pixels): (u16, Vec<u8>) = match kind {
        Kind::Binary => {
            let mask: Vec<u8> = segmentation.mask.iter().copied().collect();
            let pixels = (0..labels.len() * mask.len())
                .map(|index| mask[index % mask.len()] == labels[index / mask.len()].value);
            (1, bits::pack(pixels))
        }
        Kind::Fractional => {
            let mut pixels: Vec<u8> = fractions(segmentation).collect();
            pixels.resize(pixels.len().next_multiple_of(2), 0);
            (8, pixels)
        }
    };
    put(object, tags::BITS_ALLOCATED, VR::US, bits);
    put(object, tags::BITS_STORED, VR::US, bits);
    put(object, tags::HIGH_BIT, VR::US, bits - 1);
    put(object, tags::PIXEL_REPRESENTATION, VR::US, 0_u16);
    put(object, tags::PIXEL_DATA, VR::OB, PrimitiveValue::from(pixels));
}

/// The votes' agreement in 255ths, frame by frame: by label, then by slice.
fn fractions(segmentation: &Segmentation) -> impl Iterator<Item = u8> {
    // Rounded by `as` only after it is in range.
    segmentation.agreement.iter().map(|share| (share.clamp(0.0, 1.0) * 255.0).round() as u8)
}
