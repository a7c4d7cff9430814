//! The same object in every way in which it can be written: the values that are read are the same, or the attribute that
//! cannot be read is named.

use std::io::Write;
use std::path::{Path, PathBuf};

use cdal::codec::{self, Case, CodecError, Source, seg};
use cdal::domain::{Label, Provenance, Segmentation, Volume};
use dicom_core::{Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_encoding::TransferSyntaxIndex;
use dicom_object::InMemDicomObject;
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;
use ndarray::{Array3, Array4};
use proptest::prelude::*;
use tempfile::{TempDir, tempdir};

use crate::codec_seg::provenance;
use crate::scripts::{run_python, run_tool};
use crate::synthetic::{self as made, put, put_numbers};

const BIG_ENDIAN: &str = "1.2.840.10008.1.2.2";
const SYNTAXES: [&str; 4] = [
    uids::IMPLICIT_VR_LITTLE_ENDIAN,
    uids::EXPLICIT_VR_LITTLE_ENDIAN,
    BIG_ENDIAN,
    uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
];

/// One element; the bytes are those of Implicit VR Little Endian.
#[derive(Debug, Clone)]
struct Element {
    tag: Tag,
    vr: [u8; 2],
    bytes: Vec<u8>,
}

impl Element {
    fn new(tag: Tag, vr: &str, bytes: &[u8]) -> Self {
        Self { tag, vr: vr.as_bytes().try_into().unwrap(), bytes: bytes.to_vec() }
    }

    fn write(&self, syntax: &str, out: &mut Vec<u8>) {
        let big = syntax == BIG_ENDIAN;
        let short = |n: u16| if big { n.to_be_bytes() } else { n.to_le_bytes() };
        let long = |n: u32| if big { n.to_be_bytes() } else { n.to_le_bytes() };
        out.extend([short(self.tag.0), short(self.tag.1)].concat());
        let length = self.bytes.len() as u32;
        let is_long = [b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC"].contains(&&self.vr);
        match syntax {
            uids::IMPLICIT_VR_LITTLE_ENDIAN => out.extend(long(length)),
            _ if is_long => out.extend([&self.vr[..], &[0, 0], &long(length)].concat()),
            _ => out.extend([&self.vr[..], &short(length as u16)].concat()),
        }
        let width = match &self.vr {
            b"US" | b"SS" | b"OW" => 2,
            b"UL" | b"SL" | b"FL" => 4,
            b"FD" => 8,
            _ => 1,
        };
        if big && width > 1 {
            out.extend(self.bytes.chunks(width).flat_map(|n| n.iter().rev()));
        } else {
            out.extend(&self.bytes);
        }
    }
}

/// The elements of an object without sequences.
fn elements(object: &InMemDicomObject) -> Vec<Element> {
    let mut bytes = Vec::new();
    let implicit = TransferSyntaxRegistry.get(uids::IMPLICIT_VR_LITTLE_ENDIAN).unwrap();
    object.write_dataset_with_ts(&mut bytes, implicit).unwrap();
    let mut rest = bytes.as_slice();
    let mut found = Vec::new();
    for element in object {
        let length = u32::from_le_bytes(rest[4..8].try_into().unwrap()) as usize;
        found.push(Element {
            tag: element.header().tag,
            vr: element.header().vr.to_bytes(),
            bytes: rest[8..8 + length].to_vec(),
        });
        rest = &rest[8 + length..];
    }
    found
}

fn change(elements: &mut [Element], tag: Tag, change: impl Fn(&mut Element)) {
    change(elements.iter_mut().find(|element| element.tag == tag).expect("it is there"));
}

fn data_set(elements: &[Element], syntax: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for element in elements {
        element.write(syntax, &mut bytes);
    }
    bytes
}

/// File meta information and data set.
fn part10(elements: &[Element], syntax: &str) -> Vec<u8> {
    with_meta(&data_set(elements, syntax), syntax)
}

fn with_meta(data: &[u8], syntax: &str) -> Vec<u8> {
    let uid = |text| cdal::domain::Uid::parse(text).unwrap();
    let class = uid(uids::MR_IMAGE_STORAGE);
    let mut file = codec::part10::header(&class, &uid("1.2.3.4.1"), &uid(syntax));
    if syntax == uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN {
        let mut deflated =
            flate2::write::DeflateEncoder::new(&mut file, flate2::Compression::fast());
        deflated.write_all(data).unwrap();
        deflated.finish().unwrap();
    } else {
        file.extend(data);
    }
    file
}

/// What is read of a file, and the segmentation that comes of it.
struct Read {
    volume: Volume,
    bytes: Vec<u8>,
    seg: InMemDicomObject,
}

fn read(bytes: &[u8]) -> Result<Read, CodecError> {
    let folder = tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, bytes).unwrap();
    let case = codec::read(&path)?.remove(0);
    let bytes = encode(&case)?;
    let seg = dicom_object::from_reader(bytes.as_slice()).unwrap();
    Ok(Read { volume: case.volume, bytes, seg: seg.into_inner() })
}

fn encode(case: &Case) -> Result<Vec<u8>, CodecError> {
    let Source::Dicom(source) = &case.source else { panic!("a DICOM source") };
    let (_, slices, rows, columns) = case.volume.samples.dim();
    let segmentation = Segmentation {
        mask: Array3::zeros((slices, rows, columns)),
        agreement: Array4::zeros((labels().len(), slices, rows, columns)),
    };
    let geometry = case.volume.geometry.as_ref();
    let form = seg::Form::default();
    let provenance: Provenance = provenance(1);
    seg::encode(form, source, geometry, &segmentation, &labels(), &provenance).map(|seg| seg.bytes)
}

/// In ASCII, which leaves the source's character set alone.
fn labels() -> Vec<Label> {
    let mut labels = crate::codec_seg::labels();
    labels[0].name = "Anterior".into();
    labels
}

/// A slice with everything in it that the program reads from a single-frame image.
fn slice() -> InMemDicomObject {
    let mut object = made::slice(1);
    put(&mut object, tags::SPECIFIC_CHARACTER_SET, VR::CS, "ISO_IR 192");
    put_numbers(&mut object, tags::RESCALE_SLOPE, &[1.5]);
    put_numbers(&mut object, tags::RESCALE_INTERCEPT, &[-1024.0]);
    put_numbers(&mut object, tags::WINDOW_CENTER, &[40.0, 300.0]);
    put_numbers(&mut object, tags::WINDOW_WIDTH, &[400.0, 1500.0]);
    put(&mut object, tags::VOILUT_FUNCTION, VR::CS, "LINEAR");
    put(&mut object, tags::NUMBER_OF_FRAMES, VR::IS, "1");
    put(&mut object, tags::STUDY_DESCRIPTION, VR::LO, "Kopf");
    put(&mut object, tags::PATIENT_AGE, VR::AS, "045Y");
    put(&mut object, tags::LOSSY_IMAGE_COMPRESSION, VR::CS, "01");
    put(&mut object, tags::LOSSY_IMAGE_COMPRESSION_RATIO, VR::DS, "7.5");
    put(&mut object, tags::LOSSY_IMAGE_COMPRESSION_METHOD, VR::CS, "ISO_10918_1");
    put(&mut object, tags::PLANAR_CONFIGURATION, VR::US, 0_u16);
    object
}

fn same(found: &Read, expected: &Read) {
    assert_eq!(found.volume, expected.volume);
    assert!(found.bytes == expected.bytes, "the segmentations differ");
}

fn is_text(vr: [u8; 2]) -> bool {
    ![b"US", b"SS", b"OW", b"OB"].contains(&&vr)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Own VR, UN, padded: for any choice of attributes, in every transfer syntax.
    #[test]
    fn values_are_the_same_however_they_are_stored(
        syntax in 0..SYNTAXES.len(),
        choices in prop::collection::vec(0_u8..5, 60),
    ) {
        let plain = elements(&slice());
        let expected = read(&part10(&plain, uids::EXPLICIT_VR_LITTLE_ENDIAN)).unwrap();
        let stored: Vec<Element> = plain.iter().zip(&choices).map(|(element, choice)| {
            let mut element = element.clone();
            let is_empty = element.bytes.is_empty();
            match choice {
                0 => element.vr = *b"UN",
                1 if is_text(element.vr) => element.bytes.extend(b"    "),
                2 if is_text(element.vr) && !is_empty => element.bytes.extend(b"\0\0\0\0"),
                3 if is_text(element.vr) && !is_empty => element.bytes.push(b' '),
                4 if [b"DS", b"IS", b"UI"].contains(&&element.vr) => {
                    element.vr = *b"LO";
                    element.bytes.splice(0..0, *b"  ");
                }
                _ => {}
            }
            element
        }).collect();
        same(&read(&part10(&stored, SYNTAXES[syntax])).unwrap(), &expected);
    }
}

#[test]
fn every_attribute_alone_may_be_unknown_in_every_transfer_syntax() {
    let plain = elements(&slice());
    let expected = read(&part10(&plain, uids::EXPLICIT_VR_LITTLE_ENDIAN)).unwrap();
    for syntax in SYNTAXES {
        same(&read(&part10(&plain, syntax)).unwrap(), &expected);
        for index in 0..plain.len() {
            let mut stored = plain.clone();
            stored[index].vr = *b"UN";
            same(&read(&part10(&stored, syntax)).unwrap(), &expected);
        }
    }
}

#[test]
fn numbers_of_another_representation_are_read_by_what_they_can_only_mean() {
    let plain = elements(&slice());
    let expected = read(&part10(&plain, uids::EXPLICIT_VR_LITTLE_ENDIAN)).unwrap();
    let doubles: Vec<u8> = [0.5_f64, 0.75].iter().flat_map(|n| n.to_le_bytes()).collect();
    let stored: [(Tag, &str, &[u8]); 13] = [
        (tags::PIXEL_SPACING, "UT", b"0.5\\0.75"),
        (tags::PIXEL_SPACING, "DS", b"0,5\\0,75"),
        (tags::PIXEL_SPACING, "DS", b" 0.500000\\\0.750000 \0".as_slice()),
        (tags::PIXEL_SPACING, "FD", &doubles),
        (tags::ROWS, "IS", b"5 "),
        (tags::ROWS, "LO", b"\x05\0"),
        (tags::ROWS, "UL", b"\x05\0\0\0"),
        (tags::ROWS, "SS", b"\x05\0"),
        (tags::SERIES_NUMBER, "US", b"\x03\0"),
        (tags::RESCALE_SLOPE, "OB", b"1.5 "),
        (tags::RESCALE_SLOPE, "ZZ", b"1.5 "),
        (tags::BITS_STORED, "UN", b"\x0c\0\0\0"),
        (tags::WINDOW_CENTER, "DS", b"40\\300\\"),
    ];
    for (tag, vr, bytes) in stored {
        let mut stored = plain.clone();
        change(&mut stored, tag, |element| *element = Element::new(tag, vr, bytes));
        let file = part10(&stored, uids::EXPLICIT_VR_LITTLE_ENDIAN);
        let found = read(&file).unwrap_or_else(|error| panic!("{vr}: {error}"));
        assert_eq!(found.volume, expected.volume, "{tag} as {vr}");
    }
}

#[test]
fn a_value_that_cannot_be_read_is_named_and_never_taken_for_an_absent_one() {
    let plain = elements(&slice());
    let stored: [(Tag, &str, &[u8], &str); 10] = [
        (tags::PIXEL_SPACING, "DS", b"wide\\high", "PixelSpacing (0028,0030)"),
        (tags::PIXEL_SPACING, "DS", b"1.000,5\\1", "PixelSpacing (0028,0030)"),
        (tags::IMAGE_POSITION_PATIENT, "DS", b"1\\2\\x ", "ImagePositionPatient (0020,0032)"),
        (tags::IMAGE_ORIENTATION_PATIENT, "DS", b"1\\0\\0\\0\\1\\?", "ImageOrientationPatient"),
        (tags::RESCALE_SLOPE, "DS", b"NaN ", "RescaleSlope (0028,1053)"),
        (tags::RESCALE_SLOPE, "US", b"1 ", "RescaleSlope (0028,1053)"),
        (tags::WINDOW_CENTER, "DS", b"auto", "WindowCenter (0028,1050)"),
        (tags::ROWS, "DS", b"5.5 ", "Rows (0028,0010)"),
        (tags::ROWS, "UN", b"512 ", "Rows (0028,0010)"),
        (tags::NUMBER_OF_FRAMES, "IS", b"-1", "NumberOfFrames (0028,0008)"),
    ];
    for (tag, vr, bytes, name) in stored {
        let mut stored = plain.clone();
        change(&mut stored, tag, |element| *element = Element::new(tag, vr, bytes));
        let error =
            read(&part10(&stored, uids::EXPLICIT_VR_LITTLE_ENDIAN)).map(|_| ()).unwrap_err();
        // Where a slice lies is read by the description of its series, which names the attribute by its keyword.
        let (is_plane, keyword) =
            (matches!(error, CodecError::NoPlane { .. }), name.split(' ').next().unwrap());
        assert!(is_plane || matches!(error, CodecError::Attribute { .. }), "{error}");
        assert!(error.to_string().contains(if is_plane { keyword } else { name }), "{error}");
    }
}

#[test]
fn an_element_that_stands_twice_with_different_values_is_refused_where_it_is_needed() {
    let mut stored = elements(&slice());
    let at = stored.iter().position(|element| element.tag == tags::RESCALE_SLOPE).unwrap();
    stored.insert(at, stored[at].clone());
    assert!(read(&part10(&stored, uids::EXPLICIT_VR_LITTLE_ENDIAN)).is_ok(), "the same twice");
    stored[at].bytes = b"2.5 ".to_vec();
    let error = read(&part10(&stored, uids::EXPLICIT_VR_LITTLE_ENDIAN)).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("stands twice"), "{error}");
}

/// Sequences of an enhanced image as UN: of defined and of undefined length, in Implicit VR and, wrongly, in Explicit VR.
#[test]
fn functional_groups_stored_as_unknown_are_read() {
    let object = made::enhanced(&[2, 0, 1]);
    let folder = tempdir().unwrap();
    let path = made::write(folder.path(), "enhanced.dcm", object.clone());
    let expected = codec::read(&path).unwrap().remove(0).volume;
    let whole = std::fs::read(&path).unwrap();
    let coded = |syntax| {
        let mut one = InMemDicomObject::new_empty();
        one.put(object.get(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE).unwrap().clone());
        let mut bytes = Vec::new();
        one.write_dataset_with_ts(&mut bytes, TransferSyntaxRegistry.get(syntax).unwrap()).unwrap();
        bytes
    };
    let explicit = coded(uids::EXPLICIT_VR_LITTLE_ENDIAN);
    let at = whole.windows(12).position(|bytes| bytes == &explicit[..12]).unwrap();
    let after = &whole[at + explicit.len()..];
    // Written with undefined length, and so with a delimiter at the end.
    let implicit = coded(uids::IMPLICIT_VR_LITTLE_ENDIAN);
    for items in [&implicit[8..], &explicit[12..]] {
        let defined = items.len() as u32 - 8;
        for (length, items) in [(defined, &items[..items.len() - 8]), (u32::MAX, items)] {
            let unknown =
                [b"\0\x52\x30\x92UN\0\0".as_slice(), &length.to_le_bytes(), items].concat();
            std::fs::write(&path, [&whole[..at], &unknown, after].concat()).unwrap();
            assert_eq!(codec::read(&path).unwrap().remove(0).volume, expected);
        }
    }
}

#[test]
fn a_private_element_of_an_unknown_representation_costs_no_image() {
    let plain = elements(&slice());
    let expected = read(&part10(&plain, uids::EXPLICIT_VR_LITTLE_ENDIAN)).unwrap();
    let file = part10(&plain, uids::EXPLICIT_VR_LITTLE_ENDIAN);
    let at = file.windows(6).position(|w| w == b"\x10\0\x10\0PN").unwrap();
    let private: [&[u8]; 4] = [
        b"\x09\0\x01\x10ZZ\0\0\x04\0\0\0ABCD",
        b"\x09\0\x01\x10ZZ\x04\0ABCD",
        b"\x09\0\x01\x10\x04\0\0\0ABCD",
        b"\x09\0\x01\x10UN\x04\0ABCD",
    ];
    for element in private {
        let stored = [&file[..at], element, &file[at..]].concat();
        same(&read(&stored).unwrap(), &expected);
        let folder = tempdir().unwrap();
        let path = folder.path().join("private.dcm");
        std::fs::write(&path, stored).unwrap();
        assert_eq!(codec::dicom::identify(&path).unwrap().series.as_str(), "1.2.3.2");
    }
    let neither = b"\x09\0\x01\x10ZZ\x01\0\xff\xff\0\0".as_slice();
    let error = read(&[&file[..at], neither, &file[at..]].concat()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("the private element (0009,1001) at byte"), "{error}");
}

#[test]
fn identity_is_found_in_unknown_and_padded_values() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("image.dcm");
    let mut stored = elements(&slice());
    for tag in [tags::SOP_CLASS_UID, tags::SOP_INSTANCE_UID, tags::SERIES_INSTANCE_UID] {
        change(&mut stored, tag, |element| {
            element.vr = *b"UN";
            element.bytes = [b"  ".as_slice(), &element.bytes, b" \0\0"].concat();
        });
    }
    for syntax in SYNTAXES {
        std::fs::write(&path, part10(&stored, syntax)).unwrap();
        let found = codec::dicom::identify(&path).unwrap();
        assert_eq!(found.sop_class.as_str(), uids::MR_IMAGE_STORAGE);
        assert_eq!(found.sop_instance.as_str(), "1.2.3.4.2");
        assert_eq!(found.series.as_str(), "1.2.3.2");
        assert_eq!(found.transfer_syntax.as_str(), syntax);
    }
}

#[test]
fn files_without_preamble_or_mark_are_read_by_their_content() {
    let plain = elements(&slice());
    let whole = part10(&plain, uids::EXPLICIT_VR_LITTLE_ENDIAN);
    let expected = read(&whole).unwrap();
    let implicit = data_set(&plain, uids::IMPLICIT_VR_LITTLE_ENDIAN);
    let [explicit, big] =
        [uids::EXPLICIT_VR_LITTLE_ENDIAN, BIG_ENDIAN].map(|s| data_set(&plain, s));
    for bytes in [&implicit, &explicit, &big, &whole[128..], &whole[132..]] {
        same(&read(bytes).unwrap(), &expected);
        let folder = tempdir().unwrap();
        let path = folder.path().join("IM0001");
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(codec::sniff(&path).unwrap(), Some(codec::Format::Dicom));
        assert_eq!(codec::dicom::identify(&path).unwrap().series.as_str(), "1.2.3.2");
    }
    let error = read(b"no image at all, but long enough to be one").map(|_| ()).unwrap_err();
    assert!(matches!(error, CodecError::NoImage { .. }));
}

#[test]
fn a_slice_without_preamble_among_others_does_not_drop_out() {
    let folder = tempdir().unwrap();
    made::series(folder.path(), 4, |_, _| {});
    let expected = codec::read(folder.path()).unwrap().remove(0).volume;
    for name in ["001.dcm", "004.dcm"] {
        let path = folder.path().join(name);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(folder.path().join(&name[..3]), codec::part10::dataset(&bytes).unwrap())
            .unwrap();
        assert_eq!(codec::read(folder.path()).unwrap().remove(0).volume, expected);
    }
}

/// The file meta information names one syntax, and the data set is in another.
#[test]
fn a_data_set_in_another_syntax_than_declared_is_read_as_it_is() {
    let plain = elements(&slice());
    let expected = read(&part10(&plain, uids::EXPLICIT_VR_LITTLE_ENDIAN)).unwrap();
    let [implicit, explicit] = [uids::IMPLICIT_VR_LITTLE_ENDIAN, uids::EXPLICIT_VR_LITTLE_ENDIAN];
    same(&read(&with_meta(&data_set(&plain, explicit), implicit)).unwrap(), &expected);
    same(&read(&with_meta(&data_set(&plain, implicit), explicit)).unwrap(), &expected);
}

#[test]
fn what_stands_behind_the_data_set_does_not_matter() {
    let plain = elements(&slice());
    for syntax in [uids::EXPLICIT_VR_LITTLE_ENDIAN, uids::IMPLICIT_VR_LITTLE_ENDIAN] {
        let file = part10(&plain, syntax);
        let expected = read(&file).unwrap();
        let padding = Element::new(Tag(0xFFFC, 0xFFFC), "OB", &[0; 64]);
        let mut standard = Vec::new();
        padding.write(syntax, &mut standard);
        let half = b"\xfc\xff\xfc\xffOB".to_vec();
        for tail in [vec![0; 512], vec![0], b"\n-- end --\n".to_vec(), half, standard] {
            same(&read(&[file.as_slice(), &tail].concat()).unwrap(), &expected);
        }
    }
}

#[test]
fn a_cut_file_says_which_element_is_cut_and_where() {
    let file = part10(&elements(&slice()), uids::EXPLICIT_VR_LITTLE_ENDIAN);
    let error = read(&file[..file.len() - 9]).map(|_| ()).unwrap_err();
    assert!(matches!(error, CodecError::Truncated { needed: 82, present: 73, .. }), "{error:?}");
    assert!(error.to_string().contains("PixelData (7FE0,0010) at byte"), "{error}");
    // Of a deflated data set as well.
    let deflated = part10(&elements(&slice()), uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN);
    let error = read(&deflated[..deflated.len() - 9]).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("ends too early"), "{error}");
}

/// Compressed frames of the slices 0, 1, 2 by an outside tool; `None` where it is not installed.
fn streams(tool: &str, option: &str) -> Option<Vec<Vec<u8>>> {
    let folder = tempdir().unwrap();
    let packed = folder.path().join("packed.dcm");
    (0..3)
        .map(|index| {
            let plain = made::write(folder.path(), "plain.dcm", made::slice(index));
            run_tool(tool, &[option.as_ref(), &plain, &packed])?;
            // Not every version of the tools packs so small an image.
            let bytes = std::fs::read(&packed).ok()?;
            let at = bytes.windows(6).position(|w| w == b"\xe0\x7f\x10\0OB").unwrap() + 12;
            // An item with the offset table, one with the frame.
            let table = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
            let frame = at + 8 + table;
            let length = u32::from_le_bytes(bytes[frame + 4..frame + 8].try_into().unwrap());
            Some(bytes[frame + 8..frame + 8 + length as usize].to_vec())
        })
        .collect()
}

/// An enhanced image of three slices, its pixels these fragments.
fn encapsulated(folder: &Path, syntax: &str, fragments: &[&[u8]], closed: bool) -> PathBuf {
    let path = made::write(folder, "enhanced.dcm", made::enhanced(&[0, 1, 2]));
    let bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(6).position(|w| w == b"\xe0\x7f\x10\0OW").unwrap();
    let data = bytes[..at].to_vec();
    let start = bytes.len() - codec::part10::dataset(&bytes).unwrap().len();
    let mut data = data[start..].to_vec();
    data.extend(b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\0\0\0\0");
    for fragment in fragments {
        data.extend(b"\xfe\xff\0\xe0");
        data.extend((fragment.len() as u32).to_le_bytes());
        data.extend(*fragment);
    }
    if closed {
        data.extend(b"\xfe\xff\xdd\xe0\0\0\0\0");
    }
    std::fs::write(&path, with_meta(&data, syntax)).unwrap();
    path
}

#[test]
fn frames_of_several_fragments_are_told_apart_without_an_offset_table() {
    let folder = tempdir().unwrap();
    let path = made::write(folder.path(), "plain.dcm", made::enhanced(&[0, 1, 2]));
    let expected = codec::read(&path).unwrap().remove(0).volume;
    for (tool, option, syntax) in [
        ("gdcmconv", "--j2k", uids::JPEG2000_LOSSLESS),
        ("dcmcjpeg", "+e1", uids::JPEG_LOSSLESS_SV1),
    ] {
        let Some(streams) = streams(tool, option) else { continue };
        let parts: Vec<&[u8]> = streams
            .iter()
            .enumerate()
            .flat_map(|(frame, stream)| stream.chunks(stream.len() / (frame + 1) / 2 * 2 + 2))
            .collect();
        assert!(parts.len() > 3, "some frames have several");
        let whole: Vec<&[u8]> = streams.iter().map(Vec::as_slice).collect();
        for (fragments, closed) in
            [(&parts, true), (&parts, false), (&whole, true), (&whole, false)]
        {
            let path = encapsulated(folder.path(), syntax, fragments, closed);
            let found = codec::read(&path).unwrap_or_else(|error| panic!("{tool}: {error}"));
            assert_eq!(found[0].volume, expected, "{tool}");
        }
        // Cut between two fragments, which only the missing end of the stream and the delimiter tell.
        let cut = encapsulated(folder.path(), syntax, &parts[..parts.len() - 1], false);
        let error = codec::read(&cut).unwrap_err();
        assert!(error.to_string().contains("ends too early"), "{error}");
        let missing = encapsulated(folder.path(), syntax, &parts[..1], true);
        let error = codec::read(&missing).unwrap_err();
        assert!(error.to_string().contains("1 fragments for 3 frames"), "{error}");
    }
}

const NAMES: [(&str, &[u8]); 20] = [
    (
        "\\ISO 2022 IR 87",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
    ),
    (
        "ISO 2022 IR 13\\ISO 2022 IR 87",
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J",
    ),
    ("\\ISO 2022 IR 87\\ISO 2022 IR 159", b"A^B=\x1b$(D0!\x1b(B"),
    ("\\ISO 2022 IR 149", b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7"),
    ("\\ISO 2022 IR 58", b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab="),
    ("GB18030", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab="),
    ("GBK", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab="),
    ("ISO_IR 192", "Кузнецова^Анна".as_bytes()),
    ("ISO_IR 100", b"M\xfcller^J\xf6rg"),
    ("ISO IR 100", b"M\xfcller^J\xf6rg"),
    ("ISO 2022 IR 6\\ISO 2022 IR 100", b"M\x1b-A\xfcller^J\x1b-A\xf6rg"),
    ("ISO_IR 101", b"\xa3\xb1czny^\xa6wit"),
    ("ISO_IR 126", b"\xc4\xe9\xef\xed"),
    ("ISO_IR 127", b"\xe2\xc8\xc7\xe6\xea"),
    ("ISO_IR 138", b"\xf9\xf8\xe5\xef"),
    ("ISO_IR 144", b"\xbb\xee\xda"),
    ("ISO_IR 148", b"\xc7avu\xfeo\xf0lu"),
    ("ISO_IR 166", b"\xb9\xd2\xc1"),
    ("", b"M\xfcller^undeclared"),
    ("ISO_IR 4711", b"M\xfcller^unknown"),
];

#[test]
fn a_name_keeps_its_bytes_and_its_character_set() {
    for (set, name) in NAMES {
        let mut stored = elements(&slice());
        change(&mut stored, tags::SPECIFIC_CHARACTER_SET, |e| e.bytes = set.as_bytes().to_vec());
        change(&mut stored, tags::PATIENT_NAME, |e| e.bytes = name.to_vec());
        let folder = folder_of(&part10(&stored, uids::EXPLICIT_VR_LITTLE_ENDIAN));
        let file = encode(&codec::read(folder.path()).unwrap()[0]).unwrap();
        for (tag, vr, expected) in
            [(tags::SPECIFIC_CHARACTER_SET, "CS", set.as_bytes()), (tags::PATIENT_NAME, "PN", name)]
        {
            let mut element = Vec::new();
            let mut bytes = expected.to_vec();
            bytes.resize(bytes.len().next_multiple_of(2), b' ');
            Element::new(tag, vr, &bytes).write(uids::EXPLICIT_VR_LITTLE_ENDIAN, &mut element);
            let is_there = file.windows(element.len()).any(|window| window == element);
            assert_eq!(is_there, !expected.is_empty(), "{set} {tag}");
        }
    }
}

/// pydicom, which knows the sets, finds the same name in source and segmentation, and the same bytes.
#[test]
fn outside_readers_find_the_same_patient_in_image_and_segmentation() {
    let folder = tempdir().unwrap();
    let mut arguments = Vec::new();
    for (index, (set, name)) in NAMES.iter().enumerate() {
        let mut stored = elements(&slice());
        stored.retain(|e| e.tag != tags::SPECIFIC_CHARACTER_SET || !set.is_empty());
        for element in &mut stored {
            match element.tag {
                tags::SPECIFIC_CHARACTER_SET => element.bytes = set.as_bytes().to_vec(),
                tags::PATIENT_NAME => element.bytes = name.to_vec(),
                // What is text stays text whatever it is stored as.
                tags::PATIENT_ID if index % 2 == 0 => element.vr = *b"UN",
                _ => {}
            }
        }
        let source = folder.path().join(format!("{index}.dcm"));
        std::fs::write(&source, part10(&stored, uids::EXPLICIT_VR_LITTLE_ENDIAN)).unwrap();
        let case = codec::read(&source).unwrap().remove(0);
        let seg = folder.path().join(format!("{index}.seg.dcm"));
        std::fs::write(&seg, encode(&case).unwrap()).unwrap();
        arguments.extend([source, seg]);
    }
    let arguments: Vec<&Path> = arguments.iter().map(PathBuf::as_path).collect();
    run_python("check_patient.py", &arguments);
}

#[test]
fn a_name_of_seventy_thousand_characters_costs_no_mask() {
    let name = vec![b'X'; 70_000];
    for vr in ["PN", "UN"] {
        let mut stored = elements(&slice());
        change(&mut stored, tags::PATIENT_NAME, |e| *e = Element::new(e.tag, vr, &name));
        let syntax = if vr == "UN" {
            uids::EXPLICIT_VR_LITTLE_ENDIAN
        } else {
            uids::IMPLICIT_VR_LITTLE_ENDIAN
        };
        let found = read(&part10(&stored, syntax)).unwrap().seg;
        let element = found.get(tags::PATIENT_NAME).unwrap();
        assert_eq!(element.header().vr, VR::UN, "the VR with the longer length");
        assert_eq!(element.value().primitive().unwrap().to_bytes().len(), 70_000);
        assert_eq!(found.get(tags::PATIENT_ID).unwrap().to_str().unwrap(), made::PATIENT_ID);
    }
}

fn folder_of(bytes: &[u8]) -> TempDir {
    let folder = tempdir().unwrap();
    std::fs::write(folder.path().join("image.dcm"), bytes).unwrap();
    folder
}

#[test]
fn labels_that_are_not_ascii_make_the_text_unicode() {
    let mut stored = elements(&slice());
    change(&mut stored, tags::SPECIFIC_CHARACTER_SET, |e| e.bytes = b"ISO_IR 148".to_vec());
    change(&mut stored, tags::PATIENT_NAME, |e| e.bytes = b"\xc7avu\xfeo\xf0lu ".to_vec());
    let folder = folder_of(&part10(&stored, uids::EXPLICIT_VR_LITTLE_ENDIAN));
    let case = codec::read(folder.path()).unwrap().remove(0);
    let Source::Dicom(source) = &case.source else { panic!("a DICOM source") };
    let mut labels = labels();
    labels[0].name = "Großhirn".into();
    let segmentation = Segmentation {
        mask: Array3::zeros((1, 5, 7)),
        agreement: Array4::zeros((labels.len(), 1, 5, 7)),
    };
    let geometry = case.volume.geometry.as_ref();
    let form = seg::Form::default();
    let seg = seg::encode(form, source, geometry, &segmentation, &labels, &provenance(1)).unwrap();
    let object = dicom_object::from_reader(seg.bytes.as_slice()).unwrap();
    let text = |tag| object.element(tag).unwrap().to_str().unwrap().trim().to_owned();
    assert_eq!(text(tags::SPECIFIC_CHARACTER_SET), "ISO_IR 192");
    assert_eq!(text(tags::PATIENT_NAME), "Çavuşoğlu");
    let label = &object.element(tags::SEGMENT_SEQUENCE).unwrap().items().unwrap()[0];
    assert_eq!(label.element(tags::SEGMENT_LABEL).unwrap().to_str().unwrap().trim(), "Großhirn");
}

/// Inputs for the fuzzer: one object in different ways of writing it.
pub(crate) fn kept() -> Vec<(&'static str, Vec<u8>)> {
    let plain = elements(&slice());
    let all_unknown: Vec<_> =
        plain.iter().map(|element| Element { vr: *b"UN", ..element.clone() }).collect();
    let (explicit, implicit) = (uids::EXPLICIT_VR_LITTLE_ENDIAN, uids::IMPLICIT_VR_LITTLE_ENDIAN);
    let mut japanese = plain.clone();
    change(&mut japanese, tags::SPECIFIC_CHARACTER_SET, |e| e.bytes = NAMES[0].0.into());
    change(&mut japanese, tags::PATIENT_NAME, |e| e.bytes = NAMES[0].1.into());
    let folder = tempdir().unwrap();
    let fragments: [&[u8]; 4] =
        [b"\xff\xd8\xff\xd9", b"\xff\xd8\xff", b"\xff\xd9", b"\xff\xd8\xff\xd9"];
    let fragments = encapsulated(folder.path(), uids::JPEG_BASELINE8_BIT, &fragments, false);
    vec![
        ("unknown", part10(&all_unknown, explicit)),
        ("big-endian", part10(&plain, BIG_ENDIAN)),
        ("deflated", part10(&plain, uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)),
        ("bare", data_set(&plain, implicit)),
        ("japanese", part10(&japanese, explicit)),
        ("fragments", std::fs::read(fragments).unwrap()),
        ("trailing", [part10(&plain, implicit), vec![0; 16]].concat()),
    ]
}
