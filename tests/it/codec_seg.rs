//! DICOM Segmentation objects, held against the standard (dciodvfy) and against highdicom.

use std::path::{Path, PathBuf};

use cdal::codec::{self, Case, CodecError, Source, capture, nifti, seg};
use cdal::domain::{Code, Label, Provenance, Segmentation};
use dicom_core::VR;
use dicom_dictionary_std::tags;
use ndarray::{Array3, Array4};
use tempfile::tempdir;

use crate::scripts::{run_python, run_tool};
use crate::synthetic::{self as made, put};

fn code(value: &str, meaning: &str) -> Code {
    Code { value: value.into(), scheme: "SCT".into(), meaning: meaning.into() }
}

pub(crate) fn labels() -> Vec<Label> {
    let label = |value, name: &str, colour| Label {
        value,
        name: name.into(),
        colour,
        category: code("91723000", "Anatomical Structure"),
        kind: code("5366008", "Hippocampus"),
    };
    vec![label(1, "Anterior, vördere", [255, 0, 0]), label(2, "Posterior", [0, 255, 0])]
}

pub(crate) fn provenance(seed: u64) -> Provenance {
    Provenance {
        model: "hippocampus".into(),
        model_version: "1.2.0".into(),
        model_digest: "0123456789abcdef".repeat(4),
        precision: cdal::domain::Precision::Fp32,
        steps: 2,
        votes: 5,
        ending: "exact drawn=3.20 dice=1.0000".into(),
        seed,
        software_version: "0.1.0".into(),
        configuration: "7".into(),
    }
}

/// A mask without any symmetry, so that a flip or a shift shows.
fn segmentation(case: &Case) -> Segmentation {
    let (_, slices, rows, columns) = case.volume.samples.dim();
    let mask = Array3::from_shape_fn((slices, rows, columns), |(k, j, i)| {
        u8::try_from((k * 31 + j * 17 + i * 7 + i * i * j) % 11 % 3).unwrap()
    });
    Segmentation { agreement: Array4::ones((2, slices, rows, columns)), mask }
}

fn encode(case: &Case, segmentation: &Segmentation, seed: u64) -> seg::Seg {
    let Source::Dicom(source) = &case.source else { panic!("a DICOM source") };
    let geometry = case.volume.geometry.as_ref();
    seg::encode(seg::Form::default(), source, geometry, segmentation, &labels(), &provenance(seed))
        .unwrap()
}

/// dciodvfy has nothing to say against it.
fn judge(object: &Path) {
    if let Some(text) = run_tool("dciodvfy", &[Path::new("-new"), object]) {
        let faults: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("Error") || line.starts_with("Warning"))
            // Copied as they are in the source, for better or worse.
            .filter(|line| !["</PatientName", "</ReferringP"].iter().any(|n| line.contains(n)))
            .collect();
        assert!(faults.is_empty(), "{faults:#?}");
    }
}

/// Encodes, then lets every outside judge look at it.
fn check(case: &Case, segmentation: &Segmentation, sources: &[PathBuf]) {
    let folder = tempdir().unwrap();
    let seg = folder.path().join("seg.dcm");
    std::fs::write(&seg, encode(case, segmentation, 1).bytes).unwrap();
    assert_eq!(seg::read(&seg, case, &labels()).unwrap(), segmentation.mask);
    judge(&seg);
    let mask = folder.path().join("mask.nii.gz");
    let bytes = nifti::encode_mask(&case.source, case.volume.geometry.as_ref(), &segmentation.mask)
        .unwrap();
    std::fs::write(&mask, bytes).unwrap();
    let mut arguments = vec![seg.as_path(), mask.as_path()];
    arguments.extend(sources.iter().map(PathBuf::as_path));
    if let Some(printed) = run_python("check_seg.py", &arguments) {
        println!("{}: {printed}", case.name);
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn only(path: &Path) -> Case {
    codec::read(path).unwrap().remove(0)
}

#[test]
fn the_mask_of_an_oblique_series_is_found_again_voxel_by_voxel() {
    let folder = tempdir().unwrap();
    made::series(folder.path(), 4, |_, _| {});
    let case = only(folder.path());
    check(&case, &segmentation(&case), &files(folder.path()));
}

#[test]
fn an_empty_mask_still_has_all_its_frames() {
    let folder = tempdir().unwrap();
    made::series(folder.path(), 3, |_, _| {});
    let case = only(folder.path());
    let mut empty = segmentation(&case);
    empty.mask.fill(0);
    check(&case, &empty, &files(folder.path()));
}

#[test]
fn frames_of_an_enhanced_image_are_referenced_by_number() {
    let folder = tempdir().unwrap();
    let path = made::write(folder.path(), "enhanced.dcm", made::enhanced(&[2, 0, 1]));
    let case = only(&path);
    check(&case, &segmentation(&case), &[path]);
}

#[test]
fn a_radiograph_without_frame_of_reference_is_mapped_by_its_instance() {
    let folder = tempdir().unwrap();
    let path = made::write(folder.path(), "cr.dcm", made::radiograph());
    let case = only(&path);
    check(&case, &segmentation(&case), &[path]);
}

#[test]
fn a_series_without_frame_of_reference_gets_one_of_its_own() {
    let folder = tempdir().unwrap();
    made::series(folder.path(), 3, |_, object| {
        object.remove_element(tags::FRAME_OF_REFERENCE_UID);
    });
    let case = only(folder.path());
    check(&case, &segmentation(&case), &files(folder.path()));
}

#[test]
fn what_was_lossy_stays_lossy() {
    let folder = tempdir().unwrap();
    made::series(folder.path(), 2, |_, object| {
        put(object, tags::LOSSY_IMAGE_COMPRESSION, VR::CS, "01");
        put(object, tags::LOSSY_IMAGE_COMPRESSION_RATIO, VR::DS, "12.5");
        put(object, tags::LOSSY_IMAGE_COMPRESSION_METHOD, VR::CS, "ISO_10918_1");
    });
    let case = only(folder.path());
    check(&case, &segmentation(&case), &files(folder.path()));
}

#[test]
fn the_same_input_gives_the_same_bytes_and_another_seed_another_uid() {
    let folder = tempdir().unwrap();
    made::series(folder.path(), 3, |_, _| {});
    let case = only(folder.path());
    let mask = segmentation(&case);
    let (first, again, other) =
        (encode(&case, &mask, 1), encode(&case, &mask, 1), encode(&case, &mask, 2));
    assert_eq!(first.bytes, again.bytes);
    assert_ne!(first.sop_instance_uid, other.sop_instance_uid);
    let mut changed = mask.clone();
    changed.mask[[0, 0, 0]] = 2;
    assert_ne!(first.sop_instance_uid, encode(&case, &changed, 1).sop_instance_uid);
}

#[test]
fn the_agreement_of_the_votes_is_found_again_in_a_fractional_segmentation() {
    let folder = tempdir().unwrap();
    made::series(folder.path(), 4, |_, _| {});
    let case = only(folder.path());
    let Source::Dicom(source) = &case.source else { panic!("a DICOM source") };
    let mut segmentation = segmentation(&case);
    for ((label, k, j, i), share) in segmentation.agreement.indexed_iter_mut() {
        *share = ((13 * (label + 1) + 31 * k + 17 * j + 7 * i) % 6) as f32 / 5.0;
    }
    let encode = |kind, revision| {
        let (form, geometry) = (seg::Form { kind, revision }, case.volume.geometry.as_ref());
        seg::encode(form, source, geometry, &segmentation, &labels(), &provenance(1)).unwrap()
    };
    let fractional = encode(seg::Kind::Fractional, 2);
    let mut uids = vec![fractional.sop_instance_uid.clone()];
    uids.extend([1, 2].map(|revision| encode(seg::Kind::Binary, revision).sop_instance_uid));
    uids.dedup();
    assert_eq!(uids.len(), 3, "each kind and revision has its own UID");

    let files_before = files(folder.path());
    let path = folder.path().join("fractional.dcm");
    std::fs::write(&path, fractional.bytes).unwrap();
    judge(&path);
    let mut arguments = vec![path.as_path()];
    arguments.extend(files_before.iter().map(PathBuf::as_path));
    run_python("check_fractional.py", &arguments);
}

#[test]
fn a_secondary_capture_shows_the_labels_and_is_what_the_standard_wants() {
    let folder = tempdir().unwrap();
    made::series(folder.path(), 4, |_, object| {
        put(object, tags::BODY_PART_EXAMINED, VR::CS, "BRAIN"); // unpaired: no laterality is missed
    });
    let case = only(folder.path());
    let Source::Dicom(source) = &case.source else { panic!("a DICOM source") };
    let segmentation = segmentation(&case);
    let encode = |revision| {
        let (volume, labels) = (&case.volume, labels());
        capture::encode(revision, source, volume, &segmentation, &labels, &provenance(1)).unwrap()
    };
    let (first, again, late) = (encode(1), encode(1), encode(2));
    assert_eq!(first.bytes, again.bytes);
    assert_ne!(first.sop_instance_uid, late.sop_instance_uid);
    let path = folder.path().join("capture.dcm");
    std::fs::write(&path, &first.bytes).unwrap();
    judge(&path);
    let object = dicom_object::open_file(&path).unwrap();
    let number = |tag| object.element(tag).unwrap().to_int::<usize>().unwrap();
    let pixels = object.element(tags::PIXEL_DATA).unwrap().to_bytes().unwrap();
    assert_eq!(pixels.len(), number(tags::ROWS) * number(tags::COLUMNS) * 3);
    let coloured =
        pixels.chunks_exact(3).filter(|rgb| rgb[0] != rgb[1] || rgb[1] != rgb[2]).count();
    assert!(coloured > 0, "the labels are drawn in colour");
}

#[test]
fn masks_that_do_not_fit_are_refused() {
    let folder = tempdir().unwrap();
    made::series(folder.path(), 3, |_, _| {});
    let case = only(folder.path());
    let Source::Dicom(source) = &case.source else { panic!("a DICOM source") };
    let good = segmentation(&case);
    let attempt = |mask: Segmentation, labels: &[Label]| {
        let (form, geometry) = (seg::Form::default(), case.volume.geometry.as_ref());
        seg::encode(form, source, geometry, &mask, labels, &provenance(1))
    };
    let mut few = good.clone();
    few.agreement = Array4::ones((1, 3, 5, 7));
    assert!(matches!(attempt(few, &labels()), Err(CodecError::Shape { .. })));
    let mut small = good.clone();
    small.mask = Array3::zeros((2, 5, 7));
    assert!(matches!(attempt(small, &labels()), Err(CodecError::Shape { .. })));
    let mut unknown = good.clone();
    unknown.mask[[0, 0, 0]] = 3;
    assert!(matches!(attempt(unknown, &labels()), Err(CodecError::Shape { .. })));
    assert!(matches!(attempt(good, &labels()[1..]), Err(CodecError::Shape { .. })));
}

fn named(value: u8, kind: &str) -> Label {
    Label { value, name: kind.into(), kind: code(kind, kind), ..labels()[0].clone() }
}

#[test]
fn segments_are_known_by_their_code_before_their_number() {
    let folder = tempdir().unwrap();
    made::series(folder.path(), 3, |_, _| {});
    let case = only(folder.path());
    let Source::Dicom(source) = &case.source else { panic!("a DICOM source") };
    let written = segmentation(&case);
    let theirs = [named(1, "Lung"), named(2, "Heart")];
    let geometry = case.volume.geometry.as_ref();
    let bytes =
        seg::encode(seg::Form::default(), source, geometry, &written, &theirs, &provenance(1))
            .unwrap()
            .bytes;
    let path = folder.path().join("truth.seg");
    std::fs::write(&path, bytes).unwrap();
    assert!(seg::is_segmentation(&path).unwrap());
    let read = |labels: &[Label]| seg::read(&path, &case, labels);

    let turned = read(&[named(1, "Heart"), named(2, "Lung")]).unwrap();
    assert_eq!(turned, written.mask.mapv(|value| [0, 2, 1][usize::from(value)]));
    // No code of ours is among theirs: the numbers decide.
    assert_eq!(read(&labels()).unwrap(), written.mask);
    for known in ["Lung", "Liver"] {
        let refused = read(&[named(1, known)]).unwrap_err().to_string();
        assert!(refused.contains("segment 2 (Heart), which is none of the"), "{refused}");
    }

    // Another series half a voxel away, and one that ends a slice earlier.
    let elsewhere = |keep: usize, shift: f64| {
        let folder = tempdir().unwrap();
        made::series(folder.path(), keep, |slice, object| {
            let moved = made::position(slice).map(|x| x + shift * 3.0_f64.sqrt().recip());
            made::put_numbers(object, tags::IMAGE_POSITION_PATIENT, &moved);
        });
        let refused = seg::read(&path, &only(folder.path()), &theirs).unwrap_err().to_string();
        assert!(refused.contains("no voxel of the image"), "{refused}");
    };
    elsewhere(3, 1.0);
    elsewhere(2, 0.0);
}

/// Objects made by dcmqi, where `CDAL_SAMPLES` names a folder with some: a series and the same as one enhanced image
/// have one truth.
#[test]
fn segmentations_of_others_lie_on_their_images() {
    let Some(folders) = std::env::var_os("CDAL_SAMPLES") else {
        println!("skipped: no CDAL_SAMPLES");
        return;
    };
    let mut folders: Vec<PathBuf> = std::env::split_paths(&folders).collect();
    while let Some(folder) = folders.pop() {
        folders.extend(files(&folder).into_iter().filter(|path| path.is_dir()));
        let path = folder.join("seg/label.seg");
        if !path.is_file() {
            continue;
        }
        let labels: Vec<Label> = (1..=9).map(|value| named(value, "unknown")).collect();
        let truth = |image: &str| seg::read(&path, &only(&folder.join(image)), &labels).unwrap();
        let (series, enhanced) = (truth("image"), truth("multiframe"));
        let marked = series.iter().filter(|&&value| value > 0).count();
        println!("{}: {marked} voxels", folder.display());
        assert!(marked > 0 && series == enhanced);
    }
}

/// Real series, where `CDAL_SAMPLES` names folders with some.
#[test]
fn masks_of_real_series_are_found_again() {
    let Some(folders) = std::env::var_os("CDAL_SAMPLES") else {
        println!("skipped: no CDAL_SAMPLES");
        return;
    };
    let mut folders: Vec<PathBuf> = std::env::split_paths(&folders).collect();
    while let Some(folder) = folders.pop() {
        let inside = if folder.is_dir() { files(&folder) } else { Vec::new() };
        folders.extend(inside.iter().filter(|path| path.is_dir()).cloned());
        let files: Vec<_> = inside.into_iter().filter(|path| !path.is_dir()).collect();
        match codec::dicom::read_files(&files).as_deref() {
            Ok([case]) => {
                println!("{}: {:?}", folder.display(), case.volume.geometry);
                check(case, &segmentation(case), &files);
            }
            Ok(cases) => println!("{}: {} cases", folder.display(), cases.len()),
            Err(error) => println!("{}: {error}", folder.display()),
        }
    }
}
