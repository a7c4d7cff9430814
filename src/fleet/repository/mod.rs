//! A TUF repository as its publisher sees it (theupdateframework.io, specification 1.0, consistent snapshots): a folder
//! that any HTTP server can hand out, or a stick can carry.
//!
//! Invariants:
//! 1. What devices see changes with one rename, that of `timestamp.json`: everything it leads to is written and synced
//!    before it. A root that would leave something unsigned is not written.
//! 2. What lacks signatures waits in `pending/`, where devices do not look; keys can stay on machines of their own, and
//!    each adds its signature there ([`Repository::add_signatures`]).
//! 3. A release's counter grows; content is stored under its hash once, however many releases name it.
//!
//! ```text
//! <folder>/metadata/   <n>.root.json  <n>.targets.json  <n>.snapshot.json  timestamp.json
//!          targets/    <sha256>.release-<counter>.json  <sha256>.blob-<sha256>
//!          pending/    root.json or targets.json with fewer signatures than it takes
//! ```
//!
//! Called by `cli` (`fleet init`, `publish`, `sign`, `rotate`, `refresh`, `pack`).

mod keys;
mod pack;
mod publish;
mod renew;
mod root;
mod summary;

use std::collections::HashMap;
use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tough::TargetName;
use tough::schema::{Hashes, Metafile, Role, RoleType, Root, Signed, Snapshot, Targets, Timestamp};

use crate::durable::{self, DurableError};
pub use keys::{Key, Keyring};
pub use pack::Packed;
pub use publish::{Draft, State};
pub use renew::Renewed;
pub use root::{Change, Roles};
pub use summary::{RoleSummary, Summary};

const SPEC_VERSION: &str = "1.0.0";

/// For how long what is signed now is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub root: Duration,
    pub targets: Duration,
    /// Of snapshot and timestamp: how long a device can be kept from hearing news before it notices.
    pub timestamp: Duration,
}

impl Default for Validity {
    fn default() -> Self {
        let days = |days: u64| Duration::from_hours(24 * days);
        Self { root: days(730), targets: days(365), timestamp: days(14) }
    }
}

/// What keeps a publisher from publishing. Devices see nothing of it.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    #[error("{path} is not empty; choose a new folder for a new repository")]
    Exists { path: PathBuf },
    #[error("{path}: {problem}; is this the folder of a repository that `cdal fleet init` made?")]
    Unreadable { path: PathBuf, problem: String },
    #[error("key {path}: {problem}")]
    Key { path: PathBuf, problem: String },
    #[error(
        "{role} takes {needed} signatures of its keys and has {have}; give more of them with --key"
    )]
    Signatures { role: String, needed: u64, have: usize },
    #[error("release {counter}: the newest in the repository is {newest}; a counter must grow")]
    Counter { counter: u64, newest: u64 },
    #[error("the release's {key} {problem}")]
    Fault { key: String, problem: String },
    #[error("{path} was changed while it was published: its hash is not {sha256} any more")]
    Changed { path: PathBuf, sha256: String },
    #[error(
        "{what} waits in pending/ for signatures; add them (`cdal fleet sign`) or remove the file"
    )]
    Pending { what: &'static str },
    #[error(
        "{role} has expired on {date}, so that devices believe nothing of it; refresh it with its keys first (`cdal fleet refresh`)"
    )]
    Expired { role: String, date: String },
    #[error("nothing waits for signatures")]
    NothingPending,
    #[error("{0}")]
    Change(String),
    #[error(transparent)]
    Disk(#[from] DurableError),
}

/// A repository in a folder.
#[derive(Debug)]
pub struct Repository {
    folder: PathBuf,
    root: Signed<Root>,
}

/// The metadata in force.
#[derive(Debug, Clone)]
struct Present {
    targets: Signed<Targets>,
    snapshot: Signed<Snapshot>,
    timestamp: Signed<Timestamp>,
}

impl Repository {
    /// # Errors
    /// If `folder` holds no repository.
    pub fn open(folder: &Path) -> Result<Self, RepositoryError> {
        let metadata = folder.join("metadata");
        let newest = fs::read_dir(&metadata)
            .map_err(DurableError::of("list", &metadata))?
            .flatten()
            .filter_map(|file| {
                file.file_name().to_str()?.strip_suffix(".root.json")?.parse::<u64>().ok()
            })
            .max();
        let path = metadata.join(format!("{}.root.json", newest.unwrap_or(1)));
        let root = read(&path)?;
        Ok(Self { folder: folder.to_owned(), root })
    }

    /// The root of trust in force: what is handed to new devices.
    #[must_use]
    pub fn root_path(&self) -> PathBuf {
        self.metadata(&self.root.signed.filename(true))
    }

    fn metadata(&self, name: &str) -> PathBuf {
        self.folder.join("metadata").join(name)
    }

    fn target(&self, sha256: &str, name: &str) -> PathBuf {
        self.folder.join("targets").join(format!("{sha256}.{name}"))
    }

    fn pending(&self, role: RoleType) -> PathBuf {
        self.folder.join("pending").join(format!("{role}.json"))
    }

    fn present(&self) -> Result<Present, RepositoryError> {
        let path = self.metadata("timestamp.json");
        let timestamp: Signed<Timestamp> = read(&path)?;
        let leads_to = |file: &str, meta: &HashMap<String, Metafile>| {
            let problem = format!("does not name {file}");
            let path = path.clone();
            let version = meta.get(file).map(|meta| meta.version);
            version.ok_or(RepositoryError::Unreadable { path, problem })
        };
        let version = leads_to("snapshot.json", &timestamp.signed.meta)?;
        let snapshot: Signed<Snapshot> = read(&self.metadata(&format!("{version}.snapshot.json")))?;
        let version = leads_to("targets.json", &snapshot.signed.meta)?;
        let targets = read(&self.metadata(&format!("{version}.targets.json")))?;
        Ok(Present { targets, snapshot, timestamp })
    }

    /// Puts `targets` in force, under a snapshot and a timestamp of their own.
    fn put_in_force(
        &self,
        root: &Signed<Root>,
        targets: &Signed<Targets>,
        before: Option<&Present>,
        keys: &Keyring,
        validity: Validity,
    ) -> Result<(), RepositoryError> {
        complete(&root.signed, targets)?;
        in_force(&root.signed)?;
        in_force(&targets.signed)?;
        let bytes = bytes(targets);
        let version = |before: Option<NonZeroU64>| after(before);
        let snapshot = Snapshot {
            spec_version: SPEC_VERSION.to_owned(),
            version: version(before.map(|present| present.snapshot.signed.version)),
            expires: expiry(validity.timestamp),
            meta: meta("targets.json", targets.signed.version, &bytes),
            _extra: HashMap::new(),
        };
        let snapshot = keys.sign(snapshot, &[&root.signed])?;
        complete(&root.signed, &snapshot)?;
        let snapshot_bytes = self::bytes(&snapshot);
        let timestamp = Timestamp {
            spec_version: SPEC_VERSION.to_owned(),
            version: version(before.map(|present| present.timestamp.signed.version)),
            expires: expiry(validity.timestamp),
            meta: meta("snapshot.json", snapshot.signed.version, &snapshot_bytes),
            _extra: HashMap::new(),
        };
        let timestamp = keys.sign(timestamp, &[&root.signed])?;
        complete(&root.signed, &timestamp)?;
        let of_targets = self.metadata(&targets.signed.filename(true));
        durable::write_whole(&of_targets, &bytes)?;
        let of_snapshot = self.metadata(&snapshot.signed.filename(true));
        durable::write_whole(&of_snapshot, &snapshot_bytes)?;
        let of_root = self.metadata(&root.signed.filename(true));
        if !of_root.exists() {
            durable::write_whole(&of_root, &self::bytes(root))?;
        }
        Ok(durable::write_whole(&self.metadata("timestamp.json"), &self::bytes(&timestamp))?)
    }
}

/// The version that follows.
fn after(version: Option<NonZeroU64>) -> NonZeroU64 {
    version.map_or(NonZeroU64::MIN, |version| version.saturating_add(1))
}

fn expiry(validity: Duration) -> jiff::Timestamp {
    let seconds = i64::try_from(validity.as_secs()).unwrap_or(i64::MAX);
    let at = jiff::Timestamp::now().as_second().saturating_add(seconds);
    jiff::Timestamp::from_second(at).unwrap_or(jiff::Timestamp::MAX)
}

fn meta(name: &str, version: NonZeroU64, bytes: &[u8]) -> HashMap<String, Metafile> {
    let hashes = Some(hashes(bytes));
    let length = Some(bytes.len() as u64);
    HashMap::from([(name.to_owned(), Metafile { length, hashes, version, _extra: HashMap::new() })])
}

fn hashes(bytes: &[u8]) -> Hashes {
    let sha256 = <sha2::Sha256 as sha2::Digest>::digest(bytes).to_vec();
    Hashes { sha256: sha256.into(), _extra: HashMap::new() }
}

fn bytes<T: Role>(signed: &Signed<T>) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(signed).expect("metadata is plain data");
    bytes.push(b'\n');
    bytes
}

/// Whether enough keys of its role have signed.
fn complete<T: Role>(root: &Root, signed: &Signed<T>) -> Result<(), RepositoryError> {
    if root.verify_role(signed).is_ok() {
        return Ok(());
    }
    let keys = root.roles.get(&T::TYPE);
    let ours = |keyid| keys.is_some_and(|keys| keys.keyids.contains(keyid));
    let have = signed.signatures.iter().filter(|signature| ours(&signature.keyid)).count();
    let needed = keys.map_or(1, |keys| keys.threshold.get());
    Err(RepositoryError::Signatures { role: T::TYPE.to_string(), needed, have })
}

/// Whether devices would still believe it.
fn in_force<T: Role>(role: &T) -> Result<(), RepositoryError> {
    if role.expires() > jiff::Timestamp::now() {
        return Ok(());
    }
    Err(RepositoryError::Expired { role: T::TYPE.to_string(), date: role.expires().to_string() })
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, RepositoryError> {
    let bytes = fs::read(path).map_err(DurableError::of("read", path))?;
    serde_json::from_slice(&bytes).map_err(|error| RepositoryError::Unreadable {
        path: path.to_owned(),
        problem: error.to_string(),
    })
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), DurableError> {
    let bytes = serde_json::to_vec_pretty(value).expect("metadata is plain data");
    durable::write_whole(path, &bytes)
}

fn name(text: String) -> TargetName {
    TargetName::new(text).expect("a name of letters, digits, `.` and `-`")
}
