//! The process is killed between the acknowledgement and the delivery.

use std::process::Command;
use std::time::Duration;

use cdal::deliver::Config;

use crate::support::daemon::settings;
use crate::support::dicom::{files, series};
use crate::support::http::{get, post_files};
use crate::support::process::{Process, dcmtk_storescp, free_port, store};
use crate::support::wait_for;
use crate::support::worker::Stand;

const SPOOL: &str = "CDAL_IT_SPOOL";
const PORT: &str = "CDAL_IT_PORT";
const COMPUTE_MS: &str = "CDAL_IT_COMPUTE_MS";

/// The daemon as `cdal serve` runs it, with a worker that needs no model: the body of the child process that the
/// tests below start and kill.
#[test]
#[ignore = "runs in the child process of the other tests"]
fn child() {
    let variable = |name| std::env::var(name).expect("the parent sets it");
    let address = format!("127.0.0.1:{}", variable(PORT));
    let settings =
        settings(variable(SPOOL).as_ref(), vec![Config::dicom("pacs", &address, "DCMTK")]);
    let compute = Duration::from_millis(variable(COMPUTE_MS).parse().unwrap());
    cdal::telemetry::start("info");
    cdal::cli::serve::serve(settings, Stand { compute }).unwrap();
}

fn start(spool: &std::path::Path, port: u16, compute: Duration) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", "--nocapture", "crash::child"])
        .env(SPOOL, spool)
        .env(PORT, port.to_string())
        .env(COMPUTE_MS, compute.as_millis().to_string());
    Process::start(&mut command)
}

#[test]
fn killed_after_the_acknowledgement_everything_is_delivered_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, out) = (folder.path().join("spool"), folder.path().join("out"));
    std::fs::create_dir(&out).unwrap();
    let port = free_port();

    // Killed while the series is still open.
    let mut daemon = start(&spool, port, Duration::ZERO);
    store(daemon.dicom(), &series(folder.path(), "open", 3));
    daemon.signal("-KILL");
    daemon.wait();
    // Killed while a job computes.
    let mut daemon = start(&spool, port, Duration::from_secs(20));
    store(daemon.dicom(), &series(folder.path(), "running", 3));
    std::thread::sleep(Duration::from_millis(600));
    daemon.signal("-KILL");
    daemon.wait();
    // Killed while the destination is down.
    let mut daemon = start(&spool, port, Duration::ZERO);
    daemon.dicom();
    let products = spool.join("products");
    wait_for("both jobs", || (files(&products).len() == 2).then_some(()));
    daemon.signal("-KILL");
    daemon.wait();

    let _peer = dcmtk_storescp(port, &out, &[]);
    let mut daemon = start(&spool, port, Duration::ZERO);
    daemon.dicom();
    wait_for("both products", || (files(&out).len() == 2).then_some(()));
    daemon.signal("-TERM");
    assert!(daemon.wait().success());
    assert_eq!(std::fs::read_dir(spool.join("incoming")).unwrap().count(), 0);
}

#[test]
fn killed_right_after_202_every_case_has_its_result_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool");
    let http = |daemon: &Process| -> std::net::SocketAddr {
        daemon.json()["http"].as_str().unwrap().parse().unwrap()
    };
    let mut daemon = start(&spool, free_port(), Duration::from_millis(200));
    let to = http(&daemon);
    let accepted: Vec<String> = (0..3)
        .map(|number| {
            let files = series(folder.path(), &format!("case-{number}"), 2);
            let answer = post_files(to, "related", &files);
            assert_eq!(answer.status, 202, "{}", answer.text());
            answer.json()["jobs"][0]["href"].as_str().unwrap().to_owned()
        })
        .collect();
    daemon.signal("-KILL");
    daemon.wait();
    let mut daemon = start(&spool, free_port(), Duration::ZERO);
    let to = http(&daemon);
    for job in accepted {
        wait_for("the job to be done", || (get(to, &job).json()["state"] == "done").then_some(()));
        assert_eq!(get(to, &format!("{job}/mask")).status, 200);
    }
    daemon.signal("-KILL");
    daemon.wait();
}
