//! What a device believes of a repository: TUF metadata (theupdateframework.io, specification 1.0), verified by `tough`
//! from the root that was handed to the device onwards.
//!
//! Limits: every file of metadata has a largest size, every request a time; what a blob's bytes are is judged by whoever
//! reads them, against the length and hash that the release states.
//!
//! Invariants:
//! 1. Nothing is handed out that is not signed, in force and at least as new as everything that was seen before.
//! 2. The metadata kept on the disk is swapped as a whole, synced: `tough` writes into a copy. Should it be lost all the
//!    same, [`Floors`], which the caller keeps elsewhere, still hold: they say how old nothing may be.
//! 3. The newest root that was seen is where the next check begins, so that a key that was taken back stays so. If the
//!    repository fails to say whether there is a newer root, nothing of it is believed.
//! 4. Expiry is always enforced. A clock that cannot be right is a state of its own, told apart from a forgery.
//!
//! ```text
//! <directory>/metadata/         root, timestamp, snapshot, targets as last verified
//!             metadata.part/    being written; metadata.old/: before the swap
//! ```
//!
//! Called by the agent and by `cli` (`fleet verify`).

mod datastore;
mod floors;
mod source;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use semver::Version;
use tough::error::Error as Tuf;
use tough::schema::{Root, Signed};
use tough::{IntoVec, Limits, Repository, RepositoryLoader, TargetName};

use super::{Blob, Release};
use crate::durable::{DurableError, hex};
use datastore::Datastore;
pub use floors::Floors;
use source::{BlobReader, Fetcher};
pub use source::{Source, SourceError};

/// A manifest names blobs by hash; a thousand models fit.
const MAX_RELEASE_BYTES: u64 = 1 << 20;

const LIMITS: Limits = Limits {
    max_root_size: 256 << 10,
    max_targets_size: 16 << 20,
    max_timestamp_size: 64 << 10,
    max_snapshot_size: 256 << 10,
    max_root_updates: 256,
};

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub group: String,
    pub hardware: String,
    /// Of this program.
    pub version: Version,
}

impl Device {
    /// This program on hardware of the class `hardware`, in `group`.
    #[must_use]
    pub fn new(group: &str, hardware: &str) -> Self {
        let version = Version::parse(env!("CARGO_PKG_VERSION")).expect("Cargo's version is one");
        Self { group: group.to_owned(), hardware: hardware.to_owned(), version }
    }

    /// What of the release does not suit this device, in words; `None` if it is meant for it.
    #[must_use]
    pub fn unmet(&self, release: &Release) -> Option<String> {
        let Self { group, hardware, version } = self;
        let list = |names: &[String]| names.join(", ");
        if !release.groups.contains(group) {
            let of = list(&release.groups);
            return Some(format!("it is for the groups {of}; this device is in {group}"));
        }
        if !release.hardware.contains(hardware) {
            let of = list(&release.hardware);
            return Some(format!("it is for the hardware {of}; this device is {hardware}"));
        }
        let required = &release.cdal;
        (!required.matches(version))
            .then(|| format!("it asks for cdal {required}; this is {version}"))
    }
}

/// What a repository holds.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The newest that is meant for this device, or the newest of all where none is, with the SHA-256 of its manifest as
    /// it was signed. `None` in a repository without releases.
    pub newest: Option<(Release, String)>,
    /// To be kept and handed in with the next check.
    pub floors: Floors,
}

/// Why a repository is not believed. Nothing has changed on the device.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error(
        "this device's clock says {now}, but it was {seen} when the repository was last seen; set the clock"
    )]
    TimeUntrusted { now: String, seen: String },
    #[error(
        "{role} has expired: the repository is not kept fresh (`cdal fleet refresh`), somebody holds it back, or this clock is ahead"
    )]
    Expired { role: String },
    #[error(
        "{what} is version {found}, older than {floor} that was seen before: refused as a rollback"
    )]
    Rollback { what: &'static str, found: u64, floor: u64 },
    #[error("{0}: refused")]
    Forged(String),
    #[error("{0}")]
    Unreachable(String),
    #[error(transparent)]
    Disk(#[from] DurableError),
}

/// A repository as one device sees it. Calls block.
#[derive(Debug)]
pub struct Trust {
    device: Device,
    source: Source,
    /// As it was handed to the device.
    root: Vec<u8>,
    datastore: Datastore,
    runtime: Arc<tokio::runtime::Runtime>,
}

impl Trust {
    /// `root`: the file with the root of trust that was handed to the device. `directory` is made.
    ///
    /// # Errors
    /// If the disk refuses, or the root is none.
    pub fn open(
        device: Device,
        source: Source,
        root: &Path,
        directory: &Path,
    ) -> Result<Self, TrustError> {
        let bytes = fs::read(root).map_err(DurableError::of("read", root))?;
        if version_of(&bytes).is_none() {
            let path = root.display();
            return Err(TrustError::Forged(format!("{path} is no root of a TUF repository")));
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(DurableError::of("start the runtime for", directory))?;
        let datastore = Datastore::open(directory)?;
        Ok(Self { device, source, root: bytes, datastore, runtime: Arc::new(runtime) })
    }

    /// Looks at the repository.
    ///
    /// # Errors
    /// If nothing of it can be had or may be believed. What was believed before stays.
    pub fn check(&mut self, floors: &Floors) -> Result<Checked, TrustError> {
        let now = now_ms();
        floors.check_clock(now)?;
        let runtime = Arc::clone(&self.runtime);
        runtime.block_on(self.look(floors, now))
    }

    async fn look(&mut self, floors: &Floors, now_ms: u64) -> Result<Checked, TrustError> {
        let copy = self.datastore.copy()?;
        // The newest root that was seen, if it is whole; it was verified before it was kept.
        let kept = fs::read(copy.join("root.json")).unwrap_or_default();
        let root = if version_of(&kept) > version_of(&self.root) { &kept } else { &self.root };
        let fetcher = Fetcher::new(self.source.clone());
        let [metadata, targets] = self.source.folders();
        let loaded = RepositoryLoader::new(root, metadata, targets)
            .transport(fetcher.clone())
            .limits(LIMITS)
            .datastore(&copy)
            .load()
            .await;
        // `tough` takes every failure to fetch the next root for "there is none".
        if let Some(problem) = fetcher.failure() {
            return Err(TrustError::Unreachable(problem));
        }
        let repository = loaded.map_err(refusal)?;
        let mut seen = Floors::of(&repository, now_ms);
        seen.check_against(floors)?;
        let releases = releases(&repository).await?;
        let newest = releases.iter().map(|(release, _)| release.counter).max().unwrap_or(0);
        if newest < floors.counter {
            let what = "the newest release";
            return Err(TrustError::Rollback { what, found: newest, floor: floors.counter });
        }
        seen.counter = newest;
        self.datastore.swap(&copy)?;
        let suits = |(release, _): &&(Release, String)| self.device.unmet(release).is_none();
        let chosen = releases.iter().filter(suits).max_by_key(|(release, _)| release.counter);
        let chosen = chosen.or_else(|| releases.iter().max_by_key(|(r, _)| r.counter)).cloned();
        Ok(Checked { newest: chosen, floors: seen })
    }

    /// The bytes of a blob from `offset` on, not verified.
    ///
    /// # Errors
    /// In words, if they cannot be had.
    pub fn open_blob(&self, blob: &Blob, offset: u64) -> Result<Box<dyn Read>, String> {
        let reader = BlobReader::open(&self.source, Arc::clone(&self.runtime), blob, offset);
        Ok(Box::new(reader.map_err(|error| error.to_string())?))
    }

    #[must_use]
    pub fn directory(&self) -> &PathBuf {
        self.datastore.directory()
    }
}

/// Every release with the hash of its manifest.
async fn releases(repository: &Repository) -> Result<Vec<(Release, String)>, TrustError> {
    let mut found = Vec::new();
    let targets = repository.targets().signed.targets.iter();
    let named = targets.filter_map(|(name, target)| Some((counter_in(name.raw())?, name, target)));
    for (counter, name, target) in named {
        let broken = |problem: String| TrustError::Forged(format!("{}: {problem}", name.raw()));
        if target.length > MAX_RELEASE_BYTES {
            return Err(broken(format!("has {} bytes, more than a manifest", target.length)));
        }
        let bytes = read(repository, name).await?;
        let release: Release =
            serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))?;
        if release.counter != counter {
            return Err(broken(format!("says that it is release {}", release.counter)));
        }
        if let Some(fault) = release.faults().first() {
            return Err(broken(format!("{} {}", fault.key, fault.problem)));
        }
        found.push((release, hex(&target.hashes.sha256)));
    }
    Ok(found)
}

async fn read(repository: &Repository, name: &TargetName) -> Result<Vec<u8>, TrustError> {
    let missing = || TrustError::Forged(format!("{} is not in the repository", name.raw()));
    let stream = repository.read_target(name).await.map_err(refusal)?.ok_or_else(missing)?;
    stream.into_vec().await.map_err(refusal)
}

/// Of a target that is a release's manifest.
pub(super) fn counter_in(name: &str) -> Option<u64> {
    name.strip_prefix("release-")?.strip_suffix(".json")?.parse().ok()
}

pub(super) fn version_of(root: &[u8]) -> Option<u64> {
    let root: Signed<Root> = serde_json::from_slice(root).ok()?;
    Some(root.signed.version.get())
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    since.as_millis() as u64
}

/// What `tough` says, told apart by what can be done about it.
fn refusal(error: Tuf) -> TrustError {
    match error {
        Tuf::ExpiredMetadata { role, .. } => TrustError::Expired { role: format!("{role}.json") },
        Tuf::SystemTimeSteppedBackward { sys_time, latest_known_time, .. } => {
            TrustError::TimeUntrusted {
                now: sys_time.to_string(),
                seen: latest_known_time.to_string(),
            }
        }
        Tuf::OlderMetadata { role, current_version, new_version, .. } => TrustError::Rollback {
            what: match role {
                tough::schema::RoleType::Root => "root.json",
                tough::schema::RoleType::Snapshot => "snapshot.json",
                tough::schema::RoleType::Timestamp => "timestamp.json",
                _ => "targets.json",
            },
            found: new_version,
            floor: current_version,
        },
        Tuf::Transport { source, .. } => TrustError::Unreachable(words(&source)),
        other => TrustError::Forged(words(&other)),
    }
}

/// An error and its causes in one line, each said once.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text.replace('\n', " ")
}
