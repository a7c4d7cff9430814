//! Series of slices, multi-frame images and single images; what is refused, and how.

use std::path::Path;

use cdal::codec::{self, Case, CodecError, Source};
use dicom_core::value::PixelFragmentSequence;
use dicom_core::{DataElement, PrimitiveValue, VR};
use dicom_dictionary_std::{tags, uids};
use tempfile::{TempDir, tempdir};

use crate::scripts::run_tool;
use crate::synthetic::{self as made, put, put_numbers, series};

fn folder() -> TempDir {
    tempdir().unwrap()
}

fn only(path: &Path) -> Case {
    let mut cases = codec::read(path).unwrap();
    assert_eq!(cases.len(), 1);
    cases.remove(0)
}

/// The refusal, after a look that it tells nothing of the patient.
fn refused(path: &Path) -> CodecError {
    let error = codec::read(path).unwrap_err();
    let text = error.to_string();
    for secret in [made::PATIENT, "ster^M", made::PATIENT_ID, "1.2.3."] {
        assert!(!text.contains(secret), "{text}");
    }
    error
}

#[test]
fn slices_are_stacked_by_where_they_lie() {
    let folder = folder();
    series(folder.path(), 4, |index, object| {
        put_numbers(object, tags::RESCALE_SLOPE, &[1.0 + index as f64]);
        put_numbers(object, tags::RESCALE_INTERCEPT, &[-5.0]);
        put_numbers(object, tags::WINDOW_CENTER, &[100.5, 7.0]);
        put_numbers(object, tags::WINDOW_WIDTH, &[201.0, 3.0]);
    });
    let case = only(folder.path());
    assert_eq!(case.volume.samples.dim(), (1, 4, 5, 7));
    for ((_, k, j, i), value) in case.volume.samples.indexed_iter() {
        let expected = f32::from(made::stored(k, j, i)) * (1.0 + k as f32) - 5.0;
        assert_eq!(*value, expected, "slice {k}");
    }
    assert_eq!(case.volume.nominal_range, Some((0.0, 200.0)));
    let grid = case.volume.geometry.unwrap();
    assert_eq!(grid.direction[..2], [made::RIGHT, made::DOWN]);
    assert_eq!(grid.spacing[..2], [0.75, 0.5]);
    for k in 0..4 {
        let (found, expected) = (grid.position(k as f64, 0.0, 0.0), made::position(k));
        assert!((0..3).all(|axis| (found[axis] - expected[axis]).abs() < 1e-5), "{found:?}");
    }
    assert!(!format!("{:?}", case.source).contains("SECRET"), "debug output hides the patient");
}

#[test]
fn one_file_of_a_series_is_a_case_of_its_own() {
    let folder = folder();
    let path = made::write(folder.path(), "one.dcm", made::slice(2));
    let case = only(&path);
    assert_eq!((case.name.as_str(), case.volume.samples.dim()), ("one", (1, 1, 5, 7)));
    assert_eq!(case.volume.geometry.unwrap().spacing[2], 2.0, "SliceThickness");
    assert_eq!(case.volume.nominal_range, Some((0.0, 4095.0)), "of BitsStored");
    let identity = codec::dicom::identify(&path).unwrap();
    assert_eq!(identity.series.as_str(), "1.2.3.2");
}

#[test]
fn frames_of_an_enhanced_image_are_stacked_by_where_they_lie() {
    let folder = folder();
    let path = made::write(folder.path(), "enhanced.dcm", made::enhanced(&[2, 0, 1]));
    let case = only(&path);
    for ((_, k, j, i), value) in case.volume.samples.indexed_iter() {
        assert_eq!(*value, f32::from(made::stored(k, j, i)) * (1.0 + k as f32));
    }
    assert!((case.volume.geometry.unwrap().spacing[2] - made::SPACING).abs() < 1e-6);
}

#[test]
fn radiographs_are_cases_without_geometry() {
    let folder = folder();
    made::write(folder.path(), "a.dcm", made::radiograph());
    let mut other = made::radiograph();
    put(&mut other, tags::SOP_INSTANCE_UID, VR::UI, "1.2.3.4.99");
    put(&mut other, tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME1");
    made::write(folder.path(), "b.dcm", other);
    let cases = codec::read(folder.path()).unwrap();
    let names: Vec<_> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert!(cases.iter().all(|case| case.volume.geometry.is_none()));
    assert_eq!(cases[0].volume.samples[[0, 0, 1, 2]], 12.0);
    assert_eq!(cases[1].volume.samples[[0, 0, 1, 2]], 4095.0 - 12.0, "mirrored");
}

#[test]
fn several_series_are_several_cases_and_other_objects_are_passed_over() {
    let folder = folder();
    series(folder.path(), 3, |_, _| {});
    for index in 0..2 {
        let mut object = made::slice(index);
        put(&mut object, tags::SERIES_INSTANCE_UID, VR::UI, "1.2.3.9");
        put(&mut object, tags::SERIES_NUMBER, VR::IS, "2");
        put(&mut object, tags::SOP_INSTANCE_UID, VR::UI, format!("1.2.3.5.{index}"));
        made::write(folder.path(), &format!("other{index}.dcm"), object);
    }
    let mut segmentation = made::slice(0);
    put(&mut segmentation, tags::SOP_CLASS_UID, VR::UI, uids::SEGMENTATION_STORAGE);
    let lone = made::write(folder.path(), "seg.dcm", segmentation);
    std::fs::write(folder.path().join("README"), "no image").unwrap();
    let cases = codec::read(folder.path()).unwrap();
    let depths: Vec<_> = cases.iter().map(|case| case.volume.samples.dim().1).collect();
    assert_eq!(depths, [2, 3], "by series number");
    assert!(cases[0].name.ends_with("-2"));
    assert!(matches!(refused(&lone), CodecError::Unsupported { .. }));
}

#[test]
fn folders_of_folders_are_searched_and_empty_ones_refused() {
    let folder = folder();
    let deep = folder.path().join("patient/study/series");
    std::fs::create_dir_all(&deep).unwrap();
    assert!(matches!(refused(folder.path()), CodecError::NoImage { .. }));
    series(&deep, 2, |_, _| {});
    assert_eq!(only(folder.path()).name, "series");
}

#[test]
fn a_missing_slice_is_refused_with_its_neighbours() {
    let folder = folder();
    series(folder.path(), 6, |_, _| {});
    std::fs::remove_file(folder.path().join("003.dcm")).unwrap();
    match refused(folder.path()) {
        CodecError::UnevenSpacing { path, other, gap, usual } => {
            assert!(path.ends_with("002.dcm") && other.ends_with("004.dcm"));
            assert!((gap - 5.0).abs() < 1e-5 && (usual - 2.5).abs() < 1e-5);
        }
        other => panic!("{other}"),
    }
}

#[test]
fn two_slices_in_one_place_are_refused() {
    let folder = folder();
    series(folder.path(), 4, |index, object| {
        put_numbers(object, tags::IMAGE_POSITION_PATIENT, &made::position(index / 2));
    });
    assert!(matches!(refused(folder.path()), CodecError::DuplicatePosition { .. }));
}

#[test]
fn a_localizer_is_refused_alone_and_passed_over_beside_a_series() {
    let folder = folder();
    let turn = |index: usize, object: &mut dicom_object::InMemDicomObject| {
        put(object, tags::IMAGE_TYPE, VR::CS, "ORIGINAL\\PRIMARY\\LOCALIZER");
        if index == 1 {
            let other = [made::DOWN, made::NORMAL].concat();
            put_numbers(object, tags::IMAGE_ORIENTATION_PATIENT, &other);
        }
    };
    series(folder.path(), 2, turn);
    match refused(folder.path()) {
        CodecError::MixedOrientation { degrees, localizer: true, .. } => {
            assert!((degrees - 90.0).abs() < 1e-3);
        }
        other => panic!("{other}"),
    }
    for index in 0..3 {
        let mut object = made::slice(index);
        put(&mut object, tags::SERIES_INSTANCE_UID, VR::UI, "1.2.3.9");
        put(&mut object, tags::SOP_INSTANCE_UID, VR::UI, format!("1.2.3.5.{index}"));
        made::write(folder.path(), &format!("main{index}.dcm"), object);
    }
    assert_eq!(only(folder.path()).volume.samples.dim().1, 3);
}

#[test]
fn differing_sizes_and_spacings_are_refused_by_name() {
    for (tag, expected) in [(tags::PIXEL_SPACING, "PixelSpacing"), (tags::ROWS, "Rows")] {
        let folder = folder();
        series(folder.path(), 3, |index, object| {
            if index == 1 && tag == tags::ROWS {
                put(object, tag, VR::US, made::ROWS - 1);
            } else if index == 1 {
                put_numbers(object, tag, &[0.5, 0.9]);
            }
        });
        match refused(folder.path()) {
            CodecError::MixedAttribute { attribute, .. } => assert!(attribute.contains(expected)),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn multi_frame_images_without_positions_are_refused() {
    let folder = folder();
    let mut cine = made::radiograph();
    put(&mut cine, tags::NUMBER_OF_FRAMES, VR::IS, "2");
    made::put_pixels(&mut cine, &[0, 1]);
    let path = made::write(folder.path(), "cine.dcm", cine);
    assert!(refused(&path).to_string().contains("position of its frames"));
}

#[test]
fn short_pixel_data_and_cut_files_are_refused() {
    let folder = folder();
    let mut short = made::slice(0);
    put(&mut short, tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16([1, 2, 3].into_iter().collect()));
    let path = made::write(folder.path(), "short.dcm", short);
    assert!(matches!(refused(&path), CodecError::Truncated { needed: 70, present: 6, .. }));

    let whole = made::write(folder.path(), "whole.dcm", made::slice(0));
    let bytes = std::fs::read(&whole).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
    assert!(matches!(refused(&path), CodecError::Truncated { .. }));
}

#[test]
fn declared_sizes_beyond_reason_are_refused_before_memory_is_taken() {
    let folder = folder();
    let mut huge = made::slice(0);
    put(&mut huge, tags::ROWS, VR::US, 60_000_u16);
    put(&mut huge, tags::COLUMNS, VR::US, 60_000_u16);
    let path = made::write(folder.path(), "huge.dcm", huge);
    assert!(matches!(refused(&path), CodecError::TooLarge { declared: 3_600_000_000, .. }));
}

/// What follows is read from where the length says, whatever the value representation makes of it.
#[test]
fn a_length_that_ends_inside_a_number_does_not_move_what_follows() {
    let folder = folder();
    let path = made::write(folder.path(), "part.dcm", made::slice(0));
    let bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(6).position(|w| w == b"\x10\0\x10\0PN").unwrap();
    for (vr, length) in [("UL", 6), ("US", 5), ("FD", 12), ("AT", 2), ("OW", 3)] {
        let mut element = [b"\x09\0\x11\0", vr.as_bytes()].concat();
        element.extend(if vr == "OW" { vec![0, 0, length, 0, 0, 0] } else { vec![length, 0] });
        element.resize(element.len() + usize::from(length), b'2');
        let damaged = [&bytes[..at], &element, &bytes[at..]].concat();
        std::fs::write(&path, damaged).unwrap();
        assert_eq!(only(&path).volume.samples[[0, 0, 4, 6]], 46.0, "{vr}");
    }
    // The same in an attribute that is needed: it is named.
    let rows = bytes.windows(6).position(|w| w == b"\x28\0\x10\0US").unwrap();
    let odd = [&bytes[..rows], b"\x28\0\x10\0US\x03\0\x05\0\0", &bytes[rows + 10..]].concat();
    std::fs::write(&path, odd).unwrap();
    assert!(refused(&path).to_string().contains("Rows (0028,0010)"));
}

#[test]
fn an_item_that_ends_without_having_begun_is_refused() {
    let folder = folder();
    let path = made::write(folder.path(), "end.dcm", made::slice(0));
    let bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(6).position(|w| w == b"\x10\0\x10\0PN").unwrap();
    let ends = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\x35";
    std::fs::write(&path, [&bytes[..at], ends, &bytes[at..]].concat()).unwrap();
    assert!(refused(&path).to_string().contains("that has not begun"));
}

#[test]
fn values_that_are_not_finite_are_refused_with_their_place() {
    let folder = folder();
    let mut object = made::slice(0);
    put_numbers(&mut object, tags::RESCALE_SLOPE, &[1e38]);
    let path = made::write(folder.path(), "infinite.dcm", object);
    assert!(matches!(refused(&path), CodecError::NotFinite { slice: 0, row: 0, column: 4, .. }));
}

#[test]
fn syntaxes_that_cannot_be_decoded_are_refused_by_name() {
    let folder = folder();
    let path = made::write_as(folder.path(), "ls.dcm", made::slice(0), uids::JPEGLS_LOSSLESS);
    assert!(refused(&path).to_string().contains("JPEG-LS Lossless"));
}

#[test]
fn private_sequences_turned_unknown_do_not_cost_the_image() {
    let folder = folder();
    let path = made::write(folder.path(), "un.dcm", made::slice(0));
    let bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(6).position(|w| w == b"\x10\0\x10\0PN").unwrap();
    // (0009,1000) UN of undefined length, its content in Implicit VR.
    let unknown = [
        b"\x09\0\x10\0LO\x04\0TEST\x09\0\0\x10UN\0\0\xff\xff\xff\xff".as_slice(),
        b"\xfe\xff\0\xe0\xff\xff\xff\xff\x09\0\x01\x10\x04\0\0\0ABCD\xfe\xff\x0d\xe0\0\0\0\0",
        b"\xfe\xff\xdd\xe0\0\0\0\0",
    ]
    .concat();
    std::fs::write(&path, [&bytes[..at], &unknown, &bytes[at..]].concat()).unwrap();
    assert_eq!(only(&path).volume.samples[[0, 0, 4, 6]], 46.0);
}

#[test]
fn sequences_nested_beyond_reason_are_refused() {
    let folder = folder();
    let path = made::write(folder.path(), "deep.dcm", made::slice(0));
    let mut bytes = std::fs::read(&path).unwrap();
    let level = b"\x40\0\x5a\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff";
    let at = bytes.windows(6).position(|w| w == b"\xe0\x7f\x10\0OW").unwrap();
    bytes.truncate(at);
    bytes.extend(level.repeat(200_000));
    std::fs::write(&path, bytes).unwrap();
    assert!(refused(&path).to_string().contains("nested"));
}

#[test]
fn a_source_names_its_series() {
    let folder = folder();
    series(folder.path(), 2, |_, _| {});
    let Source::Dicom(source) = only(folder.path()).source else { panic!("a DICOM source") };
    let text = |tag| source.text(tag).unwrap();
    assert_eq!(text(tags::SERIES_INSTANCE_UID).as_deref(), Some("1.2.3.2"));
    assert_eq!(text(tags::MODALITY).as_deref(), Some("MR"));
    assert_eq!(text(tags::PATIENT_NAME).as_deref(), Some(made::PATIENT));
    assert_eq!(text(tags::LATERALITY), None);
}

/// The pixels of slice 3 as a High-Throughput JPEG 2000 codestream (ISO/IEC 15444-15): RPCL order, reversible.
const HTJ2K: &str = concat!(
    "ff4fff5100294000000000070000000500000000000000000000000700000005000000000000000000010b0101ff5000",
    "08000200000007ff52000c00020001000204044001ff5c000a2070787878707078ff90000a0000000000230001ff93c0",
    "0154a7bdeace6eea0181b400c00090fc12730000ffd9",
);

#[test]
fn high_throughput_jpeg_2000_reads_as_the_plain_one() {
    let folder = folder();
    let plain = made::write(folder.path(), "plain.dcm", made::slice(3));
    let expected = only(&plain).volume;
    let stream: Vec<u8> = (0..HTJ2K.len() / 2)
        .map(|at| u8::from_str_radix(&HTJ2K[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    for syntax in [uids::HTJ2K_LOSSLESS, uids::HTJ2K_LOSSLESS_RPCL, uids::HTJ2K] {
        let mut object = made::slice(3);
        let pixels = PixelFragmentSequence::new(Vec::new(), vec![stream.clone()]);
        object.put(DataElement::new(tags::PIXEL_DATA, VR::OB, pixels));
        let path = made::write_as(folder.path(), "packed.dcm", object, syntax);
        assert_eq!(only(&path).volume, expected, "{syntax}");
    }
}

#[test]
fn losslessly_compressed_slices_read_as_the_plain_one() {
    let folder = folder();
    let plain = made::write(folder.path(), "plain.dcm", made::slice(3));
    let expected = only(&plain).volume;
    let packed = folder.path().join("packed.dcm");
    for (tool, option) in [
        ("dcmcjpeg", "+e1"),
        ("dcmcjpeg", "+el"),
        ("dcmcrle", "+un"),
        ("gdcmconv", "--jpeg"),
        ("gdcmconv", "--j2k"),
        ("gdcmconv", "--rle"),
    ] {
        if run_tool(tool, &[option.as_ref(), &plain, &packed]).is_some() {
            assert_eq!(only(&packed).volume, expected, "{tool} {option}");
        }
    }
}
