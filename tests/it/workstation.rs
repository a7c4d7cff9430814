//! `cdal workstation`, the real binary.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cdal::daemon::Drained;
use cdal::deliver::{Commitment, Config};
use cdal::spool::{self, DeliveryState, Desk};
use cdal::tls;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::certificates::{certificates, named_certificate};
use crate::support::daemon::{Running, settings};
use crate::support::dicom::{dataset, files, series};
use crate::support::http::{post_files, request, request_tls};
use crate::support::process::{Process, cdal, dcmtk, free_port, serial_cable, store};
use crate::support::wait_for;
use crate::support::worker::{Echo, Stand};

#[test]
fn it_takes_the_product_by_dicom_and_by_serial_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (by_dicom, by_serial) = (folder.path().join("by-dicom"), folder.path().join("by-serial"));
    let (_cable, near, far) = serial_cable(folder.path());
    let receive = |options: &[&str], out: &PathBuf| {
        let mut command = cdal();
        Process::start(
            command.args(["workstation", "--count", "1"]).args(options).arg("--out").arg(out),
        )
    };
    let mut dicom = receive(&["--dicom", "0"], &by_dicom);
    let mut serial = receive(&["--baud", "0", "--serial", &far.to_string_lossy()], &by_serial);
    let destinations = vec![
        Config::dicom("dicom", &dicom.dicom().to_string(), "WORKSTATION"),
        Config::serial("serial", near, 0),
    ];
    assert_eq!(serial.json()["ready"], true);

    let worker = Stand { compute: Duration::ZERO };
    let daemon = Running::start(settings(&folder.path().join("spool"), destinations), worker);
    store(daemon.address(), &series(folder.path(), "a", 2));
    for (process, via, out) in [(&mut dicom, "dicom", by_dicom), (&mut serial, "serial", by_serial)]
    {
        let line = process.json();
        assert_eq!(line["via"], via);
        assert_eq!(files(&out), [PathBuf::from(line["path"].as_str().unwrap())]);
        let made = files(&folder.path().join("spool/products"));
        assert_eq!(dataset(&files(&out)[0]), dataset(&made[0]));
        assert_eq!(line["bytes"], std::fs::metadata(&files(&out)[0]).unwrap().len());
        assert!(process.wait().success(), "it ends after one object");
    }
    assert_eq!(daemon.stop(), Drained::Completely);
}

#[test]
fn while_the_disk_is_too_full_every_sender_is_told_and_nothing_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let options = format!("--dicom 0 --http 127.0.0.1:0 --min-free-bytes {}", u64::MAX);
    let process = workstation(&out, &words(&options), None);
    let ready = process.json();
    let address = |way: &str| -> SocketAddr { ready[way].as_str().unwrap().parse().unwrap() };
    let sent = series(folder.path(), "a", 1);
    let output = dcmtk("storescu", address("dicom"), &["-v"], &sent);
    let said = [output.stdout, output.stderr].map(|s| String::from_utf8_lossy(&s).into_owned());
    assert!(said.concat().contains("OutOfResources"), "{said:?}");
    let (event, kind) = (br#"{"event":"result"}"#, ["Content-Type: application/json"]);
    let refused = request(address("http"), "POST", "/events", &kind, event);
    assert_eq!((refused.status, refused.json_code().unwrap().as_str()), (507, "low_disk"));
    assert!(files(&out).is_empty());
}

#[test]
fn a_signal_ends_it_cleanly() {
    let folder = tempfile::tempdir().unwrap();
    let command = &mut cdal();
    let mut workstation =
        Process::start(command.args(["workstation", "--dicom", "0", "--out"]).arg(folder.path()));
    workstation.dicom();
    workstation.signal("-TERM");
    assert!(workstation.wait().success());
}

/// `cdal workstation` into `out`, with more of its environment where a test wants it to die.
fn workstation(out: &Path, options: &[String], failpoint: Option<&str>) -> Process {
    let mut command = cdal();
    command.args(["workstation", "--out"]).arg(out).args(options);
    if let Some(failpoint) = failpoint {
        command.env("CDAL_FAILPOINT", failpoint).stderr(std::process::Stdio::null());
    }
    Process::start(&mut command)
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn desk(spool: &Path) -> Desk {
    Desk::open(spool::Config::new(spool)).unwrap()
}

/// How many deliveries their destinations have confirmed.
fn sent(spool: &Path) -> usize {
    desk(spool).letters(&[DeliveryState::Sent], None).unwrap().len()
}

fn sop_of(file: &Path) -> String {
    let object = dicom_object::open_file(file).unwrap();
    object.meta().media_storage_sop_instance_uid().to_owned()
}

/// Every event in `folder`, by the hash of the file that it tells of.
fn events(folder: &Path) -> BTreeMap<String, Value> {
    let entries = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    let events = entries.filter(|path| path.extension().is_some_and(|e| e == "json"));
    let event = |path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    events.map(event).map(|e| (e["sha256"].as_str().unwrap().to_owned(), e)).collect()
}

fn sha256(file: &Path) -> String {
    cdal::durable::hex(&Sha256::digest(std::fs::read(file).unwrap()))
}

/// An incomplete file may be there while a process writes it, and after it was killed until the next one starts.
fn no_parts(folder: &Path) {
    let parts = std::fs::read_dir(folder).unwrap().flatten();
    let parts = parts.filter(|entry| entry.file_name().to_string_lossy().ends_with(".part"));
    assert_eq!(parts.count(), 0, "half-written files");
}

#[test]
fn by_network_it_gets_the_same_bytes_each_way_over_tls_and_commits_to_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = |name: &str| path(name).to_string_lossy().into_owned();
    certificates(folder.path());
    named_certificate(folder.path(), "localhost"); // the workstation's
    std::fs::write(path("tokens"), format!("cdal {}\n", hash("secret"))).unwrap();
    std::fs::write(path("token"), "secret").unwrap();
    for file in ["tokens", "token"] {
        private(&path(file));
    }
    let port = free_port(); // the daemon's
    let options = words(&format!(
        "--dicom 0 --http 127.0.0.1:0 --tls-certificate {} --tls-key {} --tls-clients {ca} --tokens {} \
         --commitment CDAL=127.0.0.1:{port} --commitment-ca {}",
        text("localhost.pem"),
        text("localhost.key"),
        text("tokens"),
        text("server.pem"),
        ca = text("ca.pem"),
    ));
    let out = path("out");
    let mut station = workstation(&out, &options, None);
    let ready = station.json();
    let dicom = ready["dicom"].as_str().unwrap().to_owned();
    let http: std::net::SocketAddr = ready["http"].as_str().unwrap().parse().unwrap();

    let shown = tls::Client {
        ca: path("ca.pem"),
        certificate: Some(path("client.pem")),
        key: Some(path("client.key")),
        server_name: Some("localhost".to_owned()),
    };
    let web = |config: Config| Config {
        ca: Some(path("ca.pem")),
        certificate: Some(path("client.pem")),
        key: Some(path("client.key")),
        token: Some(path("token")),
        ..config
    };
    let url = |end: &str| format!("https://localhost:{}/{end}", http.port());
    let destinations = vec![
        Config {
            tls: Some(shown.clone()),
            commitment: Some(Commitment { within: Duration::from_mins(1) }),
            ..Config::dicom("dicom", &dicom, "WORKSTATION")
        },
        web(Config::stow("stow", &url("studies"))),
        web(Config::webhook("events", &url("events"))),
    ];
    assert!(destinations.iter().all(|destination| destination.faults().is_empty()));
    let spool = path("spool");
    let mut settings = settings(&spool, destinations);
    settings.ingest.dicom.listen = format!("127.0.0.1:{port}");
    settings.ingest.dicom.tls = Some(tls::Server {
        certificate: path("server.pem"),
        key: path("server.key"),
        clients: Some(path("ca.pem")),
    });
    let daemon = Running::start(settings, Echo);
    let images = series(folder.path(), "a", 3);
    let accepted = post_files(daemon.daemon().http_address().unwrap(), "related", &images);
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    wait_for("every confirmation", || (sent(&spool) == 9).then_some(()));

    let mut ways: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..9 {
        *ways.entry(station.json()["via"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!(
        ways.into_iter().collect::<Vec<_>>(),
        [("dicom".to_owned(), 3), ("stow".to_owned(), 3), ("webhook".to_owned(), 3)]
    );
    assert_eq!(files(&out).len(), 3, "what came both ways is one file");
    let told = events(&out);
    for image in &images {
        let received = out.join(format!("{}.dcm", sop_of(image)));
        assert_eq!(std::fs::read(&received).unwrap(), std::fs::read(image).unwrap());
        assert_eq!(told[&sha256(image)]["event"], "result");
    }
    no_parts(&out);

    // Nobody else is let in.
    let stranger = tls::Client { certificate: None, key: None, ..shown.clone() };
    assert!(request_tls(http, &stranger, "POST", "/studies", &[], &[]).is_err());
    let without = request_tls(http, &shown, "POST", "/studies", &[], &[]).unwrap();
    assert_eq!((without.status, without.json_code().as_deref()), (401, Some("unauthorized")));
    assert_eq!(daemon.stop(), Drained::Completely);
    station.signal("-TERM");
    assert!(station.wait().success());
}

fn hash(token: &str) -> String {
    cdal::durable::hex(&Sha256::digest(token))
}

fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// Two workstations of one daemon: by DICOM with storage commitment, and by HTTP. Both keep their ports for life.
struct Pair {
    folder: tempfile::TempDir,
    daemon: Running,
    by_dicom: Vec<String>,
    by_http: Vec<String>,
    images: Vec<PathBuf>,
}

impl Pair {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [daemon, dicom, http] = [free_port(), free_port(), free_port()];
        let by_dicom = words(&format!("--dicom {dicom} --commitment CDAL=127.0.0.1:{daemon}"));
        let by_http = words(&format!("--http 127.0.0.1:{http}"));
        let url = |end: &str| format!("http://127.0.0.1:{http}/{end}");
        let destinations = vec![
            Config {
                // What is asked for while nobody is there to answer is asked for again.
                commitment: Some(Commitment { within: Duration::from_secs(1) }),
                ..Config::dicom("dicom", &format!("127.0.0.1:{dicom}"), "WORKSTATION")
            },
            Config::stow("stow", &url("studies")),
            Config::webhook("events", &url("events")),
        ];
        let mut settings = settings(&folder.path().join("spool"), destinations);
        settings.ingest.dicom.listen = format!("127.0.0.1:{daemon}");
        let daemon = Running::start(settings, Echo);
        Self { folder, daemon, by_dicom, by_http, images: Vec::new() }
    }

    fn spool(&self) -> PathBuf {
        self.folder.path().join("spool")
    }

    fn out(&self, which: &str) -> PathBuf {
        self.folder.path().join(which)
    }

    fn start(&self, which: &str, failpoint: Option<&str>) -> Process {
        let options = if which == "dicom" { &self.by_dicom } else { &self.by_http };
        let station = workstation(&self.out(which), options, failpoint);
        assert_eq!(station.json()["ready"], true);
        station
    }

    fn send(&mut self, name: &str, slices: u16) {
        let images = series(self.folder.path(), name, slices);
        store(self.daemon.address(), &images);
        self.images.extend(images);
    }

    /// Of what the daemon takes for confirmed nothing is missing or changed, at any moment.
    fn check(&self, name: &str) {
        let letters = desk(&self.spool()).letters(&[DeliveryState::Sent], None).unwrap();
        let told = events(&self.out("http"));
        let same = |which: &str, image: &PathBuf| {
            let held = self.out(which).join(format!("{}.dcm", sop_of(image)));
            assert!(!held.exists() || dataset(&held) == dataset(image), "{name}: other bytes");
            held.exists()
        };
        let held = |destination: &str, image: &PathBuf| match destination {
            "events" => told.contains_key(&sha256(image)),
            "stow" => same("http", image),
            _ => same("dicom", image),
        };
        for destination in ["dicom", "stow", "events"] {
            let sent = letters.iter().filter(|l| l.destination == destination).count();
            let held = self.images.iter().filter(|image| held(destination, image)).count();
            assert!(held >= sent, "{name}: {destination} confirmed {sent} and holds {held}");
        }
    }

    fn settle(&self, name: &str) {
        wait_for("every confirmation", || {
            (sent(&self.spool()) == 3 * self.images.len()).then_some(())
        });
        self.check(name);
        for which in ["dicom", "http"] {
            assert_eq!(files(&self.out(which)).len(), self.images.len(), "{name}: {which}");
            no_parts(&self.out(which));
        }
        assert_eq!(events(&self.out("http")).len(), self.images.len(), "{name}");
    }
}

#[test]
fn killed_at_any_step_it_has_what_it_acknowledged_and_keeps_its_promises() {
    let mut pair = Pair::new();
    let mut stations =
        BTreeMap::from(["dicom", "http"].map(|which| (which, pair.start(which, None))));
    for (which, step) in [
        ("dicom", "ingest.synced@2"),
        ("dicom", "disk.rename@2"),
        ("dicom", "commitment.recorded@1"),
        ("dicom", "commitment.told@1"),
        ("http", "disk.sync@2"),
        ("http", "ingest.synced@2"),
        ("http", "disk.rename@3"),
    ] {
        let name = &format!("{which} at {step}");
        stations.remove(which);
        let mut dying = pair.start(which, Some(&format!("{step}=abort")));
        pair.send(&format!("{which}-{step}"), 3);
        let died = wait_for(name, || dying.child.try_wait().unwrap());
        assert_eq!(died.signal(), Some(6), "{name}");
        pair.check(name);
        stations.insert(which, pair.start(which, None));
        pair.settle(name);
    }
    drop(stations);
    pair.daemon.stop();
}

#[test]
fn killed_at_random_moments_it_has_what_it_acknowledged() {
    let mut pair = Pair::new();
    let mut dice = crate::support::chaos::Dice::new(7);
    let mut stations =
        BTreeMap::from(["dicom", "http"].map(|which| (which, pair.start(which, None))));
    for round in 0..8 {
        pair.send(&format!("round-{round}"), 6);
        let which = if round % 2 == 0 { "dicom" } else { "http" };
        std::thread::sleep(Duration::from_millis(300 + dice.throw(200)));
        let mut station = stations.remove(which).unwrap();
        station.signal("-KILL");
        station.wait();
        pair.check("kill -9");
        stations.insert(which, pair.start(which, None));
    }
    pair.settle("kill -9");
    drop(stations);
    pair.daemon.stop();
}
