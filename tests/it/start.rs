//! Before a daemon starts: `config check` and `doctor` say of a configuration what `serve` would find.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::project::{root, said};
use crate::support::process::{Process, cdal, free_port};
use crate::support::wait_for;

/// A configuration of the phantom's model whose sections `more` goes on with.
fn configuration(folder: &Path, more: &str) -> PathBuf {
    let text = format!(
        "[model]\nbundle = \"{}\"\n[spool]\ndirectory = \"{}\"\nmin_free_bytes = 1\n{more}",
        root().join("onnx/phantom").display(),
        folder.join("spool").display()
    );
    let path = folder.join("daemon.toml");
    fs::write(&path, text).unwrap();
    path
}

const DICOM: &str = "[ingest.dicom]\nlisten = \"127.0.0.1:0\"\n";

fn run(arguments: &[&str], file: &Path) -> Output {
    cdal().args(arguments).arg(file).current_dir("/").output().unwrap()
}

/// Verdict and words of a check of `doctor`, and its exit status.
fn doctor(file: &Path, check: &str) -> (String, String, Option<i32>) {
    let output = run(&["doctor", "--json", "--config"], file);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", said(&output)));
    let findings = report["findings"].as_array().unwrap();
    // Several findings may bear one name: the worst of them counts.
    let of_check = || findings.iter().filter(|finding| finding["check"] == check);
    let found = of_check().find(|f| f["verdict"] == "bad").or_else(|| of_check().next());
    let found = found.unwrap_or_else(|| panic!("{check} is not in {report}"));
    let text = |key: &str| found[key].as_str().unwrap().to_owned();
    (text("verdict"), text("said"), output.status.code())
}

/// The doctor finds `check` bad and says `words`; serving does not start.
fn both_refuse(folder: &Path, more: &str, check: &str, words: &str) {
    let file = configuration(folder, more);
    let (verdict, text, status) = doctor(&file, check);
    assert_eq!((verdict.as_str(), status), ("bad", Some(1)), "{check}: {text}");
    assert!(text.contains(words), "{check}: {text}");
    let output = run(&["serve", "--config"], &file);
    assert!(matches!(output.status.code(), Some(75 | 78)), "{check}: {}", said(&output));
}

#[test]
fn the_doctor_finds_the_folder_of_the_audit_trail_missing() {
    let folder = tempfile::tempdir().unwrap();
    let audit = folder.path().join("none/audit.jsonl");
    let more = format!("{DICOM}[daemon]\naudit = \"{}\"\n", audit.display());
    both_refuse(folder.path(), &more, "audit trail", "none");
}

#[test]
fn the_doctor_finds_a_port_taken() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dicom = format!("[ingest.dicom]\nlisten = \"{address}\"\n");
    both_refuse(folder.path(), &dicom, "dicom port", &address);
    let http = format!("{DICOM}[http]\nlisten = \"{address}\"\n");
    both_refuse(folder.path(), &http, "http port", &address);
}

#[test]
fn the_doctor_finds_files_of_tls_and_tokens_missing() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = format!("{DICOM}[http]\nlisten = \"127.0.0.1:0\"\ntokens = \"no-tokens\"\n");
    both_refuse(folder.path(), &tokens, "tokens", "no-tokens");
    let tls = "tls = { certificate = \"no.pem\", key = \"no.key\" }\n";
    both_refuse(folder.path(), &format!("{DICOM}{tls}"), "dicom tls", "no.pem");
    let http = format!("{DICOM}[http]\nlisten = \"127.0.0.1:0\"\n{tls}");
    both_refuse(folder.path(), &http, "http tls", "no.pem");
}

#[test]
fn the_doctor_finds_a_spool_that_cannot_be_made() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("spool"), "a file").unwrap();
    both_refuse(folder.path(), DICOM, "spool", "spool");
}

#[test]
fn the_doctor_finds_a_bundle_broken_and_so_does_config_check() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    fs::create_dir(&bundle).unwrap();
    for entry in fs::read_dir(root().join("onnx/phantom")).unwrap().flatten() {
        fs::copy(entry.path(), bundle.join(entry.file_name())).unwrap();
    }
    let file = configuration(folder.path(), DICOM);
    let text = fs::read_to_string(&file).unwrap();
    let other = text.replace(root().join("onnx/phantom").to_str().unwrap(), "bundle");
    assert_ne!(text, other);
    fs::write(&file, other).unwrap();
    let whole = run(&["config", "check"], &file);
    assert!(whole.status.success(), "{}", said(&whole));

    fs::write(bundle.join("denoiser.onnx"), "no graph").unwrap();
    let check = run(&["config", "check"], &file);
    assert_eq!(check.status.code(), Some(78), "{}", said(&check));
    assert!(said(&check).contains("model.bundle"), "{}", said(&check));
    let (verdict, _, status) = doctor(&file, "model");
    assert_eq!((verdict.as_str(), status), ("bad", Some(1)));

    fs::remove_dir_all(&bundle).unwrap();
    let check = run(&["config", "check"], &file);
    assert_eq!(check.status.code(), Some(78), "{}", said(&check));
    assert!(said(&check).contains("bundle/bundle.toml"), "{}", said(&check));
}

#[test]
fn the_doctor_finds_a_database_out_of_reach() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let more = format!(
        "{DICOM}[shared]\nurl = \"postgres://cdal@127.0.0.1:{port}/cdal\"\ndevice = \"a\"\ntimeout = \"2s\"\n"
    );
    let file = configuration(folder.path(), &more);
    let (verdict, text, status) = doctor(&file, "shared queue");
    assert_eq!((verdict.as_str(), status), ("bad", Some(1)), "{text}");
}

#[test]
fn a_device_whose_daemon_runs_is_not_called_ill() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let more = format!("[ingest.dicom]\nlisten = \"127.0.0.1:{port}\"\n");
    let file = configuration(folder.path(), &more);
    let mut command = cdal();
    let daemon = Process::start(command.args(["serve", "--config"]).arg(&file));
    daemon.dicom();
    for check in ["spool", "dicom port"] {
        let (verdict, text, status) = doctor(&file, check);
        assert_eq!((verdict.as_str(), status), ("warning", Some(0)), "{check}: {text}");
    }
}

#[test]
fn several_files_are_checked_and_shown_as_they_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let first = configuration(folder.path(), DICOM);
    let second = folder.path().join("more.toml");
    fs::write(&second, "[model]\nvotes = 7\n").unwrap();
    let both = |what: &str| {
        Command::new(env!("CARGO_BIN_EXE_cdal"))
            .args(["config", what])
            .args([&first, &second])
            .output()
            .unwrap()
    };
    let check = both("check");
    assert!(check.status.success(), "{}", said(&check));
    let show = String::from_utf8(both("show").stdout).unwrap();
    assert!(
        show.lines().any(|l| l.starts_with("model.votes = 7") && l.ends_with("more.toml")),
        "{show}"
    );
    fs::write(&second, "[model]\nvotes = 0\n").unwrap();
    let check = both("check");
    assert_eq!(check.status.code(), Some(78));
    assert!(said(&check).contains("more.toml: model.votes"), "{}", said(&check));
}

#[test]
fn relative_paths_lie_beside_the_file_wherever_the_daemon_is_started() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("daemon.toml");
    let text = format!(
        "[model]\nbundle = \"{}\"\n[spool]\ndirectory = \"state/spool\"\nmin_free_bytes = 1\n{DICOM}",
        root().join("onnx/phantom").display()
    );
    fs::write(&file, text).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let mut command = cdal();
    let daemon = Process::start(
        command.args(["serve", "--config"]).arg(&file).current_dir(elsewhere.path()),
    );
    daemon.dicom();
    assert!(folder.path().join("state/spool/spool.db").exists());
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    let list =
        cdal().args(["spool", "list", "--config"]).arg(&file).current_dir("/").output().unwrap();
    assert!(list.status.success(), "{}", said(&list));
}

#[test]
fn a_box_without_dicom_serves_by_http_and_one_without_any_way_in_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = configuration(folder.path(), "[http]\nlisten = \"127.0.0.1:0\"\n");
    let mut command = cdal();
    let mut daemon = Process::start(command.args(["serve", "--config"]).arg(&file));
    let ready = daemon.json();
    assert!(ready["dicom"].is_null() && ready["http"].is_string(), "{ready}");
    daemon.signal("-TERM");
    assert!(daemon.wait().success());

    let watched = folder.path().join("in");
    let more = format!("[ingest.folder]\npath = \"{}\"\n", watched.display());
    let file = configuration(folder.path(), &more);
    let mut command = cdal();
    let daemon = Process::start(command.args(["serve", "--config"]).arg(&file));
    assert!(daemon.json()["dicom"].is_null());
    wait_for("the watched folder", || watched.is_dir().then_some(()));

    let file = configuration(folder.path(), "");
    let check = run(&["config", "check"], &file);
    let words = said(&check);
    assert_eq!(check.status.code(), Some(78), "{words}");
    for way in
        ["ingest: nothing would be taken in", "[ingest.dicom]", "ingest.folder.path", "http.listen"]
    {
        assert!(words.contains(way), "{way}: {words}");
    }
}

#[test]
fn a_size_with_a_unit_is_answered_with_the_number_to_write() {
    let folder = tempfile::tempdir().unwrap();
    let file = configuration(folder.path(), DICOM);
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("min_free_bytes = 1", "min_free_bytes = \"5GB\"")).unwrap();
    let check = run(&["config", "check"], &file);
    let words = said(&check);
    assert_eq!(check.status.code(), Some(78), "{words}");
    assert!(
        words.contains("spool.min_free_bytes") && words.contains("write 5000000000"),
        "{words}"
    );
    assert!(!words.contains("remove the quotes"), "{words}");
}

#[test]
fn a_refused_reload_leaves_the_log_level_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = configuration(folder.path(), DICOM);
    let text = fs::read_to_string(&file).unwrap();
    let log = folder.path().join("log");
    let mut command = cdal();
    command.args(["serve", "--config"]).arg(&file).stderr(fs::File::create(&log).unwrap());
    let daemon = Process::start(&mut command);
    daemon.dicom();
    let logged = || fs::read_to_string(&log).unwrap();
    // A destination with a fault, and no more than errors in the log.
    let refused = "[[destination]]\nname = \"a\"\nkind = \"folder\"\n[daemon]\nlog = \"error\"\n";
    fs::write(&file, format!("{text}{refused}")).unwrap();
    daemon.signal("-HUP");
    wait_for("the refusal", || logged().contains("the old one stays in force").then_some(()));
    fs::write(&file, &text).unwrap();
    daemon.signal("-HUP");
    wait_for("a line of INFO", || logged().contains("configuration reloaded").then_some(()));
}

#[test]
fn a_provider_that_the_library_lacks_is_told_to_be_another_library() {
    let folder = tempfile::tempdir().unwrap();
    let file = configuration(folder.path(), &format!("{DICOM}[runtime]\nprovider = \"cuda\"\n"));
    let output = run(&["serve", "--config"], &file);
    let words = said(&output);
    assert_eq!(output.status.code(), Some(78), "{words}");
    assert!(words.contains("built without it") && words.contains("ORT_DYLIB_PATH"), "{words}");
    assert!(!words.contains("install its libraries") && !words.contains(".;"), "{words}");
}
