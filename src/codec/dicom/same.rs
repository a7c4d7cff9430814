//! Whether two files with one SOP Instance UID hold the same instance.
//!
//! An instance is its data set (PS3.5 section 9), not the bytes of a file: the File Meta Information is no part of it
//! (PS3.10 section 7.1), Implicit and Explicit VR say the same, a lossless transfer syntax keeps the pixels, and an
//! archive may add attributes (PS3.4 section B.4.1.3). What is compared is what identifies the object and decides the
//! mask: UIDs, patient, geometry, the meaning of the values, and the pixels; of objects that are no images, their content.
//!
//! Called lazily, when a known instance comes with other bytes: one file at a time is in memory, two where pixels are
//! stored in different ways.

use std::collections::BTreeMap;
use std::path::Path;

use dicom_core::dictionary::VirtualVr;
use dicom_core::{Tag, VR};
use dicom_dictionary_std::{tags, uids};
use sha2::{Digest, Sha256};

use super::attributes::Pixels;
use super::data_set::{DataSet, own_vr};
use super::frames::Frames;
use super::image::Image;
use super::part10::Part10;
use super::samples;
use super::whole::keyword;
use crate::codec::CodecError;

/// Who and what the object is. A value that one of the two does not have is no contradiction: archives add them.
const IDENTITY: [Tag; 7] = [
    tags::SOP_CLASS_UID,
    tags::STUDY_INSTANCE_UID,
    tags::SERIES_INSTANCE_UID,
    tags::FRAME_OF_REFERENCE_UID,
    tags::PATIENT_ID,
    tags::PATIENT_NAME,
    tags::PATIENT_BIRTH_DATE,
];

/// What decides the mask of an image, beside its pixels.
const MEANING: [Tag; 32] = [
    tags::MODALITY,
    tags::IMAGE_TYPE,
    tags::ROWS,
    tags::COLUMNS,
    tags::NUMBER_OF_FRAMES,
    tags::SAMPLES_PER_PIXEL,
    tags::BITS_STORED,
    tags::PIXEL_REPRESENTATION,
    tags::PIXEL_SPACING,
    tags::IMAGER_PIXEL_SPACING,
    tags::IMAGE_POSITION_PATIENT,
    tags::IMAGE_ORIENTATION_PATIENT,
    tags::SLICE_THICKNESS,
    tags::SPACING_BETWEEN_SLICES,
    tags::ACQUISITION_NUMBER,
    tags::TEMPORAL_POSITION_IDENTIFIER,
    tags::RESCALE_SLOPE,
    tags::RESCALE_INTERCEPT,
    tags::MODALITY_LUT_SEQUENCE,
    tags::WINDOW_CENTER,
    tags::WINDOW_WIDTH,
    tags::VOILUT_FUNCTION,
    tags::VOILUT_SEQUENCE,
    tags::PIXEL_PADDING_VALUE,
    tags::PIXEL_PADDING_RANGE_LIMIT,
    tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
    tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DATA,
    tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DATA,
    tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DATA,
    tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE,
    tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE,
    tags::PRESENTATION_LUT_SHAPE,
];

/// Decompressing JPEG, two decoders may differ by so much of the range (ITU-T T.83 allows more).
const LOSSY_TOLERANCE: f32 = 4.0 / 255.0;

/// What differs, by the names of attributes; nothing if both files hold the same instance.
///
/// # Errors
/// If one of them cannot be read.
pub fn differences(known: &Path, other: &Path) -> Result<Vec<String>, CodecError> {
    let (one, two) = (Summary::read(known)?, Summary::read(other)?);
    let mut names = Vec::new();
    for tag in IDENTITY {
        if let (Some(a), Some(b)) = (one.values.get(&tag), two.values.get(&tag))
            && a != b
        {
            names.push(keyword(tag));
        }
    }
    let mut others: Vec<Tag> = one.values.keys().chain(two.values.keys()).copied().collect();
    others.sort_unstable();
    others.dedup();
    for tag in others.into_iter().filter(|tag| !IDENTITY.contains(tag)) {
        if one.values.get(&tag) != two.values.get(&tag) {
            names.push(keyword(tag));
        }
    }
    // Where the sizes differ the pixels do, and nobody has to decode them to know.
    if one.pixels != two.pixels && (!names.is_empty() || !same_pixels(known, other)?) {
        names.push("pixels".to_owned());
    }
    Ok(names)
}

/// Of one file, what is compared.
struct Summary {
    values: BTreeMap<Tag, String>,
    /// Of the pixel data as it is stored.
    pixels: Option<[u8; 32]>,
}

impl Summary {
    fn read(path: &Path) -> Result<Self, CodecError> {
        let file = Part10::open(path)?;
        let data_set = file.data_set();
        let mut values = BTreeMap::new();
        let content = data_set.tags().filter(|tag| is_content(*tag));
        for tag in IDENTITY.into_iter().chain(MEANING).chain(content) {
            if let Some(value) = canonical(data_set, tag).filter(|value| !is_default(tag, value)) {
                values.insert(tag, value);
            }
        }
        Ok(Self { values, pixels: stored_pixels(data_set)? })
    }
}

/// What reports, segmentations, structure sets and documents hold: no archive adds to it.
fn is_content(Tag(group, element): Tag) -> bool {
    let is_document = group == 0x0040 && element >> 12 == 0xA;
    // Pixels and signatures are compared otherwise or not at all; odd groups are private.
    let is_other = (0x0042..0x7FE0).contains(&group) && group % 2 == 0 && element != 0;
    is_document || is_other
}

/// Values that mean the same as none (PS3.3).
fn is_default(tag: Tag, value: &str) -> bool {
    match tag {
        tags::NUMBER_OF_FRAMES | tags::RESCALE_SLOPE => value == "1",
        tags::PIXEL_REPRESENTATION | tags::RESCALE_INTERCEPT => value == "0",
        tags::VOILUT_FUNCTION => value == "LINEAR",
        tags::PRESENTATION_LUT_SHAPE => value == "IDENTITY",
        _ => false,
    }
}

/// A value as it reads in every transfer syntax; `None` if there is none.
fn canonical(data_set: &DataSet, tag: Tag) -> Option<String> {
    let own = own_vr(tag).unwrap_or(VirtualVr::Exact(VR::UN));
    match own {
        VirtualVr::Exact(VR::SQ) => {
            let items = data_set.items(tag).ok()?;
            let items: Vec<String> = items.iter().map(canonical_item).collect();
            (!items.is_empty()).then(|| items.join("|"))
        }
        VirtualVr::Exact(VR::DS | VR::IS | VR::FL | VR::FD | VR::US | VR::SS | VR::UL | VR::SL)
        | VirtualVr::Xs => match data_set.numbers(tag) {
            Ok(numbers) => numbers.map(|numbers| {
                numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join("\\")
            }),
            Err(_) => digest_of(data_set, tag),
        },
        VirtualVr::Exact(VR::OB | VR::OW | VR::OF | VR::OD | VR::OL | VR::OV | VR::UN | VR::AT)
        | VirtualVr::Ox
        | VirtualVr::Lt
        | VirtualVr::Px => digest_of(data_set, tag),
        _ => match data_set.text(tag) {
            Ok(text) => text.map(|text| {
                // Trailing delimiters of a name and padding of each value say nothing.
                text.split('\\')
                    .map(|value| value.trim().trim_end_matches(['^', '=']).to_owned())
                    .collect::<Vec<_>>()
                    .join("\\")
            }),
            Err(_) => digest_of(data_set, tag),
        },
    }
    .filter(|value| !value.is_empty())
}

fn canonical_item(item: &DataSet) -> String {
    let public = item.tags().filter(|Tag(group, element)| group % 2 == 0 && *element != 0);
    let values = public.filter_map(|tag| Some(format!("{tag}={}", canonical(item, tag)?)));
    let values: Vec<String> = values.collect();
    format!("{:x?}", Sha256::digest(values.join("\n").as_bytes()).as_slice())
}

fn digest_of(data_set: &DataSet, tag: Tag) -> Option<String> {
    let bytes = data_set.bulk(tag).ok().flatten()?;
    Some(format!("{:x?}", Sha256::digest(&bytes).as_slice()))
}

fn stored_pixels(data_set: &DataSet) -> Result<Option<[u8; 32]>, CodecError> {
    let mut hash = Sha256::new();
    match data_set.pixels(tags::PIXEL_DATA)? {
        None => return Ok(None),
        Some(Pixels::Native(bytes)) => hash.update(&bytes),
        Some(Pixels::Encapsulated(found)) => {
            hash.update(b"encapsulated");
            found.parts.iter().for_each(|fragment| hash.update(fragment));
        }
    }
    Ok(Some(hash.finalize().into()))
}

/// Whether decompressing gives other values than were compressed (PS3.5 section 10).
fn is_lossy(syntax: &str) -> bool {
    [
        uids::JPEG_BASELINE8_BIT,
        uids::JPEG_EXTENDED12_BIT,
        uids::JPEGLS_NEAR_LOSSLESS,
        uids::JPEG2000,
        uids::HTJ2K,
    ]
    .contains(&syntax)
}

/// Whether the pixels are the same once they are decompressed.
fn same_pixels(known: &Path, other: &Path) -> Result<bool, CodecError> {
    let (one, two) = (Part10::open(known)?, Part10::open(other)?);
    let (first, second) =
        (Image::read(known, one.data_set())?, Image::read(other, two.data_set())?);
    let a = Frames::new(known, one.data_set(), &first, one.transfer_syntax)?;
    let b = Frames::new(other, two.data_set(), &second, two.transfer_syntax)?;
    let is_lossy_once = is_lossy(one.transfer_syntax.uid()) != is_lossy(two.transfer_syntax.uid());
    let range = (1_u64 << first.bits_stored.min(32)) as f32;
    let tolerance = if is_lossy_once { LOSSY_TOLERANCE * range } else { 0.0 };
    for number in 0..first.frames.min(second.frames) {
        let a = samples::stored(known, &first, &a.get(number)?)?;
        let b = samples::stored(other, &second, &b.get(number)?)?;
        let is_near = |(a, b): (&f32, &f32)| (a - b).abs() <= tolerance;
        if a.len() != b.len() || !a.iter().zip(&b).all(is_near) {
            return Ok(false);
        }
    }
    Ok(first.frames == second.frames)
}

#[cfg(test)]
mod tests {
    use dicom_core::{DataElement, PrimitiveValue};
    use dicom_object::FileMetaTableBuilder;

    use dicom_object::InMemDicomObject;

    use super::*;

    fn object() -> InMemDicomObject {
        let mut object = InMemDicomObject::new_empty();
        let text = |tag, vr, value: &str| DataElement::new(tag, vr, PrimitiveValue::from(value));
        object.put(text(tags::SOP_CLASS_UID, VR::UI, uids::MR_IMAGE_STORAGE));
        object.put(text(tags::SOP_INSTANCE_UID, VR::UI, "1.2.3"));
        object.put(text(tags::PATIENT_NAME, VR::PN, "Name^Some"));
        object.put(text(tags::STUDY_INSTANCE_UID, VR::UI, "1.2.1"));
        object.put(text(tags::SERIES_INSTANCE_UID, VR::UI, "1.2.2"));
        object.put(text(tags::PIXEL_SPACING, VR::DS, "0.5\\0.75"));
        object.put(text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2"));
        for (tag, value) in [
            (tags::SAMPLES_PER_PIXEL, 1_u16),
            (tags::ROWS, 2),
            (tags::COLUMNS, 3),
            (tags::BITS_ALLOCATED, 16),
            (tags::BITS_STORED, 12),
            (tags::HIGH_BIT, 11),
            (tags::PIXEL_REPRESENTATION, 0),
        ] {
            object.put(DataElement::new(tag, VR::US, PrimitiveValue::from(value)));
        }
        let pixels = PrimitiveValue::U16([1, 2, 3, 4, 5, 6].into_iter().collect());
        object.put(DataElement::new(tags::PIXEL_DATA, VR::OW, pixels));
        object
    }

    fn with(tag: Tag, vr: VR, value: &str) -> InMemDicomObject {
        let mut object = object();
        object.put(DataElement::new(tag, vr, PrimitiveValue::from(value)));
        object
    }

    fn against_plain(other: InMemDicomObject, syntax: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let write = |object: InMemDicomObject, name: &str, syntax: &str| {
            let path = folder.path().join(name);
            let meta = FileMetaTableBuilder::new().transfer_syntax(syntax);
            object.with_meta(meta).unwrap().write_to_file(&path).unwrap();
            path
        };
        let plain = write(object(), "plain", uids::EXPLICIT_VR_LITTLE_ENDIAN);
        differences(&plain, &write(other, "other", syntax)).unwrap()
    }

    #[test]
    fn other_ways_to_say_the_same_make_no_difference_and_others_are_named() {
        let (explicit, implicit) =
            (uids::EXPLICIT_VR_LITTLE_ENDIAN, uids::IMPLICIT_VR_LITTLE_ENDIAN);
        for (other, syntax) in [
            (object(), implicit),
            (with(tags::INSTANCE_AVAILABILITY, VR::CS, "ONLINE"), explicit),
            (with(tags::RESCALE_SLOPE, VR::DS, "1.0"), implicit),
            (with(tags::PIXEL_SPACING, VR::DS, "0.500\\7.5e-1"), implicit),
            (with(tags::PATIENT_NAME, VR::PN, "Name^Some^^^"), explicit),
            (with(tags::PATIENT_ID, VR::LO, "added"), explicit),
        ] {
            assert_eq!(against_plain(other, syntax), Vec::<String>::new());
        }
        for (tag, vr, value, name) in [
            (tags::PIXEL_SPACING, VR::DS, "0.5\\0.76", "PixelSpacing"),
            (tags::PATIENT_NAME, VR::PN, "Name^Other", "PatientName"),
            (tags::RESCALE_SLOPE, VR::DS, "2", "RescaleSlope"),
        ] {
            assert_eq!(against_plain(with(tag, vr, value), implicit), [name]);
        }
        let mut other = object();
        let pixels = PrimitiveValue::U16([1, 2, 3, 4, 5, 7].into_iter().collect());
        other.put(DataElement::new(tags::PIXEL_DATA, VR::OW, pixels));
        assert_eq!(against_plain(other, implicit), ["pixels"]);
    }
}
