//! Repositories in the real format: published with the real program, handed out by a real HTTP server or from a folder,
//! and attacked. Whatever an attacker does, a device believes what it believed before and says why.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use cdal::fleet::repository::{Draft, Key, Keyring, Repository, Roles, State, Validity};
use cdal::fleet::trust::{Checked, Device, Floors, Source, Trust, TrustError};
use cdal::fleet::{Blob, BundleRef, Probation, Release, Rollout, SCHEMA, Wave};

use crate::fleet_agent::shipped;
use crate::project::root;
use crate::support::process::{Process, free_port};
use crate::support::wait_for;

const PROGRAM: &str = env!("CARGO_BIN_EXE_cdal");

/// A publisher with two keys for releases, and its devices.
struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        Self::of(2, Validity::default())
    }

    fn of(targets_threshold: u64, validity: Validity) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let site = Self { folder };
        fs::create_dir(site.path("keys")).unwrap();
        let [a, b, c] = ["root-1", "root-2", "root-3"].map(|name| site.new_key(name));
        let roles = Roles {
            root: (vec![a, b, c], 2),
            targets: (
                ["targets-1", "targets-2"].map(|n| site.new_key(n)).into(),
                targets_threshold,
            ),
            snapshot: site.new_key("snapshot"),
            timestamp: site.new_key("timestamp"),
        };
        let repository = Repository::init(&site.repository(), roles, validity).unwrap();
        fs::copy(repository.root_path(), site.path("root.json")).unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn repository(&self) -> PathBuf {
        self.path("repository")
    }

    fn key_path(&self, name: &str) -> PathBuf {
        self.path("keys").join(format!("{name}.key"))
    }

    fn new_key(&self, name: &str) -> Key {
        Key::generate(&self.key_path(name)).unwrap()
    }

    fn keys(&self, names: &[&str]) -> Keyring {
        let paths: Vec<_> = names.iter().map(|name| self.key_path(name)).collect();
        Keyring::read(&paths).unwrap()
    }

    fn all_keys(&self) -> Keyring {
        Keyring::read(&[self.path("keys")]).unwrap()
    }

    /// A release of one small model.
    fn draft(&self, counter: u64) -> Draft {
        let mut blobs = BTreeMap::new();
        let mut blob = |text: String| {
            let path = self.path(&format!("content-{counter}-{}", text.len()));
            fs::write(&path, text).unwrap();
            let sha256 = cdal::durable::sha256_of_file(&path).unwrap();
            let length = fs::metadata(&path).unwrap().len();
            blobs.insert(sha256.clone(), path);
            Blob { sha256, length }
        };
        let manifest = blob(format!("version = {counter}"));
        let files = BTreeMap::from([
            ("bundle.toml".to_owned(), manifest.clone()),
            ("denoiser.onnx".to_owned(), blob("weights".repeat(100_000))),
        ]);
        let wave = Wave { up_to: 1.0, after: Duration::ZERO, duration: Duration::ZERO };
        let release = Release {
            schema: SCHEMA,
            counter,
            name: format!("r{counter}"),
            cdal: semver::VersionReq::STAR,
            hardware: vec!["cpu".to_owned()],
            groups: vec!["ward".to_owned()],
            configuration: None,
            bundles: [("m".to_owned(), BundleRef { digest: manifest.sha256, files })].into(),
            rollout: Rollout {
                start_ms: 0,
                canary: vec![],
                waves: vec![wave],
                failure_threshold: 0.5,
                silence: Duration::from_mins(1),
            },
            probation: Probation {
                healthy: Duration::from_secs(1),
                jobs: 1,
                failures: 0,
                slowdown: 10.0,
                boots: 3,
            },
        };
        Draft { release, blobs }
    }

    fn publish(&self, counter: u64) {
        let repository = Repository::open(&self.repository()).unwrap();
        let keys = self.all_keys();
        let published = repository.publish(self.draft(counter), &keys, Validity::default());
        assert_eq!(published.unwrap(), (counter, State::InForce));
    }

    fn device(&self) -> Seen {
        self.device_at(&self.repository().display().to_string())
    }

    fn device_at(&self, place: &str) -> Seen {
        let source = Source::parse(place, None).unwrap();
        let directory = self.path(&format!("device-{}", free_port()));
        let device = Device::new("ward", "cpu");
        let trust = Trust::open(device, source, &self.path("root.json"), &directory).unwrap();
        Seen { trust, floors: Floors::default() }
    }

    /// A copy of the repository as it is now, for an attacker to keep.
    fn keep(&self, name: &str) -> PathBuf {
        let kept = self.path(name);
        copy(&self.repository(), &kept);
        kept
    }

    /// Puts something else where the devices look.
    fn replace_by(&self, other: &Path) {
        fs::remove_dir_all(self.repository()).unwrap();
        copy(other, &self.repository());
    }
}

/// A device with what it keeps.
struct Seen {
    trust: Trust,
    floors: Floors,
}

impl Seen {
    /// Counter of the newest release, or why nothing is believed.
    fn look(&mut self) -> Result<u64, TrustError> {
        let Checked { newest, floors, .. } = self.trust.check(&self.floors)?;
        self.floors = floors;
        Ok(newest.map_or(0, |(release, _)| release.counter))
    }

    fn refuses(&mut self, words: &str) -> TrustError {
        let before = self.floors;
        let error = self.look().expect_err(words);
        assert!(error.to_string().contains(words), "{words}: {error}");
        assert!(!error.to_string().contains('\n'), "in one line: {error}");
        assert_eq!(self.floors, before);
        error
    }
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-r").args([from, to]).status();
    assert!(done.unwrap().success());
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    let at = at % bytes.len();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// The one file in `folder` whose name ends so.
fn file(folder: &Path, end: &str) -> PathBuf {
    let files = fs::read_dir(folder).unwrap().flatten().map(|file| file.path());
    files.filter(|path| path.to_string_lossy().ends_with(end)).max().expect(end)
}

fn cdal(arguments: &[&str], paths: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(arguments);
    for (option, path) in paths {
        command.arg(option).arg(path);
    }
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn flipped_bits_anywhere_are_refused_and_nothing_else_is_believed() {
    let site = Site::new();
    let mut device = site.device();
    assert_eq!(device.look().unwrap(), 0);
    site.publish(1);
    assert_eq!(device.look().unwrap(), 1);
    site.publish(2);
    let sound = site.keep("sound");
    for end in ["timestamp.json", "snapshot.json", "targets.json", "release-2.json"] {
        for at in [17, 403, 1009, 2503, 5003] {
            let folder = if end.starts_with("release") { "targets" } else { "metadata" };
            let path = file(&site.repository().join(folder), end);
            flip(&path, at);
            let outcome = device.look();
            // White space may change in what nobody signed: the release is then the signed one all the same.
            match outcome {
                Err(TrustError::Forged(_) | TrustError::Unreachable(_)) => {}
                Ok(2) if end == "timestamp.json" => {}
                other => panic!("{end} {at}: {other:?}"),
            }
            site.replace_by(&sound);
        }
    }
    assert_eq!(device.look().unwrap(), 2);
}

#[test]
fn too_few_signatures_leave_a_release_waiting_and_are_refused_where_somebody_forces_them() {
    let site = Site::new();
    let mut device = site.device();
    let mut repository = Repository::open(&site.repository()).unwrap();
    let one = site.keys(&["targets-1", "snapshot", "timestamp"]);
    let (_, state) = repository.publish(site.draft(1), &one, Validity::default()).unwrap();
    assert_eq!(state, State::Pending { role: "targets".into(), have: 1, needed: 2 });
    assert_eq!(device.look().unwrap(), 0, "devices see nothing of it");
    let error = repository.publish(site.draft(2), &one, Validity::default()).unwrap_err();
    assert!(error.to_string().contains("waits in pending/"), "{error}");
    // Somebody with one of the two keys makes a repository in which one is enough.
    let forged = Repository::init(
        &site.path("forged"),
        Roles {
            root: (vec![site.new_key("forger")], 1),
            targets: (vec![Key::read(&site.key_path("targets-1")).unwrap()], 1),
            snapshot: Key::read(&site.key_path("snapshot")).unwrap(),
            timestamp: Key::read(&site.key_path("timestamp")).unwrap(),
        },
        Validity::default(),
    )
    .unwrap();
    let published = forged.publish(site.draft(9), &one, Validity::default()).unwrap();
    assert_eq!(published, (9, State::InForce));
    let honest = site.keep("honest");
    site.replace_by(&site.path("forged"));
    device.refuses("targets");
    site.replace_by(&honest);
    // The second key signs on its own machine; the rest is done where the other keys are.
    let second = site.keys(&["targets-2", "snapshot", "timestamp"]);
    assert_eq!(repository.add_signatures(&second, Validity::default()).unwrap(), State::InForce);
    // The forged timestamp and snapshot had this version, by keys that count: the next version is believed again.
    device.refuses("2.targets.json");
    let mut online = site.keys(&["snapshot", "timestamp"]);
    repository.refresh(&mut online, Validity::default()).unwrap();
    assert_eq!(device.look().unwrap(), 1);
}

#[test]
fn an_old_repository_is_refused_even_when_the_devices_metadata_is_lost() {
    let site = Site::new();
    site.publish(1);
    let old = site.keep("old");
    site.publish(2);
    let mut device = site.device();
    assert_eq!(device.look().unwrap(), 2);
    let new = site.keep("new");
    site.replace_by(&old);
    let by_metadata = device.refuses("older than");
    assert!(matches!(by_metadata, TrustError::Rollback { .. }), "{by_metadata:?}");
    // A power cut tears the metadata: `tough` takes that for a device that never saw anything.
    let metadata = device.trust.directory().join("metadata");
    for file in fs::read_dir(&metadata).unwrap().flatten() {
        fs::write(file.path(), &fs::read(file.path()).unwrap()[..20]).unwrap();
    }
    let by_floors = device.refuses("older than");
    assert!(matches!(by_floors, TrustError::Rollback { .. }), "{by_floors:?}");
    fs::remove_dir_all(&metadata).unwrap();
    fs::create_dir(&metadata).unwrap();
    device.refuses("older than");
    site.replace_by(&new);
    assert_eq!(device.look().unwrap(), 2, "the right one is believed again");
    // An operator's way back is old content under a new counter.
    let repository = Repository::open(&site.repository()).unwrap();
    let again = repository.publish(site.draft(1), &site.all_keys(), Validity::default());
    assert!(again.unwrap_err().to_string().contains("a counter must grow"));
    let mut draft = site.draft(1);
    draft.release.counter = 0;
    let published = repository.publish(draft, &site.all_keys(), Validity::default()).unwrap();
    assert_eq!(published, (3, State::InForce));
    assert_eq!(device.look().unwrap(), 3);
}

#[test]
fn a_repository_held_back_expires_and_a_wrong_clock_is_told_apart() {
    let short = Validity { timestamp: Duration::from_secs(2), ..Validity::default() };
    let site = Site::of(2, short);
    let mut device = site.device();
    assert_eq!(device.look().unwrap(), 0);
    let error = wait_for("the timestamp to expire", || device.look().err());
    assert!(matches!(error, TrustError::Expired { .. }), "{error:?}");
    let mut repository = Repository::open(&site.repository()).unwrap();
    let mut online = site.keys(&["snapshot", "timestamp"]);
    let renewed = repository.refresh(&mut online, Validity::default()).unwrap();
    assert_eq!((renewed.root, renewed.targets), (false, false), "their keys are elsewhere");
    assert_eq!(device.look().unwrap(), 0);
    // The device was last there an hour from now: its clock was set back, and dates mean nothing.
    let before = device.floors;
    device.floors.time_ms += 3_600_000;
    let error = device.look().unwrap_err();
    assert!(matches!(error, TrustError::TimeUntrusted { .. }), "{error:?}");
    assert!(error.to_string().contains("set the clock"), "{error}");
    device.floors = before;
    assert_eq!(device.look().unwrap(), 0);
}

#[test]
fn an_expired_root_or_list_keeps_the_publisher_from_publishing() {
    let short = Validity { root: Duration::from_secs(1), ..Validity::default() };
    let site = Site::of(2, short);
    std::thread::sleep(Duration::from_millis(1100));
    let mut repository = Repository::open(&site.repository()).unwrap();
    let keys = site.keys(&["targets-1", "targets-2", "snapshot", "timestamp"]);
    let error = repository.publish(site.draft(1), &keys, Validity::default()).unwrap_err();
    assert!(error.to_string().contains("root has expired on 20"), "{error}");
    site.device().refuses("root.json has expired");
    let mut all = site.all_keys();
    let renewed = repository.refresh(&mut all, Validity::default()).unwrap();
    assert!(renewed.root && renewed.targets);
    assert_eq!(site.device().look().unwrap(), 0);
    site.publish(1);
}

#[test]
fn parts_of_different_states_do_not_go_together() {
    let site = Site::new();
    site.publish(1);
    let old = site.keep("old");
    site.publish(2);
    let mut device = site.device();
    let metadata = |folder: &Path, end: &str| file(&folder.join("metadata"), end);
    // The new timestamp over the old snapshot and list of releases, under their new names.
    for end in ["snapshot.json", "targets.json"] {
        let to = metadata(&site.repository(), end);
        let kept = fs::read(&to).unwrap();
        fs::copy(metadata(&old, end), &to).unwrap();
        assert!(device.look().is_err(), "{end}");
        fs::write(&to, kept).unwrap();
    }
    // Another release's manifest under this one's name.
    let to = file(&site.repository().join("targets"), "release-2.json");
    let kept = fs::read(&to).unwrap();
    fs::copy(file(&old.join("targets"), "release-1.json"), &to).unwrap();
    assert!(device.look().is_err());
    fs::write(&to, kept).unwrap();
    assert_eq!(device.look().unwrap(), 2);
    // One manifest binds a model's files: its digest is that of the bundle.toml it names.
    let mut draft = site.draft(3);
    draft.release.bundles.get_mut("m").unwrap().digest = "0".repeat(64);
    let repository = Repository::open(&site.repository()).unwrap();
    let error = repository.publish(draft, &site.all_keys(), Validity::default()).unwrap_err();
    assert!(error.to_string().contains("bundles.m has a digest"), "{error}");
}

#[test]
fn a_key_that_was_taken_back_stays_taken_back() {
    let site = Site::of(1, Validity::default());
    site.publish(1);
    let before = site.keep("before");
    let mut device = site.device();
    assert_eq!(device.look().unwrap(), 1);
    // targets-1 is lost: the root, by two of its keys, puts another in its place.
    let id = Key::read(&site.key_path("targets-1")).unwrap().id();
    let keys = site.path("keys");
    let new = site.path("keys/targets-3.key");
    let rotated = cdal(
        &["fleet", "rotate", "--role", "targets", "--remove", &id[..12]],
        &[("--repository", &site.repository()), ("--key", &keys), ("--add", &new)],
    );
    assert!(rotated.status.success(), "{}", said(&rotated));
    site.publish(2);
    assert_eq!(device.look().unwrap(), 2, "through the new root");
    // Its finder publishes to what was there before, with keys that were good then.
    let stolen = site.keys(&["targets-1", "snapshot", "timestamp"]);
    let forged = Repository::open(&before).unwrap();
    for counter in 5..15 {
        let done = forged.publish(site.draft(counter), &stolen, Validity::default()).unwrap();
        assert_eq!(done.1, State::InForce);
    }
    let honest = site.keep("honest");
    site.replace_by(&before);
    device.refuses("targets");
    // The newest root is kept by the device; without it the floor still holds.
    fs::remove_dir_all(device.trust.directory().join("metadata")).unwrap();
    fs::create_dir(device.trust.directory().join("metadata")).unwrap();
    device.refuses("root.json is version 1, older than 2");
    // The finder had the keys of snapshot and timestamp too, and drove their versions up: other keys let them begin anew.
    site.replace_by(&honest);
    device.refuses("timestamp.json is version");
    for role in ["snapshot", "timestamp"] {
        let id = Key::read(&site.key_path(role)).unwrap().id();
        let new = site.key_path(&format!("{role}-2"));
        let rotated = cdal(
            &["fleet", "rotate", "--role", role, "--remove", &id],
            &[("--repository", &site.repository()), ("--key", &keys), ("--add", &new)],
        );
        assert!(rotated.status.success(), "{}", said(&rotated));
    }
    assert_eq!(device.look().unwrap(), 2);
    // Two of three root keys change the third; with one alone the new root waits.
    let mut repository = Repository::open(&site.repository()).unwrap();
    let lost = Key::read(&site.key_path("root-3")).unwrap().id();
    let change = |add: Key| cdal::fleet::repository::Change {
        role: tough::schema::RoleType::Root,
        remove: vec![lost.clone()],
        add: vec![add],
        threshold: None,
    };
    let mut one = site.keys(&["root-1", "snapshot-2", "timestamp-2"]);
    let added = site.new_key("root-4");
    let state = repository.rotate(change(added), &mut one, Validity::default()).unwrap();
    assert!(matches!(state, State::Pending { .. }), "{state:?}");
    assert_eq!(device.look().unwrap(), 2, "nothing has changed");
    let two = site.keys(&["root-2", "snapshot-2", "timestamp-2"]);
    assert_eq!(repository.add_signatures(&two, Validity::default()).unwrap(), State::InForce);
    site.publish(3);
    assert_eq!(device.look().unwrap(), 3);
    assert_eq!(device.floors.root, 5);
}

/// An HTTP server that hands out a folder, but answers what `twist` says where it says something.
pub(crate) fn server(
    folder: PathBuf,
    twist: impl Fn(&str) -> Option<Vec<u8>> + Send + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                request.push(byte[0]);
            }
            let request = String::from_utf8_lossy(&request).into_owned();
            let path = request.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
            let answer = twist(&path).unwrap_or_else(|| match fs::read(folder.join(&path)) {
                Ok(bytes) => {
                    let length = bytes.len();
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                    [head.into_bytes(), bytes].concat()
                }
                Err(_) => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
            });
            let _ = stream.write_all(&answer);
            if answer.ends_with(b"endless") {
                let piece = vec![b'['; 1 << 16];
                while stream.write_all(&piece).is_ok() {}
            }
        }
    });
    place
}

#[test]
fn a_server_that_hides_news_or_sends_without_end_is_not_believed() {
    let site = Site::new();
    site.publish(1);
    let root_of = |n: u64| format!("metadata/{n}.root.json");
    let status = |text: &str| {
        format!("HTTP/1.1 {text}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").into_bytes()
    };
    let body = |text: &str| {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).into_bytes()
    };
    let endless = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nendless".to_vec();
    // The next root is what takes keys back: "I cannot tell" is no "there is none".
    let cases: [(&str, Vec<u8>, &str); 6] = [
        (&root_of(2), status("503 Service Unavailable"), "HTTP status 503"),
        (&root_of(2), status("302 Found"), "HTTP status 302"),
        (&root_of(2), body("<html>please log in</html>"), "refused"),
        (&root_of(2), endless.clone(), "sends more than"),
        ("metadata/timestamp.json", endless, "sends more than"),
        ("metadata/timestamp.json", body("{}"), "refused"),
    ];
    for (at, answer, words) in cases {
        let at = at.to_owned();
        let twist = move |path: &str| (path == at).then(|| answer.clone());
        let mut device = site.device_at(&server(site.repository(), twist));
        device.refuses(words);
    }
    let mut device = site.device_at(&server(site.repository(), |_| None));
    assert_eq!(device.look().unwrap(), 1);
    let mut away = site.device_at(&format!("http://127.0.0.1:{}", free_port()));
    away.refuses("no connection");
}

#[test]
fn killed_at_any_write_of_a_publication_devices_see_the_release_before_or_after() {
    let site = Site::of(1, Validity::default());
    site.publish(1);
    let before = site.keep("before");
    let folder = site.path("release");
    fs::create_dir(&folder).unwrap();
    fs::write(
        folder.join("release.toml"),
        "name = \"two\"\ncdal = \"*\"\nhardware = [\"cpu\"]\ngroups = [\"ward\"]\n\
         [bundles]\nphantom = \"phantom\"\n[rollout]\nwaves = [{ up_to = 1.0, after = \"0s\", duration = \"0s\" }]\n",
    )
    .unwrap();
    copy(&root().join("onnx/phantom"), &folder.join("phantom"));
    let (mut pass, mut seen) = (1, BTreeMap::new());
    loop {
        site.replace_by(&before);
        let mut command = Command::new(PROGRAM);
        command.args(["fleet", "publish"]).arg(folder.join("release.toml"));
        command.arg("--repository").arg(site.repository()).arg("--key").arg(site.path("keys"));
        command.env("CDAL_FAILPOINT", format!("disk.rename@{pass}=abort"));
        let output = command.stderr(Stdio::piped()).output().unwrap();
        *seen.entry(site.device().look().unwrap()).or_insert(0) += 1;
        if output.status.signal().is_none() {
            assert!(output.status.success(), "{}", said(&output));
            break;
        }
        // And it goes through the next time.
        command.env_remove("CDAL_FAILPOINT");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(site.device().look().unwrap(), 2);
        pass += 1;
    }
    assert!(pass > 6, "{pass} renames");
    assert_eq!(seen, BTreeMap::from([(1, pass - 1), (2, 1)]));
}

#[test]
fn a_bad_release_is_refused_by_the_publisher_in_one_line_each_and_nothing_changes() {
    let site = Site::of(1, Validity::default());
    let folder = site.path("release");
    fs::create_dir(&folder).unwrap();
    copy(&root().join("onnx/phantom"), &folder.join("phantom"));
    let device = format!(
        "[model]\nbundle = \"{}\"\n[spool]\ndirectory = \"{}\"\n[ingest.dicom]\nlisten = \"127.0.0.1:0\"\n\
         [fleet]\nrepository = \"r\"\nroot = \"root.json\"\n\
         directory = \"d\"\ndevice = \"mr-1\"\ngroup = \"ward\"\nhardware = \"cpu\"\n\
         [[destination]]\nname = \"out\"\nkind = \"folder\"\npath = \"out\"\n",
        folder.join("phantom").display(),
        site.path("spool").display()
    );
    fs::write(folder.join("device.toml"), device).unwrap();
    let release = "name = \"two\"\ncdal = \"*\"\nhardware = [\"cpu\"]\ngroups = [\"ward\"]\n\
         configuration = \"settings.toml\"\ndevices = [\"device.toml\"]\n[bundles]\nphantom = \"phantom\"\n\
         [rollout]\ncanary = [\"ward\"]\nwaves = [{ up_to = 1.0, after = \"0s\", duration = \"0s\" }]\n";
    let publish = |release: &str, settings: &str, keys: &Path| {
        fs::write(folder.join("settings.toml"), settings).unwrap();
        fs::write(folder.join("release.toml"), release).unwrap();
        let file = folder.join("release.toml").display().to_string();
        let output = cdal(
            &["fleet", "publish", &file],
            &[("--repository", &site.repository()), ("--key", keys)],
        );
        (output.status.code(), said(&output))
    };
    let before = listing(&site.repository());
    let settings = "[model]\nvotes = 3\n";
    let keys = site.path("keys");
    let changed = |from: &str, to: &str| release.replace(from, to);
    let cases = [
        (release.to_owned(), "[model]\nvotse = 3\n", "votse"),
        (
            release.to_owned(),
            "[spool]\ndirectory = \"/else\"\n",
            "spool.directory belongs to the device",
        ),
        (
            changed("groups = [\"ward\"]", "groups = [\"icu\", \"ward\"]"),
            settings,
            "groups names icu",
        ),
        (
            changed("hardware = [\"cpu\"]", "hardware = [\"jetson\"]"),
            settings,
            "hardware names jetson",
        ),
        (
            changed("canary = [\"ward\"]", "canary = [\"lab\"]"),
            settings,
            "rollout.canary names a group",
        ),
        (changed("up_to = 1.0", "up_to = 0.9"), settings, "rollout.waves must rise"),
        (changed("canary", "canaries"), settings, "canaries"),
        (
            changed("\"phantom\"\n[rollout]", "\"nowhere\"\n[rollout]"),
            settings,
            "nowhere/bundle.toml",
        ),
    ];
    for (release, settings, words) in cases {
        let (code, text) = publish(&release, settings, &keys);
        assert!(code == Some(78) || code == Some(1), "{words}: {code:?} {text}");
        assert!(text.contains(words), "{words}: {text}");
        assert_eq!(listing(&site.repository()), before, "{words}");
    }
    let (_, text) = publish(release, settings, &site.path("release/nowhere.key"));
    assert!(text.contains("nowhere.key"), "{text}");
    assert_eq!(listing(&site.repository()), before);
    let (code, text) = publish(release, settings, &keys);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("release 1 (two) is in force"), "{text}");
    // What a model has in common with the one before is stored once.
    let blobs = |folder: &Path| fs::read_dir(folder.join("targets")).unwrap().count();
    let first = blobs(&site.repository());
    let (code, text) = publish(&changed("two", "three"), "[model]\nvotes = 5\n", &keys);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(blobs(&site.repository()), first + 2, "a manifest and the settings");
}

#[test]
fn check_names_every_fault_of_a_release_at_once() {
    let site = Site::of(1, Validity::default());
    site.publish(1);
    let folder = site.path("release");
    fs::create_dir(&folder).unwrap();
    for name in ["sound", "spoilt", "foreign"] {
        copy(&root().join("onnx/phantom"), &folder.join(name));
    }
    flip(&folder.join("spoilt/denoiser.onnx"), 1000);
    // Digests that agree, and another golden result.
    let golden = folder.join("foreign/golden.safetensors");
    let mut bytes = fs::read(&golden).unwrap();
    let before = cdal::durable::sha256_of_file(&golden).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..].fill(0x3f);
    fs::write(&golden, &bytes).unwrap();
    let after = cdal::durable::sha256_of_file(&golden).unwrap();
    let manifest = folder.join("foreign/bundle.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace(&before, &after)).unwrap();
    let write = |name: &str, cdal: &str, bundles: &str| {
        let text = format!(
            "name = \"{name}\"\ncdal = \"{cdal}\"\nhardware = [\"cpu\"]\ngroups = [\"ward\"]\n\
             [bundles]\n{bundles}\n\
             [rollout]\nwaves = [{{ up_to = 1.0, after = \"0s\", duration = \"0s\" }}]\n"
        );
        fs::write(folder.join("release.toml"), text).unwrap();
    };
    let check = |keys: &Path| {
        let file = folder.join("release.toml").display().to_string();
        let paths = [("--repository", &*site.repository()), ("--key", keys)];
        let output = cdal(&["fleet", "publish", &file, "--check"], &paths);
        (output.status.code(), said(&output))
    };
    let listed = listing(&site.repository());
    let bundles = "sound = \"sound\"\nspoilt = \"spoilt\"\nforeign = \"foreign\"\naway = \"away\"";
    write("r1", ">=9", bundles);
    let (code, text) = check(&site.path("nowhere"));
    assert_eq!(code, Some(78), "{text}");
    for words in [
        "bundles.spoilt ",
        "bundles.foreign ",
        "bundles.away ",
        "cdal asks for >=9",
        "\"r1\" is the name of release 1 already",
        "nowhere: No such file",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains("bundles.sound"), "{text}");
    write("r2", "*", "sound = \"sound\"");
    let (code, text) = check(&site.path("keys"));
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(listing(&site.repository()), listed, "nothing is published");
}

/// Every file with its size.
fn listing(folder: &Path) -> Vec<String> {
    let mut find = Command::new("find");
    let listed = find.arg(folder).args(["-type", "f", "-printf", "%P %s\n"]).output().unwrap();
    let mut lines: Vec<_> =
        String::from_utf8_lossy(&listed.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// The operator's guide in small: keys, a release over HTTP to a daemon, an attack, a stick.
#[test]
fn a_daemon_follows_its_repository_over_http_and_keeps_serving_under_attack() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let text = |path: PathBuf| path.display().to_string();
    let run = |arguments: &[&str], expected: i32| {
        let output = Command::new(PROGRAM).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(expected), "{arguments:?}: {}", said(&output));
        said(&output)
    };
    let (repository, keys) = (text(at("repository")), text(at("keys")));
    run(&["fleet", "init", "--repository", &repository, "--keys", &keys], 0);
    let root_file = text(at("repository/metadata/1.root.json"));
    fs::copy(&root_file, at("root.json")).unwrap();
    let port = free_port();
    let mut command = Command::new("python3");
    command.args(["-m", "http.server", "--bind", "127.0.0.1", "--directory", &repository]);
    let _server = Process::start(command.arg(port.to_string()).stderr(Stdio::null()));
    wait_for("the server", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    let url = format!("http://127.0.0.1:{port}");
    let verify = ["fleet", "verify", "--repository", &url, "--root", &root_file, "--group", "ward"];
    let none = run(&[&verify[..], &["--hardware", "cpu"]].concat(), 1);
    assert!(none.contains("holds no release"), "{none}");

    // A device, and a release with another version of its model.
    let [dicom, http] = [(); 2].map(|()| free_port());
    let config = format!(
        "[model]\nbundle = \"{model}\"\nvotes = 1\n[runtime]\nintra_threads = 1\n[spool]\ndirectory = \"{spool}\"\n\
         min_free_bytes = 0\n[ingest.dicom]\nlisten = \"127.0.0.1:{dicom}\"\n[http]\nlisten = \"127.0.0.1:{http}\"\n\
         [[destination]]\nname = \"out\"\nkind = \"folder\"\npath = \"{out}\"\n\
         [fleet]\nrepository = \"{url}\"\nroot = \"{root}\"\ndirectory = \"{fleet}\"\ndevice = \"mr-1\"\n\
         group = \"ward\"\nhardware = \"cpu\"\npoll = \"200ms\"\n",
        model = root().join("onnx/phantom").display(),
        spool = text(at("spool")),
        out = text(at("out")),
        root = text(at("root.json")),
        fleet = text(at("fleet")),
    );
    fs::write(at("device.toml"), config).unwrap();
    let device = text(at("device.toml"));
    let mut command = Command::new(PROGRAM);
    let daemon = Process::start(command.args(["serve", "--config", &device]).stderr(Stdio::null()));
    daemon.dicom();
    copy(&root().join("onnx/phantom"), &at("phantom"));
    let manifest = fs::read_to_string(at("phantom/bundle.toml")).unwrap();
    let release = |version: &str| {
        let old = format!("version = \"{}\"", shipped());
        assert!(manifest.contains(&old));
        let new = manifest.replace(&old, &format!("version = \"{version}\""));
        fs::write(at("phantom/bundle.toml"), new).unwrap();
        let lines = format!(
            "name = \"{version}\"\ncdal = \">=0.1\"\nhardware = [\"cpu\"]\ngroups = [\"ward\"]\ndevices = [\"device.toml\"]\n\
             [bundles]\nphantom = \"phantom\"\n[rollout]\nwaves = [{{ up_to = 1.0, after = \"0s\", duration = \"0s\" }}]\n\
             [probation]\nhealthy = \"1s\"\njobs = 1\nslowdown = 1000.0\n"
        );
        fs::write(at("release.toml"), lines).unwrap();
        let release = text(at("release.toml"));
        run(&["fleet", "publish", &release, "--repository", &repository, "--key", &keys], 0)
    };
    release("2.0.0");
    let told = run(&[&verify[..], &["--hardware", "cpu", "--content"]].concat(), 0);
    assert!(told.contains("release 1 (2.0.0)") && told.contains("its files are whole"), "{told}");
    let wrong = run(&[&verify[..], &["--hardware", "jetson"]].concat(), 1);
    assert!(wrong.contains("it is for the hardware cpu; this device is jetson"), "{wrong}");
    let status = || run(&["fleet", "status", "--config", &device], 0);
    let version = || {
        std::net::TcpStream::connect(("127.0.0.1", http)).ok()?;
        let to = ([127, 0, 0, 1], http).into();
        let answer = crate::support::http::get(to, "/v2/models/phantom");
        (answer.status == 200).then(|| answer.json()["versions"][0].as_str().unwrap().to_owned())
    };
    wait_for("the release to be the device's own", || status().contains("release 1").then_some(()));
    wait_for("its model to serve", || version().filter(|version| version == "2.0.0"));

    // Somebody puts a repository of his own in the place of the publisher's.
    let (own, other_keys) = (text(at("other")), text(at("other-keys")));
    run(&["fleet", "init", "--repository", &own, "--keys", &other_keys], 0);
    let release_file = text(at("release.toml"));
    run(&["fleet", "publish", &release_file, "--repository", &own, "--key", &other_keys], 0);
    fs::rename(at("repository/metadata"), at("kept")).unwrap();
    copy(&at("other/metadata"), &at("repository/metadata"));
    wait_for("the refusal", || status().contains("refused").then_some(()));
    assert_eq!(version().as_deref(), Some("2.0.0"), "it serves on: {}", status());
    fs::remove_dir_all(at("repository/metadata")).unwrap();
    fs::rename(at("kept"), at("repository/metadata")).unwrap();
    release("3.0.0");
    wait_for("the next release", || version().filter(|version| version == "3.0.0"));

    // A stick: everything the first time, only what is new later.
    let stick = text(at("stick"));
    let pack = ["fleet", "pack", "--repository", &repository, "--out", &stick];
    assert!(run(&pack, 0).contains("2 releases"));
    assert!(run(&pack, 0).contains("files new: 1,"), "nothing but the timestamp");
    let by_stick = ["fleet", "verify", "--repository", &stick, "--root", &root_file];
    let device_of = ["--group", "ward", "--hardware", "cpu", "--content"];
    assert!(run(&[&by_stick[..], &device_of].concat(), 0).contains("release 2 (3.0.0)"));
    let blob = file(
        &at("stick/targets"),
        &cdal::durable::sha256_of_file(&at("phantom/denoiser.onnx")).unwrap(),
    );
    flip(&blob, 1000);
    let told = run(&[&by_stick[..], &device_of].concat(), 1);
    assert!(told.contains("is not what the release names"), "{told}");
}

/// `docs/fleet.md`, "A walk", as it stands there.
#[test]
fn the_operators_guide_runs_as_written() {
    let guide = fs::read_to_string(root().join("docs/fleet.md")).unwrap();
    let walk = guide.split("\n## ").find(|part| part.starts_with("A walk")).unwrap();
    let blocks: Vec<_> =
        walk.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 10, "{} blocks", blocks.len());
    let mut script =
        "set -euo pipefail\ntrap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n".to_owned();
    script += &blocks.join("echo \"done with a block\" >&2\n");
    for port in ["8080", "8443"] {
        script = script.replace(port, &free_port().to_string());
    }
    let folder = tempfile::tempdir().unwrap();
    copy(&root().join("onnx/phantom"), &folder.path().join("phantom"));
    let programs = Path::new(PROGRAM).parent().unwrap().display();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
    fs::write(folder.path().join("walk.sh"), &script).unwrap();
    let [out, err] = ["out", "err"].map(|name| folder.path().join(name));
    let status = Command::new("timeout")
        .args(["120", "bash", "walk.sh"])
        .current_dir(folder.path())
        .env("PATH", path)
        .stdout(fs::File::create(&out).unwrap())
        .stderr(fs::File::create(&err).unwrap())
        .status()
        .unwrap();
    let said = fs::read_to_string(&err).unwrap();
    let log = fs::read_to_string(folder.path().join("daemon.log")).unwrap_or_default();
    assert!(status.success(), "{status}: {said}\n{}\n{log}", fs::read_to_string(&out).unwrap());
    assert!(!log.contains("429") && !log.contains("not reported"), "{log}");
    for words in [
        "release 1 (2026-12-five-votes) is in force",
        "release 1: paused",
        "release 2 (2026-12-back-to-two) is in force",
        "the new root is in force",
        "2 releases; files new:",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
}
