//! Synthetic MR series: a volume that no scanner made, as the files a scanner would send.

use dicom_core::{DataElement, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use ndarray::Axis;

use crate::{
    codec::CodecError,
    domain::{Uid, Volume},
};

const FORMAT: &str = "MR Image Storage";

/// One MR Image Storage file (Part 10, explicit little endian) for each slice of a grey `volume` with whole
/// numbers from 0 to 65535. Patient and UIDs are made of `seed`; nothing in them belongs to a person.
///
/// # Errors
/// If the volume has no geometry, or the encoder fails.
pub fn encode_mr_series(volume: &Volume, seed: u64) -> Result<Vec<Vec<u8>>, CodecError> {
    let geometry = volume
        .geometry
        .ok_or_else(|| CodecError::encode(FORMAT, "a series needs a place in space"))?;
    let seed = seed.to_string();
    let uid = |parts: &[&str]| Uid::derived(&[&["synthetic", seed.as_str()], parts].concat());
    let grey = volume.samples.index_axis(Axis(0), 0);
    grey.axis_iter(Axis(0))
        .enumerate()
        .map(|(index, slice)| {
            let number = (index + 1).to_string();
            let sop_instance = uid(&["instance", number.as_str()]);
            let position = geometry.position(index as f64, 0.0, 0.0);
            let mut object = InMemDicomObject::new_empty();
            let mut put = |tag: Tag, vr: VR, value: &str| {
                object.put(DataElement::new(tag, vr, PrimitiveValue::from(value)));
            };
            let joined = |values: &[f64]| {
                values.iter().map(|v| format!("{v:.6}")).collect::<Vec<_>>().join("\\")
            };
            put(tags::IMAGE_TYPE, VR::CS, "DERIVED\\SECONDARY\\OTHER");
            put(tags::SOP_CLASS_UID, VR::UI, uids::MR_IMAGE_STORAGE);
            put(tags::SOP_INSTANCE_UID, VR::UI, sop_instance.as_str());
            put(tags::STUDY_DATE, VR::DA, "20260101");
            put(tags::STUDY_TIME, VR::TM, "120000");
            put(tags::CONTENT_DATE, VR::DA, "20260101");
            put(tags::CONTENT_TIME, VR::TM, "120000");
            put(tags::ACCESSION_NUMBER, VR::SH, "");
            put(tags::MODALITY, VR::CS, "MR");
            put(tags::MANUFACTURER, VR::LO, "cdal");
            put(tags::REFERRING_PHYSICIAN_NAME, VR::PN, "");
            put(tags::STUDY_DESCRIPTION, VR::LO, "Synthetic");
            put(tags::SERIES_DESCRIPTION, VR::LO, "Phantom");
            put(tags::PATIENT_NAME, VR::PN, "Phantom^Synthetic");
            put(tags::PATIENT_ID, VR::LO, &format!("PHANTOM-{seed}"));
            put(tags::PATIENT_BIRTH_DATE, VR::DA, "");
            put(tags::PATIENT_SEX, VR::CS, "O");
            put(tags::SCANNING_SEQUENCE, VR::CS, "RM");
            put(tags::SEQUENCE_VARIANT, VR::CS, "NONE");
            put(tags::SCAN_OPTIONS, VR::CS, "");
            put(tags::MR_ACQUISITION_TYPE, VR::CS, "3D");
            put(tags::SLICE_THICKNESS, VR::DS, &format!("{:.6}", geometry.spacing[2]));
            put(tags::ECHO_TIME, VR::DS, "");
            put(tags::ECHO_TRAIN_LENGTH, VR::IS, "");
            put(tags::STUDY_INSTANCE_UID, VR::UI, uid(&["study"]).as_str());
            put(tags::SERIES_INSTANCE_UID, VR::UI, uid(&["series"]).as_str());
            put(tags::STUDY_ID, VR::SH, &seed);
            put(tags::SERIES_NUMBER, VR::IS, "1");
            put(tags::INSTANCE_NUMBER, VR::IS, &number);
            put(tags::IMAGE_POSITION_PATIENT, VR::DS, &joined(&position));
            let axes = [geometry.direction[0], geometry.direction[1]].concat();
            put(tags::IMAGE_ORIENTATION_PATIENT, VR::DS, &joined(&axes));
            put(tags::FRAME_OF_REFERENCE_UID, VR::UI, uid(&["frame"]).as_str());
            put(tags::POSITION_REFERENCE_INDICATOR, VR::LO, "");
            put(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2");
            // PixelSpacing: between rows first
            let spacing = [geometry.spacing[1], geometry.spacing[0]];
            put(tags::PIXEL_SPACING, VR::DS, &joined(&spacing));
            let (rows, columns) = slice.dim();
            for (tag, value) in [
                (tags::SAMPLES_PER_PIXEL, 1),
                (tags::ROWS, rows),
                (tags::COLUMNS, columns),
                (tags::BITS_ALLOCATED, 16),
                (tags::BITS_STORED, 16),
                (tags::HIGH_BIT, 15),
                (tags::PIXEL_REPRESENTATION, 0),
            ] {
                object.put(DataElement::new(tag, VR::US, PrimitiveValue::from(value as u16)));
            }
            let pixels: Vec<u16> = slice.iter().map(|&v| v as u16).collect();
            object.put(DataElement::new(
                tags::PIXEL_DATA,
                VR::OW,
                PrimitiveValue::U16(pixels.into()),
            ));
            let meta = FileMetaTableBuilder::new()
                .media_storage_sop_class_uid(uids::MR_IMAGE_STORAGE)
                .media_storage_sop_instance_uid(sop_instance.as_str())
                .transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN);
            let file =
                object.with_meta(meta).map_err(|e| CodecError::encode(FORMAT, e.to_string()))?;
            let mut bytes = Vec::new();
            file.write_all(&mut bytes).map_err(|e| CodecError::encode(FORMAT, e.to_string()))?;
            Ok(bytes)
        })
        .collect()
}
