use std::collections::HashSet;
use std::fs;

use super::jobs::{self, JobId, Retry};
use super::{Spool, SpoolError};
use crate::durable::{self, DurableError};

/// What the start found left over from the run before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovery {
    /// Jobs that were running and are ready again.
    pub requeued_jobs: usize,
    /// Jobs that were running and have used up their attempts.
    pub failed_jobs: usize,
    /// Half-written files, and whole ones that were never promised to anyone.
    pub removed_files: usize,
}

impl Spool {
    pub(super) fn recover(&self) -> Result<Recovery, SpoolError> {
        let mut recovery = Recovery {
            removed_files: durable::remove_parts(&self.incoming())?
                + self.remove_unrecorded("instances", "instances")?
                + self.remove_unrecorded("products", "deliveries")?,
            ..Recovery::default()
        };
        let mut database = self.database();
        let transaction = database.transaction()?;
        let running = transaction
            .prepare("SELECT id FROM jobs WHERE state = 'running' ORDER BY seq")?
            .query_map([], |row| JobId::from_column(row, "id"))?
            .collect::<Result<Vec<_>, _>>()?;
        for job in running {
            let reason = "the process ended while the job was running";
            match jobs::requeue(&transaction, &job, reason, self.config.max_attempts, 0)? {
                Retry::Scheduled => recovery.requeued_jobs += 1,
                Retry::Superseded => {}
                Retry::GivenUp => recovery.failed_jobs += 1,
            }
        }
        // Whatever kept them waiting may be over: a restart tries everything at once.
        transaction.execute("UPDATE jobs SET not_before_ms = 0 WHERE state = 'ready'", [])?;
        transaction
            .execute("UPDATE deliveries SET next_attempt_ms = 0 WHERE state = 'pending'", [])?;
        transaction
            .execute("UPDATE commitments SET next_attempt_ms = 0 WHERE state = 'pending'", [])?;
        transaction.commit()?;
        Ok(recovery)
    }

    fn remove_unrecorded(&self, folder: &str, table: &str) -> Result<usize, SpoolError> {
        let recorded = self
            .database()
            .prepare(&format!("SELECT path FROM {table}"))?
            .query_map([], |row| row.get::<_, String>(0))?
            .collect::<Result<HashSet<_>, _>>()?;
        let directory = self.config.directory.join(folder);
        let entries = fs::read_dir(&directory).map_err(DurableError::of("list", &directory))?;
        let mut removed = 0;
        for entry in entries.flatten() {
            let relative = format!("{folder}/{}", entry.file_name().to_string_lossy());
            if !recorded.contains(&relative) {
                fs::remove_file(entry.path()).map_err(DurableError::of("remove", entry.path()))?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}
