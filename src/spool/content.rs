use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension};

use super::instances::count_accepted;
use super::jobs::{self, JobId};
use super::{Arrival, JobState, Spool, SpoolError, now_ms};

/// What has to be known of an object's content. The spool reads no format itself: `ingest` does it for it. Blocks.
pub trait Content: Debug + Send + Sync + 'static {
    /// Whether the file can be read to its end.
    fn is_whole(&self, file: &Path) -> bool;

    /// What differs between two files under one SOP Instance UID, by the names of attributes; nothing if they hold the
    /// same instance. Never a value.
    fn differences(&self, known: &Path, other: &Path) -> Vec<String>;
}

/// What a file that came under a known SOP Instance UID with other bytes is to the one that came first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Likeness {
    /// The same instance in another file: nothing has to be kept.
    Same,
    /// What came first cannot be read to its end, and this can: it takes its place.
    Better,
    /// Another content, by what differs.
    Other(Vec<String>),
}

impl Likeness {
    /// Without anybody who reads the files, other bytes are another content.
    pub(super) fn of(content: Option<&Arc<dyn Content>>, known: &Path, other: &Path) -> Self {
        let Some(content) = content else { return Self::Other(Vec::new()) };
        if !content.is_whole(known) {
            return Self::Better;
        }
        let differences = content.differences(known, other);
        if differences.is_empty() { Self::Same } else { Self::Other(differences) }
    }

    /// Why the job waits for a person.
    pub(super) fn reason(&self) -> Option<String> {
        const SHOWN: usize = 8;
        let Self::Other(names) = self else { return None };
        if names.is_empty() {
            return Some("two objects with one SOP Instance UID and different content".to_owned());
        }
        let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        let more = match names.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(format!(
            "two objects with one SOP Instance UID and different content: {shown}{more} differ"
        ))
    }
}

/// By series: objects that came again since it failed or was given up.
pub(super) type Resent = Mutex<HashMap<String, HashSet<String>>>;

impl Spool {
    /// From now on objects are known by their content. Before that, two files hold the same instance if their bytes
    /// are equal, and whatever was accepted is whole.
    pub fn understand(&self, content: Arc<dyn Content>) {
        let _ = self.content.set(content);
    }

    pub(super) fn is_whole(&self, file: &Path) -> bool {
        self.content.get().is_none_or(|content| content.is_whole(file))
    }

    /// An object of `series` came again. When all of them have, and the series has failed, was given up, or is on the
    /// shared queue where it may have failed, somebody wants its result: it is tried again, once.
    pub(super) fn came_again(
        &self,
        connection: &Connection,
        series: &str,
        arrival: &Arrival,
    ) -> Result<Option<JobId>, SpoolError> {
        let newest = connection
            .prepare_cached(
                "SELECT id, state FROM jobs WHERE series_uid = ?1 ORDER BY revision DESC LIMIT 1",
            )?
            .query_row([series], |row| {
                Ok((JobId::from_column(row, "id")?, row.get::<_, JobState>("state")?))
            })
            .optional()?;
        let Some((job, state)) = newest else { return Ok(None) };
        if state == JobState::Failed && arrival.association > 0 {
            return Ok(None); // the end of the association decides, see `Spool::resent`
        }
        let mut resent = self.came_again.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(state, JobState::Failed | JobState::Dropped | JobState::Shared) {
            resent.remove(series);
            return Ok(None);
        }
        let came = resent.entry(series.to_owned()).or_default();
        came.insert(arrival.sop_instance_uid.to_string());
        if (came.len() as u64) < count_accepted(connection, series)? {
            return Ok(None);
        }
        resent.remove(series);
        drop(resent);
        let job = match state {
            JobState::Failed => job,
            _ => jobs::open_job(connection, series, now_ms(), JobState::Received, None)?,
        };
        jobs::run_again(connection, &job, "all of its objects were sent again")?;
        Ok(Some(job))
    }
}
