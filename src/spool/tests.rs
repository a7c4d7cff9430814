use std::time::Duration;

use super::*;
use crate::domain::SopReference;
use crate::durable;

fn spool(directory: &std::path::Path) -> Spool {
    let config = Config { min_free_bytes: 0, ..Config::new(directory) };
    Spool::open(config).expect("the spool opens").0
}

fn arrive(spool: &Spool, sop: &str, series: &str, content: &[u8]) -> Stored {
    let arrival = Arrival {
        sop_instance_uid: Uid::parse(sop).unwrap(),
        sop_class_uid: Some(Uid::parse("1.2.3").unwrap()),
        series_instance_uid: Uid::parse(series).unwrap(),
        association: 1,
        extension: "dcm".to_owned(),
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
        warning: String::new(),
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
    assert_eq!(spool.retry(&first, "busy", Duration::ZERO).unwrap(), Retry::Superseded);
}

#[test]
fn idle_series_become_ready_and_the_next_deadline_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let spool = spool(folder.path());
    let job = accepted(arrive(&spool, "1.1", "1.9", b"a"));
    let (ready, wait) = spool.complete_idle(Duration::from_mins(1), &[]).unwrap();
    assert!(ready.is_empty());
    assert!(wait.unwrap() > Duration::from_secs(50) && wait.unwrap() <= Duration::from_mins(1));
    let busy = [Uid::parse("1.9").unwrap()];
    assert_eq!(spool.complete_idle(Duration::ZERO, &busy).unwrap(), (Vec::new(), None));
    assert_eq!(spool.complete_idle(Duration::ZERO, &[]).unwrap(), (vec![job], None));
    assert!(spool.claim().unwrap().is_some());
}

#[test]
fn a_failed_job_runs_again_when_its_series_is_sent_again_and_no_other_does() {
    let folder = tempfile::tempdir().unwrap();
    let spool = spool(folder.path());
    let job = accepted(arrive(&spool, "1.1", "1.9", b"a"));
    spool.complete(&job).unwrap();
    assert!(!spool.resent(&job).unwrap(), "it is ready");
    spool.claim().unwrap().unwrap();
    spool.fail(&job, "bad input").unwrap();
    assert!(spool.resent(&job).unwrap());
    assert!(!spool.resent(&job).unwrap(), "once is enough");
    assert_eq!(spool.claim().unwrap().unwrap().attempt, 1);
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
    // What was made later does not overtake it.
    done(&opened, "2.1", "2.9", &["x"]);
    assert!(matches!(opened.next_delivery("x").unwrap(), Next::After(_)));
    opened.hurry("x").unwrap();
    assert_eq!(due(&opened, "x").job, job);
    opened.postpone(&due(&opened, "x"), "down", Duration::from_mins(1)).unwrap();
    assert_eq!(opened.pending_elsewhere(&["y".to_owned()]).unwrap(), [("x".to_owned(), 2)]);
    drop(opened);
    assert_eq!(due(&spool(folder.path()), "x").attempts, 2);
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

fn done(spool: &Spool, sop: &str, series: &str, destinations: &[&str]) -> JobId {
    let job = accepted(arrive(spool, sop, series, sop.as_bytes()));
    spool.complete(&job).unwrap();
    spool.claim().unwrap().unwrap();
    let destinations: Vec<_> = destinations.iter().map(|name| (*name).to_owned()).collect();
    spool.finish(&job, &[product(sop.as_bytes())], &destinations, Duration::ZERO).unwrap();
    job
}

fn payloads(folder: &std::path::Path) -> usize {
    let count = |name: &str| std::fs::read_dir(folder.join(name)).unwrap().count();
    count("instances") + count("products")
}

#[test]
fn only_what_is_finished_everywhere_is_removed_and_only_when_it_is_old() {
    let folder = tempfile::tempdir().unwrap();
    let young = spool(folder.path());
    done(&young, "1.1", "1.9", &["x", "y"]);
    young.sent(&due(&young, "x")).unwrap();
    young.sent(&due(&young, "y")).unwrap();
    assert_eq!(young.tidy().unwrap(), Tidied::default(), "it is not old yet");
    drop(young);

    let config =
        Config { min_free_bytes: 0, retain_for: Duration::ZERO, ..Config::new(folder.path()) };
    let (spool, _) = Spool::open(config).unwrap();
    // Of the second, one destination has not confirmed; of the third, one has refused.
    done(&spool, "2.1", "2.9", &["x", "y"]);
    spool.sent(&due(&spool, "x")).unwrap();
    done(&spool, "3.1", "3.9", &["x"]);
    spool.bury(&due(&spool, "x"), "refused").unwrap();
    let failed = accepted(arrive(&spool, "4.1", "4.9", b"d"));
    spool.complete(&failed).unwrap();
    spool.claim().unwrap().unwrap();
    spool.fail(&failed, "colour").unwrap();
    std::thread::sleep(Duration::from_millis(2));
    let tidied = spool.tidy().unwrap();
    assert_eq!((tidied.series, tidied.bytes), (1, 6), "an object and a product of three bytes");
    assert_eq!(payloads(folder.path()), 5);
    assert_eq!(spool.usage().unwrap().used_bytes, 3 + 3 + 3 + 3 + 1);
    spool.sent(&due(&spool, "y")).unwrap();
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(spool.tidy().unwrap().series, 1);
    // What came again after its series was forgotten is new.
    accepted(arrive(&spool, "1.1", "1.9", b"1.1"));
}

#[test]
fn a_quota_stops_intake_until_finished_work_has_made_room() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config {
        min_free_bytes: 0,
        max_bytes: Some(13),
        resume_bytes: Some(8),
        ..Config::new(folder.path())
    };
    let (spool, _) = Spool::open(config.clone()).unwrap();
    done(&spool, "1.1", "1.9", &["x"]);
    done(&spool, "2.1", "2.9", &["x"]);
    spool.check_free_space().unwrap();
    arrive(&spool, "3.1", "3.9", b"ab");
    assert!(matches!(
        spool.check_free_space(),
        Err(SpoolError::QuotaReached { used_bytes: 14, .. })
    ));
    assert!(matches!(spool.tidy(), Ok(Tidied { series: 0, .. })), "nothing is delivered yet");
    spool.sent(&due(&spool, "x")).unwrap();
    assert_eq!(spool.tidy().unwrap().series, 1, "young as it is");
    spool.check_free_space().unwrap();
    drop(spool);

    // The low watermark holds after the high one was passed, and what is there is counted at the start.
    let config = Config { max_bytes: Some(7), resume_bytes: Some(2), ..config };
    let (spool, _) = Spool::open(config).unwrap();
    assert!(matches!(
        spool.check_free_space(),
        Err(SpoolError::QuotaReached { used_bytes: 8, .. })
    ));
    spool.sent(&due(&spool, "x")).unwrap();
    spool.tidy().unwrap();
    assert_eq!(spool.usage().unwrap().used_bytes, 2);
    spool.check_free_space().unwrap();
}

#[test]
fn an_operator_beside_the_owner_retries_and_drops_what_failed_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { retain_for: Duration::ZERO, ..Config::new(folder.path()) };
    let (spool, _) = Spool::open(Config { min_free_bytes: 0, ..config.clone() }).unwrap();
    let desk = Desk::open(config).unwrap();
    let before = spool.changes_from_outside().unwrap();

    let job = accepted(arrive(&spool, "1.1", "1.9", b"a"));
    let item = Item::parse(job.as_str()).unwrap();
    assert!(matches!(desk.retry(&item), Err(SpoolError::State { state: "received", .. })));
    spool.complete(&job).unwrap();
    spool.claim().unwrap().unwrap();
    spool.fail(&job, "colour").unwrap();
    let seen = desk.jobs(&[JobState::Failed]).unwrap();
    assert_eq!((seen.len(), seen[0].reason.as_deref()), (1, Some("colour")));
    desk.retry(&item).unwrap();
    assert_ne!(spool.changes_from_outside().unwrap(), before);
    assert_eq!(spool.claim().unwrap().unwrap().attempt, 1, "its attempts start anew");

    spool.finish(&job, &[product(b"m")], &["x".to_owned()], Duration::ZERO).unwrap();
    spool.bury(&due(&spool, "x"), "C000").unwrap();
    let letters = desk.letters(&[DeliveryState::Dead], None).unwrap();
    let letter = Item::Delivery(letters[0].id);
    desk.retry(&letter).unwrap();
    spool.bury(&due(&spool, "x"), "C000").unwrap();
    desk.drop(&letter).unwrap();
    assert!(matches!(desk.retry(&letter), Err(SpoolError::State { state: "dropped", .. })));
    assert!(matches!(desk.drop(&Item::Delivery(99)), Err(SpoolError::Unknown { .. })));
    assert!(Item::parse("../etc").is_err());
    let identity = desk.identity(&job).unwrap();
    assert_eq!((identity.series.as_str(), identity.instances), ("1.9", vec!["1.1".to_owned()]));
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(spool.tidy().unwrap().series, 1);
    assert_eq!(payloads(folder.path()), 0);
}

#[test]
fn a_late_object_takes_a_failed_job_with_it_once_the_series_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let spool = spool(folder.path());
    let first = accepted(arrive(&spool, "1.1", "1.9", b"a"));
    spool.complete(&first).unwrap();
    assert_eq!(spool.claim().unwrap().unwrap().revision, 1);
    spool.fail(&first, "one slice is no volume").unwrap();
    let second = accepted(arrive(&spool, "1.2", "1.9", b"b"));
    spool.complete(&second).unwrap();
    assert_eq!(spool.claim().unwrap().unwrap().revision, 2);
    assert_eq!(spool.count().unwrap().failed, 1);
    spool.finish(&second, &[], &[], Duration::ZERO).unwrap();
    assert_eq!(spool.count().unwrap().failed, 0);
}

#[test]
fn each_destination_has_an_account_that_outlives_its_deliveries() {
    let folder = tempfile::tempdir().unwrap();
    let config =
        Config { min_free_bytes: 0, retain_for: Duration::ZERO, ..Config::new(folder.path()) };
    let (spool, _) = Spool::open(config).unwrap();
    done(&spool, "1.1", "1.9", &["x", "y"]);
    spool.postpone(&due(&spool, "x"), "down", Duration::ZERO).unwrap();
    spool.sent(&due(&spool, "x")).unwrap();
    assert_eq!(spool.bury_older("y", Duration::from_hours(1)).unwrap(), 0);
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(spool.bury_older("y", Duration::ZERO).unwrap(), 1);
    let statement = |name: &str| {
        spool.statements().unwrap().into_iter().find(|s| s.destination == name).unwrap()
    };
    let x = statement("x");
    assert_eq!((x.attempts, x.sent, x.sent_bytes, x.pending, x.dead), (2, 1, 3, 0, 0));
    assert_eq!((statement("y").sent, statement("y").dead), (0, 1));
    let dead = Item::Delivery(2);
    Desk::open(Config::new(folder.path())).unwrap().drop(&dead).unwrap();
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(spool.tidy().unwrap().series, 1);
    assert_eq!(statement("x"), x);
    assert_eq!((statement("y").dead, statement("y").dropped), (0, 1));
}

fn reference(sop: &str, class: &str) -> SopReference {
    let uid = |text| Uid::parse(text).unwrap();
    SopReference { sop_class_uid: uid(class), sop_instance_uid: uid(sop) }
}

#[test]
fn a_sender_is_told_of_what_is_accepted_and_on_the_disk_alone() {
    let folder = tempfile::tempdir().unwrap();
    let spool = spool(folder.path());
    arrive(&spool, "1.1", "1.9", b"safe");
    arrive(&spool, "1.2", "1.9", b"one");
    arrive(&spool, "1.2", "1.9", b"other");
    arrive(&spool, "1.3", "1.9", b"to be cut");
    for entry in std::fs::read_dir(folder.path().join("instances")).unwrap().flatten() {
        if entry.metadata().unwrap().len() == 9 {
            std::fs::write(entry.path(), b"cut").unwrap();
        }
    }
    let asked =
        [("1.1", "1.2.3"), ("1.1", "1.2.4"), ("1.2", "1.2.3"), ("1.3", "1.2.3"), ("1.4", "1.2.3")];
    let asked = asked.map(|(sop, class)| reference(sop, class));
    assert_eq!(
        spool.held(&asked).unwrap(),
        [Held::Safe, Held::OtherClass, Held::Contradicted, Held::Unknown, Held::Unknown]
    );
}

#[test]
fn a_request_for_commitment_outlives_a_restart_until_it_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let transaction = Uid::derived(&["transaction"]);
    let objects = [reference("1.1", "1.2.3")];
    let asked = |spool: &Spool| match spool.next_commitment("MR").unwrap() {
        Next::Due(commitment) => *commitment,
        other => panic!("{other:?}"),
    };
    let opened = spool(folder.path());
    opened.ask_commitment("MR", &transaction, &objects).unwrap();
    assert_eq!(opened.next_commitment("CT").unwrap(), Next::Nothing);
    let (later, never) = (Duration::from_mins(1), Duration::from_hours(1));
    assert!(!opened.postpone_commitment(&asked(&opened), later, never).unwrap());
    assert!(matches!(opened.next_commitment("MR").unwrap(), Next::After(_)));
    drop(opened);

    let spool = spool(folder.path());
    let commitment = asked(&spool);
    assert_eq!((&commitment.objects[..], commitment.attempts), (&objects[..], 1));
    spool.commitment_told(&commitment).unwrap();
    assert_eq!(spool.next_commitment("MR").unwrap(), Next::Nothing);
    // Asked again, it is answered again; who cannot be reached is given up, and remembered no longer than other work.
    spool.ask_commitment("MR", &transaction, &objects).unwrap();
    std::thread::sleep(Duration::from_millis(2));
    assert!(spool.postpone_commitment(&asked(&spool), later, Duration::ZERO).unwrap());
    assert_eq!(spool.count().unwrap().pending_reports, 0);
}

#[test]
fn a_delivery_is_pending_until_its_destination_has_committed_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let spool = spool(folder.path());
    for (sop, series) in [("1.1", "1.9"), ("2.1", "2.9"), ("3.1", "3.9")] {
        done(&spool, sop, series, &["x"]);
        let delivery = due(&spool, "x");
        spool.taken(&delivery).unwrap();
    }
    assert_eq!(spool.next_delivery("x").unwrap(), Next::Nothing);
    assert_eq!(spool.count().unwrap().pending_deliveries, 3, "nothing is done yet");
    let inquiry = spool.inquire("x", Duration::from_mins(1)).unwrap().unwrap();
    assert_eq!(inquiry.deliveries.len(), 3);
    assert_eq!(spool.inquire("x", Duration::from_mins(1)).unwrap(), None, "asked once");
    assert!(spool.next_silence("x").unwrap().unwrap() > Duration::from_secs(50));

    // All three are one object here: the spool's tests know one product.
    let object = reference(Uid::derived(&["mask"]).as_str(), "1.2.3");
    let stranger = Uid::derived(&["a guess"]);
    assert_eq!(spool.report_custody(&stranger, std::slice::from_ref(&object), &[]).unwrap(), 0);
    assert!(spool.verdicts("x").unwrap().is_empty());
    assert_eq!(spool.report_custody(&inquiry.transaction, &[], &[(object, 0x0112)]).unwrap(), 3);
    let verdicts = spool.verdicts("x").unwrap();
    assert!(verdicts.iter().all(|(_, verdict)| *verdict == Verdict::Failed(0x0112)));
    let [(first, _), (second, _), (third, _)] = &verdicts[..] else { panic!("{verdicts:?}") };
    spool.sent(first).unwrap();
    spool.bury(second, "never").unwrap();
    spool.postpone(third, "lost", Duration::ZERO).unwrap();
    assert_eq!(due(&spool, "x").id, third.id, "to be sent again");
    let statement = &spool.statements().unwrap()[0];
    assert_eq!((statement.attempts, statement.sent, statement.dead), (3, 1, 1));

    // Silence is an answer as well.
    spool.taken(&due(&spool, "x")).unwrap();
    spool.inquire("x", Duration::ZERO).unwrap().unwrap();
    assert_eq!(spool.verdicts("x").unwrap()[0].1, Verdict::Silence);
}

#[test]
fn a_spool_of_a_version_before_is_taken_over_with_all_that_is_in_it() {
    const FOUR: &str = "
        ALTER TABLE jobs DROP COLUMN shared_as;
        INSERT INTO instances (sop_uid, series_uid, sha256, path, bytes, association, received_ms, state)
        VALUES ('1.1', '1.9', 'x', 'instances/x.dcm', 4, 1, 0, 'accepted');
        INSERT INTO jobs (id, series_uid, revision, state, reason, last_received_ms)
        VALUES ('0123456789abcdef', '1.9', 1, 'shared', 'on the shared queue as job fedcba9876543210', 1);
        PRAGMA user_version = 4;";
    const THREE: &str = "
        ALTER TABLE instances DROP COLUMN is_shared;
        PRAGMA user_version = 3;";
    const TWO: &str = "
        DROP TABLE commitments; DROP TABLE custody; ALTER TABLE instances DROP COLUMN sop_class_uid;
        PRAGMA user_version = 2;";
    for older in [FOUR.to_owned(), format!("{FOUR}{THREE}"), format!("{FOUR}{THREE}{TWO}")] {
        let folder = tempfile::tempdir().unwrap();
        drop(spool(folder.path()));
        let database = rusqlite::Connection::open(folder.path().join("spool.db")).unwrap();
        database.execute_batch(&older).unwrap();
        drop(database);
        std::fs::write(folder.path().join("instances/x.dcm"), b"safe").unwrap();
        let spool = spool(folder.path());
        // Of which class it was, nobody noted.
        assert_eq!(spool.held(&[reference("1.1", "1.2.3")]).unwrap(), [Held::Safe]);
        assert_eq!(spool.unreplicated_bytes().unwrap(), 0, "it has no job that is to go there");
        let job = spool.job(&JobId::parse("0123456789abcdef").unwrap()).unwrap().unwrap();
        assert_eq!(job.computed_as().as_str(), "fedcba9876543210");
    }
}

#[test]
fn commits_wait_for_the_disk_again_after_those_that_need_not() {
    let folder = tempfile::tempdir().unwrap();
    let spool = spool(folder.path());
    let synchronous = |connection: &rusqlite::Connection| -> i64 {
        connection.query_row("PRAGMA synchronous", [], |row| row.get(0)).unwrap()
    };
    let (normal, full) = (1, 2); // as SQLite numbers them
    assert_eq!(synchronous(&spool.database()), full);
    assert_eq!(synchronous(&spool.database_unsynced().unwrap()), normal);
    assert_eq!(synchronous(&spool.database()), full);
    assert_eq!(spool.claim().unwrap(), None);
    assert_eq!(synchronous(&spool.database()), full);
}

/// Objects are the same if their first letters are equal; one that begins with `!` breaks off.
#[derive(Debug)]
struct Letters;

impl Content for Letters {
    fn is_whole(&self, file: &std::path::Path) -> bool {
        std::fs::read(file).is_ok_and(|bytes| bytes[0] != b'!')
    }

    fn differences(&self, known: &std::path::Path, other: &std::path::Path) -> Vec<String> {
        let letter = |path| std::fs::read(path).unwrap()[0];
        let is_same = letter(known) == letter(other);
        if is_same { Vec::new() } else { vec!["PixelSpacing".to_owned(), "pixels".to_owned()] }
    }
}

#[test]
fn the_same_instance_in_other_bytes_changes_nothing_and_what_differs_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let spool = spool(folder.path());
    spool.understand(std::sync::Arc::new(Letters));
    let payloads = || std::fs::read_dir(folder.path().join("instances")).unwrap().count();
    let job = accepted(arrive(&spool, "1.1", "1.9", b"a, explicit"));
    for again in [b"a, implicit".as_slice(), b"a, explicit", b"a, from an archive"] {
        assert_eq!(arrive(&spool, "1.1", "1.9", again), Stored::Duplicate);
        assert_eq!(payloads(), 1);
    }
    assert_eq!(arrive(&spool, "1.1", "1.9", b"b"), Stored::Quarantined { job: job.clone() });
    assert_eq!(payloads(), 2);
    let reason = spool.job(&job).unwrap().unwrap().reason.unwrap();
    assert!(reason.ends_with("different content: PixelSpacing, pixels differ"), "{reason}");
}

#[test]
fn a_whole_object_takes_the_place_of_one_that_breaks_off() {
    let folder = tempfile::tempdir().unwrap();
    let spool = spool(folder.path());
    let first = accepted(arrive(&spool, "1.1", "1.9", b"!"));
    spool.complete(&first).unwrap();
    spool.fail(&spool.claim().unwrap().unwrap().job, "it breaks off").unwrap();
    spool.understand(std::sync::Arc::new(Letters));
    let second = accepted(arrive(&spool, "1.1", "1.9", b"a"));
    assert_ne!(first, second);
    spool.complete(&second).unwrap();
    let claim = spool.claim().unwrap().unwrap();
    assert_eq!(std::fs::read(&claim.files[0]).unwrap(), b"a");
    let object = SopReference {
        sop_class_uid: Uid::parse("1.2.3").unwrap(),
        sop_instance_uid: Uid::parse("1.1").unwrap(),
    };
    assert_eq!(spool.held(&[object]).unwrap(), [Held::Safe]);
}

#[test]
fn a_series_without_a_result_is_tried_again_once_when_all_of_it_has_come_again() {
    let folder = tempfile::tempdir().unwrap();
    let spool = spool(folder.path());
    // By HTTP or from a folder: objects that come by an association are judged at its end.
    let arrive = |spool: &Spool, sop: &str, series: &str, content: &[u8]| {
        let arrival = Arrival {
            sop_instance_uid: Uid::parse(sop).unwrap(),
            sop_class_uid: None,
            series_instance_uid: Uid::parse(series).unwrap(),
            association: 0,
            extension: "dcm".to_owned(),
        };
        spool.store(&arrival, durable::write(&spool.incoming(), content).unwrap()).unwrap()
    };
    let job = accepted(arrive(&spool, "1.1", "1.9", b"a"));
    arrive(&spool, "1.2", "1.9", b"b");
    let fail = |job: &JobId| {
        spool.complete(job).unwrap();
        let claim = spool.claim().unwrap().unwrap();
        assert_eq!((&claim.job, claim.attempt), (job, 1));
        spool.fail(job, "no").unwrap();
    };
    fail(&job);
    assert_eq!(arrive(&spool, "1.1", "1.9", b"a"), Stored::Duplicate);
    assert_eq!(arrive(&spool, "1.1", "1.9", b"a"), Stored::Duplicate);
    assert_eq!(arrive(&spool, "1.2", "1.9", b"b"), Stored::Resent { job: job.clone() });
    assert_eq!(arrive(&spool, "1.2", "1.9", b"b"), Stored::Duplicate, "it is under way");
    fail(&job);
    // Given up by a person, and sent again by another: a new revision.
    let desk = Desk::open(Config { min_free_bytes: 0, ..Config::new(folder.path()) }).unwrap();
    desk.drop(&Item::Job(job.clone())).unwrap();
    assert_eq!(arrive(&spool, "1.1", "1.9", b"a"), Stored::Duplicate);
    let Stored::Resent { job: next } = arrive(&spool, "1.2", "1.9", b"b") else {
        panic!("not again")
    };
    assert_ne!(next, job);
    assert_eq!(spool.claim().unwrap().unwrap().files.len(), 2);
}
