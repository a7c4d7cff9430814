//! What a device believes of a repository: TUF metadata (theupdateframework.io, specification 1.0), verified from the
//! root that was handed to the device onwards.
//!
//! Limits: every file of metadata has a largest size, every request a time; what a blob's bytes are is judged by whoever
//! reads them, against the length and hash that the release states.
//!
//! Invariants:
//! 1. Nothing is handed out that is not signed, in force and at least as new as everything that was seen before.
//! 2. What was verified is on the disk before the next file is fetched, whole and synced, and [`Floors`] with it: they
//!    say how old nothing may be. The caller keeps the floors elsewhere as well; they hold if the metadata is lost.
//! 3. The newest root that was seen is where the next check begins, also after a check that failed further on, so that a
//!    key that was taken back stays so. If the repository fails to say whether there is a newer root, nothing of it is
//!    believed.
//! 4. Expiry is always enforced. A clock that cannot be right is a state of its own, told apart from a forgery.
//!
//! ```text
//! <directory>/metadata/         root.json, timestamp.json, snapshot.json, targets.json as last verified
//!             floors            how old nothing may be
//! ```
//!
//! `metadata` reads files and counts signatures, `refresh` is the client workflow, `store` the disk, `source` the
//! transport, `client` a client for any TUF repository. Called by the agent and by `cli` (`fleet verify`, `fleet tuf`).

mod client;
mod floors;
mod metadata;
mod refresh;
mod source;
mod store;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use semver::Version;
use sha2::{Digest, Sha256};

use super::{Blob, Release};
use crate::durable::{DurableError, hex};
pub use client::Client;
pub use floors::Floors;
use metadata::{File, Root};
use refresh::{Refresh, Refreshed};
use source::{BlobReader, Fetcher};
pub use source::{Source, SourceError};
use store::Store;

/// A manifest names blobs by hash; a thousand models fit.
const MAX_RELEASE_BYTES: u64 = 1 << 20;

struct Limits {
    root: u64,
    timestamp: u64,
    snapshot: u64,
    targets: u64,
    /// Roots that are followed in one look.
    new_roots: u64,
}

/// Bytes, unless a file that was verified states less.
const LIMITS: Limits = Limits {
    root: 256 << 10,
    timestamp: 64 << 10,
    snapshot: 256 << 10,
    targets: 16 << 20,
    new_roots: 1024,
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
    /// The others that are meant for this device, newest first: where the newest was given up, one of them may be the
    /// last good one.
    pub older: Vec<(Release, String)>,
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
    root: File<Root>,
    directory: PathBuf,
    store: Store,
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
        let root = read_root(root)?;
        let runtime = Arc::new(runtime(directory)?);
        let store = Store::open(&directory.join("metadata"), &directory.join("floors"))?;
        Ok(Self { device, source, root, directory: directory.to_owned(), store, runtime })
    }

    /// Looks at the repository.
    ///
    /// # Errors
    /// If nothing of it can be had or may be believed. What was verified on the way there stays in force, as do
    /// the floors: [`Trust::floors`].
    pub fn check(&mut self, floors: &Floors) -> Result<Checked, TrustError> {
        let now = now_ms();
        let floors = self.store.floors().with(floors);
        floors.check_clock(now)?;
        let fetcher = Fetcher::new(self.source.clone());
        let [metadata, _] = self.source.folders();
        let fetch = |name: &str, limit: u64| {
            let url = metadata.join(name).expect("a plain name joins");
            self.runtime.block_on(fetcher.whole(&url, limit))
        };
        let (store, at) = (&self.store, timestamp(now));
        let mut refresh = Refresh { store, fetch: &fetch, floors, now: at };
        let listed = refresh.run(self.root.clone())?;
        let mut floors = refresh.floors;
        let mut releases = self.releases(&listed, &fetcher)?;
        releases.sort_by_key(|(release, _)| std::cmp::Reverse(release.counter));
        let newest = releases.first().map_or(0, |(release, _)| release.counter);
        if newest < floors.counter {
            let what = "the newest release";
            return Err(TrustError::Rollback { what, found: newest, floor: floors.counter });
        }
        (floors.counter, floors.time_ms) = (newest, now.max(floors.time_ms));
        self.store.keep_floors(&floors)?;
        let (mut suitable, others): (Vec<_>, Vec<_>) =
            releases.into_iter().partition(|(release, _)| self.device.unmet(release).is_none());
        let older = suitable.split_off(1.min(suitable.len()));
        Ok(Checked { newest: suitable.pop().or(others.into_iter().next()), older, floors })
    }

    /// How old nothing may be by now, also after a check that failed.
    #[must_use]
    pub fn floors(&self) -> Floors {
        self.store.floors()
    }

    /// Every release with the hash of its manifest.
    fn releases(
        &self,
        listed: &Refreshed,
        fetcher: &Fetcher,
    ) -> Result<Vec<(Release, String)>, TrustError> {
        let [_, folder] = self.source.folders();
        let mut found = Vec::new();
        for (name, target) in &listed.targets {
            let Some(counter) = counter_in(name) else { continue };
            let broken = |problem: String| TrustError::Forged(format!("{name}: {problem}"));
            if target.length > MAX_RELEASE_BYTES {
                return Err(broken(format!("has {} bytes, more than a manifest", target.length)));
            }
            let url = listed.place(&folder, name, target).map_err(broken)?;
            let bytes = self.runtime.block_on(fetcher.whole(&url, target.length));
            let bytes = bytes.map_err(|error| TrustError::Unreachable(error.to_string()))?;
            target.check(&bytes).map_err(broken)?;
            let release: Release =
                serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))?;
            if release.counter != counter {
                return Err(broken(format!("says that it is release {}", release.counter)));
            }
            if let Some(fault) = release.faults().first() {
                return Err(broken(format!("{} {}", fault.key, fault.problem)));
            }
            found.push((release, hex(&Sha256::digest(&bytes))));
        }
        Ok(found)
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
        &self.directory
    }
}

/// Of a target that is a release's manifest.
pub(super) fn counter_in(name: &str) -> Option<u64> {
    name.strip_prefix("release-")?.strip_suffix(".json")?.parse().ok()
}

fn read_root(path: &Path) -> Result<File<Root>, TrustError> {
    let bytes = fs::read(path).map_err(DurableError::of("read", path))?;
    let wrong = |why: String| {
        TrustError::Forged(format!("{} is no root of a TUF repository: {why}", path.display()))
    };
    let root = File::<Root>::read(&bytes).map_err(wrong)?;
    root.content.verify(&root).map_err(wrong)?;
    Ok(root)
}

fn runtime(directory: &Path) -> Result<tokio::runtime::Runtime, DurableError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DurableError::of("start the runtime for", directory))
}

fn timestamp(ms: u64) -> jiff::Timestamp {
    jiff::Timestamp::from_millisecond(ms as i64).unwrap_or(jiff::Timestamp::MAX)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    since.as_millis() as u64
}
