//! `cdal spool` beside a running daemon.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cdal::daemon::{Claim, JobError, Product, Worker};
use cdal::deliver::Config;
use serde_json::Value;

use crate::support::daemon::{Running, settings};
use crate::support::dicom::{files, series};
use crate::support::process::{cdal, dcmtk, free_port, store};
use crate::support::wait_for;
use crate::support::worker::product;

/// Refuses every series until it is told to be kind.
struct Strict(Arc<AtomicBool>);

impl Worker for Strict {
    fn process(&mut self, claim: &Claim) -> Result<Vec<Product>, JobError> {
        if self.0.load(Ordering::Relaxed) {
            return Ok(vec![product("strict", claim.files.len() as u16)]);
        }
        Err(JobError::Permanent("a colour series for a grey model".to_owned()))
    }
}

fn configuration(folder: &Path) -> PathBuf {
    let path = folder.join("daemon.toml");
    let text = format!(
        "[model]\nbundle = \"onnx/phantom\"\n[spool]\ndirectory = \"{}\"\n[ingest.dicom]\n",
        folder.join("spool").display()
    );
    std::fs::write(&path, text).unwrap();
    path
}

fn operate(configuration: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = cdal()
        .args(["spool", arguments[0], "--config"])
        .arg(configuration)
        .args(&arguments[1..])
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn listed(configuration: &Path, more: &[&str]) -> Value {
    let (status, out, err) = operate(configuration, &[&["list", "--json"], more].concat());
    assert_eq!(status, Some(0), "{err}");
    serde_json::from_str(&out).unwrap()
}

#[test]
fn an_operator_sees_retries_and_drops_what_failed() {
    let folder = tempfile::tempdir().unwrap();
    let configuration = configuration(folder.path());
    let (status, _, err) = operate(&configuration, &["list"]);
    assert!(status == Some(1) && err.contains("spool.db"), "no spool yet: {err}");

    let kind = Arc::new(AtomicBool::new(false));
    let out = folder.path().join("out");
    let mut settings = settings(
        &folder.path().join("spool"),
        vec![
            Config::folder("disk", &out),
            Config::dicom("down", &format!("127.0.0.1:{}", free_port()), "X"),
        ],
    );
    settings.destinations[1].give_up_after = Duration::from_millis(1);
    let daemon = Running::start(settings, Strict(kind.clone()));
    store(daemon.address(), &series(folder.path(), "a", 2));
    let job = wait_for("the refusal", || {
        let report = listed(&configuration, &[]);
        report["jobs"][0]["id"].as_str().map(str::to_owned)
    });
    let (_, shown, _) = operate(&configuration, &["show", &job]);
    assert!(shown.contains("failed") && shown.contains("colour series"), "{shown}");
    assert!(!shown.contains("2.25."), "a UID is shown: {shown}");
    let (_, shown, _) = operate(&configuration, &["show", &job, "--uids", "--json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["uids"]["instances"].as_array().unwrap().len(), 2);

    // The daemon hears of it without being told.
    kind.store(true, Ordering::Relaxed);
    let (status, _, err) = operate(&configuration, &["retry", &job]);
    assert_eq!(status, Some(0), "{err}");
    wait_for("the product", || files(&out).pop());
    let letter = wait_for("the dead letter", || {
        listed(&configuration, &[])["deliveries"][0]["id"].as_i64().map(|id| id.to_string())
    });
    let (status, _, err) = operate(&configuration, &["retry", &job]);
    assert!(status == Some(1) && err.contains("is done and cannot become ready"), "{err}");
    assert_eq!(operate(&configuration, &["drop", &letter]).0, Some(0));
    let report = listed(&configuration, &["--all"]);
    assert_eq!(report["count"]["dead_deliveries"], 0);
    assert_eq!(report["jobs"][0]["state"], "done");
    assert_eq!(report["destinations"][0]["sent"], 1);
    assert_eq!(report["destinations"][1]["dropped"], 1);
}

#[test]
fn above_the_quota_an_object_is_refused_for_now_and_taken_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let images = series(folder.path(), "a", 3);
    let size = std::fs::metadata(&images[0]).unwrap().len();
    let mut settings = settings(&folder.path().join("spool"), vec![Config::folder("disk", &out)]);
    // The second object passes the high watermark; the third finds it passed.
    settings.spool.max_bytes = Some(size + size / 2);
    settings.spool.resume_bytes = Some(size / 2);
    let daemon = Running::start(settings, Strict(Arc::new(AtomicBool::new(true))));
    let output = dcmtk("storescu", daemon.address(), &["-R", "-nh"], &images);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(text.matches("(Success)").count(), 2, "{text}");
    assert!(text.contains("OutOfResources"), "{text}");
    // What is delivered makes room; then the sender's next try is taken.
    wait_for("room", || {
        dcmtk("storescu", daemon.address(), &["-R"], &images[2..]).status.success().then_some(())
    });
}
