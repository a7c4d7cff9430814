//! `cdal bench`, the real binary, on the phantom's model.

use std::fs;
use std::path::{Path, PathBuf};

use cdal::codec::dicom::encode_mr_series;
use cdal::domain::Volume;
use ndarray::s;
use serde_json::Value;

use crate::project::{cdal, said};

const BUNDLE: &str = "onnx/phantom";

/// Three slices of a phantom: a series that takes little time.
fn series(folder: &Path) -> PathBuf {
    let whole = cdal::phantom::phantom(1).volume;
    let samples = whole.samples.slice(s![.., 10..13, .., ..]).to_owned();
    let files = encode_mr_series(&Volume { samples, ..whole }, 1).unwrap();
    let series = folder.join("series");
    fs::create_dir_all(&series).unwrap();
    for (number, file) in files.iter().enumerate() {
        fs::write(series.join(format!("{number}.dcm")), file).unwrap();
    }
    series
}

fn bench(folder: &Path, name: &str, arguments: &[&str]) -> Value {
    let (path, input) = (folder.join(name), series(folder));
    let mut all = vec!["bench"];
    all.extend(arguments);
    all.extend(["--bundle", BUNDLE, "--votes", "1", "--input", input.to_str().unwrap()]);
    all.extend(["--json", path.to_str().unwrap()]);
    let output = cdal(&all);
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&fs::read(&path).unwrap()).unwrap()
}

fn stages(point: &Value) -> Vec<&str> {
    point["stages"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect()
}

#[test]
fn a_sampler_is_measured_stage_by_stage() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("report.html");
    let options = ["run", "--cases", "12", "--warm-up", "1", "--idle", "0s"];
    let report = bench(
        folder.path(),
        "a.json",
        &[&options[..], &["--html", page.to_str().unwrap()]].concat(),
    );
    let point = &report["points"][0];
    assert_eq!(
        stages(point),
        ["decode", "prepare", "condition", "step t=1", "step t=0", "vote", "assemble", "encode"]
    );
    let latencies: Vec<f64> =
        point["latencies"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect();
    assert_eq!(latencies.len(), 12);
    let whole: f64 = latencies.iter().sum::<f64>() / 12.0;
    let parts: f64 =
        point["stages"].as_array().unwrap().iter().map(|s| s["mean"].as_f64().unwrap()).sum();
    assert!(parts <= whole && parts > 0.5 * whole, "stages {parts} of {whole}");
    let percentiles = point["percentiles"].as_array().unwrap();
    assert!(percentiles[0]["value"].is_f64(), "12 cases bear out a median");
    assert!(percentiles[1]["value"].is_null(), "but no p90");
    assert!(report["cold_start"]["median"].as_f64().unwrap() > 0.0);
    assert!(report["peak_memory_bytes"].as_u64().unwrap() > 10 << 20);
    let model = fs::read_to_string("onnx/phantom/bundle.toml").unwrap();
    let digest = <sha2::Sha256 as sha2::Digest>::digest(model);
    assert_eq!(point["setting"]["model_digest"], cdal::durable::hex(&digest));
    assert!(report["runtime"].as_str().unwrap().contains("ORT"), "{}", report["runtime"]);
    let nodes = point["setting"]["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 2, "one provider for each graph: {nodes:?}");
    for (nodes, graph) in nodes.iter().zip(["condition", "denoiser"]) {
        assert_eq!(
            (&nodes["graph"], &nodes["provider"]),
            (&graph.into(), &"CPUExecutionProvider".into())
        );
        let operators = nodes["operators"].as_object().unwrap();
        let convolutions = operators.iter().filter(|(name, _)| name.starts_with("Conv"));
        let count: u64 = convolutions.map(|(_, count)| count.as_u64().unwrap()).sum();
        assert!(count > 3, "{nodes}");
    }
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("<svg") && page.contains("too few: 64 needed"));
    assert!(!page.contains("http"), "it needs nothing from elsewhere");
}

#[test]
fn a_sweep_measures_every_combination_and_a_report_compares_with_itself() {
    let folder = tempfile::tempdir().unwrap();
    let options = ["--warm-up", "0", "--idle", "0s", "--no-cold-start", "--cases", "8"];
    let sweep = ["run", "--sweep", "steps=1,2"];
    let report = bench(folder.path(), "a.json", &[&sweep[..], &options[..]].concat());
    let names: Vec<&str> = report["points"]
        .as_array()
        .unwrap()
        .iter()
        .map(|point| point["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["steps=1", "steps=2"]);
    assert_eq!(stages(&report["points"][0]).len() + 1, stages(&report["points"][1]).len());

    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let compare = |b: &str, more: &[&str]| {
        let (a, b) = (path("a.json"), path(b));
        cdal(&[&["bench", "compare", &a, &b], more].concat())
    };
    let same = compare("a.json", &[]);
    assert_eq!(same.status.code(), Some(0), "{}", said(&same));

    // Ten times as slow, and then on another machine.
    let mut other = report.clone();
    for point in other["points"].as_array_mut().unwrap() {
        for latency in point["latencies"].as_array_mut().unwrap() {
            *latency = (latency.as_f64().unwrap() * 10.0).into();
        }
    }
    fs::write(path("slow.json"), other.to_string()).unwrap();
    let slow = compare("slow.json", &["--json"]);
    assert_eq!(slow.status.code(), Some(1), "{}", said(&slow));
    assert!(said(&slow).contains("B is slower"), "{}", said(&slow));
    let said_as_data: Value = serde_json::from_slice(&slow.stdout).unwrap();
    assert_eq!(said_as_data["points"][0]["verdict"], "slower");

    other["machine"]["processor"] = "another".into();
    fs::write(path("elsewhere.json"), other.to_string()).unwrap();
    let elsewhere = compare("elsewhere.json", &[]);
    assert_eq!(elsewhere.status.code(), Some(3), "{}", said(&elsewhere));
    assert!(said(&elsewhere).contains("THE MACHINES DIFFER"), "{}", said(&elsewhere));
    assert_eq!(compare("elsewhere.json", &["--across-machines"]).status.code(), Some(1));

    // What cannot be compared is neither a difference nor a wrong option.
    other["points"][0]["name"] = "steps=7".into();
    other["points"][1]["name"] = "steps=8".into();
    fs::write(path("apart.json"), other.to_string()).unwrap();
    fs::write(path("broken.json"), "{").unwrap();
    for (name, words) in [
        ("apart.json", "no point in common"),
        ("broken.json", "no report of `cdal bench`"),
        ("none.json", "cannot be read"),
    ] {
        let not = compare(name, &["--across-machines"]);
        assert_eq!(not.status.code(), Some(3), "{name}: {}", said(&not));
        assert!(said(&not).contains(words), "{name}: {}", said(&not));
    }
    assert_eq!(compare("a.json", &["--least", "none"]).status.code(), Some(2));
}

#[test]
fn a_daemon_is_measured_from_the_last_byte_in_to_success() {
    let folder = tempfile::tempdir().unwrap();
    let options = ["daemon", "--cases", "8", "--warm-up", "1"];
    let report = bench(folder.path(), "one.json", &options);
    let daemon = &report["daemon"];
    assert!(daemon["over_model"]["value"].as_f64().unwrap() > 0.0, "{daemon}");
    assert!(daemon["over_bare"]["value"].is_f64() && daemon["throughput_share"].is_null());
    assert!(!daemon["memory"].as_array().unwrap().is_empty());
    let point = &report["points"][1];
    assert_eq!(point["name"], "daemon");
    assert_eq!(point["latencies"].as_array().unwrap().len(), 8);
    assert_eq!(
        stages(point),
        [
            "queue",
            "decode",
            "prepare",
            "condition",
            "denoise",
            "assemble",
            "encode",
            "deliver",
            "other"
        ]
    );

    let options = ["daemon", "--cases", "12", "--warm-up", "3", "--associations", "3"];
    let report = bench(folder.path(), "three.json", &options);
    assert!(report["daemon"]["throughput_share"]["value"].as_f64().unwrap() > 0.0);
    assert!(report["daemon"]["over_model"].is_null(), "a case's own share is not known");

    let options =
        ["daemon", "--cases", "6", "--warm-up", "1", "--associations", "2", "--rate", "50"];
    let report = bench(folder.path(), "open.json", &options);
    assert_eq!(report["load"]["loop"], "open");
    assert_eq!(report["points"][1]["latencies"].as_array().unwrap().len(), 6);
}

#[test]
fn what_cannot_be_measured_is_refused_with_the_reason() {
    for (arguments, reason) in [
        (["--sweep", "speed=1"], "speed=1"),
        (["--steps", "9"], "the model has 2"),
        (["--rate", "0"], "above 0"),
        (["--json", "/no/such/folder/a.json"], "cannot be written"),
    ] {
        let mut all = vec!["bench", "run", "--bundle", BUNDLE];
        all.extend(arguments);
        let output = cdal(&all);
        assert!(!output.status.success());
        assert!(said(&output).contains(reason), "{}", said(&output));
    }
}
