//! `cdal eval`, the real binary, and its metrics held against an implementation of the same definitions on SciPy.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use cdal::{
    codec::{Source, nifti},
    domain::Geometry,
    truth::metrics::{self, Overlap},
};
use ndarray::Array3;
use serde_json::Value;

use crate::project::{cdal, python, reference_bundle, root, said};

const BUNDLE: &str = "onnx/phantom";

/// For each (mask, truth, labels) the yardstick's metrics of each label.
fn yardstick(folder: &Path, pairs: &[(PathBuf, PathBuf, u8)]) -> Vec<Vec<Value>> {
    let list = folder.join("pairs.json");
    fs::write(&list, serde_json::to_vec(pairs).unwrap()).unwrap();
    let output = Command::new(python())
        .arg(root().join("tests/python/check_metrics.py"))
        .arg(&list)
        .output()
        .expect("the project's Python starts; run `make python`");
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn assert_agree(found: Option<f64>, expected: &Value, what: &str) {
    match (found, expected.as_f64()) {
        (None, None) => assert!(expected.is_null(), "{what}"),
        // The files hold spacing in single precision.
        (Some(a), Some(b)) => assert!((a - b).abs() <= 1e-5 * b.max(1.0), "{what}: {a} {b}"),
        (a, b) => panic!("{what}: {a:?} {b:?}"),
    }
}

fn phantoms(folder: &Path, count: usize, format: &str) -> PathBuf {
    let data = folder.join("data");
    let (out, count) = (data.to_str().unwrap(), count.to_string());
    let output = cdal(&["phantom", "--out", out, "--count", &count, "--format", format]);
    assert!(output.status.success(), "{}", said(&output));
    data
}

fn evaluate(data: &Path, more: &[&str]) -> std::process::Output {
    let mut arguments = vec!["eval", "--bundle", BUNDLE, "--data", data.to_str().unwrap()];
    arguments.extend(["--votes", "1"]);
    arguments.extend(more);
    cdal(&arguments)
}

fn report(output: &std::process::Output) -> Value {
    assert!(output.status.success(), "{}", said(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn random_masks_measure_as_the_yardstick_says() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = 7_u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as f64 / f64::from(1_u32 << 31)
    };
    let mut cases = Vec::new();
    let mut pairs = Vec::new();
    let shapes = [[1, 40, 30], [1, 64, 64], [12, 20, 17], [9, 31, 8], [2, 2, 2], [5, 1, 7]];
    for (number, shape) in shapes.iter().cycle().take(36).enumerate() {
        let spacing = [0.4 + random(), 0.4 + random(), 0.5 + 3.0 * random()];
        let direction = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
        let geometry = Geometry { origin: [0.0; 3], direction, spacing };
        // Balls of labels 1 and 2 with some grains; now and then a label is missing.
        let mut mask = || {
            let balls: Vec<_> = (0..4_u8)
                .map(|n| {
                    let centre = shape.map(|length| random() * length as f64);
                    (n % 2 + 1, centre, random() * 9.0 - 1.0)
                })
                .collect();
            Array3::from_shape_fn(*shape, |(k, j, i)| {
                let at = [k, j, i].map(|index| index as f64);
                let within = |centre: &[f64; 3], radius: f64| {
                    radius > (0..3).map(|a| (at[a] - centre[a]).powi(2)).sum::<f64>().sqrt()
                };
                let ball = balls.iter().find(|(_, centre, radius)| within(centre, *radius));
                ball.map_or(u8::from(random() > 0.999), |ball| ball.0)
            })
        };
        let (mask, truth) = (mask(), mask());
        let path = |what: &str| folder.path().join(format!("{number}-{what}.nii.gz"));
        for (mask, path) in [(&mask, path("mask")), (&truth, path("truth"))] {
            let bytes = nifti::encode_mask(&Source::Raster, Some(&geometry), mask).unwrap();
            fs::write(path, bytes).unwrap();
        }
        pairs.push((path("mask"), path("truth"), 2));
        cases.push((mask, truth, [spacing[2], spacing[1], spacing[0]]));
    }
    let expected = yardstick(folder.path(), &pairs);
    let mut undefined = 0;
    for (number, (mask, truth, spacing)) in cases.iter().enumerate() {
        for label in [1, 2] {
            let expected = &expected[number][usize::from(label) - 1];
            let what = format!("case {number} of {:?}, label {label}", mask.shape());
            let overlap = Overlap::count(mask.view(), truth.view(), label);
            let hd95 = metrics::hd95(mask.view(), truth.view(), label, *spacing);
            undefined += usize::from(hd95.is_none());
            assert_agree(overlap.dice(), &expected["dice"], &format!("{what}, Dice"));
            assert_agree(overlap.iou(), &expected["iou"], &format!("{what}, IoU"));
            assert_agree(hd95, &expected["hd95"], &format!("{what}, HD95"));
        }
    }
    assert!((1..36).contains(&undefined), "{undefined} of 72 are not defined");
}

#[test]
fn phantoms_are_measured_as_the_yardstick_measures_the_masks_of_segment() {
    let folder = tempfile::tempdir().unwrap();
    let data = phantoms(folder.path(), 3, "dicom");
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (page, overlays) = (path("report.html"), path("overlays"));
    let more = ["--seed", "4", "--json", "-", "--html", &page, "--overlays", &overlays];
    let output = evaluate(&data, &more);
    let report = report(&output);
    let cases = report["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 3);
    assert_eq!(report["hd95_unit"], "mm");
    assert_eq!((&report["votes"], &report["seed"]), (&1.into(), &4.into()));
    assert_eq!(report["model"]["digest"].as_str().unwrap().len(), 64);
    assert!(report["data"]["split"].is_null());

    let names = ["phantom-00001", "phantom-00002", "phantom-00003"];
    let images: Vec<_> = names.iter().map(|name| data.join("images").join(name)).collect();
    let masks = path("masks");
    let mut arguments = vec!["segment", "--bundle", BUNDLE, "--out", &masks, "--votes", "1"];
    arguments.extend(["--seed", "4", "--format", "nifti"]);
    arguments.extend(images.iter().map(|image| image.to_str().unwrap()));
    let segmented = cdal(&arguments);
    assert!(segmented.status.success(), "{}", said(&segmented));
    // `segment` names its files after the series; the inputs' order is that of the lines it prints.
    let words = said(&segmented);
    let written: Vec<_> = words
        .lines()
        .filter_map(|line| line.rsplit_once(", ").map(|(_, file)| PathBuf::from(file)))
        .collect();
    let pairs: Vec<_> = written
        .into_iter()
        .zip(names)
        .map(|(mask, name)| (mask, data.join("labels").join(format!("{name}.nii.gz")), 2))
        .collect();
    let expected = yardstick(folder.path(), &pairs);
    assert_eq!(expected.len(), 3);
    for (case, (expected, name)) in cases.iter().zip(expected.iter().zip(names)) {
        assert_eq!(case["case"], name);
        for (label, expected) in case["labels"].as_array().unwrap().iter().zip(expected) {
            for metric in ["dice", "iou", "hd95"] {
                assert_agree(
                    label[metric].as_f64(),
                    &expected[metric],
                    &format!("{name} {metric}"),
                );
            }
        }
    }

    let summary = &report["summary"];
    for (metric, of_labels) in [("dice", 0.85..1.0), ("iou", 0.75..1.0), ("hd95", 0.5..4.0)] {
        let mean = |statistic: &Value| statistic[metric]["mean"].as_f64().unwrap();
        let labels = summary["labels"].as_array().unwrap();
        let means: Vec<_> = labels.iter().map(mean).collect();
        assert!(means.iter().all(|mean| of_labels.contains(mean)), "{metric} {means:?}");
        let of_all = mean(&summary["mean"]);
        assert!((of_all - f64::midpoint(means[0], means[1])).abs() < 1e-12);
        let bound = |side: &str| summary["mean"][metric][side].as_f64().unwrap();
        assert!(bound("low") <= of_all && of_all <= bound("high"));
    }
    let words = said(&output);
    assert!(words.contains("3/3  phantom-00003  Dice 0."), "{words}");
    assert!(words.contains("mean of labels"), "{words}");
    let html = fs::read_to_string(&page).unwrap();
    assert_eq!(html.matches("src=\"data:image/png;base64,iVBOR").count(), 6);
    assert!(!html.contains("src=\"http") && !html.contains("href="), "it needs nothing else");
    assert_eq!(fs::read_dir(&overlays).unwrap().count(), 6);
}

#[test]
fn a_split_and_a_limit_choose_cases_and_a_mask_suffix_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let data = phantoms(folder.path(), 3, "nifti");
    let label = |name: &str| data.join("labels").join(name);
    fs::rename(label("phantom-00002.nii.gz"), label("phantom-00002_mask.nii.gz")).unwrap();
    fs::remove_file(label("phantom-00003.nii.gz")).unwrap();
    let splits = folder.path().join("splits.json");
    fs::write(
        &splits,
        r#"{"train": ["phantom-00003"], "val": ["phantom-00002", "phantom-00001"]}"#,
    )
    .unwrap();
    let split = |name: &str| format!("{}:{name}", splits.display());
    let json = folder.path().join("report.json");
    let (all, json) = (split("val"), json.to_str().unwrap());
    let output = evaluate(&data, &["--split", &all, "--limit", "1", "--json", json]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(output.stdout.is_empty());
    let report: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    assert_eq!(report["data"]["split"]["name"], "val");
    let cases = report["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 1);
    assert_eq!(cases[0]["case"], "phantom-00002", "the split's order");
    assert!(report["summary"]["mean"]["dice"]["low"].is_null(), "one case has no interval");

    for (more, status, needed) in [
        (vec![], 1, "1 without a label in labels/ (phantom-00003)"),
        (vec!["--split", &split("train")], 1, "(phantom-00003)"),
        (vec!["--split", &split("test")], 1, "only train, val"),
        (vec!["--split", "splits.json"], 2, "FILE:NAME"),
        (vec!["--split", &all, "--html", "no/such/folder/r.html"], 1, "cannot be written"),
    ] {
        let output = evaluate(&data, &more);
        assert_eq!(output.status.code(), Some(status), "{more:?}");
        assert!(said(&output).contains(needed), "{more:?}: {}", said(&output));
    }
}

#[test]
fn labels_that_do_not_belong_to_their_image_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = phantoms(folder.path(), 1, "nifti");
    let label = data.join("labels/phantom-00001.nii.gz");
    let truth = nifti::read_mask(&label).unwrap();
    let geometry = nifti::read(&label).unwrap().volume.geometry.unwrap();
    let refused = |geometry: &Geometry, mask: &Array3<u8>, needed: &str| {
        let bytes = nifti::encode_mask(&Source::Raster, Some(geometry), mask).unwrap();
        fs::write(&label, bytes).unwrap();
        let output = evaluate(&data, &[]);
        assert_eq!(output.status.code(), Some(1));
        let words = said(&output);
        assert!(words.contains("phantom-00001: ") && words.contains(needed), "{words}");
    };
    let mut other = truth.clone();
    other[[3, 3, 3]] = 7;
    refused(&geometry, &other, "holds the value 7; it may hold 0 and the model's labels: 1 (");
    let smaller = truth.slice(ndarray::s![1.., .., ..]).to_owned();
    refused(&geometry, &smaller, "bring the label to the image's grid");
    let mut elsewhere = geometry;
    elsewhere.origin[2] += 2.0;
    refused(&elsewhere, &truth, "2.00 mm away from the image");
}

#[test]
fn a_bad_label_costs_its_own_case_alone() {
    let folder = tempfile::tempdir().unwrap();
    let data = phantoms(folder.path(), 3, "nifti");
    fs::write(data.join("labels/phantom-00002.nii.gz"), "no label").unwrap();
    let page = folder.path().join("report.html");
    let output = evaluate(&data, &["--json", "-", "--html", page.to_str().unwrap()]);
    let words = said(&output);
    assert_eq!(output.status.code(), Some(1), "{words}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<_> =
        report["cases"].as_array().unwrap().iter().map(|case| &case["case"]).collect();
    assert_eq!(names, ["phantom-00001", "phantom-00003"]);
    let failed = report["failed"].as_array().unwrap();
    assert_eq!((failed.len(), &failed[0]["case"]), (1, &"phantom-00002".into()));
    assert!(!failed[0]["reason"].as_str().unwrap().is_empty());
    assert!(report["summary"]["mean"]["dice"]["mean"].is_number(), "of the other cases");
    assert!(words.contains("2/3  FAILED  phantom-00002: "), "{words}");
    assert!(words.contains("1 of 3 cases failed and count in no mean: phantom-00002"), "{words}");
    assert!(fs::read_to_string(page).unwrap().contains("Failed cases"));
}

#[test]
fn images_without_spacing_are_measured_in_pixels() {
    let folder = tempfile::tempdir().unwrap();
    let Some(bundle) = reference_bundle("lung_small", "lung", folder.path()) else { return };
    for kind in ["images", "labels"] {
        fs::create_dir(folder.path().join(kind)).unwrap();
    }
    let side = 64_u32;
    let save = |path: &str, pixels: Vec<u8>| {
        let file = fs::File::create(folder.path().join(path)).unwrap();
        let mut encoder = png::Encoder::new(file, side, side);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    };
    save("images/a.png", (0..side * side).map(|n| (n * 7 % 256) as u8).collect());
    let square = |n: u32| (16..48).contains(&(n / side)) && (16..48).contains(&(n % side));
    save("labels/a_mask.png", (0..side * side).map(|n| 255 * u8::from(square(n))).collect());
    let data = folder.path().to_str().unwrap();
    let arguments = ["eval", "--bundle", bundle.to_str().unwrap(), "--data", data, "--json", "-"];
    let report = report(&cdal(&arguments));
    assert_eq!(report["hd95_unit"], "px");
    let case = &report["cases"][0];
    assert!(case["spacing"].is_null());
    assert_eq!(case["labels"][0]["truth_voxels"], 32 * 32);
}
