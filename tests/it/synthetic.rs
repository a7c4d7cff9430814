//! Small made-up DICOM series, written to a folder.

use std::path::{Path, PathBuf};

use dicom_core::{DataElement, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};

pub const ROWS: u16 = 5;
pub const COLUMNS: u16 = 7;
pub const SPACING: f64 = 2.5;
pub const PATIENT: &str = "Müster^Mära";
pub const PATIENT_ID: &str = "SECRET-4711";

/// A rotation about all axes, so that no direction is along an axis.
pub const RIGHT: [f64; 3] = [0.8, 0.6, 0.0];
pub const DOWN: [f64; 3] = [-0.36, 0.48, 0.8];
/// RIGHT x DOWN.
pub const NORMAL: [f64; 3] = [0.48, -0.64, 0.6];

pub fn put(object: &mut InMemDicomObject, tag: Tag, vr: VR, value: impl Into<PrimitiveValue>) {
    object.put(DataElement::new(tag, vr, value.into()));
}

pub fn put_numbers(object: &mut InMemDicomObject, tag: Tag, values: &[f64]) {
    let text: Vec<String> = values.iter().map(ToString::to_string).collect();
    put(object, tag, VR::DS, text.join("\\"));
}

pub fn position(slice: usize) -> [f64; 3] {
    let height = SPACING * slice as f64 - 7.0;
    NORMAL.map(|n| (n * height * 1e6).round() / 1e6)
}

/// The stored value of a pixel.
pub fn stored(slice: usize, row: usize, column: usize) -> u16 {
    (slice * 100 + row * 10 + column) as u16
}

/// One MR slice.
pub fn slice(slice: usize) -> InMemDicomObject {
    let mut o = InMemDicomObject::new_empty();
    put(&mut o, tags::SPECIFIC_CHARACTER_SET, VR::CS, "ISO_IR 100");
    put(&mut o, tags::IMAGE_TYPE, VR::CS, "ORIGINAL\\PRIMARY\\M");
    put(&mut o, tags::SOP_CLASS_UID, VR::UI, uids::MR_IMAGE_STORAGE);
    put(&mut o, tags::SOP_INSTANCE_UID, VR::UI, format!("1.2.3.4.{}", slice + 1));
    put(&mut o, tags::STUDY_DATE, VR::DA, "20200102");
    put(&mut o, tags::CONTENT_DATE, VR::DA, "20200103");
    put(&mut o, tags::STUDY_TIME, VR::TM, "101112");
    put(&mut o, tags::CONTENT_TIME, VR::TM, "101314.5");
    put(&mut o, tags::ACCESSION_NUMBER, VR::SH, "A1");
    put(&mut o, tags::MODALITY, VR::CS, "MR");
    put(&mut o, tags::REFERRING_PHYSICIAN_NAME, VR::PN, "");
    put(&mut o, tags::PATIENT_NAME, VR::PN, PATIENT);
    put(&mut o, tags::PATIENT_ID, VR::LO, PATIENT_ID);
    put(&mut o, tags::PATIENT_BIRTH_DATE, VR::DA, "19700101");
    put(&mut o, tags::PATIENT_SEX, VR::CS, "F");
    put_numbers(&mut o, tags::SLICE_THICKNESS, &[2.0]);
    put(&mut o, tags::STUDY_INSTANCE_UID, VR::UI, "1.2.3.1");
    put(&mut o, tags::SERIES_INSTANCE_UID, VR::UI, "1.2.3.2");
    put(&mut o, tags::STUDY_ID, VR::SH, "S1");
    put(&mut o, tags::SERIES_NUMBER, VR::IS, "3");
    put(&mut o, tags::INSTANCE_NUMBER, VR::IS, (slice + 1).to_string());
    put(&mut o, tags::FRAME_OF_REFERENCE_UID, VR::UI, "1.2.3.3");
    put(&mut o, tags::POSITION_REFERENCE_INDICATOR, VR::LO, "");
    put_numbers(&mut o, tags::IMAGE_POSITION_PATIENT, &position(slice));
    put_numbers(&mut o, tags::IMAGE_ORIENTATION_PATIENT, &[RIGHT, DOWN].concat());
    put_numbers(&mut o, tags::PIXEL_SPACING, &[0.5, 0.75]);
    put(&mut o, tags::SAMPLES_PER_PIXEL, VR::US, 1_u16);
    put(&mut o, tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2");
    put(&mut o, tags::ROWS, VR::US, ROWS);
    put(&mut o, tags::COLUMNS, VR::US, COLUMNS);
    put(&mut o, tags::BITS_ALLOCATED, VR::US, 16_u16);
    put(&mut o, tags::BITS_STORED, VR::US, 12_u16);
    put(&mut o, tags::HIGH_BIT, VR::US, 11_u16);
    put(&mut o, tags::PIXEL_REPRESENTATION, VR::US, 0_u16);
    put_pixels(&mut o, &[slice]);
    o
}

pub fn put_pixels(object: &mut InMemDicomObject, slices: &[usize]) {
    let pixels = slices.iter().flat_map(|&slice| {
        (0..usize::from(ROWS)).flat_map(move |row| {
            (0..usize::from(COLUMNS)).map(move |column| stored(slice, row, column))
        })
    });
    put(object, tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(pixels.collect()));
}

/// A computed radiograph: one image without a place in space.
pub fn radiograph() -> InMemDicomObject {
    let mut o = slice(0);
    put(&mut o, tags::SOP_CLASS_UID, VR::UI, uids::COMPUTED_RADIOGRAPHY_IMAGE_STORAGE);
    put(&mut o, tags::MODALITY, VR::CS, "CR");
    for tag in [
        tags::IMAGE_POSITION_PATIENT,
        tags::IMAGE_ORIENTATION_PATIENT,
        tags::PIXEL_SPACING,
        tags::FRAME_OF_REFERENCE_UID,
        tags::POSITION_REFERENCE_INDICATOR,
        tags::SLICE_THICKNESS,
    ] {
        o.remove_element(tag);
    }
    o
}

/// An enhanced MR image whose frames are stored in the order of `slices`.
pub fn enhanced(slices: &[usize]) -> InMemDicomObject {
    let mut o = slice(0);
    put(&mut o, tags::SOP_CLASS_UID, VR::UI, uids::ENHANCED_MR_IMAGE_STORAGE);
    put(&mut o, tags::NUMBER_OF_FRAMES, VR::IS, slices.len().to_string());
    let measures = nested(|item| {
        put_numbers(item, tags::SLICE_THICKNESS, &[2.0]);
        put_numbers(item, tags::PIXEL_SPACING, &[0.5, 0.75]);
    });
    let orientation = nested(|item| {
        put_numbers(item, tags::IMAGE_ORIENTATION_PATIENT, &[RIGHT, DOWN].concat());
    });
    let shared = nested(|item| {
        put_items(item, tags::PIXEL_MEASURES_SEQUENCE, vec![measures.clone()]);
        put_items(item, tags::PLANE_ORIENTATION_SEQUENCE, vec![orientation.clone()]);
    });
    let frames = slices
        .iter()
        .map(|&slice| {
            let place =
                nested(|item| put_numbers(item, tags::IMAGE_POSITION_PATIENT, &position(slice)));
            let values = nested(|item| {
                put_numbers(item, tags::RESCALE_SLOPE, &[1.0 + slice as f64]);
                put_numbers(item, tags::RESCALE_INTERCEPT, &[0.0]);
            });
            nested(|item| {
                put_items(item, tags::PLANE_POSITION_SEQUENCE, vec![place.clone()]);
                put_items(item, tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE, vec![values.clone()]);
            })
        })
        .collect();
    for tag in [
        tags::IMAGE_POSITION_PATIENT,
        tags::IMAGE_ORIENTATION_PATIENT,
        tags::PIXEL_SPACING,
        tags::SLICE_THICKNESS,
    ] {
        o.remove_element(tag);
    }
    put_items(&mut o, tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, vec![shared]);
    put_items(&mut o, tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, frames);
    put_pixels(&mut o, slices);
    o
}

pub fn nested(fill: impl Fn(&mut InMemDicomObject)) -> InMemDicomObject {
    let mut item = InMemDicomObject::new_empty();
    fill(&mut item);
    item
}

pub fn put_items(object: &mut InMemDicomObject, tag: Tag, items: Vec<InMemDicomObject>) {
    object.put(DataElement::new(tag, VR::SQ, dicom_core::value::DataSetSequence::from(items)));
}

pub fn write(folder: &Path, name: &str, object: InMemDicomObject) -> PathBuf {
    write_as(folder, name, object, uids::EXPLICIT_VR_LITTLE_ENDIAN)
}

pub fn write_as(folder: &Path, name: &str, object: InMemDicomObject, syntax: &str) -> PathBuf {
    let path = folder.join(name);
    let meta = FileMetaTableBuilder::new().transfer_syntax(syntax);
    object.with_meta(meta).unwrap().write_to_file(&path).unwrap();
    path
}

/// `count` slices; file names run against the order in space. `change` may alter each.
pub fn series(folder: &Path, count: usize, change: impl Fn(usize, &mut InMemDicomObject)) {
    for index in 0..count {
        let mut object = slice(index);
        change(index, &mut object);
        write(folder, &format!("{:03}.dcm", count - index), object);
    }
}
