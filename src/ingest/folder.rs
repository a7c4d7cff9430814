//! A watched folder: images and series that are put there are cases.
//!
//! An entry is a file, or a folder whose files are one hand-over, such as a DICOM series. It is taken when nothing of it
//! has changed for `settle`: kept in the spool first, then moved to `taken/`; one that is no image goes to `refused/`
//! beside a text that says why. A crash between the two leads to the same job again. Names that begin with a dot or
//! end in `.part` are left alone: writers use them until a file is whole.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{Intake, Refusal};
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

/// Watches until `shutdown`. Blocks.
pub fn watch(config: &Config, intake: &Intake, shutdown: &CancellationToken) {
    let Some(folder) = &config.path else { return };
    let mut seen: HashMap<PathBuf, (Look, Instant)> = HashMap::new();
    while !shutdown.is_cancelled() {
        let entries = entries(folder);
        seen.retain(|path, _| entries.contains(path));
        for path in entries {
            let Ok(look) = Look::at(&path, 0) else { continue }; // gone, or still being made
            let (known, since) = seen.entry(path.clone()).or_insert((look, Instant::now()));
            if *known != look {
                (*known, *since) = (look, Instant::now());
            }
            if since.elapsed() >= config.settle && take(folder, &path, intake) {
                seen.remove(&path);
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

/// What changes while an entry is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    files: u64,
    bytes: u64,
    newest: SystemTime,
}

impl Look {
    fn at(path: &Path, depth: usize) -> std::io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        let mut look = Self { files: 1, bytes: metadata.len(), newest: metadata.modified()? };
        if metadata.is_dir() && depth < MAX_DEPTH {
            for entry in fs::read_dir(path)? {
                let below = Self::at(&entry?.path(), depth + 1)?;
                look.files += below.files;
                look.bytes += below.bytes;
                look.newest = look.newest.max(below.newest);
            }
        }
        Ok(look)
    }
}

/// Keeps an entry and puts it on its shelf. `false`: try again later.
fn take(folder: &Path, path: &Path, intake: &Intake) -> bool {
    let kept = spooled(path, intake, 0).and_then(|files| {
        if files.is_empty() {
            return Err(Refusal::NotAnImage("the folder is empty"));
        }
        intake.accept(files, "folder")
    });
    match kept {
        Ok(jobs) => {
            tracing::info!(jobs = jobs.len(), "taken from the watched folder");
            shelve(folder, TAKEN, path).is_some()
        }
        Err(Refusal::OutOfResources(error)) => {
            tracing::error!(%error, "the watched folder cannot be taken from now");
            false
        }
        Err(refusal) => {
            tracing::warn!(reason = %refusal, "an entry of the watched folder is refused");
            let Some(shelved) = shelve(folder, REFUSED, path) else { return false };
            let note = shelved.with_extension("refused.txt");
            if let Err(error) = fs::write(&note, format!("{refusal}\n")) {
                tracing::warn!(%error, "the reason of a refusal cannot be written");
            }
            true
        }
    }
}

/// The files of an entry, copied into the spool. Links are not followed: they may lead anywhere.
fn spooled(path: &Path, intake: &Intake, depth: usize) -> Result<Vec<Synced>, Refusal> {
    let unreadable = |source| Refusal::from(DurableError::of("read", path)(source));
    let kind = fs::symlink_metadata(path).map_err(unreadable)?.file_type();
    if kind.is_file() {
        let mut from = fs::File::open(path).map_err(unreadable)?;
        let mut file = intake.begin()?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match from.read(&mut buffer).map_err(unreadable)? {
                0 => return Ok(vec![file.sync()?]),
                count => file.write(&buffer[..count])?,
            }
        }
    }
    if !kind.is_dir() || depth >= MAX_DEPTH {
        return Err(Refusal::NotAnImage("it is a link or a special file, or lies too deep"));
    }
    let mut files = Vec::new();
    for below in entries(path) {
        files.extend(spooled(&below, intake, depth + 1)?);
    }
    Ok(files)
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
