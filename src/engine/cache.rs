//! Optimised graphs on the disk, so that a start need not optimise again.
//!
//! A file is named by what its graph depends on: the bytes it was made from, the runtime library's build, this program's
//! version, the provider and what the processor can do, since the last level of optimisation lays weights out for it. It
//! begins with the SHA-256 of what follows, and what does not agree with that, or does not load, is made anew. A cache that
//! cannot be written costs time, nothing else.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use sha2::{Digest, Sha256};

use super::Options;
use crate::durable::{self, DurableError, hex};

/// Graphs that are kept; a model has two. Those made longest ago go first.
const KEPT: usize = 16;
const DIGEST: usize = 32;
const EXTENSION: &str = "optimised";

/// A folder of optimised graphs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphCache {
    folder: PathBuf,
}

impl GraphCache {
    /// # Errors
    /// If the folder cannot be made.
    pub fn open(folder: &Path) -> Result<Self, DurableError> {
        fs::create_dir_all(folder).map_err(DurableError::of("make the folder", folder))?;
        Ok(Self { folder: folder.into() })
    }

    /// The graph, if it is there and sound.
    pub(super) fn get(&self, key: &str) -> Option<Vec<u8>> {
        let path = self.path(key);
        let mut bytes = fs::read(&path).ok()?;
        let is_sound =
            bytes.len() > DIGEST && Sha256::digest(&bytes[DIGEST..])[..] == bytes[..DIGEST];
        if !is_sound {
            tracing::warn!(path = %path.display(), "a cached graph is damaged; it is made anew");
            self.forget(key);
            return None;
        }
        bytes.drain(..DIGEST);
        Some(bytes)
    }

    pub(super) fn put(&self, key: &str, graph: &[u8]) -> Result<(), DurableError> {
        let mut bytes = Sha256::digest(graph).to_vec();
        bytes.extend_from_slice(graph);
        durable::write(&self.folder, &bytes)?.persist(&self.path(key))?;
        self.prune();
        Ok(())
    }

    pub(super) fn forget(&self, key: &str) {
        let _ = fs::remove_file(self.path(key));
    }

    /// Where the runtime may write; removed with the value.
    pub(super) fn scratch(&self) -> Result<tempfile::TempDir, DurableError> {
        tempfile::Builder::new()
            .prefix(".optimising-")
            .tempdir_in(&self.folder)
            .map_err(DurableError::of("make a folder in", &self.folder))
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.{EXTENSION}"))
    }

    fn prune(&self) {
        let age = |path: &PathBuf| {
            let written = path.metadata().and_then(|m| m.modified());
            written.unwrap_or(SystemTime::UNIX_EPOCH)
        };
        let mut files: Vec<PathBuf> = fs::read_dir(&self.folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|e| e == EXTENSION))
            .collect();
        files.sort_by_key(age);
        for path in files.iter().rev().skip(KEPT) {
            let _ = fs::remove_file(path);
        }
    }
}

/// All that an optimised graph depends on, as a name. Threads are no part of it: they change no graph.
pub(super) fn key(graph: &[u8], build: &str, options: &Options) -> String {
    let mut hash = Sha256::new();
    let graph = Sha256::digest(graph);
    let device = options.device.to_string();
    let program = env!("CARGO_PKG_VERSION");
    for part in
        [&graph[..], build.as_bytes(), program.as_bytes(), options.provider.name().as_bytes()]
            .into_iter()
            .chain([device.as_bytes(), processor().as_bytes()])
    {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(&hash.finalize())
}

/// What the processor can do, in the kernel's words.
fn processor() -> String {
    let known = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let is_feature = |line: &&str| ["flags", "Features"].iter().any(|word| line.starts_with(word));
    format!("{} {}", std::env::consts::ARCH, known.lines().find(is_feature).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Provider;

    #[test]
    fn what_was_put_comes_back_and_damage_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let cache = GraphCache::open(&folder.path().join("deep/er")).unwrap();
        assert_eq!(cache.get("a"), None);
        cache.put("a", b"graph").unwrap();
        assert_eq!(cache.get("a").unwrap(), b"graph");
        let path = cache.path("a");
        for damage in [0, DIGEST + 2] {
            cache.put("a", b"graph").unwrap();
            let mut bytes = fs::read(&path).unwrap();
            bytes[damage] ^= 1;
            fs::write(&path, bytes).unwrap();
            assert_eq!(cache.get("a"), None);
            assert!(!path.exists(), "damage does not stay");
        }
        fs::write(&path, b"short").unwrap();
        assert_eq!(cache.get("a"), None);
    }

    #[test]
    fn only_so_many_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let cache = GraphCache::open(folder.path()).unwrap();
        for number in 0..KEPT + 3 {
            cache.put(&number.to_string(), b"graph").unwrap();
            let file = fs::File::open(cache.path(&number.to_string())).unwrap();
            let written = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
            file.set_modified(written).unwrap();
        }
        cache.put("last", b"graph").unwrap();
        assert!(cache.get("last").is_some() && cache.get("0").is_none());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), KEPT);
    }

    #[test]
    fn a_key_tells_apart_what_changes_a_graph() {
        let cpu = Options::default();
        let base = key(b"graph", "build", &cpu);
        assert_eq!(base, key(b"graph", "build", &Options { intra_threads: Some(3), ..cpu }));
        for other in [
            key(b"grap", "hbuild", &cpu),
            key(b"graph", "build 2", &cpu),
            key(b"graph", "build", &Options { provider: Provider::Cuda, ..cpu }),
            key(b"graph", "build", &Options { device: 1, ..cpu }),
        ] {
            assert_ne!(base, other);
        }
    }
}
