//! Series as they come, through the real binary: the mask of the plain series, or a refusal that names the culprit.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::Value;
use tempfile::TempDir;

use crate::project::{cdal, python, root, said};
use crate::support::dicom::files;
use crate::support::http::get;
use crate::support::process::{self, Process, store};
use crate::support::wait_for;

const BUNDLE: &str = "onnx/phantom";

struct Made {
    folder: TempDir,
    slices: PathBuf,
    /// The mask of the series as it is.
    mask: PathBuf,
}

/// A synthetic series and its mask, made once.
fn plain() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let phantom = folder.path().join("phantom");
        let output = cdal(&["phantom", "--out", phantom.to_str().unwrap(), "--seed", "7"]);
        assert!(output.status.success(), "{}", said(&output));
        let slices = phantom.join("images/phantom-00007");
        let out = folder.path().join("plain-out");
        let output = segment(BUNDLE, &out, &[&slices]);
        assert!(output.status.success(), "{}", said(&output));
        Made { slices, mask: out.join("phantom-00007.seg.dcm"), folder }
    })
}

fn script(arguments: &[&Path]) -> String {
    let output = Command::new(python())
        .arg(root().join("tests/python/series_cases.py"))
        .args(arguments)
        .output()
        .expect("the project's Python starts; run `make python`");
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Writes a case of the script into the folder that it gives.
fn made(case: &str) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let out = plain().folder.path().join(case);
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if !out.exists() {
        script(&[Path::new("make"), Path::new(case), &plain().slices, &out]);
    }
    out
}

fn segment(bundle: &str, out: &Path, inputs: &[&Path]) -> Output {
    let mut arguments = vec!["segment", "--votes", "1", "--json", "--bundle", bundle, "--out"];
    arguments.push(out.to_str().unwrap());
    arguments.extend(inputs.iter().map(|input| input.to_str().unwrap()));
    cdal(&arguments)
}

/// What `segment` says of each case of `inputs`, on stdout.
fn segmented(bundle: &str, inputs: &[&Path]) -> (Vec<Value>, String) {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let out = plain().folder.path().join(format!("out-{number}"));
    let output = segment(bundle, &out, inputs);
    assert!(output.status.success(), "{}", said(&output));
    let lines = String::from_utf8(output.stdout.clone()).unwrap();
    (lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), said(&output))
}

fn file(report: &Value) -> PathBuf {
    PathBuf::from(report["files"][0].as_str().unwrap())
}

/// Dice of each label of two masks in patient space.
fn dice(a: &Path, b: &Path) -> Vec<f64> {
    let found: Value = serde_json::from_str(&script(&[Path::new("dice"), a, b])).unwrap();
    found.as_object().unwrap().values().map(|dice| dice.as_f64().unwrap()).collect()
}

#[track_caller]
fn assert_alike(a: &Path, b: &Path, least: f64) {
    let found = dice(a, b);
    assert!(!found.is_empty() && found.iter().all(|dice| *dice >= least), "{found:?}");
}

/// Expects a refusal that says all of `words`.
#[track_caller]
fn refused(case: &str, words: &[&str]) {
    let input = made(case);
    let output = segment(BUNDLE, &input.with_extension("out"), &[&input]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn scouts_in_the_stack_s_series_are_left_out_with_a_word() {
    for (case, words) in [
        (
            "localizers",
            "2 images left out, ImageType says LOCALIZER (000.dcm, InstanceNumber 1; 007.dcm",
        ),
        ("unmarked_scouts", "1 image left out, lying across the stack"),
    ] {
        let (reports, text) = segmented(BUNDLE, &[&made(case)]);
        assert_eq!(reports.len(), 1);
        assert_alike(&file(&reports[0]), &plain().mask, 0.999);
        assert!(text.contains(&format!("{case}: warning: {words}")), "{text}");
        assert!(reports[0]["warnings"][0].as_str().unwrap().starts_with(words), "{}", reports[0]);
    }
}

#[test]
fn the_daemon_leaves_scouts_out_and_says_so_in_its_log_and_with_the_job() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = format!(
        "[model]\nbundle = \"{}\"\nvotes = 1\n[spool]\ndirectory = \"{}\"\nmin_free_bytes = 0\n\
         [ingest.dicom]\nlisten = \"127.0.0.1:0\"\n[ingest.dicom.completion]\non_release = \"complete\"\n\
         [http]\nlisten = \"127.0.0.1:0\"\n",
        root().join(BUNDLE).display(),
        path("spool").display(),
    );
    std::fs::write(path("c.toml"), text).unwrap();
    let mut command = process::cdal();
    command.args(["serve", "--config"]).arg(path("c.toml"));
    command.stderr(File::create(path("log")).unwrap());
    let mut daemon = Process::start(&mut command);
    let ready = daemon.json();
    let to = ready["http"].as_str().unwrap().parse().unwrap();
    store(ready["dicom"].as_str().unwrap().parse().unwrap(), &files(&made("localizers")));
    let job = wait_for("the job to be done", || {
        let status = get(to, "/v1/status").json();
        status["jobs"].as_array()?.iter().find(|job| job["state"] == "done").cloned()
    });
    let words = "2 images left out, ImageType says LOCALIZER";
    assert!(job["reason"].as_str().unwrap().starts_with(words), "{job}");
    assert_alike(&files(&path("spool/products"))[0], &plain().mask, 0.999);
    let log = std::fs::read_to_string(path("log")).unwrap();
    let line = log.lines().find(|line| line.contains(words)).expect("the log says it");
    assert!(line.contains("WARN") && !line.contains("1.2.826"), "{line}");
    daemon.signal("-TERM");
    assert!(daemon.wait().success());
}

#[test]
fn positions_that_are_rounded_or_jitter_by_a_tenth_of_a_millimetre_are_a_grid() {
    let (reports, _) = segmented(BUNDLE, &[&made("rounded"), &made("jittered")]);
    for report in &reports {
        assert_alike(&file(report), &plain().mask, 0.999);
        assert_eq!(report["warnings"].as_array().unwrap().len(), 0);
    }
}

#[test]
fn time_points_are_a_case_each_named_after_what_tells_them_apart() {
    let (reports, _) = segmented(BUNDLE, &[&made("time_points"), &made("enhanced")]);
    let names: Vec<_> = reports.iter().map(|report| report["case"].as_str().unwrap()).collect();
    assert_eq!(names, ["time_points-time-1", "time_points-time-2", "000-time-1", "000-time-2"]);
    for first in [0, 2] {
        assert_alike(&file(&reports[first]), &plain().mask, 0.999);
        let later = std::fs::read(file(&reports[first + 1])).unwrap();
        assert_ne!(std::fs::read(file(&reports[first])).unwrap(), later);
        let words = b"TemporalPositionIdentifier 2";
        assert!(later.windows(words.len()).any(|at| at == words), "the result says which it is");
    }
}

#[test]
fn what_forms_no_grid_is_refused_with_the_reason_and_what_to_do() {
    refused("tilted", &["sheared by 15.00 degrees", "tilted gantry", "resample"]);
    refused("gap", &["slices are missing", "apart"]);
    refused("twice", &["the same place", "no attribute tells them apart", "a series of its own"]);
    refused("mosaic", &["mosaic (ImageType MOSAIC", "single slices"]);
}

#[test]
fn a_slice_whose_plane_cannot_be_read_is_refused_by_attribute_and_file() {
    for (case, attribute) in [
        ("no_position", "ImagePositionPatient"),
        ("no_orientation", "ImageOrientationPatient"),
        ("no_spacing", "PixelSpacing"),
    ] {
        // Slice 4 of 23 is written as file 028 % 23.
        refused(case, &["005.dcm", &format!("its {attribute} is missing or cannot be read")]);
    }
}

#[test]
fn padding_sets_no_range() {
    let (reports, _) =
        segmented(BUNDLE, &[&made("unpadded"), &made("padded"), &made("padded_range")]);
    for report in &reports[1..] {
        assert_alike(&file(report), &file(&reports[0]), 0.999);
    }
}

#[test]
fn a_radiograph_is_the_same_picture_however_it_is_kept() {
    let folder = made("radiographs");
    let read = |name: &str| {
        let mut cases = cdal::codec::read(&folder.join(name).with_extension("dcm")).unwrap();
        let case = cases.pop().unwrap();
        let (black, white) = case.volume.nominal_range.unwrap();
        let shades = case.volume.samples.mapv(|v| ((v - black) / (white - black)).clamp(0.0, 1.0));
        (shades, case.warnings)
    };
    let (expected, _) = read("plain");
    for (name, bound) in [
        ("mirrored", 0.001),
        ("inverse_shape", 0.001),
        ("twelve_in_sixteen", 0.001),
        ("twelve_in_sixteen_mirrored", 0.001),
        ("window", 0.001),
        ("exact", 0.001),
        ("voi_table", 0.001),
        ("voi_table_of_other_depth", 0.001),
        ("voi_table_mirrored", 0.001),
        ("voi_table_curved", 0.002),
        ("modality_table", 0.001),
        ("high_bits", 0.001),
        ("overlay_above", 0.001),
        ("rescaled", 0.001),
        ("signed", 0.001),
        ("sigmoid", 0.012),
    ] {
        let (shades, warnings) = read(name);
        let worst = shades.iter().zip(&expected).fold(0.0_f32, |w, (a, b)| w.max((a - b).abs()));
        assert!(worst <= bound, "{name}: {worst}");
        assert_eq!(warnings.len(), usize::from(name.starts_with("twelve")), "{name}: {warnings:?}");
    }
}

#[test]
fn a_nifti_of_any_unit_and_a_fraction_of_a_degree_of_shear_gives_the_mask_of_its_voxels() {
    let image = |case: &str| made(case).join("images/c.nii.gz");
    let (reports, _) = segmented(BUNDLE, &[&image("nifti")]);
    let mask = |path: &Path| cdal::codec::nifti::read_mask(path).unwrap();
    let expected = mask(&file(&reports[0]));
    assert_alike(&file(&reports[0]), &plain().mask, 0.999);
    for case in [
        "nifti_metre",
        "nifti_micron",
        "nifti_unknown",
        "nifti_trailing",
        "nifti_shear_half",
        "nifti_shear_alone",
    ] {
        let (reports, _) = segmented(BUNDLE, &[&image(case)]);
        assert_eq!(mask(&file(&reports[0])), expected, "{case}");
        let fields = |path: &Path| {
            let cdal::codec::Source::Nifti(grid) =
                cdal::codec::read(path).unwrap().remove(0).source
            else {
                panic!("a NIfTI source")
            };
            *grid
        };
        assert_eq!(
            fields(&file(&reports[0])),
            fields(&image(case)),
            "{case}: the image's own grid"
        );
    }
    let output = segment(BUNDLE, plain().folder.path(), &[&image("nifti_shear_five")]);
    assert!(said(&output).contains("sheared by 5.00 degrees"), "{}", said(&output));
}

#[test]
fn distances_are_in_millimetres_whatever_the_unit_of_a_nifti() {
    let distance = |case: &str| {
        let data = made(case);
        let output = cdal(&[
            "eval",
            "--bundle",
            BUNDLE,
            "--votes",
            "1",
            "--json",
            "-",
            "--data",
            data.to_str().unwrap(),
        ]);
        assert!(output.status.success(), "{}", said(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["cases"][0]["labels"][0]["hd95"].as_f64().unwrap()
    };
    let expected = distance("nifti");
    assert!(expected > 0.5, "the made-up truth is no good mask");
    for case in ["nifti_metre", "nifti_micron"] {
        let found = distance(case);
        assert!((found / expected - 1.0).abs() < 1e-3, "{case}: {found} where {expected}");
    }
}
