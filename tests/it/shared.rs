//! Several daemons on one PostgreSQL server: real processes that are killed, with the server and without.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cdal::deliver::{Config, ReportConfig};
use cdal::spool::shared::{self, Durability, Handover, Means, Object, Shared};
use cdal::spool::{self, Desk, JobState, Queue};

use crate::crash::{self, Order};
use crate::support::certificates::{certificates, named_certificate};
use crate::support::chaos::{Station, send_until_taken};
use crate::support::dicom::{dataset, files, series};
use crate::support::http::{get, post_files};
use crate::support::postgres::Cluster;
use crate::support::process::{Process, cdal, dcmtk, free_port};
use crate::support::wait_for;
use crate::support::worker::product;

/// Of the credentials file. The server asks for none; what matters is where it turns up.
const PASSWORD: &str = "correct-horse-battery";

/// Three devices, one server, one workstation and one folder.
struct Site {
    folder: tempfile::TempDir,
    cluster: Cluster,
    station: Station,
    orders: Vec<Order>,
}

impl Site {
    fn new(durability: Durability) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cluster = Cluster::make(folder.path());
        let station = Station::start(0);
        let password = folder.path().join("password");
        std::fs::write(&password, format!("{PASSWORD}\n")).unwrap();
        std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o600)).unwrap();
        let order = |device: &str| Order {
            spool: folder.path().join(device),
            port: free_port(),
            destinations: vec![
                Config::dicom("pacs", &station.address.to_string(), "PACS"),
                Config::folder("disk", folder.path().join("out")),
            ],
            compute_ms: None,
            retain_bytes: None,
            commitment: ReportConfig::default(),
            shared: Some(shared::Config {
                password: Some(password.clone()),
                durability,
                lease: Duration::from_secs(1),
                heartbeat: Duration::from_millis(200),
                poll: Duration::from_millis(200),
                ..shared::Config::new(&cluster.url, device)
            }),
        };
        let orders = ["mr-1", "mr-2", "ct-1"].map(order).to_vec();
        Self { folder, cluster, station, orders }
    }

    /// With everything that it says in `<device>.log`.
    fn start(&self, device: usize, failpoint: Option<&str>) -> Process {
        let order = &self.orders[device];
        let log = File::options().create(true).append(true).open(self.log(device)).unwrap();
        let mut command = crash::command(order, failpoint);
        let daemon = Process::start(command.env("CDAL_LOG", "off,cdal=debug").stderr(log));
        daemon.dicom();
        daemon
    }

    fn log(&self, device: usize) -> PathBuf {
        self.orders[device].spool.with_extension("log")
    }

    fn address(&self, device: usize) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.orders[device].port))
    }

    fn desk(&self) -> Arc<Shared> {
        let config = shared::Config::new(&self.cluster.url, "desk");
        let spool = spool::Config::new(self.folder.path().join("desk"));
        Arc::new(Shared::open(config, spool, Means::default()).unwrap())
    }

    /// Waits until the queue and the spools of `devices` have nothing left to do.
    fn settle(&self, devices: &[usize]) {
        let desk = self.desk();
        wait_for("the series to be handed over", || {
            let open = devices.iter().map(|&device| {
                let spool = spool::Config::new(&self.orders[device].spool);
                let count = Desk::open(spool).unwrap().count().unwrap();
                count.received + count.ready
            });
            (open.sum::<u64>() == 0).then_some(())
        });
        wait_for("everything to be delivered", || {
            let count = desk.count().ok()?;
            let open = count.received + count.ready + count.running + count.pending_deliveries;
            (open == 0).then_some(())
        });
    }

    /// Every one of `sent` is at both destinations, whole and unchanged, and in each account once.
    fn check(&self, sent: &[PathBuf]) {
        let held = self.station.held();
        let out = self.folder.path().join("out");
        for file in sent {
            let bytes = dataset(file);
            let object = dicom_object::open_file(file).unwrap();
            let sop = object.meta().media_storage_sop_instance_uid().to_owned();
            let there = held.get(&sop).expect("the station has it");
            assert!(there.len() == 1 && there.contains(&bytes), "the station has other bytes");
            assert!(dataset(&out.join(format!("{sop}.dcm"))) == bytes, "the folder differs");
        }
        assert_eq!((held.len(), files(&out).len()), (sent.len(), sent.len()));
        let desk = self.desk();
        let count = desk.count().unwrap();
        assert_eq!((count.failed, count.quarantined, count.dead_deliveries), (0, 0, 0));
        let statements = desk.statements().unwrap();
        let accounts: Vec<_> =
            statements.iter().map(|s| (s.destination.as_str(), s.sent, s.pending)).collect();
        let each = sent.len() as u64;
        assert_eq!(accounts, [("disk", each, 0), ("pacs", each, 0)]);
        let of_station = statements[1].attempts;
        assert!(self.station.taken() >= each && of_station >= each);
    }

    /// Series of one object each, so that each has one revision and one result.
    fn series(&self, name: &str, count: usize) -> Vec<PathBuf> {
        let folder = self.folder.path();
        (0..count).flat_map(|n| series(folder, &format!("{name}-{n}"), 1)).collect()
    }

    /// Nobody reads in a log what only the server and the PACS may know.
    fn check_logs(&self, sent: &[PathBuf]) {
        for device in 0..self.orders.len() {
            let said = std::fs::read_to_string(self.log(device)).unwrap();
            assert!(!said.contains(PASSWORD), "the password is in a log");
            for file in sent {
                let object = dicom_object::open_file(file).unwrap();
                let sop = object.meta().media_storage_sop_instance_uid();
                assert!(!said.contains(sop), "a UID is in a log");
            }
        }
    }
}

fn kill(mut daemon: Process) {
    daemon.signal("-KILL");
    daemon.wait();
}

fn stop(mut daemon: Process) {
    daemon.signal("-TERM");
    assert!(daemon.wait().success());
}

/// One of three devices dies under load, then the server. All of them come back.
#[test]
fn with_local_durability_every_acknowledged_series_comes_out_once() {
    let mut site = Site::new(Durability::Local);
    let shares: Vec<Vec<PathBuf>> =
        (0..3).map(|device| site.series(&format!("s{device}"), 10)).collect();
    let sent = shares.concat();
    let mut daemons: Vec<Process> = (0..3).map(|device| site.start(device, None)).collect();
    std::thread::scope(|scope| {
        let senders: Vec<_> = shares
            .iter()
            .enumerate()
            .map(|(device, share)| {
                let address = site.address(device);
                scope.spawn(move || send_until_taken(address, share))
            })
            .collect();
        wait_for("results to come", || (site.station.taken() > 3).then_some(()));
        kill(daemons.remove(1));
        let before = site.station.taken();
        wait_for("the others to go on", || (site.station.taken() > before + 3).then_some(()));
        daemons.insert(1, site.start(1, None));
        for sender in senders {
            sender.join().unwrap();
        }
    });

    // The server dies with work on it. The devices go on receiving and say what is only theirs.
    site.cluster.kill();
    let more = site.series("later", 6);
    let output = dcmtk("storescu", site.address(0), &["-R"], &more);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let own = Desk::open(spool::Config::new(&site.orders[0].spool)).unwrap();
    wait_for("the series to be complete", || (own.count().unwrap().ready >= 6).then_some(()));
    assert!(
        own.unreplicated_bytes().unwrap() >= more.iter().map(|f| dataset(f).len() as u64).sum()
    );
    site.cluster.start();
    site.settle(&[0, 1, 2]);
    assert_eq!(own.unreplicated_bytes().unwrap(), 0);
    let sent = [sent, more].concat();
    site.check(&sent);
    assert!(own.jobs(&[JobState::Shared]).unwrap().len() >= 16);
    daemons.into_iter().for_each(stop);
    site.check_logs(&sent);
    let said = std::fs::read_to_string(site.log(0)).unwrap();
    // An outage shorter than the time-out is waited out; what is told has its end told too.
    let told = |words: &str| said.matches(words).count();
    assert_eq!(told("is out of reach"), told("is back"), "{said}");
}

/// One of three devices dies under load for good, with its disk. Then the server dies for a while.
#[test]
fn with_replicated_durability_a_device_may_be_lost_for_good() {
    let mut site = Site::new(Durability::Replicated);
    let share = site.series("lost", 8);
    let mut daemons: Vec<Process> = (0..3).map(|device| site.start(device, None)).collect();
    // dcmtk sends to the one that dies; what was not acknowledged goes to another, as a modality would.
    let (first, second) = share.split_at(4);
    send_until_taken(site.address(1), first);
    kill(daemons.remove(1));
    std::fs::remove_dir_all(&site.orders[1].spool).unwrap();
    send_until_taken(site.address(0), second);
    site.settle(&[0, 2]);
    site.check(&share);

    site.cluster.kill();
    let more = site.series("during", 3);
    let output = dcmtk("storescu", site.address(2), &["-R", "-nh"], &more);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("(Success)"), "{said}");
    site.cluster.start();
    send_until_taken(site.address(2), &more);
    site.settle(&[0, 2]);
    let sent = [share, more].concat();
    site.check(&sent);
    daemons.into_iter().for_each(stop);
    site.check_logs(&sent);
}

#[test]
fn killed_at_any_step_of_the_shared_queue_nothing_is_lost() {
    let site = Site::new(Durability::Local);
    let mut sent = Vec::new();
    for step in crash::steps_of(crash::SHARED) {
        let share = site.series(step, 2);
        let mut daemon = site.start(0, Some(&format!("{step}@1=abort")));
        // Some die on what the first object does.
        let died = std::thread::scope(|scope| {
            let address = site.address(0);
            let share = &share;
            scope.spawn(move || send_until_taken(address, share));
            let died = daemon.wait();
            daemon = site.start(0, None);
            died
        });
        assert_eq!(died.signal(), Some(6), "{step} is never reached: {died:?}");
        sent.extend(share);
        site.settle(&[0]);
        site.check(&sent);
        stop(daemon);
    }
}

/// A daemon starts without the server, and shows how things stand.
#[test]
fn a_device_that_cannot_reach_the_server_serves_and_says_so() {
    let mut site = Site::new(Durability::Local);
    site.cluster.kill();
    let daemon = {
        let log = File::create(site.log(0)).unwrap();
        Process::start(crash::command(&site.orders[0], None).stderr(log))
    };
    let ready = daemon.json();
    let http: SocketAddr = ready["http"].as_str().unwrap().parse().unwrap();
    let sent = site.series("s", 2);
    send_until_taken(site.address(0), &sent);
    let status = || get(http, "/v1/status").json();
    let out = wait_for("the outage to be seen", || {
        let shared = status()["shared"].clone();
        (shared["unreplicated_bytes"].as_u64()? > 0).then_some(shared)
    });
    assert_eq!((&out["device"], &out["reached"]), (&"mr-1".into(), &false.into()));
    let metrics = get(http, "/metrics").text();
    assert!(metrics.contains("cdal_shared_reached 0"), "{metrics}");
    assert!(metrics.contains("cdal_unreplicated_bytes "), "{metrics}");
    site.cluster.start();
    site.settle(&[0]);
    site.check(&sent);
    let back = wait_for("the server to be seen", || {
        let shared = status()["shared"].clone();
        (shared["reached"] == true).then_some(shared)
    });
    assert_eq!(back["unreplicated_bytes"], 0);
    let sent_there = &status()["destinations"][0]["sent"];
    assert_eq!(sent_there, 2);

    // And so does the operator's command.
    let list = |shared: &str| {
        let file = site.folder.path().join("daemon.toml");
        let spool = site.orders[0].spool.display();
        let text = format!(
            "[model]\nbundle = \"b\"\n[spool]\ndirectory = \"{spool}\"\n\
             [ingest.dicom]\nlisten = \"127.0.0.1:0\"\n{shared}"
        );
        std::fs::write(&file, text).unwrap();
        let mut command = cdal();
        command.args(["spool", "list", "--all", "--shared", "--json", "--config"]).arg(file);
        command.output().unwrap()
    };
    let url = &site.cluster.url;
    let listed = list(&format!("[shared]\nurl = \"{url}\"\ndevice = \"desk\"\n"));
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed["destinations"][1]["sent"], 2, "{listed}");
    assert_eq!(listed["jobs"].as_array().unwrap().len(), 2, "{listed}");
    assert_eq!(list("").status.code(), Some(78));
    stop(daemon);
}

/// A device with nothing to do, as the server sees it: no lease, no claim, a sign of life now and then.
fn idle(site: &Site, url: &str, password: Option<PathBuf>) -> Arc<Shared> {
    let config = shared::Config {
        password,
        heartbeat: Duration::from_millis(50),
        timeout: Duration::from_secs(2),
        ..shared::Config::new(url, "idle")
    };
    let spool = spool::Config::new(site.folder.path().join("idle"));
    Arc::new(Shared::open(config, spool, Means::default()).unwrap())
}

#[test]
fn a_device_that_holds_nothing_learns_by_its_sign_of_life_that_the_server_is_gone() {
    let mut site = Site::new(Durability::Local);
    let device = idle(&site, &site.cluster.url, None);
    device.renew().unwrap();
    assert!(device.is_reached());
    site.cluster.kill();
    for beat in 0..3 {
        assert!(device.renew().unwrap_err().is_outage(), "beat {beat}");
        assert!(!device.is_reached(), "beat {beat}");
    }
    site.cluster.start();
    device.renew().unwrap();
    assert!(device.is_reached());
}

#[test]
fn a_device_with_a_wrong_password_never_says_that_the_server_is_reached() {
    let mut site = Site::new(Durability::Local);
    let folder = site.folder.path().to_owned();
    certificates(&folder);
    named_certificate(&folder, "localhost");
    site.cluster.secure(&folder, PASSWORD);
    let password = |name: &str, secret: &str| {
        let path = folder.join(name);
        std::fs::write(&path, secret).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        Some(path)
    };
    let port = site.cluster.port;
    let ca = folder.join("ca.pem").display().to_string();
    let url =
        format!("postgres://cdal@localhost:{port}/postgres?sslmode=verify-full&sslrootcert={ca}");
    let guesser = idle(&site, &url, password("guessed", "guessed"));
    for beat in 0..3 {
        let error = guesser.renew().unwrap_err();
        assert!(error.is_outage() && error.to_string().contains("28P01"), "{beat}: {error}");
        assert!(!guesser.is_reached(), "beat {beat}");
    }
    let knower = idle(&site, &url, password("right", PASSWORD));
    knower.renew().unwrap();
    assert!(knower.is_reached());
}

#[test]
fn a_database_that_is_not_there_is_not_reached() {
    let site = Site::new(Durability::Local);
    let device = idle(&site, &site.cluster.url.replace("/postgres?", "/nowhere?"), None);
    let error = device.renew().unwrap_err();
    assert!(error.is_outage() && error.to_string().contains("3D000"), "{error}");
    assert!(!device.is_reached());
}

#[test]
fn an_idle_daemon_tells_of_an_outage_and_of_its_end_once_each() {
    let mut site = Site::new(Durability::Local);
    let daemon = {
        let log = File::create(site.log(0)).unwrap();
        let mut command = crash::command(&site.orders[0], None);
        Process::start(command.env("CDAL_LOG", "off,cdal=debug").stderr(log))
    };
    let http: SocketAddr = daemon.json()["http"].as_str().unwrap().parse().unwrap();
    let reached = |value: u8| {
        let line = format!("cdal_shared_reached {value}");
        wait_for(&line, || get(http, "/metrics").text().contains(&line).then_some(()));
    };
    let log = site.log(0);
    let told = |words: &str| std::fs::read_to_string(&log).unwrap().matches(words).count();
    reached(1);
    site.cluster.kill();
    reached(0);
    // On a busy machine an answer may have been late before; and the metric changes before the line is written.
    let (outages, ends) = wait_for("the outage to be told", || {
        let (outages, ends) = (told("is out of reach"), told("is back"));
        (outages == ends + 1).then_some((outages, ends))
    });
    // Whoever brings something now finds the server gone, and nothing has said otherwise meanwhile.
    let sent = site.series("meanwhile", 1);
    send_until_taken(site.address(0), &sent);
    assert_eq!((told("is out of reach"), told("is back")), (outages, ends));
    reached(0);
    site.cluster.start();
    site.settle(&[0]);
    reached(1);
    wait_for("its end to be told", || (told("is out of reach") == told("is back")).then_some(()));
    site.check(&sent);
    stop(daemon);
}

/// What came by HTTP is followed and fetched where it was handed in, though it is computed and kept elsewhere.
#[test]
fn a_case_that_came_by_http_is_fetched_by_http_from_the_shared_queue() {
    let mut site = Site::new(Durability::Local);
    site.orders[0].shared.as_mut().unwrap().timeout = Duration::from_secs(1);
    let daemon = Process::start(&mut crash::command(&site.orders[0], None));
    let http: SocketAddr = daemon.json()["http"].as_str().unwrap().parse().unwrap();
    let sent = site.series("h", 1);
    let taken = post_files(http, "related", &sent).json();
    let id = taken["jobs"][0]["id"].as_str().unwrap().to_owned();
    let job = || get(http, &format!("/v1/jobs/{id}")).json();
    let done = wait_for("the job to be done", || Some(job()).filter(|job| job["state"] == "done"));
    assert_eq!(done["id"], *id, "under the number that it got here: {done}");
    assert!(done["shared_as"].as_str().is_some_and(|number| number != id), "{done}");
    let destinations = done["deliveries"].as_array().unwrap();
    assert_eq!(destinations.len(), 2, "{done}");
    let result = &done["results"][0];
    // Webhooks name the number on the queue, which holds on every device.
    let there = format!("/v1/jobs/{}/mask", done["shared_as"].as_str().unwrap());
    let href = result["href"].as_str().unwrap().to_owned();
    for path in [format!("/v1/jobs/{id}/mask"), there, href] {
        let fetched = get(http, &path);
        assert_eq!(fetched.status, 200, "{path}: {}", fetched.text());
        assert_eq!(fetched.body.len() as u64, result["bytes"], "{path}");
        let file = site.folder.path().join("fetched.dcm");
        std::fs::write(&file, &fetched.body).unwrap();
        assert!(dataset(&file) == dataset(&sent[0]), "{path}");
    }
    assert_eq!(get(http, &format!("/v1/jobs/{id}/results/other")).status, 404);

    site.settle(&[0]);
    site.cluster.kill();
    let waits = get(http, &format!("/v1/jobs/{id}/mask"));
    assert_eq!((waits.status, waits.json_code().unwrap().as_str()), (409, "shared"));
    assert!(waits.headers.iter().any(|(name, _)| name == "retry-after"));
    assert_eq!(job()["state"], "shared");
    site.cluster.start();
    wait_for("the queue to be back", || {
        (get(http, &format!("/v1/jobs/{id}/mask")).status == 200).then_some(())
    });
    stop(daemon);
}

/// `make queue`: how many jobs the queue itself carries in a second, with workers that compute nothing.
#[test]
#[ignore = "a measurement: make queue"]
fn throughput() {
    const JOBS: usize = 2000;
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::make(folder.path());
    let product = product("result", 1);
    println!(
        "{JOBS} jobs of one object of {} bytes each, one result to one destination:",
        product.bytes.len()
    );
    for workers in 1..=3_usize {
        let url = cluster.database(&format!("workers{workers}"));
        let devices: Vec<_> = (0..workers)
            .map(|number| {
                let config = shared::Config::new(&url, format!("device-{number}"));
                let spool = spool::Config::new(folder.path().join(format!("{workers}-{number}")));
                let device = Shared::open(config, spool, Means::default()).unwrap();
                device.ping().unwrap();
                Arc::new(device)
            })
            .collect();
        let path = folder.path().join("object.dcm");
        std::fs::write(&path, &product.bytes).unwrap();
        let sha256 = cdal::durable::sha256_of_file(&path).unwrap();
        let handovers: Vec<_> = (0..JOBS)
            .map(|number| Handover {
                series: format!("1.2.{number}"),
                objects: vec![Object {
                    sop_instance_uid: format!("1.2.{number}.1"),
                    sop_class_uid: "1.2.3".to_owned(),
                    sha256: sha256.clone(),
                    path: path.clone(),
                    extension: "dcm".to_owned(),
                    bytes: product.bytes.len() as u64,
                }],
                is_complete: true,
            })
            .collect();
        let in_turn = |what: &str, work: &(dyn Fn(&Shared, &[Handover]) + Sync)| {
            let started = std::time::Instant::now();
            std::thread::scope(|scope| {
                for (device, share) in devices.iter().zip(handovers.chunks(JOBS.div_ceil(workers)))
                {
                    scope.spawn(move || work(device, share));
                }
            });
            let per_second = JOBS as f64 / started.elapsed().as_secs_f64();
            println!("  {workers} devices: {per_second:.0} {what}/s");
        };
        in_turn("handovers", &|device, share| {
            for handover in share {
                device.enqueue(handover).unwrap();
            }
        });
        in_turn("jobs", &|device, _| {
            let to = ["pacs".to_owned()];
            while let Some(claim) = device.claim().unwrap() {
                device.finish(&claim, std::slice::from_ref(&product), &to, Duration::ZERO).unwrap();
            }
        });
        assert_eq!(devices[0].count().unwrap().pending_deliveries, JOBS as u64);
    }
}
