//! Nothing acknowledged is lost: the process is killed at every durable step and at random, the disk fills up, and the
//! destinations misbehave.

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cdal::deliver::{Config, ReportConfig};
use cdal::durable::failpoint;
use cdal::spool::{self, DeliveryState, Desk};

use crate::support::chaos::{Dice, SmallDisk, Station, misfortune, send_until_taken};
use crate::support::daemon::settings;
use crate::support::dicom::{dataset, files, series};
use crate::support::http::{get, post_files};
use crate::support::process::{Process, dcmtk, dcmtk_storescp, free_port, store};
use crate::support::wait_for;
use crate::support::worker::{Echo, Stand};

const SETTINGS: &str = "CDAL_IT_DAEMON";
const FAILPOINT: &str = "CDAL_FAILPOINT";

/// What the child process is told.
#[derive(serde::Serialize, serde::Deserialize, Clone)]
pub(crate) struct Order {
    pub(crate) spool: PathBuf,
    pub(crate) port: u16,
    pub(crate) destinations: Vec<Config>,
    /// `None`: give back what came in.
    pub(crate) compute_ms: Option<u64>,
    pub(crate) retain_bytes: Option<u64>,
    pub(crate) commitment: ReportConfig,
    pub(crate) shared: Option<spool::shared::Config>,
}

/// The daemon as `cdal serve` runs it, with a worker that needs no model: the body of the child process that the
/// tests below start and kill.
#[test]
#[ignore = "runs in the child process of the other tests"]
fn child() {
    let order = std::env::var(SETTINGS).expect("the parent sets it");
    let order: Order = serde_json::from_str(&order).unwrap();
    let mut settings = settings(&order.spool, order.destinations);
    settings.ingest.dicom.listen = format!("127.0.0.1:{}", order.port);
    settings.ingest.dicom.completion.idle = Duration::from_millis(100);
    settings.spool.retain_bytes = order.retain_bytes;
    settings.commitment = order.commitment;
    settings.shared = order.shared;
    // The crashes of these tests are many, and none of them is the job's fault.
    settings.spool.max_attempts = 1000;
    cdal::telemetry::start("error");
    match order.compute_ms.map(Duration::from_millis) {
        Some(compute) => cdal::cli::serve::serve(settings, Stand { compute }).unwrap(),
        None => cdal::cli::serve::serve(settings, Echo).unwrap(),
    };
}

pub(crate) fn start(order: &Order, failpoint: Option<&str>) -> Process {
    Process::start(&mut command(order, failpoint))
}

pub(crate) fn command(order: &Order, failpoint: Option<&str>) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", "--nocapture", "crash::child"])
        .env(SETTINGS, serde_json::to_string(order).unwrap())
        .env_remove(FAILPOINT);
    if let Some(failpoint) = failpoint {
        command.env(FAILPOINT, failpoint).stderr(std::process::Stdio::null());
    }
    command
}

/// Three destinations: one that works, one in front of which connections break, slow down and are refused, a folder.
struct Bench {
    folder: tempfile::TempDir,
    order: Order,
    address: SocketAddr,
    steady: Station,
    moody: Station,
    calm: Arc<AtomicBool>,
    sent: Vec<PathBuf>,
}

impl Bench {
    fn new(seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (steady, moody) = (Station::start(0), Station::start(5));
        let calm = Arc::new(AtomicBool::new(false));
        let unlucky = misfortune(moody.address, seed, calm.clone());
        let port = free_port();
        let order = Order {
            spool: folder.path().join("spool"),
            port,
            destinations: vec![
                Config::dicom("steady", &steady.address.to_string(), "STEADY"),
                Config::dicom("moody", &unlucky.to_string(), "MOODY"),
                Config::folder("disk", folder.path().join("out")),
            ],
            compute_ms: None,
            retain_bytes: None,
            commitment: ReportConfig::default(),
            shared: None,
        };
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Self { folder, order, address, steady, moody, calm, sent: Vec::new() }
    }

    /// Makes `count` series of `slices`; two associations bring the slices of each.
    fn series(&mut self, count: usize, slices: u16) -> [Vec<PathBuf>; 2] {
        let mut shares = [Vec::new(), Vec::new()];
        for number in 0..count {
            let made =
                series(self.folder.path(), &format!("s{}-{number}", self.sent.len()), slices);
            for (slice, file) in made.into_iter().enumerate() {
                self.sent.push(file.clone());
                shares[slice % 2].push(file);
            }
        }
        shares
    }

    fn desk(&self) -> Desk {
        Desk::open(spool::Config::new(&self.order.spool)).unwrap()
    }

    /// Waits until nothing is left to do.
    fn settle(&self) {
        self.calm.store(true, Ordering::Relaxed);
        let desk = self.desk();
        wait_for("everything to be delivered", || {
            let count = desk.count().unwrap();
            let open = count.received + count.ready + count.running + count.pending_deliveries;
            (open == 0).then_some(())
        });
    }

    /// Everything that got Success is at every destination, whole and unchanged, and the account says so.
    fn check(&self, name: &str) {
        let out = self.folder.path().join("out");
        let (steady, moody) = (self.steady.held(), self.moody.held());
        for file in &self.sent {
            let bytes = dataset(file);
            let object = dicom_object::open_file(file).unwrap();
            let sop = object.meta().media_storage_sop_instance_uid().to_owned();
            for (station, held) in [("steady", &steady), ("moody", &moody)] {
                let held =
                    held.get(&sop).unwrap_or_else(|| panic!("{name}: {station} lacks an object"));
                assert!(
                    held.len() == 1 && held.contains(&bytes),
                    "{name}: {station} has other bytes"
                );
            }
            assert!(
                dataset(&out.join(format!("{sop}.dcm"))) == bytes,
                "{name}: the folder differs"
            );
        }
        let expected = self.sent.len();
        assert_eq!(
            (steady.len(), moody.len(), files(&out).len()),
            (expected, expected, expected),
            "{name}"
        );

        let desk = self.desk();
        let count = desk.count().unwrap();
        assert_eq!((count.failed, count.quarantined, count.dead_deliveries), (0, 0, 0), "{name}");
        for account in desk.statements().unwrap() {
            let taken = match account.destination.as_str() {
                "steady" => self.steady.taken(),
                "moody" => self.moody.taken(),
                _ => u64::MAX,
            };
            assert!(
                account.sent >= expected as u64 && account.sent <= taken,
                "{name}: {account:?}"
            );
            if self.order.retain_bytes.is_none() {
                let letters = desk.letters(&[DeliveryState::Sent], None).unwrap();
                let sent = letters.iter().filter(|l| l.destination == account.destination).count();
                assert_eq!(account.sent, sent as u64, "{name}: {account:?}");
            }
        }
    }

    fn stop(&self, mut daemon: Process, name: &str) {
        daemon.signal("-TERM");
        assert!(daemon.wait().success(), "{name}");
        let parts = std::fs::read_dir(self.order.spool.join("incoming")).unwrap().count();
        assert_eq!(parts, 0, "{name}: half-written files");
    }
}

/// Sends while the daemon runs with `failpoint`; after the crash it runs without.
fn die_at(step: &str, pass: u64) {
    let mut bench = Bench::new(pass);
    if step == "tidy.committed" {
        bench.order.retain_bytes = Some(0);
    }
    let shares = bench.series(2, 2);
    let mut daemon = start(&bench.order, Some(&format!("{step}@{pass}=abort")));
    daemon.dicom();
    let address = bench.address;
    std::thread::scope(|scope| {
        for share in &shares {
            scope.spawn(move || send_until_taken(address, share));
        }
        let died = daemon.wait();
        assert_eq!(died.signal(), Some(6), "{step} is never reached: {died:?}");
        daemon = start(&bench.order, None);
        daemon.dicom();
    });
    bench.settle();
    bench.check(step);
    bench.stop(daemon, step);
}

/// Every step of the list is somebody's: adding one without a test is a fault.
const INGEST: &str = "ingest. store.";
const JOB: &str = "job. finish.";
const DELIVERY: &str = "delivery. tidy.";
/// Tried in `commitment`.
pub(crate) const COMMITMENT: &str = "commitment. custody.";
/// Tried in `shared`.
pub(crate) const SHARED: &str = "shared.";
/// Tried in `fleet_agent`.
pub(crate) const FLEET: &str = "fleet.";
/// Tried in `fleet_trust`.
pub(crate) const TRUST: &str = "trust.";

pub(crate) fn steps_of(rooms: &str) -> Vec<&'static str> {
    let mine = |step: &&str| rooms.split(' ').any(|room| step.starts_with(room));
    failpoint::STEPS.into_iter().filter(mine).collect()
}

#[test]
fn every_step_is_tried() {
    let rooms = [INGEST, JOB, DELIVERY, COMMITMENT, SHARED, FLEET, TRUST];
    let tried: usize = rooms.map(|rooms| steps_of(rooms).len()).iter().sum();
    assert_eq!(tried, failpoint::STEPS.len());
}

#[test]
fn killed_at_any_step_of_an_object_nothing_is_lost() {
    for step in steps_of(INGEST) {
        die_at(step, 2);
    }
}

#[test]
fn killed_at_any_step_of_a_job_nothing_is_lost() {
    for step in steps_of(JOB) {
        die_at(step, 1);
    }
}

#[test]
fn killed_at_any_step_of_a_delivery_nothing_is_lost() {
    for step in steps_of(DELIVERY) {
        die_at(step, 1);
    }
}

#[test]
fn a_disk_that_fills_up_for_a_while_loses_nothing() {
    for call in failpoint::CALLS {
        let mut bench = Bench::new(3);
        let shares = bench.series(3, 2);
        let daemon = start(&bench.order, Some(&format!("{call}@2..9=full")));
        daemon.dicom();
        let tries: u64 = shares.iter().map(|share| send_until_taken(bench.address, share)).sum();
        assert!(tries > 2, "{call}: nothing was refused");
        bench.settle();
        bench.check(call);
        bench.stop(daemon, call);
    }
}

#[test]
fn a_disk_that_another_program_fills_up_loses_nothing() {
    let mut bench = Bench::new(4);
    let Some(disk) = SmallDisk::mount(&bench.folder.path().join("disk"), 16 << 20) else {
        eprintln!(
            "SKIPPED: no tmpfs can be mounted here (run as root), so no real disk was filled"
        );
        return;
    };
    bench.order.spool = disk.folder.join("spool");
    let daemon = start(&bench.order, None);
    daemon.dicom();
    let [before, during] = bench.series(10, 2);
    send_until_taken(bench.address, &before);

    let ballast = disk.fill();
    let output = dcmtk("storescu", bench.address, &["-R", "-nh"], &during);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("OutOfResources") && !said.contains("(Success)"), "{said}");
    std::fs::remove_file(ballast).unwrap();

    send_until_taken(bench.address, &during);
    bench.settle();
    bench.check("full disk");
    bench.stop(daemon, "full disk");
}

/// Kills and restarts the daemon at random moments until `senders` have sent everything. Returns how often.
fn kill_at_random(
    bench: &Bench,
    shares: &[Vec<PathBuf>],
    dice: &mut Dice,
    pause: impl Fn(&mut Dice) -> Duration,
    at_least: u64,
) -> (Process, u64) {
    let mut daemon = start(&bench.order, None);
    daemon.dicom();
    let mut kills = 0;
    std::thread::scope(|scope| {
        let senders: Vec<_> = shares
            .iter()
            .map(|share| scope.spawn(|| send_until_taken(bench.address, share)))
            .collect();
        while kills < at_least || senders.iter().any(|sender| !sender.is_finished()) {
            std::thread::sleep(pause(dice));
            daemon.signal("-KILL");
            daemon.wait();
            kills += 1;
            daemon = start(&bench.order, None);
            daemon.dicom();
        }
    });
    (daemon, kills)
}

#[test]
fn killed_at_random_moments_nothing_is_lost() {
    let mut bench = Bench::new(5);
    let shares = bench.series(6, 4);
    let pause = |dice: &mut Dice| Duration::from_millis(100 + dice.throw(300));
    let (daemon, _) = kill_at_random(&bench, &shares, &mut Dice::new(5), pause, 3);
    bench.settle();
    bench.check("kill -9");
    bench.stop(daemon, "kill -9");
}

/// `make soak`: the same for as long as one likes, with figures.
#[test]
#[ignore = "takes minutes: make soak"]
fn soak() {
    let variable = |name, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a whole number"))
    };
    let (seconds, seed) = (variable("CDAL_SOAK_SECONDS", 600), variable("CDAL_SOAK_SEED", 1));
    let mut dice = Dice::new(seed);
    let mut bench = Bench::new(seed);
    let started = Instant::now();
    let (mut rounds, mut kills) = (0, 0);
    while started.elapsed().as_secs() < seconds {
        let mut shares: Vec<Vec<PathBuf>> = Vec::new();
        for _ in 0..4 {
            shares.extend(bench.series(10, 1 + dice.throw(8) as u16));
        }
        let pause = |dice: &mut Dice| Duration::from_millis(50 + dice.throw(3000));
        bench.calm.store(false, Ordering::Relaxed);
        let (daemon, killed) = kill_at_random(&bench, &shares, &mut dice, pause, 1);
        bench.settle();
        bench.check("soak");
        bench.stop(daemon, "soak");
        (rounds, kills) = (rounds + 1, kills + killed);
        let usage = bench.desk().usage().unwrap();
        println!(
            "round {rounds}: {} s, {} objects acknowledged, {kills} kills; all of them at 3 destinations, \
             unchanged; spool {} KiB",
            started.elapsed().as_secs(),
            bench.sent.len(),
            usage.used_bytes >> 10
        );
    }
    let again = |station: &Station| station.taken() - station.held().len() as u64;
    println!(
        "soak, seed {seed}: {} s, {rounds} rounds, {} objects, {kills} kills, none lost, none half; \
         came more than once: {} at the steady destination, {} at the moody one",
        started.elapsed().as_secs(),
        bench.sent.len(),
        again(&bench.steady),
        again(&bench.moody)
    );
    for account in bench.desk().statements().unwrap() {
        println!("{}", serde_json::to_string(&account).unwrap());
    }
}

#[test]
fn killed_after_the_acknowledgement_everything_is_delivered_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, out) = (folder.path().join("spool"), folder.path().join("out"));
    std::fs::create_dir(&out).unwrap();
    let port = free_port();
    let start = |compute: u64| {
        let order = Order {
            spool: spool.clone(),
            port: 0,
            destinations: vec![Config::dicom("pacs", &format!("127.0.0.1:{port}"), "DCMTK")],
            compute_ms: Some(compute),
            retain_bytes: None,
            commitment: ReportConfig::default(),
            shared: None,
        };
        start(&order, None)
    };
    let kill = |mut daemon: Process| {
        daemon.signal("-KILL");
        daemon.wait();
    };

    // Killed while the series is still open.
    let daemon = start(0);
    store(daemon.dicom(), &series(folder.path(), "open", 3));
    kill(daemon);
    // Killed while a job computes.
    let daemon = start(20_000);
    store(daemon.dicom(), &series(folder.path(), "running", 3));
    running(&spool);
    kill(daemon);
    // Killed while the destination is down.
    let daemon = start(0);
    daemon.dicom();
    let products = spool.join("products");
    wait_for("both jobs", || (files(&products).len() == 2).then_some(()));
    kill(daemon);

    let _peer = dcmtk_storescp(port, &out, &[]);
    let mut daemon = start(0);
    daemon.dicom();
    wait_for("both products", || (files(&out).len() == 2).then_some(()));
    daemon.signal("-TERM");
    assert!(daemon.wait().success());
    assert_eq!(std::fs::read_dir(spool.join("incoming")).unwrap().count(), 0);
}

fn running(spool: &Path) {
    let desk = Desk::open(spool::Config::new(spool)).unwrap();
    wait_for("a running job", || (desk.count().unwrap().running == 1).then_some(()));
}

#[test]
fn killed_right_after_202_every_case_has_its_result_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool");
    let http = |daemon: &Process| -> std::net::SocketAddr {
        daemon.json()["http"].as_str().unwrap().parse().unwrap()
    };
    let start = |compute: u64| {
        let order = Order {
            spool: spool.clone(),
            port: 0,
            destinations: vec![Config::dicom("down", &format!("127.0.0.1:{}", free_port()), "X")],
            compute_ms: Some(compute),
            retain_bytes: None,
            commitment: ReportConfig::default(),
            shared: None,
        };
        start(&order, None)
    };
    let mut daemon = start(200);
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
    let mut daemon = start(0);
    let to = http(&daemon);
    for job in accepted {
        wait_for("the job to be done", || (get(to, &job).json()["state"] == "done").then_some(()));
        assert_eq!(get(to, &format!("{job}/mask")).status, 200);
    }
    daemon.signal("-KILL");
    daemon.wait();
}
