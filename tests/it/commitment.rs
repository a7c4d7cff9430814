//! Storage commitment both ways, with pynetdicom and Orthanc: senders are told what is safe here, and a delivery is done
//! when its archive has committed to keep it; killed in between or not.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cdal::deliver::{Commitment, Config, ReportConfig, Requester};
use cdal::spool::{self, DeliveryState, Desk};
use serde_json::{Value, json};

use crate::crash::{COMMITMENT, Order, start, steps_of};
use crate::support::daemon::{Running, settings};
use crate::support::dicom::series;
use crate::support::http::{get, post};
use crate::support::process::{Process, free_port, orthanc, peer, store};
use crate::support::wait_for;
use crate::support::worker::{Echo, Stand};

const QUICK: Stand = Stand { compute: Duration::ZERO };

fn told_at(ae_title: &str, port: u16) -> ReportConfig {
    let address = format!("127.0.0.1:{port}");
    ReportConfig {
        requester: vec![Requester { ae_title: ae_title.to_owned(), address, tls: None }],
        timeout: Duration::from_secs(5),
        retry_first: Duration::from_millis(50),
        retry_max: Duration::from_millis(200),
        ..ReportConfig::default()
    }
}

fn committing(name: &str, port: u16, within: Duration) -> Config {
    let commitment = Some(Commitment { within });
    Config { commitment, ..Config::dicom(name, &format!("127.0.0.1:{port}"), "ARCHIVE") }
}

fn ask(to: u16, ae_title: &str, files: &[PathBuf], more: &[&str]) -> Process {
    let mut arguments = vec!["ask".to_owned(), to.to_string(), ae_title.to_owned()];
    arguments.extend(files.iter().map(|file| file.to_str().unwrap().to_owned()));
    arguments.extend(more.iter().map(|&word| word.to_owned()));
    peer("commitment.py", &arguments)
}

fn hear(port: u16, refusals: u32) -> Process {
    let process =
        peer("commitment.py", &["hear".to_owned(), port.to_string(), refusals.to_string()]);
    assert_eq!(process.json()["ready"], true);
    process
}

fn archive(port: u16, report_to: u16, how: &str) -> Process {
    let arguments = ["archive".to_owned(), port.to_string(), report_to.to_string(), how.to_owned()];
    let process = peer("commitment.py", &arguments);
    assert_eq!(process.json()["ready"], true);
    process
}

fn uids(files: &[PathBuf]) -> Vec<String> {
    let uid = |file: &PathBuf| {
        let object = dicom_object::open_file(file).unwrap();
        object.meta().media_storage_sop_instance_uid().to_owned()
    };
    let mut uids: Vec<_> = files.iter().map(uid).collect();
    uids.sort();
    uids
}

fn desk(spool: &Path) -> Desk {
    Desk::open(spool::Config::new(spool)).unwrap()
}

#[test]
fn a_sender_is_told_what_is_safe_and_what_is_not_until_it_acknowledges() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut settings = settings(&folder.path().join("spool"), Vec::new());
    settings.commitment = told_at("MODALITY", port);
    let daemon = Running::start(settings, QUICK);
    let to = daemon.address().port();
    let files = series(folder.path(), "a", 2);

    assert_eq!(ask(to, "STRANGER", &files, &[]).json()["status"], 0x0124, "not authorised");
    let asked = ask(to, "MODALITY", &files, &[]).json();
    assert_eq!(asked["status"], 0);
    let listener = hear(port, 1);
    for refused in [true, false] {
        let report = listener.json();
        assert_eq!((&report["event"], &report["refused"]), (&json!(2), &json!(refused)));
        assert_eq!(report["transaction"], asked["transaction"]);
        assert_eq!(report["role"], json!([["1.2.840.10008.1.20.1", true]]));
        assert_eq!(report["safe"], json!(uids(&files)));
        let mut failed = vec![json!(["2.25.404", 0x0112]), json!([uids(&files)[0], 0x0119])];
        let first = dicom_object::open_file(&files[0]).unwrap();
        failed[1][0] = json!(first.meta().media_storage_sop_instance_uid());
        failed.sort_by_key(|failed| failed[0].as_str().unwrap().to_owned());
        assert_eq!(report["failed"], json!(failed));
    }
    assert_eq!(ask(to, "MODALITY", &files, &["--known"]).json()["status"], 0);
    let report = listener.json();
    assert_eq!((&report["event"], &report["failed"]), (&json!(1), &json!([])));
    wait_for("the record", || {
        (desk(&folder.path().join("spool")).count().unwrap().pending_reports == 0).then_some(())
    });
    daemon.stop();
}

fn order(spool: &Path, destinations: Vec<Config>, commitment: ReportConfig) -> Order {
    let (port, compute_ms, retain_bytes) = (free_port(), None, None);
    Order {
        spool: spool.to_owned(),
        port,
        destinations,
        compute_ms,
        retain_bytes,
        commitment,
        shared: None,
    }
}

fn kill(mut daemon: Process) {
    daemon.signal("-KILL");
    daemon.wait();
}

#[test]
fn killed_between_a_request_and_its_report_the_report_still_comes() {
    let folder = tempfile::tempdir().unwrap();
    for failpoint in [None, Some("commitment.recorded"), Some("commitment.told")] {
        let name = failpoint.unwrap_or("kill");
        let port = free_port();
        let order = order(&folder.path().join(name), Vec::new(), told_at("MODALITY", port));
        let files = series(folder.path(), name, 2);
        let mut daemon = start(&order, failpoint.map(|step| format!("{step}=abort")).as_deref());
        daemon.dicom();
        let asker = ask(order.port, "MODALITY", &files, &["--known"]);
        let listener = match name {
            "commitment.told" => {
                assert_eq!(asker.json()["status"], 0);
                let listener = hear(port, 0);
                assert_eq!(daemon.wait().signal(), Some(6), "{name}");
                assert_eq!(listener.json()["event"], 1);
                listener
            }
            "commitment.recorded" => {
                assert_eq!(daemon.wait().signal(), Some(6), "{name}");
                hear(port, 0)
            }
            _ => {
                assert_eq!(asker.json()["status"], 0);
                kill(daemon);
                hear(port, 0)
            }
        };
        let daemon = start(&order, None);
        daemon.dicom();
        let report = listener.json();
        assert_eq!(
            (&report["event"], &report["safe"]),
            (&json!(1), &json!(uids(&files))),
            "{name}"
        );
        kill(daemon);
    }
}

/// How often each object was stored until all deliveries are done.
fn deliver(how: &str, within: Duration) -> (Vec<usize>, Running, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let spool = folder.path().join("spool");
    let daemon = Running::start(settings(&spool, vec![committing("archive", port, within)]), Echo);
    let archive = archive(port, daemon.address().port(), how);
    let files = series(folder.path(), "a", 2);
    store(daemon.address(), &files);
    let desk = desk(&spool);
    let wanted = if how == "conflict" { DeliveryState::Dead } else { DeliveryState::Sent };
    wait_for("the commitment", || {
        (desk.letters(&[wanted], None).unwrap().len() == 2).then_some(())
    });
    assert_eq!(desk.count().unwrap().pending_deliveries, 0);
    let statement = desk.statements().unwrap().remove(0);
    let lines: Vec<Value> =
        archive.lines.try_iter().map(|line| serde_json::from_str(&line).unwrap()).collect();
    let stored = |uid: &String| lines.iter().filter(|line| line["stored"] == **uid).count();
    let times: Vec<usize> = uids(&files).iter().map(stored).collect();
    assert_eq!(statement.attempts, times.iter().sum::<usize>() as u64, "{statement:?}");
    (times, daemon, folder)
}

#[test]
fn a_delivery_is_done_when_the_archive_has_committed_to_it() {
    for how in ["new", "same"] {
        let (times, daemon, _folder) = deliver(how, Duration::from_mins(1));
        assert_eq!(times, [1, 1], "{how}");
        daemon.stop();
    }
}

#[test]
fn what_the_archive_lost_or_is_silent_about_is_sent_again() {
    for (how, within) in [("loses", Duration::from_mins(1)), ("silent", Duration::from_secs(1))] {
        let (times, daemon, _folder) = deliver(how, within);
        assert!(times.iter().all(|&times| times >= 2), "{how}: {times:?}");
        daemon.stop();
    }
}

#[test]
fn what_the_archive_will_never_keep_is_a_dead_letter() {
    let (_, daemon, folder) = deliver("conflict", Duration::from_mins(1));
    let letters = desk(&folder.path().join("spool")).letters(&[DeliveryState::Dead], None).unwrap();
    assert!(letters.iter().all(|letter| letter.reason.as_deref().unwrap().contains("0119")));
    daemon.stop();
}

#[test]
fn killed_while_an_archive_is_asked_everything_is_committed_to_in_the_end() {
    let folder = tempfile::tempdir().unwrap();
    for step in steps_of(COMMITMENT).into_iter().filter(|step| step.starts_with("custody.")) {
        let port = free_port();
        let destinations = vec![committing("archive", port, Duration::from_secs(1))];
        let order = order(&folder.path().join(step), destinations, ReportConfig::default());
        let _archive = archive(port, order.port, "new");
        let files = series(folder.path(), step, 2);
        let mut daemon = start(&order, Some(&format!("{step}=abort")));
        store(daemon.dicom(), &files);
        assert_eq!(daemon.wait().signal(), Some(6), "{step} is never reached");
        let daemon = start(&order, None);
        daemon.dicom();
        let desk = desk(&order.spool);
        wait_for("the commitment", || {
            (desk.letters(&[DeliveryState::Sent], None).unwrap().len() == 2).then_some(())
        });
        kill(daemon);
    }
}

#[test]
fn orthanc_commits_to_what_it_gets_and_is_told_what_is_safe_here() {
    let folder = tempfile::tempdir().unwrap();
    let (http, dicom) = (free_port(), free_port());
    let spool = folder.path().join("spool");
    let archive = committing("archive", dicom, Duration::from_mins(1));
    let mut settings = settings(&spool, vec![archive]);
    settings.commitment = told_at("ARCHIVE", dicom);
    let daemon = Running::start(settings, QUICK);
    let _orthanc = orthanc(
        folder.path(),
        json!({
            "HttpPort": http, "DicomPort": dicom, "DicomAet": "ARCHIVE", "DicomModalities": { "cdal": {
                "AET": "CDAL", "Host": "127.0.0.1", "Port": daemon.address().port(),
                "AllowStorageCommitment": true,
            } },
        }),
    );
    let files = series(folder.path(), "a", 2);
    store(daemon.address(), &files);
    let desk = desk(&spool);
    wait_for("its commitment", || {
        (desk.letters(&[DeliveryState::Sent], None).unwrap().len() == 1).then_some(())
    });

    let http = ([127, 0, 0, 1], http).into();
    for (instances, expected) in [(uids(&files), "Success"), (vec!["2.25.404".into()], "Failure")] {
        let class = "1.2.840.10008.5.1.4.1.1.4";
        let instances: Vec<_> = instances.iter().map(|uid| json!([class, uid])).collect();
        let body = json!({ "DicomInstances": instances }).to_string();
        let asked = post(http, "/modalities/cdal/storage-commitment", body.as_bytes());
        assert_eq!(asked.status, 200, "{}", asked.text());
        let path = asked.json()["Path"].as_str().unwrap().to_owned();
        wait_for("our report", || (get(http, &path).json()["Status"] == expected).then_some(()));
    }
    daemon.stop();
}
