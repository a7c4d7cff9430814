//! Where work is taken from, in both of its forms: the same tests for the embedded spool and for the queue that devices
//! share on PostgreSQL, and what only the latter can do.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cdal::domain::Uid;
use cdal::durable;
use cdal::spool::shared::{self, Handover, Means, Object, Shared};
use cdal::spool::{
    Arrival, Config, Delivery, DicomObject, Item, JobState, Next, Product, Queue, Retry, Spool,
    SpoolError, Tidied,
};

use crate::support::certificates::{certificates, named_certificate};
use crate::support::postgres::Cluster;
use crate::support::wait_for;

const HOUR: Duration = Duration::from_hours(1);
const LEASE: Duration = Duration::from_millis(300);

/// One of the two.
trait World {
    /// Brings objects of a series, which is complete then.
    fn bring(&mut self, series: &str, objects: &[(&str, &[u8])]);

    /// Who works.
    fn queue(&self) -> Arc<dyn Queue>;

    /// Who works dies with all that it holds, and somebody takes its place. Returns what is left of the former.
    fn die(&mut self) -> Arc<dyn Queue>;
}

struct Embedded {
    folder: tempfile::TempDir,
    spool: Option<Arc<Spool>>,
}

fn spool(folder: &Path) -> Config {
    let retain_for = Duration::ZERO;
    Config { min_free_bytes: 0, retain_for, ..Config::new(folder) }
}

impl Embedded {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(spool(folder.path())).unwrap().0;
        Self { folder, spool: Some(Arc::new(spool)) }
    }
}

impl World for Embedded {
    fn bring(&mut self, series: &str, objects: &[(&str, &[u8])]) {
        let spool = self.spool.as_ref().unwrap();
        for (sop, content) in objects {
            let arrival = Arrival {
                sop_instance_uid: Uid::parse(sop).unwrap(),
                sop_class_uid: Some(Uid::parse("1.2.3").unwrap()),
                series_instance_uid: Uid::parse(series).unwrap(),
                association: 1,
                extension: "dcm".to_owned(),
            };
            spool.store(&arrival, durable::write(&spool.incoming(), content).unwrap()).unwrap();
        }
        spool.complete_idle(Duration::ZERO, &[]).unwrap();
    }

    fn queue(&self) -> Arc<dyn Queue> {
        self.spool.clone().unwrap()
    }

    fn die(&mut self) -> Arc<dyn Queue> {
        self.spool = None;
        let next = wait_for("the spool to be free", || {
            Spool::open(spool(self.folder.path())).ok().map(|(spool, _)| Arc::new(spool))
        });
        self.spool = Some(next);
        self.queue()
    }
}

/// Devices on one queue: one brings, another works, and the next one takes its place.
struct Devices {
    folder: tempfile::TempDir,
    url: String,
    working: Arc<Shared>,
    count: u32,
}

impl Devices {
    fn new(url: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let working = device(folder.path(), url, "d1", "");
        Self { folder, url: url.to_owned(), working, count: 1 }
    }
}

/// A device that gives no sign of life by itself.
fn device(folder: &Path, url: &str, name: &str, model: &str) -> Arc<Shared> {
    let directory = folder.join(name);
    std::fs::create_dir_all(&directory).unwrap();
    let config = shared::Config {
        lease: LEASE,
        heartbeat: LEASE / 3,
        poll: Duration::from_millis(100),
        ..shared::Config::new(url, name)
    };
    let means = Means { model: model.to_owned(), model_digest: "digest".to_owned() };
    Arc::new(Shared::open(config, spool(&directory), means).unwrap())
}

fn object(folder: &Path, sop: &str, content: &[u8]) -> Object {
    let synced = durable::write(folder, content).unwrap();
    let (sha256, bytes) = (synced.sha256.clone(), synced.bytes);
    let path = folder.join(&sha256);
    synced.persist(&path).unwrap();
    let extension = "dcm".to_owned();
    let sop_class_uid = "1.2.3".to_owned();
    Object { sop_instance_uid: sop.to_owned(), sop_class_uid, sha256, path, extension, bytes }
}

fn handover(folder: &Path, series: &str, objects: &[(&str, &[u8])]) -> Handover {
    let objects = objects.iter().map(|(sop, content)| object(folder, sop, content)).collect();
    Handover { series: series.to_owned(), objects, is_complete: true }
}

impl World for Devices {
    fn bring(&mut self, series: &str, objects: &[(&str, &[u8])]) {
        let handover = handover(self.folder.path(), series, objects);
        self.working.enqueue(&handover).unwrap();
    }

    fn queue(&self) -> Arc<dyn Queue> {
        self.working.clone()
    }

    fn die(&mut self) -> Arc<dyn Queue> {
        self.count += 1;
        let next = device(self.folder.path(), &self.url, &format!("d{}", self.count), "");
        std::thread::sleep(LEASE * 2);
        let late: Arc<Shared> = std::mem::replace(&mut self.working, next);
        late
    }
}

fn product(seed: &str) -> Product {
    Product {
        name: format!("{seed}.dcm"),
        dicom: Some(DicomObject {
            sop_class_uid: Uid::parse("1.2.3").unwrap(),
            sop_instance_uid: Uid::derived(&[seed]),
            transfer_syntax: Uid::parse("1.2.840.10008.1.2.1").unwrap(),
        }),
        bytes: seed.as_bytes().to_vec(),
        summary: String::new(),
        warning: String::new(),
    }
}

fn due(queue: &dyn Queue, destination: &str) -> Delivery {
    match queue.next_delivery(destination).unwrap() {
        Next::Due(delivery) => *delivery,
        other => panic!("{other:?}"),
    }
}

fn is_due(queue: &dyn Queue, destination: &str) -> bool {
    matches!(queue.next_delivery(destination).unwrap(), Next::Due(_))
}

fn to(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

const BEHAVIOUR: [fn(&mut dyn World); 7] = [
    the_oldest_comes_first_and_its_files_in_order,
    what_a_dead_worker_held_is_taken_again_and_its_late_word_counts_for_nothing,
    what_may_pass_is_tried_again_until_the_attempts_are_used_up,
    a_destination_gets_each_result_once_and_in_order,
    what_is_refused_or_waits_too_long_is_a_dead_letter,
    other_content_under_a_known_uid_waits_for_a_person,
    a_late_slice_opens_a_revision_and_only_finished_work_is_removed,
];

fn the_oldest_comes_first_and_its_files_in_order(world: &mut dyn World) {
    world.bring("1.1", &[("1.1.2", b"b"), ("1.1.1", b"a")]);
    world.bring("1.2", &[("1.2.1", b"c")]);
    world.bring("1.2", &[("1.2.1", b"c")]); // once more
    let queue = world.queue();
    let first = queue.claim().unwrap().unwrap();
    let read = |path: &PathBuf| std::fs::read(path).unwrap();
    assert_eq!(first.files.iter().map(read).collect::<Vec<_>>(), [b"b", b"a"]);
    assert_eq!((first.attempt, first.revision), (1, 1));
    let second = queue.claim().unwrap().unwrap();
    assert_eq!(second.files.iter().map(read).collect::<Vec<_>>(), [b"c"]);
    assert_eq!(queue.claim().unwrap(), None);
    let count = queue.count().unwrap();
    assert_eq!((count.ready, count.running), (0, 2));
    queue.fail(&first, "bad input").unwrap();
    queue.finish(&second, &[], &[], Duration::ZERO).unwrap();
    let count = queue.count().unwrap();
    assert_eq!((count.running, count.failed), (0, 1));
}

fn what_a_dead_worker_held_is_taken_again_and_its_late_word_counts_for_nothing(
    world: &mut dyn World,
) {
    world.bring("1.1", &[("1.1.1", b"a")]);
    let lost = world.queue().claim().unwrap().unwrap();
    let late = world.die();
    let queue = world.queue();
    let again = queue.claim().unwrap().unwrap();
    assert_eq!((&again.job, again.attempt, again.files.len()), (&lost.job, 2, 1));
    assert!(again.epoch > lost.epoch);
    for refused in [
        late.finish(&lost, &[product("late")], &to(&["x"]), Duration::ZERO).unwrap_err(),
        late.fail(&lost, "late").unwrap_err(),
        late.retry(&lost, "late", Duration::ZERO).unwrap_err(),
    ] {
        assert!(refused.is_overtaken(), "{refused}");
    }
    assert!(!is_due(&*queue, "x"), "nothing of the late result is there");
    drop(late);
    queue.finish(&again, &[product("a")], &to(&["x"]), Duration::ZERO).unwrap();
    assert!(queue.fail(&again, "twice").unwrap_err().is_overtaken());

    // A delivery too.
    let lost = due(&*queue, "x");
    drop(queue);
    let late = world.die();
    let queue = world.queue();
    let again = due(&*queue, "x");
    assert_eq!((again.id, &again.sha256), (lost.id, &lost.sha256));
    queue.sent(&again).unwrap();
    late.sent(&lost).unwrap_err();
    let account = &queue.statements().unwrap()[0];
    assert_eq!((account.sent, account.pending), (1, 0));
}

fn what_may_pass_is_tried_again_until_the_attempts_are_used_up(world: &mut dyn World) {
    world.bring("1.1", &[("1.1.1", b"a")]);
    let queue = world.queue();
    let claim = queue.claim().unwrap().unwrap();
    assert_eq!(queue.retry(&claim, "busy", Duration::ZERO).unwrap(), Retry::Scheduled);
    let claim = queue.claim().unwrap().unwrap();
    assert_eq!(queue.retry(&claim, "busy", Duration::from_millis(100)).unwrap(), Retry::Scheduled);
    assert!(queue.next_claim().unwrap().is_some_and(|wait| wait <= Duration::from_millis(100)));
    let claim = wait_for("the job to be tried again", || queue.claim().unwrap());
    assert_eq!(claim.attempt, 3);
    assert_eq!(queue.retry(&claim, "busy", HOUR).unwrap(), Retry::GivenUp);
    assert_eq!(queue.claim().unwrap(), None);
    assert_eq!(queue.count().unwrap().failed, 1);
}

fn a_destination_gets_each_result_once_and_in_order(world: &mut dyn World) {
    world.bring("1.1", &[("1.1.1", b"a")]);
    world.bring("1.2", &[("1.2.1", b"b")]);
    let queue = world.queue();
    for seed in ["a", "b"] {
        let claim = queue.claim().unwrap().unwrap();
        let destinations = to(&["x", "y"]);
        let compute = Duration::from_millis(7);
        queue.finish(&claim, &[product(seed)], &destinations, compute).unwrap();
    }
    let first = due(&*queue, "x");
    assert_eq!(std::fs::read(&first.path).unwrap(), b"a");
    assert_eq!(first.dicom, product("a").dicom);
    queue.postpone(&first, "down", HOUR).unwrap();
    assert!(!is_due(&*queue, "x"), "the second waits for the first");
    assert!(is_due(&*queue, "y"), "another destination does not");
    queue.hurry("x").unwrap();
    let first = due(&*queue, "x");
    assert_eq!((std::fs::read(&first.path).unwrap().as_slice(), first.attempts), (&b"a"[..], 1));
    assert_eq!(queue.sent(&first).unwrap(), None, "y has not got it yet");
    let second = due(&*queue, "x");
    assert_eq!(std::fs::read(&second.path).unwrap(), b"b");
    queue.sent(&second).unwrap();
    assert!(!is_due(&*queue, "x"));
    let account = queue.sent(&due(&*queue, "y")).unwrap().unwrap();
    assert_eq!((account.sent, account.dead, account.compute_ms), (2, 0, 7));
    let statement = queue.statements().unwrap().swap_remove(0);
    assert_eq!((statement.destination.as_str(), statement.sent, statement.attempts), ("x", 2, 3));
    assert_eq!((statement.sent_bytes, statement.pending, statement.dead), (2, 0, 0));
}

fn what_is_refused_or_waits_too_long_is_a_dead_letter(world: &mut dyn World) {
    world.bring("1.1", &[("1.1.1", b"a")]);
    let queue = world.queue();
    let claim = queue.claim().unwrap().unwrap();
    let products = [product("a"), product("b"), product("c")];
    queue.finish(&claim, &products, &to(&["x"]), Duration::ZERO).unwrap();
    let refused = due(&*queue, "x");
    assert_eq!(queue.bury(&refused, "refused").unwrap(), None);
    let next = due(&*queue, "x");
    assert_ne!(next.id, refused.id);
    queue.sent(&next).unwrap();
    assert_eq!(queue.bury_older("x", HOUR).unwrap(), 0);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(queue.bury_older("x", Duration::ZERO).unwrap(), 1);
    assert!(!is_due(&*queue, "x"));
    let count = queue.count().unwrap();
    assert_eq!((count.pending_deliveries, count.dead_deliveries), (0, 2));
    assert_eq!(queue.tidy().unwrap(), Tidied::default(), "dead letters wait for a person");
    let report = queue.destinations().unwrap().swap_remove(0);
    assert_eq!((report.pending, report.sent, report.dead), (0, 1, 2));
}

fn other_content_under_a_known_uid_waits_for_a_person(world: &mut dyn World) {
    world.bring("1.1", &[("1.1.1", b"a")]);
    world.bring("1.1", &[("1.1.1", b"other")]);
    let queue = world.queue();
    assert_eq!(queue.claim().unwrap(), None);
    assert_eq!(queue.count().unwrap().quarantined, 1);
    world.bring("1.1", &[("1.1.2", b"b")]);
    assert_eq!(queue.claim().unwrap(), None, "more of the series does not free it");
    assert_eq!(queue.tidy().unwrap(), Tidied::default());
}

fn a_late_slice_opens_a_revision_and_only_finished_work_is_removed(world: &mut dyn World) {
    world.bring("1.1", &[("1.1.1", b"a")]);
    let queue = world.queue();
    let first = queue.claim().unwrap().unwrap();
    world.bring("1.1", &[("1.1.2", b"b")]);
    let second = queue.claim().unwrap().unwrap();
    assert_ne!(first.job, second.job);
    assert_eq!((second.revision, second.files.len()), (2, 2), "with the whole series");
    assert_eq!(queue.retry(&first, "busy", Duration::ZERO).unwrap(), Retry::Superseded);
    assert_eq!(queue.tidy().unwrap(), Tidied::default(), "one revision is running");
    queue.finish(&second, &[product("a")], &to(&["x"]), Duration::ZERO).unwrap();
    assert_eq!(queue.tidy().unwrap(), Tidied::default(), "its result is not delivered");
    let delivery = due(&*queue, "x");
    assert_eq!(std::fs::read(&delivery.path).unwrap(), b"a");
    queue.sent(&delivery).unwrap();
    let tidied = wait_for("the series to have its age", || {
        Some(queue.tidy().unwrap().series).filter(|series| *series > 0)
    });
    assert_eq!(tidied, 1);
    assert_eq!(queue.statements().unwrap()[0].sent, 1, "the account stays");
    // The same series again is new.
    world.bring("1.1", &[("1.1.1", b"a")]);
    assert_eq!(queue.claim().unwrap().unwrap().revision, 1);
}

#[test]
fn the_embedded_spool_behaves() {
    for behaviour in BEHAVIOUR {
        behaviour(&mut Embedded::new());
    }
}

#[test]
fn the_shared_queue_behaves_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::make(folder.path());
    for (number, behaviour) in BEHAVIOUR.into_iter().enumerate() {
        let url = cluster.database(&format!("behaviour{number}"));
        behaviour(&mut Devices::new(&url));
    }
    for (number, test) in SHARED.into_iter().enumerate() {
        let name = format!("shared{number}");
        let url = cluster.database(&name);
        test(&cluster, &name, &url);
    }
}

#[test]
fn another_machine_is_reached_under_a_verified_certificate_and_with_a_password() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::make(folder.path());
    for authority in ["ours", "theirs"] {
        std::fs::create_dir(folder.path().join(authority)).unwrap();
        certificates(&folder.path().join(authority));
    }
    named_certificate(&folder.path().join("ours"), "localhost");
    cluster.secure(&folder.path().join("ours"), "it's secret");
    let password = folder.path().join("password");
    let ask = |query: &str, secret: &str| {
        std::fs::write(&password, secret).unwrap();
        std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o600)).unwrap();
        let url = format!("postgres://cdal@localhost:{}/postgres?{query}", cluster.port);
        let config = shared::Config {
            password: Some(password.clone()),
            timeout: Duration::from_secs(5),
            ..shared::Config::new(url, "a")
        };
        assert_eq!(config.faults(), []);
        let shared = Shared::open(config, spool(folder.path()), Means::default()).unwrap();
        shared.ping()
    };
    let root = |name: &str| {
        let file = folder.path().join(name).join("ca.pem");
        format!("sslmode=verify-full&sslrootcert={}", file.display())
    };
    ask(&root("ours"), "it's secret\n").unwrap();
    for (query, secret) in [
        (root("ours"), "guessed"),
        (root("theirs"), "it's secret"),
        ("sslmode=disable".to_owned(), "it's secret"),
    ] {
        let error = ask(&query, secret).unwrap_err();
        assert!(error.is_outage() && !error.to_string().contains(secret), "{query}: {error}");
    }
}

const SHARED: [fn(&Cluster, &str, &str); 6] = [
    a_sign_of_life_keeps_a_lease,
    jobs_go_to_devices_with_their_model_and_each_to_one,
    payloads_go_in_pieces_and_are_held_against_their_digest,
    deliveries_go_in_order_whoever_sends_them,
    days_go_when_nothing_names_them,
    a_person_decides_about_what_failed,
];

fn a_sign_of_life_keeps_a_lease(_: &Cluster, _: &str, url: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| device(folder.path(), url, name, ""));
    a.start(|| ());
    a.enqueue(&handover(folder.path(), "1.1", &[("1.1.1", b"a")])).unwrap();
    let claim = a.claim().unwrap().unwrap();
    std::thread::sleep(LEASE * 3);
    assert_eq!(b.claim().unwrap(), None);
    a.finish(&claim, &[product("a")], &to(&["x"]), Duration::ZERO).unwrap();
    let delivery = due(&*a, "x");
    std::thread::sleep(LEASE * 3);
    assert!(!is_due(&*b, "x"));
    // An expired lease that nobody has taken is renewed.
    a.sent(&delivery).unwrap();
    b.enqueue(&handover(folder.path(), "1.2", &[("1.2.1", b"b")])).unwrap();
    let claim = b.claim().unwrap().unwrap();
    std::thread::sleep(LEASE * 2);
    b.renew().unwrap();
    assert_eq!(a.claim().unwrap(), None);
    b.finish(&claim, &[], &[], Duration::ZERO).unwrap();
}

fn jobs_go_to_devices_with_their_model_and_each_to_one(_: &Cluster, _: &str, url: &str) {
    let folder = tempfile::tempdir().unwrap();
    let lung = device(folder.path(), url, "lung", "lung");
    let hips = ["h1", "h2", "h3"].map(|name| device(folder.path(), url, name, "hip"));
    lung.enqueue(&handover(folder.path(), "1.1", &[("1.1.1", b"a")])).unwrap();
    for number in 0..30 {
        let series = format!("2.{number}");
        let bytes = series.clone().into_bytes();
        let handover = handover(folder.path(), &series, &[(&format!("{series}.1"), &bytes)]);
        hips[0].enqueue(&handover).unwrap();
    }
    let taken: Vec<_> = std::thread::scope(|scope| {
        let work = |hip: &Arc<Shared>| {
            let mut taken = Vec::new();
            while let Some(claim) = hip.claim().unwrap() {
                hip.finish(&claim, &[], &[], Duration::ZERO).unwrap();
                taken.push(claim.job.to_string());
            }
            taken
        };
        let threads: Vec<_> = hips.iter().map(|hip| scope.spawn(move || work(hip))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!((taken.len(), taken.iter().collect::<BTreeSet<_>>().len()), (30, 30));
    let claim = lung.claim().unwrap().unwrap();
    assert_eq!(lung.claim().unwrap(), None);
    lung.finish(&claim, &[], &[], Duration::ZERO).unwrap();
    assert_eq!(lung.job(&claim.job).unwrap().unwrap().state, JobState::Done);
}

fn payloads_go_in_pieces_and_are_held_against_their_digest(
    cluster: &Cluster,
    name: &str,
    url: &str,
) {
    let folder = tempfile::tempdir().unwrap();
    let device = device(folder.path(), url, "a", "");
    let sizes = [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 << 19];
    let contents: Vec<Vec<u8>> =
        sizes.iter().map(|&size| (0..size).map(|i: u64| ((i * i) >> 8) as u8).collect()).collect();
    let uids: Vec<String> = (0..sizes.len()).map(|i| format!("1.1.{i}")).collect();
    let objects: Vec<(&str, &[u8])> =
        uids.iter().map(String::as_str).zip(contents.iter().map(Vec::as_slice)).collect();
    device.enqueue(&handover(folder.path(), "1.1", &objects)).unwrap();
    let longest = cluster.sql(name, "SELECT max(length(data)), count(*) FROM cdal_spool.chunks");
    assert_eq!(longest, format!("{}|9", 1 << 20));
    let claim = device.claim().unwrap().unwrap();
    for (file, content) in claim.files.iter().zip(&contents) {
        assert!(std::fs::read(file).unwrap() == *content);
    }
    device.retry(&claim, "busy", Duration::ZERO).unwrap();
    assert!(!claim.files[0].exists(), "nothing of it stays here");

    // A file that is not what was recorded does not get in, and a damaged one does not get out.
    let mut false_one = handover(folder.path(), "1.2", &[("1.2.1", b"true")]);
    std::fs::write(&false_one.objects[0].path, b"not true").unwrap();
    let refused = device.enqueue(&false_one).unwrap_err();
    assert!(matches!(refused, SpoolError::Damaged { .. }), "{refused}");
    assert_eq!(device.count().unwrap().ready, 1, "all or nothing");
    false_one.objects.clear();
    cluster.sql(name, "UPDATE cdal_spool.chunks SET data = '\\xff' WHERE length(data) = 1");
    assert_eq!(device.claim().unwrap(), None);
    let failed = device.jobs(&[JobState::Failed]).unwrap();
    assert!(failed[0].reason.as_ref().unwrap().contains("not what was put in"), "{failed:?}");
}

fn deliveries_go_in_order_whoever_sends_them(_: &Cluster, _: &str, url: &str) {
    let folder = tempfile::tempdir().unwrap();
    let devices = ["a", "b", "c"].map(|name| device(folder.path(), url, name, ""));
    let [a, b, _] = &devices;
    a.enqueue(&handover(folder.path(), "1.1", &[("1.1.1", b"a")])).unwrap();
    let claim = a.claim().unwrap().unwrap();
    let products: Vec<_> = (0..24).map(|number| product(&format!("p{number:02}"))).collect();
    b.finish(&claim, &products, &to(&["x"]), Duration::ZERO).unwrap_err();
    a.finish(&claim, &products, &to(&["x"]), Duration::ZERO).unwrap();
    let first = due(&**a, "x");
    assert!(!is_due(&**b, "x"), "one at a time");
    a.postpone(&first, "down", Duration::ZERO).unwrap();
    let sent = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for device in &devices {
            let sent = &sent;
            scope.spawn(move || {
                while device.count().unwrap().pending_deliveries > 0 {
                    if let Next::Due(delivery) = device.next_delivery("x").unwrap() {
                        sent.lock().unwrap().push(delivery.name.clone());
                        device.sent(&delivery).unwrap();
                    }
                }
            });
        }
    });
    let names: Vec<_> = products.iter().map(|product| product.name.clone()).collect();
    assert_eq!(sent.into_inner().unwrap(), names);
    assert_eq!(a.statements().unwrap()[0].sent, 24);
}

fn days_go_when_nothing_names_them(cluster: &Cluster, name: &str, url: &str) {
    let folder = tempfile::tempdir().unwrap();
    let device = device(folder.path(), url, "a", "");
    for series in ["1.1", "1.2"] {
        let uid = format!("{series}.1");
        device.enqueue(&handover(folder.path(), series, &[(&uid, uid.as_bytes())])).unwrap();
        let claim = device.claim().unwrap().unwrap();
        device.finish(&claim, &[product(series)], &to(&[series]), Duration::ZERO).unwrap();
    }
    // All of it came ten days ago.
    cluster.sql(
        name,
        "SET search_path = cdal_spool;
         DO $$ DECLARE today date := (now() AT TIME ZONE 'UTC')::date; old text;
         BEGIN
             old := to_char(today - 10, 'YYYYMMDD');
             EXECUTE format('CREATE TABLE chunks_%s PARTITION OF chunks FOR VALUES FROM (%L) TO (%L)',
                            old, today - 10, today - 9);
             UPDATE chunks SET day = today - 10;
             UPDATE instances SET day = today - 10;
             UPDATE deliveries SET day = today - 10;
         END $$",
    );
    let days =
        || cluster.sql(name, "SELECT count(*) FROM pg_class WHERE relname ~ '^chunks_[0-9]+$'");
    assert_eq!(days(), "3");
    let sent = |destination| device.sent(&due(&*device, destination)).unwrap();
    sent("1.1");
    std::thread::sleep(Duration::from_millis(10));
    let tidied = device.tidy().unwrap();
    assert_eq!((tidied.series, days().as_str()), (1, "3"), "one result is not delivered");
    let delivery = due(&*device, "1.2");
    assert_eq!(std::fs::read(&delivery.path).unwrap(), b"1.2");
    device.sent(&delivery).unwrap();
    std::thread::sleep(Duration::from_millis(10));
    let tidied = device.tidy().unwrap();
    assert_eq!((tidied.series, days().as_str()), (1, "2"));
    assert!(tidied.bytes > 0);
    assert_eq!(cluster.sql(name, "SELECT count(*) FROM cdal_spool.chunks"), "0");
    device.enqueue(&handover(folder.path(), "1.1", &[("1.1.1", b"again")])).unwrap();
    assert!(device.claim().unwrap().is_some());
}

fn a_person_decides_about_what_failed(_: &Cluster, _: &str, url: &str) {
    let folder = tempfile::tempdir().unwrap();
    let device = device(folder.path(), url, "a", "");
    device.enqueue(&handover(folder.path(), "1.1", &[("1.1.1", b"a")])).unwrap();
    let claim = device.claim().unwrap().unwrap();
    let job = Item::Job(claim.job.clone());
    let refused = device.retry_item(&job).unwrap_err().to_string();
    assert!(refused.contains("is running and cannot become ready"), "{refused}");
    device.fail(&claim, "bad input").unwrap();
    device.retry_item(&job).unwrap();
    let claim = device.claim().unwrap().unwrap();
    assert_eq!(claim.attempt, 1);
    device.finish(&claim, &[product("a"), product("b")], &to(&["x"]), Duration::ZERO).unwrap();
    device.bury(&due(&*device, "x"), "refused").unwrap();
    let dead = device.letters(&[cdal::spool::DeliveryState::Dead], None).unwrap();
    assert_eq!((dead.len(), dead[0].reason.as_deref()), (1, Some("refused")));
    device.retry_item(&Item::Delivery(dead[0].id)).unwrap();
    let again = due(&*device, "x");
    assert_eq!(again.id, dead[0].id, "the oldest again");
    device.drop_item(&Item::Delivery(again.id)).unwrap();
    assert!(device.sent(&again).unwrap_err().is_overtaken());
    device.sent(&due(&*device, "x")).unwrap();
    let statement = &device.statements().unwrap()[0];
    assert_eq!((statement.sent, statement.dead, statement.dropped), (1, 0, 1));
    assert!(device.drop_item(&Item::Delivery(4711)).is_err());

    device.enqueue(&handover(folder.path(), "1.2", &[("1.2.1", b"a")])).unwrap();
    device.enqueue(&handover(folder.path(), "1.2", &[("1.2.1", b"b")])).unwrap();
    let held = device.jobs(&[JobState::Quarantined]).unwrap();
    device.retry_item(&Item::Job(held[0].id.clone())).unwrap();
    let claim = device.claim().unwrap().unwrap();
    assert_eq!(std::fs::read(&claim.files[0]).unwrap(), b"a", "what came first");
}
