use std::time::Duration;

use super::*;

fn spool(directory: &std::path::Path) -> Spool {
    let config = Config { min_free_bytes: 0, ..Config::new(directory) };
    Spool::open(config).expect("the spool opens").0
}

fn arrive(spool: &Spool, sop: &str, series: &str, content: &[u8]) -> Stored {
    let arrival = Arrival {
        sop_instance_uid: Uid::parse(sop).unwrap(),
        series_instance_uid: Uid::parse(series).unwrap(),
        association: 1,
        extension: "dcm",
    };
    spool.store(&arrival, durable::write(&spool.incoming(), content).unwrap()).unwrap()
}

fn accepted(stored: Stored) -> JobId {
    match stored {
        Stored::Accepted { job, .. } => job,
        other => panic!("{other:?}"),
    }
}

fn product(content: &[u8]) -> Product {
    Product {
        name: "mask.dcm".to_owned(),
        dicom: Some(DicomObject {
            sop_class_uid: Uid::parse("1.2.3").unwrap(),
            sop_instance_uid: Uid::derived(&["mask"]),
            transfer_syntax: Uid::parse("1.2.840.10008.1.2.1").unwrap(),
        }),
        bytes: content.to_vec(),
        summary: String::new(),
    }
}

fn due(spool: &Spool, destination: &str) -> Delivery {
    match spool.next_delivery(destination).unwrap() {
        Next::Due(delivery) => *delivery,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_series_becomes_one_job_and_one_delivery_per_destination() {
    let folder = tempfile::tempdir().unwrap();
    let spool = spool(folder.path());
    let job = accepted(arrive(&spool, "1.1", "1.9", b"a"));
    assert_eq!(
        arrive(&spool, "1.2", "1.9", b"b"),
        Stored::Accepted { job: job.clone(), instances: 2 }
    );
    assert_eq!(spool.claim().unwrap(), None);
    assert!(spool.complete(&job).unwrap());
    let claim = spool.claim().unwrap().unwrap();
    assert_eq!((&claim.job, claim.attempt, claim.files.len()), (&job, 1, 2));
    assert_eq!(std::fs::read(&claim.files[1]).unwrap(), b"b");

    let destinations = ["x".to_owned(), "y".to_owned()];
    spool.finish(&job, &[product(b"mask")], &destinations, Duration::from_millis(7)).unwrap();
    let first = due(&spool, "x");
    assert_eq!(std::fs::read(&first.path).unwrap(), b"mask");
    assert_eq!(spool.sent(&first).unwrap(), None);
    assert_eq!(spool.next_delivery("x").unwrap(), Next::Nothing);
    let account = spool.bury(&due(&spool, "y"), "refused").unwrap().unwrap();
    assert_eq!((account.sent, account.dead, account.compute_ms), (1, 1, 7));
}

#[test]
fn the_same_object_again_is_no_second_job() {
    let folder = tempfile::tempdir().unwrap();
    let spool = spool(folder.path());
    let job = accepted(arrive(&spool, "1.1", "1.9", b"a"));
    assert_eq!(arrive(&spool, "1.1", "1.9", b"a"), Stored::Duplicate);
    spool.complete(&job).unwrap();
    spool.claim().unwrap().unwrap();
    assert_eq!(arrive(&spool, "1.1", "1.9", b"a"), Stored::Duplicate);
    spool.finish(&job, &[], &[], Duration::ZERO).unwrap();
    assert_eq!(arrive(&spool, "1.1", "1.9", b"a"), Stored::Duplicate);
    assert_eq!(spool.count().unwrap(), Count::default());
}

#[test]
fn other_content_under_a_known_uid_is_kept_and_stops_the_job() {
    let folder = tempfile::tempdir().unwrap();
    let spool = spool(folder.path());
    let job = accepted(arrive(&spool, "1.1", "1.9", b"a"));
    assert_eq!(arrive(&spool, "1.1", "1.9", b"b"), Stored::Quarantined { job: job.clone() });
    assert_eq!(arrive(&spool, "1.1", "1.9", b"b"), Stored::Duplicate);
    assert!(!spool.complete(&job).unwrap());
    assert_eq!(spool.claim().unwrap(), None);
    assert_eq!(spool.count().unwrap().quarantined, 1);
    assert_eq!(std::fs::read_dir(folder.path().join("instances")).unwrap().count(), 2);
}

#[test]
fn a_late_object_opens_a_new_revision_with_the_whole_series() {
    let folder = tempfile::tempdir().unwrap();
    let spool = spool(folder.path());
    let first = accepted(arrive(&spool, "1.1", "1.9", b"a"));
    spool.complete(&first).unwrap();
    spool.claim().unwrap().unwrap();
    let second = accepted(arrive(&spool, "1.2", "1.9", b"b"));
    assert_ne!(first, second);
    spool.complete(&second).unwrap();
    assert_eq!(spool.claim().unwrap().unwrap().files.len(), 2);
    // The first has nothing more to say: the second covers it.
    assert_eq!(spool.retry(&first, "busy", Duration::ZERO).unwrap(), Retry::GivenUp);
}

#[test]
fn idle_series_become_ready_and_the_next_deadline_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let spool = spool(folder.path());
    arrive(&spool, "1.1", "1.9", b"a");
    let (ready, wait) = spool.complete_idle(Duration::from_mins(1)).unwrap();
    assert_eq!(ready, 0);
    assert!(wait.unwrap() > Duration::from_secs(50) && wait.unwrap() <= Duration::from_mins(1));
    assert_eq!(spool.complete_idle(Duration::ZERO).unwrap(), (1, None));
    assert!(spool.claim().unwrap().is_some());
}

#[test]
fn a_restart_requeues_until_the_attempts_are_used_up_and_removes_orphans() {
    let folder = tempfile::tempdir().unwrap();
    let opened = spool(folder.path());
    let job = accepted(arrive(&opened, "1.1", "1.9", b"a"));
    opened.complete(&job).unwrap();
    opened.claim().unwrap().unwrap();
    std::fs::write(folder.path().join("incoming/x.part"), b"half").unwrap();
    std::fs::write(folder.path().join("instances/unknown.dcm"), b"never promised").unwrap();
    drop(opened);

    let config = Config { min_free_bytes: 0, max_attempts: 2, ..Config::new(folder.path()) };
    let (spool, recovery) = Spool::open(config.clone()).unwrap();
    assert_eq!(recovery, Recovery { requeued_jobs: 1, failed_jobs: 0, removed_files: 2 });
    assert_eq!(spool.claim().unwrap().unwrap().attempt, 2);
    drop(spool);
    let (spool, recovery) = Spool::open(config).unwrap();
    assert_eq!(recovery, Recovery { requeued_jobs: 0, failed_jobs: 1, removed_files: 0 });
    assert_eq!(spool.claim().unwrap(), None);
}

#[test]
fn a_postponed_delivery_waits_and_a_restart_tries_it_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let opened = spool(folder.path());
    let job = accepted(arrive(&opened, "1.1", "1.9", b"a"));
    opened.complete(&job).unwrap();
    opened.claim().unwrap();
    opened.finish(&job, &[product(b"m")], &["x".to_owned()], Duration::ZERO).unwrap();
    opened.postpone(&due(&opened, "x"), "down", Duration::from_mins(1)).unwrap();
    assert!(matches!(opened.next_delivery("x").unwrap(), Next::After(_)));
    assert_eq!(opened.pending_elsewhere(&["y".to_owned()]).unwrap(), [("x".to_owned(), 1)]);
    drop(opened);
    assert_eq!(due(&spool(folder.path()), "x").attempts, 1);
}

#[test]
fn one_process_per_directory_and_no_intake_below_the_watermark() {
    let folder = tempfile::tempdir().unwrap();
    let _first = spool(folder.path());
    let second = Spool::open(Config::new(folder.path()));
    assert!(matches!(second, Err(SpoolError::Locked { .. })));

    let folder = tempfile::tempdir().unwrap();
    let config = Config { min_free_bytes: u64::MAX, ..Config::new(folder.path()) };
    let (full, _) = Spool::open(config).unwrap();
    assert!(matches!(full.check_free_space(), Err(SpoolError::LowDisk { .. })));
}
