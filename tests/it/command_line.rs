//! What every command does alike: where its results and messages go, and how it ends.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use cdal::codec::dicom::encode_mr_series;
use cdal::codec::nifti;
use cdal::phantom::phantom;
use ndarray::Array3;
use serde_json::Value;

use crate::project::{cdal, root, said};

const TEMPORARY_FAILURE: i32 = 75;

/// The program with a stdout that nobody reads any more.
fn unread(arguments: &[&str]) -> Output {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_cdal"));
    command.args(arguments).current_dir(root()).stdout(writer).stderr(Stdio::piped());
    command.spawn().unwrap().wait_with_output().unwrap()
}

/// A configuration for the phantom's model in `folder`, with `more` at its end.
fn configuration(folder: &Path, more: &str) -> PathBuf {
    let path = folder.join("daemon.toml");
    let text = format!(
        "[model]\nbundle = \"{}\"\nvotes = 1\n[spool]\ndirectory = \"{}\"\nmin_free_bytes = 1\n{more}",
        root().join("onnx/phantom").display(),
        folder.join("spool").display()
    );
    fs::write(&path, text).unwrap();
    path
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

/// A small volume as NIfTI.
fn volume(path: &Path) -> PathBuf {
    let values = Array3::from_shape_fn((2, 30, 30), |(k, j, i)| (k * 7 + j * 3 + i) as f32);
    fs::write(path, nifti::encode_image(None, values.view()).unwrap()).unwrap();
    path.to_owned()
}

#[test]
fn a_closed_pipe_ends_a_command_without_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let cases = folder.path().join("cases");
    for arguments in [
        &["config", "schema"][..],
        &["config", "show", "configs/demo.daemon.toml"],
        &["bundle", "inspect", "onnx/phantom"],
        &["bundle", "check", "onnx/phantom"],
        &["phantom", "--out", text(&cases)],
        &["doctor"],
        &["doctor", "--json"],
        &["--help"],
        &["segment", "--help"],
        &["--version"],
    ] {
        let output = unread(arguments);
        assert_eq!(said(&output), "", "{arguments:?}");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn a_full_disk_behind_stdout_is_reported() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cdal"));
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = command.args(["config", "schema"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(
        said(&output).contains("write to stdout: No space left on device"),
        "{}",
        said(&output)
    );
}

#[test]
fn a_closed_stderr_stops_no_work() {
    let folder = tempfile::tempdir().unwrap();
    let input = volume(&folder.path().join("v.nii.gz"));
    let out = folder.path().join("out");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_cdal"));
    command.args(["segment", "--votes", "1", "--bundle", "onnx/phantom", "--out"]).arg(&out);
    let status = command.arg(input).current_dir(root()).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(out.join("v.nii.gz").exists());
}

#[test]
fn a_busy_port_is_a_passing_trouble() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for section in [
        format!("[ingest.dicom]\nlisten = \"{address}\"\n"),
        format!("[ingest.dicom]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = \"{address}\"\n"),
    ] {
        let file = configuration(folder.path(), &section);
        let output = cdal(&["serve", "--config", text(&file)]);
        assert_eq!(output.status.code(), Some(TEMPORARY_FAILURE), "{}", said(&output));
        assert!(said(&output).contains(&address.to_string()), "{}", said(&output));
    }
    let port = address.port().to_string();
    let out = folder.path().join("received");
    let output = cdal(&["workstation", "--out", text(&out), "--dicom", &port]);
    assert_eq!(output.status.code(), Some(TEMPORARY_FAILURE), "{}", said(&output));
}

#[test]
fn a_spool_in_use_is_a_passing_trouble() {
    let folder = tempfile::tempdir().unwrap();
    let file = configuration(folder.path(), "[ingest.dicom]\nlisten = \"127.0.0.1:0\"\n");
    let spool = cdal::spool::Config::new(folder.path().join("spool"));
    let _owner = cdal::spool::Spool::open(spool).unwrap();
    let output = cdal(&["serve", "--config", text(&file)]);
    assert_eq!(output.status.code(), Some(TEMPORARY_FAILURE), "{}", said(&output));
    assert!(said(&output).contains("in use by another process"), "{}", said(&output));
}

#[test]
fn help_and_the_service_unit_know_the_exit_statuses() {
    let help = String::from_utf8(cdal(&["--help"]).stdout).unwrap();
    for status in ["0 done", "1 a job failed", "2 usage", "70 internal", "75 ", "78 configuration"]
    {
        assert!(help.contains(status), "{status}: {help}");
    }
    let unit = fs::read_to_string(root().join("configs/systemd/cdal.service")).unwrap();
    let prevented = unit.lines().find_map(|line| line.strip_prefix("RestartPreventExitStatus="));
    assert_eq!(prevented, Some("78"), "what may pass is tried again");
}

#[test]
fn a_spool_that_was_never_made_is_called_that() {
    let folder = tempfile::tempdir().unwrap();
    let file = configuration(folder.path(), "[ingest.dicom]\nlisten = \"127.0.0.1:0\"\n");
    let output = cdal(&["spool", "list", "--config", text(&file)]);
    let words = said(&output);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("there is no spool in") && words.contains("cdal serve"), "{words}");
    assert!(!words.contains("entity not found") && !words.contains("disk"), "{words}");
}

#[test]
fn the_other_inputs_are_segmented_when_one_is_bad() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (a, c) = (volume(&at("a.nii.gz")), volume(&at("c.nii.gz")));
    fs::write(at("bad.nii.gz"), "no image").unwrap();
    let (bad, none, out) = (at("bad.nii.gz"), at("none.nii.gz"), at("out"));
    let inputs = [&a, &bad, &none, &c].map(|path| text(path));
    let fixed =
        ["segment", "--json", "--votes", "1", "--bundle", "onnx/phantom", "--out", text(&out)];
    let output = cdal(&[&fixed[..], &inputs[..]].concat());
    let words = said(&output);
    assert_eq!(output.status.code(), Some(1), "{words}");
    for line in ["bad.nii.gz", "none.nii.gz", "2 of 4 inputs failed"] {
        assert!(
            words.lines().any(|said| said.starts_with("cdal: ") && said.contains(line)),
            "{words}"
        );
    }
    let lines: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let cases: Vec<_> = lines.iter().map(|line| line["case"].as_str().unwrap()).collect();
    assert_eq!(cases, ["a", "c"]);
    assert!(out.join("a.nii.gz").exists() && out.join("c.nii.gz").exists());
    // Counts of voxels bear the names of their labels.
    let (labels, voxels) = (lines[0]["labels"].as_array().unwrap(), &lines[0]["voxels"]);
    assert_eq!(labels.len(), voxels.as_array().unwrap().len());
    for (index, label) in labels.iter().enumerate() {
        assert_eq!(label["value"], index + 1);
        assert!(label["name"].is_string(), "{label}");
        assert_eq!(label["voxels"], voxels[index]);
    }
}

#[test]
fn a_series_without_a_number_is_named_after_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let mixed = folder.path().join("mixed");
    fs::create_dir(&mixed).unwrap();
    for seed in [1, 2] {
        let volume = phantom(seed).volume;
        for (number, mut bytes) in encode_mr_series(&volume, seed).unwrap().into_iter().enumerate()
        {
            // SeriesNumber (0020,0011) as scanners write it that have none: spaces.
            let head = b"\x20\x00\x11\x00IS\x02\x00";
            let at =
                bytes.windows(head.len()).position(|found| found == head).expect("it is there");
            bytes[at + head.len()..][..2].copy_from_slice(b"  ");
            fs::write(mixed.join(format!("{seed}-{number:03}.dcm")), bytes).unwrap();
        }
    }
    let cases = cdal::codec::read(&mixed).unwrap();
    let mut names: Vec<_> = cases.into_iter().map(|case| case.name).collect();
    names.sort();
    assert_eq!(names, ["mixed", "mixed-2"]);
}
