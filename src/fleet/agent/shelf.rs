//! Downloads and what they become: blobs by their hash, and folders of bundles made of them.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::{Limits, Supply};
use crate::durable::{self, DurableError, failpoint, hex, is_file_name};
use crate::fleet::{Blob, BundleRef, Release};

/// Over which the rate of a download is judged.
const RATE_WINDOW: Duration = Duration::from_mins(1);

/// The files of one agent.
///
/// ```text
/// <directory>/blobs/<sha256>          whole and verified; <sha256>.part: being fetched
///             bundles/<digest>/       of links to blobs, whole; <digest>.part/: being made
/// ```
#[derive(Debug, Clone)]
pub struct Shelf {
    blobs: PathBuf,
    bundles: PathBuf,
    /// `RATE_WINDOW`; tests have less time.
    window: Duration,
}

/// What keeps a release from coming in. All of it may pass.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("blob {sha256}: {problem}")]
    Source { sha256: String, problem: String },
    #[error("blob {sha256}: what came has the hash {found}; it is thrown away")]
    Hash { sha256: String, found: String },
    #[error("blob {sha256}: more than its {length} bytes come; it is thrown away")]
    TooLong { sha256: String, length: u64 },
    #[error("blob {sha256}: less than {least} bytes a second came for a minute")]
    TooSlow { sha256: String, least: u64 },
    #[error("the release needs {needed} bytes, and fleet.download.max_bytes leaves {left}")]
    Quota { needed: u64, left: u64 },
    #[error("the daemon stops")]
    Stopped,
    #[error(transparent)]
    Disk(#[from] DurableError),
}

impl Shelf {
    /// # Errors
    /// If the disk refuses.
    pub fn open(directory: &Path) -> Result<Self, DurableError> {
        let [blobs, bundles] = ["blobs", "bundles"].map(|name| directory.join(name));
        let shelf = Self { blobs, bundles, window: RATE_WINDOW };
        durable::create_directory(&shelf.blobs)?;
        durable::create_directory(&shelf.bundles)?;
        Ok(shelf)
    }

    #[must_use]
    pub fn bundle(&self, bundle: &BundleRef) -> PathBuf {
        self.bundles.join(&bundle.digest)
    }

    #[must_use]
    pub fn blob(&self, blob: &Blob) -> PathBuf {
        self.blobs.join(&blob.sha256)
    }

    /// Brings every byte of a release here, under its hash. What is there is not fetched again.
    ///
    /// # Errors
    /// If something is not to be had now; what came stays, and the next try goes on from there.
    pub fn stage(
        &self,
        release: &Release,
        supply: &mut dyn Supply,
        limits: &Limits,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<(), FetchError> {
        let missing: BTreeSet<_> = blobs_of(release)
            .filter(|blob| !self.blob(blob).exists())
            .map(|blob| (blob.sha256.clone(), blob.length))
            .collect();
        let needed = missing.iter().map(|(_, length)| length).sum();
        let left = limits.max_bytes.saturating_sub(self.held()?);
        if needed > left {
            return Err(FetchError::Quota { needed, left });
        }
        for (sha256, length) in missing {
            self.fetch(&Blob { sha256, length }, supply, limits, is_stopped)?;
        }
        for bundle in release.bundles.values() {
            self.assemble(bundle)?;
        }
        Ok(())
    }

    /// Bytes of finished blobs.
    fn held(&self) -> Result<u64, DurableError> {
        let entries = fs::read_dir(&self.blobs).map_err(DurableError::of("list", &self.blobs))?;
        let whole = entries.flatten().filter(|e| !is_part(&e.path()));
        Ok(whole.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum())
    }

    fn fetch(
        &self,
        blob: &Blob,
        supply: &mut dyn Supply,
        limits: &Limits,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<(), FetchError> {
        let Blob { sha256, length } = blob.clone();
        let part = self.blobs.join(format!("{sha256}{}", durable::PART_SUFFIX));
        let disk = |action| DurableError::of(action, &part);
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true);
        let mut file = options.open(&part).map_err(disk("open"))?;
        // What a crash left is hashed again from its beginning: it may be torn.
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        let mut have = 0;
        loop {
            match file.read(&mut buffer).map_err(disk("read"))? {
                0 => break,
                count => {
                    hash.update(&buffer[..count]);
                    have += count as u64;
                }
            }
        }
        let throw_away = |error| match fs::remove_file(&part) {
            Ok(()) => error,
            Err(source) => disk("remove")(source).into(),
        };
        if have > length {
            return Err(throw_away(FetchError::TooLong { sha256, length }));
        }
        let source = |problem| FetchError::Source { sha256: sha256.clone(), problem };
        if have < length {
            let mut stream = supply.open(blob, have).map_err(source)?;
            let (mut since, mut came) = (Instant::now(), 0);
            while have < length {
                if is_stopped() {
                    return Err(FetchError::Stopped);
                }
                let count = stream.read(&mut buffer).map_err(|error| source(error.to_string()))?;
                if count == 0 {
                    return Err(source(format!("it ends after {have} of {length} bytes")));
                }
                have += count as u64;
                if have > length {
                    return Err(throw_away(FetchError::TooLong { sha256, length }));
                }
                file.write_all(&buffer[..count]).map_err(disk("write"))?;
                hash.update(&buffer[..count]);
                failpoint::reach("fleet.fetched");
                came += count as u64;
                if since.elapsed() >= self.window {
                    let least = limits.min_bytes_per_second;
                    if (came as f64) < least as f64 * self.window.as_secs_f64() {
                        return Err(FetchError::TooSlow { sha256, least });
                    }
                    (since, came) = (Instant::now(), 0);
                }
            }
        }
        let found = hex(&hash.finalize());
        if found != sha256 {
            return Err(throw_away(FetchError::Hash { sha256, found }));
        }
        file.sync_all().map_err(disk("sync"))?;
        failpoint::reach("fleet.synced");
        let whole = self.blob(blob);
        fs::rename(&part, &whole).map_err(DurableError::of("rename to", &whole))?;
        failpoint::reach("fleet.renamed");
        Ok(durable::sync_directory(&self.blobs)?)
    }

    /// A bundle's folder out of its blobs: all of it or nothing.
    fn assemble(&self, bundle: &BundleRef) -> Result<(), DurableError> {
        let whole = self.bundle(bundle);
        if whole.exists() {
            return Ok(());
        }
        let part = self.bundles.join(format!("{}{}", bundle.digest, durable::PART_SUFFIX));
        if part.exists() {
            fs::remove_dir_all(&part).map_err(DurableError::of("remove", &part))?;
        }
        fs::create_dir(&part).map_err(DurableError::of("create", &part))?;
        for (name, blob) in &bundle.files {
            let link = part.join(name);
            fs::hard_link(self.blob(blob), &link).map_err(DurableError::of("link", &link))?;
        }
        durable::sync_directory(&part)?;
        failpoint::reach("fleet.assembled");
        fs::rename(&part, &whole).map_err(DurableError::of("rename to", &whole))?;
        durable::sync_directory(&self.bundles)
    }

    /// Removes everything that none of `needed` names. Called at rest alone: nothing is being fetched.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn tidy(&self, needed: &[Release]) -> Result<usize, DurableError> {
        let blobs: BTreeSet<&str> =
            needed.iter().flat_map(blobs_of).map(|blob| blob.sha256.as_str()).collect();
        let bundles: BTreeSet<&str> =
            needed.iter().flat_map(|r| r.bundles.values()).map(|b| b.digest.as_str()).collect();
        let mut removed = 0;
        for (folder, kept) in [(&self.bundles, bundles), (&self.blobs, blobs)] {
            let entries = fs::read_dir(folder).map_err(DurableError::of("list", folder))?;
            for entry in entries.flatten() {
                let path = entry.path();
                let name = entry.file_name().to_string_lossy().into_owned();
                // A half-fetched blob that is still wanted goes on.
                let stem = if folder == &self.blobs {
                    name.trim_end_matches(durable::PART_SUFFIX)
                } else {
                    &name
                };
                if kept.contains(stem) {
                    continue;
                }
                let remove =
                    if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                remove.map_err(DurableError::of("remove", &path))?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

fn is_part(path: &Path) -> bool {
    path.to_string_lossy().ends_with(durable::PART_SUFFIX)
}

fn blobs_of(release: &Release) -> impl Iterator<Item = &Blob> {
    let bundled = release.bundles.values().flat_map(|bundle| bundle.files.values());
    release.configuration.iter().chain(bundled)
}

/// What a signed manifest must not say, lest its names lead out of the folder or its parts not belong together.
///
/// # Errors
/// In words.
pub fn check(release: &Release) -> Result<(), String> {
    let is_hash = |text: &str| {
        text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    for blob in blobs_of(release) {
        if !is_hash(&blob.sha256) {
            return Err(format!("{:?} is not a SHA-256 in hexadecimal", blob.sha256));
        }
    }
    for (name, bundle) in &release.bundles {
        if let Some(file) = bundle.files.keys().find(|file| !is_file_name(file)) {
            return Err(format!("bundle {name}: {file:?} is not a file name"));
        }
        let manifest = bundle.files.get("bundle.toml").map(|blob| &blob.sha256);
        if manifest != Some(&bundle.digest) {
            return Err(format!("bundle {name}: digest is not that of its bundle.toml"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::agent::{Checked, Trouble};

    /// Sends `bytes` from where it is asked to; if it waits, one at a time.
    struct Server {
        bytes: Vec<u8>,
        wait: Duration,
        asked: Vec<u64>,
    }

    struct Drip(Vec<u8>, usize, Duration);

    impl Read for Drip {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            std::thread::sleep(self.2);
            let rest = &self.0[self.1..];
            let count =
                rest.len().min(buffer.len()).min(if self.2.is_zero() { 1 << 16 } else { 1 });
            buffer[..count].copy_from_slice(&rest[..count]);
            self.1 += count;
            Ok(count)
        }
    }

    impl Supply for Server {
        fn check(&mut self, _floors: Option<&str>) -> Result<Checked, Trouble> {
            Ok(Checked { newest: None, older: vec![], floors: String::new() })
        }

        fn open(&mut self, _blob: &Blob, offset: u64) -> Result<Box<dyn Read>, String> {
            self.asked.push(offset);
            Ok(Box::new(Drip(self.bytes.clone(), offset as usize, self.wait)))
        }
    }

    fn blob(bytes: &[u8]) -> Blob {
        Blob { sha256: hex(&Sha256::digest(bytes)), length: bytes.len() as u64 }
    }

    fn fetch(shelf: &Shelf, blob: &Blob, server: &mut Server) -> Result<(), FetchError> {
        shelf.fetch(blob, server, &Limits::default(), &|| false)
    }

    #[test]
    fn what_comes_is_bounded_and_nothing_but_the_right_bytes_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut shelf = Shelf::open(folder.path()).unwrap();
        let right = vec![7; 100_000];
        let blob = blob(&right);
        let part = shelf.blobs.join(format!("{}{}", blob.sha256, durable::PART_SUFFIX));
        let send =
            |bytes: &[u8]| Server { bytes: bytes.to_owned(), wait: Duration::ZERO, asked: vec![] };
        // More than was announced, without end say.
        let error = fetch(&shelf, &blob, &mut send(&vec![7; 300_000])).unwrap_err();
        assert!(matches!(error, FetchError::TooLong { .. }), "{error}");
        // As long, and something else.
        let mut wrong = right.clone();
        wrong[99_999] = 8;
        let error = fetch(&shelf, &blob, &mut send(&wrong)).unwrap_err();
        assert!(matches!(error, FetchError::Hash { .. }), "{error}");
        assert!(!part.exists() && !shelf.blob(&blob).exists());
        // It breaks off; the next try goes on from there.
        let error = fetch(&shelf, &blob, &mut send(&right[..70_000])).unwrap_err();
        assert!(error.to_string().contains("ends after 70000 of 100000 bytes"), "{error}");
        let mut server = send(&right);
        // Slower than is bearable: given up, and what came is kept.
        shelf.window = Duration::from_millis(50);
        server.wait = Duration::from_millis(5);
        let error = fetch(&shelf, &blob, &mut server).unwrap_err();
        assert!(matches!(error, FetchError::TooSlow { .. }), "{error}");
        server.wait = Duration::ZERO;
        fetch(&shelf, &blob, &mut server).unwrap();
        assert!(server.asked[0] == 70_000 && server.asked[1] > 70_000, "{:?}", server.asked);
        assert_eq!(fs::read(shelf.blob(&blob)).unwrap(), right);
    }
}
