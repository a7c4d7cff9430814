//! A watched folder: images and series that are put there are cases.
//!
//! An entry is a file, or a folder whose files are one hand-over, such as a DICOM series. It is taken when nothing of it
//! has changed for `settle`: kept in the spool first, then moved to `taken/`; one that is no image goes to `refused/`
//! beside a text that says why. What is no image beside one that is (Thumbs.db, DICOMDIR, a report) goes with it and is
//! passed over, as `segment` passes it over. An entry with a file that cannot be read to its end stays where it is, and
//! `refused/<entry>.waiting.txt` says which file; it is looked at again when it changes. A crash between keeping and
//! moving leads to the same job again. Names that begin with a dot or end in `.part` are left alone: writers use them
//! until a file is whole.

use std::collections::HashMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{Examined, Intake, Refusal};
use crate::codec;
use crate::domain::{Fault, duration};
use crate::durable::{self, DurableError, PART_SUFFIX, Synced};

const TAKEN: &str = "taken";
const REFUSED: &str = "refused";

/// How deep a folder is read.
const MAX_DEPTH: usize = 8;

/// Section `[ingest.folder]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Watched; without it there is no watched folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// How long an entry must stay as it is before it is taken.
    #[serde(with = "duration")]
    #[schemars(with = "duration::Text")]
    pub settle: Duration,
    /// How often the folder is looked at.
    #[serde(with = "duration")]
    #[schemars(with = "duration::Text")]
    pub poll: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { path: None, settle: Duration::from_secs(2), poll: Duration::from_secs(1) }
    }
}

impl Config {
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (key, time) in [("settle", self.settle), ("poll", self.poll)] {
            if time.is_zero() {
                faults.push(Fault::new(key, "must be longer than 0ms"));
            }
        }
        faults
    }
}

/// Makes the folder and its two shelves.
///
/// # Errors
/// If the disk refuses.
pub fn prepare(path: &Path) -> Result<(), DurableError> {
    [TAKEN, REFUSED].iter().try_for_each(|shelf| durable::create_directory(&path.join(shelf)))
}

/// What is known of an entry.
struct Entry {
    look: Look,
    since: Instant,
    /// Why it is not taken was told; it has to change first.
    is_told: bool,
}

/// What became of an entry.
enum Outcome {
    /// It lies on a shelf.
    Moved,
    /// The same may go better soon.
    Later,
    /// Something of it is missing.
    Incomplete,
}

/// Watches until `shutdown`. Blocks.
pub fn watch(config: &Config, intake: &Intake, shutdown: &CancellationToken) {
    let Some(folder) = &config.path else { return };
    let mut seen: HashMap<PathBuf, Entry> = HashMap::new();
    while !shutdown.is_cancelled() {
        let entries = entries(folder);
        seen.retain(|path, entry| {
            let is_there = entries.contains(path);
            if !is_there && entry.is_told {
                forget_note(folder, path); // somebody took it away
            }
            is_there
        });
        for path in entries {
            let Ok(look) = Look::at(&path) else { continue }; // gone, or still being made
            let fresh = || Entry { look, since: Instant::now(), is_told: false };
            let entry = seen.entry(path.clone()).or_insert_with(fresh);
            if entry.look != look {
                *entry = fresh();
            }
            if entry.is_told || entry.since.elapsed() < config.settle {
                continue;
            }
            match take(folder, &path, look, intake) {
                Outcome::Moved => drop(seen.remove(&path)),
                Outcome::Later => {}
                Outcome::Incomplete => entry.is_told = true,
            }
            if shutdown.is_cancelled() {
                return;
            }
        }
        let next = Instant::now() + config.poll;
        while Instant::now() < next && !shutdown.is_cancelled() {
            std::thread::sleep(config.poll.min(Duration::from_millis(100)));
        }
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<_> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        ![TAKEN, REFUSED].contains(&name.as_ref()) && is_whole(&name)
    });
    entries.sort();
    entries
}

fn is_whole(name: &str) -> bool {
    !name.starts_with('.') && !name.ends_with(PART_SUFFIX)
}

/// What changes while an entry is being written, or when one of its files is replaced: a digest of names, lengths and
/// times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look(u64);

impl Look {
    fn at(path: &Path) -> std::io::Result<Self> {
        let mut hash = DefaultHasher::new();
        look_at(path, 0, &mut hash)?;
        Ok(Self(hash.finish()))
    }
}

fn look_at(path: &Path, depth: usize, hash: &mut DefaultHasher) -> std::io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    (path, found.len(), found.ino(), found.modified()?).hash(hash);
    (found.ctime(), found.ctime_nsec()).hash(hash);
    if found.is_dir() && depth < MAX_DEPTH {
        let mut below: Vec<_> =
            fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
        below.sort();
        below.iter().try_for_each(|path| look_at(path, depth + 1, hash))?;
    }
    Ok(())
}

/// Why an entry is not taken, and which of its files is at fault, where it is a folder.
struct Reason {
    file: Option<String>,
    refusal: Refusal,
}

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Self {
        Self { file: None, refusal }
    }
}

impl Reason {
    /// For the note beside the entry. The log does not get it: file names may name patients.
    fn text(&self) -> String {
        match &self.file {
            Some(file) => format!("{file}: {}", self.refusal),
            None => self.refusal.to_string(),
        }
    }
}

/// Keeps an entry and puts it on its shelf.
fn take(folder: &Path, path: &Path, look: Look, intake: &Intake) -> Outcome {
    let images = match images_in(path, intake) {
        Ok(images) if images.is_empty() => {
            return Outcome::Later; // a folder that was made, and into which nothing was copied yet
        }
        // It has changed while it was read: what was read may be a mixture.
        Ok(_) if Look::at(path).ok() != Some(look) => return Outcome::Later,
        other => other,
    };
    let kept = images.and_then(|images| Ok(intake.keep(images, "folder")?));
    let fault = match kept {
        Ok(jobs) => {
            tracing::info!(jobs = jobs.len(), "taken from the watched folder");
            forget_note(folder, path);
            return match shelve(folder, TAKEN, path) {
                Some(_) => Outcome::Moved,
                None => Outcome::Later,
            };
        }
        Err(fault) => fault,
    };
    match &fault.refusal {
        Refusal::OutOfResources(error) => {
            tracing::error!(%error, "the watched folder cannot be taken from now");
            Outcome::Later
        }
        Refusal::Broken(reason) => {
            tracing::warn!(
                reason,
                "an entry of the watched folder is incomplete; it is looked at again when it changes"
            );
            let remedy = "Copy the file again, or take the entry away; it is looked at again when it changes.";
            write_note(&note(folder, path), &format!("{}\n{remedy}\n", fault.text()));
            Outcome::Incomplete
        }
        refusal => {
            tracing::warn!(reason = %refusal, "an entry of the watched folder is refused");
            forget_note(folder, path);
            let Some(shelved) = shelve(folder, REFUSED, path) else { return Outcome::Later };
            write_note(&shelved.with_extension("refused.txt"), &format!("{}\n", fault.text()));
            Outcome::Moved
        }
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn note(folder: &Path, path: &Path) -> PathBuf {
    folder.join(REFUSED).join(format!("{}.waiting.txt", name_of(path)))
}

fn forget_note(folder: &Path, path: &Path) {
    let _ = fs::remove_file(note(folder, path)); // most entries have none
}

fn write_note(note: &Path, text: &str) {
    if let Err(error) = fs::write(note, text) {
        tracing::warn!(%error, "the reason of a refusal cannot be written");
    }
}

/// The images of an entry, copied into the spool.
fn images_in(path: &Path, intake: &Intake) -> Result<Vec<Examined>, Reason> {
    let unreadable = |source| Refusal::from(DurableError::of("read", path)(source));
    let kind = fs::symlink_metadata(path).map_err(unreadable)?.file_type();
    if kind.is_file() {
        return Ok(vec![intake.examine(copied(path, intake)?, Some(&name_of(path)))?]);
    }
    let mut found = Beside::default();
    found.gather(path, path, intake, 0)?;
    match found {
        Beside { images, other: Some(fault), .. } if images.is_empty() => Err(fault),
        Beside { images, .. } => Ok(images),
    }
}

/// What a folder holds.
#[derive(Default)]
struct Beside {
    images: Vec<Examined>,
    /// Why the last of what is no image is none.
    other: Option<Reason>,
}

impl Beside {
    /// Links are not followed: they may lead anywhere.
    fn gather(
        &mut self,
        entry: &Path,
        path: &Path,
        intake: &Intake,
        depth: usize,
    ) -> Result<(), Reason> {
        let fault = |refusal| {
            let name = path.strip_prefix(entry).unwrap_or(path);
            Reason { file: Some(name.display().to_string()), refusal }
        };
        let unreadable = |source| DurableError::of("read", path)(source).into();
        let kind = fs::symlink_metadata(path).map_err(|e| fault(unreadable(e)))?.file_type();
        if kind.is_dir() && depth < MAX_DEPTH {
            let below = entries(path);
            return below.iter().try_for_each(|path| self.gather(entry, path, intake, depth + 1));
        }
        if !kind.is_file() {
            let link = "it is a link or a special file, or lies too deep";
            return Err(fault(Refusal::NotAnImage(link)));
        }
        let is_image = codec::is_image(path).map_err(|error| fault(error.into()))?;
        if !is_image {
            self.other = Some(fault(Refusal::NotAnImage("it is no image that can be segmented")));
            return Ok(());
        }
        let copy = copied(path, intake).map_err(fault)?;
        self.images.push(intake.examine(copy, Some(&name_of(path))).map_err(fault)?);
        Ok(())
    }
}

fn copied(path: &Path, intake: &Intake) -> Result<Synced, Refusal> {
    let unreadable = |source| Refusal::from(DurableError::of("read", path)(source));
    let mut from = fs::File::open(path).map_err(unreadable)?;
    let mut file = intake.begin()?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer).map_err(unreadable)? {
            0 => return Ok(file.sync()?),
            count => file.write(&buffer[..count])?,
        }
    }
}

/// Moves `path` to a shelf under a name that is free there.
fn shelve(folder: &Path, shelf: &str, path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_string_lossy().into_owned();
    let shelf = folder.join(shelf);
    let free = (0..u32::MAX)
        .map(|number| match number {
            0 => shelf.join(&name),
            n => shelf.join(format!("{n}-{name}")),
        })
        .find(|target| fs::symlink_metadata(target).is_err())?;
    match fs::rename(path, &free) {
        Ok(()) => Some(free),
        Err(error) => {
            tracing::error!(%error, "an entry of the watched folder cannot be moved; it stays and is taken again");
            None
        }
    }
}
