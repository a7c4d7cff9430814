//! Products out: to dcmtk, pynetdicom and a folder.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cdal::daemon::{Claim, Drained, JobError, Product, Worker};
use cdal::deliver::Config;

use crate::support::chaos::Station;
use crate::support::daemon::{Running, settings};
use crate::support::dicom::{dataset, files, series};
use crate::support::process::{dcmtk_storescp, free_port, pynetdicom_storescp, store};
use crate::support::wait_for;
use crate::support::worker::{Echo, Stand, product};

const QUICK: Stand = Stand { compute: Duration::ZERO };

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

#[test]
fn dcmtk_and_pynetdicom_and_a_folder_get_the_same_dataset() {
    let folder = tempfile::tempdir().unwrap();
    let outs = ["dcmtk", "pynetdicom", "disk"].map(|name| folder.path().join(name));
    for out in &outs {
        std::fs::create_dir(out).unwrap();
    }
    let (port_1, port_2) = (free_port(), free_port());
    let _dcmtk = dcmtk_storescp(port_1, &outs[0], &[]);
    let _pynetdicom = pynetdicom_storescp(port_2, &outs[1]);
    let destinations = vec![
        Config::dicom("dcmtk", &local(port_1), "DCMTK"),
        Config::dicom("pynetdicom", &local(port_2), "PYNET"),
        Config::folder("disk", &outs[2]),
    ];
    let daemon = Running::start(settings(&folder.path().join("spool"), destinations), QUICK);
    store(daemon.address(), &series(folder.path(), "a", 3));
    let received: Vec<PathBuf> =
        outs.iter().map(|out| wait_for("the product", || files(out).pop())).collect();
    let made = files(&folder.path().join("spool/products"));
    assert_eq!(made.len(), 1);
    // A peer may still be writing when its file first looks whole.
    for file in &received {
        wait_for("identical bytes", || (dataset(file) == dataset(&made[0])).then_some(()));
    }
    assert_eq!(daemon.stop(), Drained::Completely);
}

#[test]
fn a_peer_that_takes_implicit_vr_only_gets_it_transcoded() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let port = free_port();
    let _peer = dcmtk_storescp(port, &out, &["+xi"]);
    let destinations = vec![Config::dicom("pacs", &local(port), "DCMTK")];
    let daemon = Running::start(settings(&folder.path().join("spool"), destinations), QUICK);
    store(daemon.address(), &series(folder.path(), "a", 2));
    let file = wait_for("the product", || files(&out).pop());
    assert_eq!(daemon.stop(), Drained::Completely);
    let made = files(&folder.path().join("spool/products")).remove(0);
    let (sent, got) = (open(&made), open(&file));
    assert_eq!(got.meta().transfer_syntax(), "1.2.840.10008.1.2");
    let pixels = |object: &dicom_object::DefaultDicomObject| {
        object.element_by_name("PixelData").unwrap().to_bytes().unwrap().into_owned()
    };
    assert!(pixels(&sent) == pixels(&got));
}

#[test]
fn one_association_carries_what_is_due_and_refusals_do_not_change_the_order() {
    for refuse_every in [0, 3] {
        let folder = tempfile::tempdir().unwrap();
        let station = Station::start(refuse_every);
        let destination = Config::dicom("pacs", &station.address.to_string(), "PACS");
        let daemon =
            Running::start(settings(&folder.path().join("spool"), vec![destination]), Echo);
        let images = series(folder.path(), "a", 6);
        store(daemon.address(), &images);
        wait_for("all objects", || (station.arrivals().len() == 6).then_some(()));
        let (got, associations): (Vec<_>, Vec<_>) = station.arrivals().into_iter().unzip();
        let sop = |file: &PathBuf| open(file).meta().media_storage_sop_instance_uid().to_owned();
        assert_eq!(got, images.iter().map(sop).collect::<Vec<_>>());
        if refuse_every == 0 {
            assert!(associations.iter().all(|number| *number == associations[0]));
        }
        assert_eq!(daemon.stop(), Drained::Completely);
    }
}

fn open(file: &std::path::Path) -> dicom_object::DefaultDicomObject {
    dicom_object::open_file(file).unwrap()
}

#[test]
fn a_destination_that_is_down_holds_back_no_other_and_gets_its_own_when_it_is_up() {
    let folder = tempfile::tempdir().unwrap();
    let (late, disk) = (folder.path().join("late"), folder.path().join("disk"));
    std::fs::create_dir(&late).unwrap();
    let port = free_port();
    let destinations =
        vec![Config::dicom("late", &local(port), "DCMTK"), Config::folder("disk", &disk)];
    let daemon = Running::start(settings(&folder.path().join("spool"), destinations), QUICK);
    for name in ["a", "b"] {
        store(daemon.address(), &series(folder.path(), name, 2));
    }
    wait_for("the folder's products", || (files(&disk).len() == 2).then_some(()));
    assert!(files(&late).is_empty());
    let _peer = dcmtk_storescp(port, &late, &[]);
    wait_for("the late products", || (files(&late).len() == 2).then_some(()));
    assert_eq!(daemon.stop(), Drained::Completely);
}

#[test]
fn what_a_stop_leaves_is_delivered_by_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, out) = (folder.path().join("spool"), folder.path().join("out"));
    std::fs::create_dir(&out).unwrap();
    let port = free_port();
    let destinations = vec![Config::dicom("pacs", &local(port), "DCMTK")];
    let daemon = Running::start(settings(&spool, destinations.clone()), QUICK);
    store(daemon.address(), &series(folder.path(), "a", 2));
    wait_for("the job", || (daemon.daemon().health().borrow().jobs_done == 1).then_some(()));
    assert_eq!(daemon.stop(), Drained::WithRest { jobs: 0, deliveries: 1, reports: 0 });

    let _peer = dcmtk_storescp(port, &out, &[]);
    let daemon = Running::start(settings(&spool, destinations), QUICK);
    wait_for("the product", || files(&out).pop());
    assert_eq!(daemon.stop(), Drained::Completely);
}

#[test]
fn a_stop_finishes_the_running_job_and_its_delivery() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let slow = Stand { compute: Duration::from_millis(800) };
    let destination = Config::folder("disk", &out);
    let daemon = Running::start(settings(&folder.path().join("spool"), vec![destination]), slow);
    store(daemon.address(), &series(folder.path(), "a", 2));
    wait_for("the job to start", || {
        daemon.daemon().health().borrow().working_since.is_some().then_some(())
    });
    assert_eq!(daemon.stop(), Drained::Completely);
    assert_eq!(files(&out).len(), 1);
}

/// Fails once as busy, then panics, then works.
struct Moody(AtomicU32);

impl Worker for Moody {
    fn process(&mut self, claim: &Claim) -> Result<Vec<Product>, JobError> {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            0 => Err(JobError::Transient("busy".to_owned())),
            2 => panic!("the second job's first attempt"),
            _ => Ok(vec![product("moody", claim.files.len() as u16)]),
        }
    }
}

#[test]
fn a_transient_failure_is_tried_again_and_a_panic_fails_only_its_job() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut settings = settings(&folder.path().join("spool"), vec![Config::folder("disk", &out)]);
    settings.daemon.retry_delay = Duration::from_millis(100);
    let daemon = Running::start(settings, Moody(AtomicU32::new(0)));
    let counts = || {
        let health = *daemon.daemon().health().borrow();
        (health.jobs_done, health.jobs_failed)
    };
    for (name, expected) in [("a", (1, 0)), ("b", (1, 1)), ("c", (2, 1))] {
        store(daemon.address(), &series(folder.path(), name, 1));
        wait_for("the job", || (counts() == expected).then_some(()));
    }
}
