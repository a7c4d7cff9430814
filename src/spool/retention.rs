use std::collections::BTreeSet;
use std::sync::PoisonError;

use rusqlite::Connection;

use super::{Spool, SpoolError, now_ms};
use crate::durable::failpoint;

/// What was removed because it was finished and old, or because room was needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tidied {
    pub series: u64,
    pub bytes: u64,
}

/// Series looked at in one go.
const BATCH: u32 = 256;

/// Series of which nothing is left to be done: no job to run and none that waits for a person, every delivery
/// confirmed or given up by a person. What was only dropped has no age to reach.
const SETTLED: &str = "
    SELECT jobs.series_uid,
           max(iif(jobs.state = 'dropped', 0,
                   max(coalesce(jobs.finished_ms, 0), coalesce(deliveries.settled_ms, 0)))) AS settled_ms
    FROM jobs LEFT JOIN deliveries ON deliveries.job = jobs.id
    WHERE ?1 IS NULL OR jobs.series_uid = ?1
    GROUP BY jobs.series_uid
    HAVING sum(jobs.state NOT IN ('done', 'superseded', 'dropped', 'shared')) = 0
       AND sum(coalesce(deliveries.state NOT IN ('sent', 'dropped'), 0)) = 0
    ORDER BY settled_ms LIMIT ?2";

impl Spool {
    /// Removes finished work that has reached its age, and more of it, the oldest first, where room is needed.
    /// Nothing else is ever removed.
    ///
    /// # Errors
    /// If the database or the disk refuses.
    pub fn tidy(&self) -> Result<Tidied, SpoolError> {
        let mut tidied = Tidied::default();
        let retain_ms = i64::try_from(self.config.retain_for.as_millis()).unwrap_or(i64::MAX);
        let cutoff = now_ms().saturating_sub(retain_ms);
        self.forget_commitments(cutoff)?;
        let settled = settled(&self.database(), None)?;
        for (series, settled_ms) in settled {
            if settled_ms > cutoff && !self.is_pressed()? {
                break;
            }
            if let Some(bytes) = self.forget(&series)? {
                tidied.series += 1;
                tidied.bytes += bytes;
            }
        }
        Ok(tidied)
    }

    /// Removes a series: rows first, so that no row ever names a file that is gone.
    fn forget(&self, series: &str) -> Result<Option<u64>, SpoolError> {
        let _alone = self.payloads.write().unwrap_or_else(PoisonError::into_inner);
        let orphans = {
            let mut database = self.database();
            let transaction = database.transaction()?;
            if settled(&transaction, Some(series))?.is_empty() {
                return Ok(None); // an object came in the meantime
            }
            let paths = paths_of(&transaction, series)?;
            for table in ["deliveries", "jobs", "instances"] {
                let of_series = match table {
                    "deliveries" => "job IN (SELECT id FROM jobs WHERE series_uid = ?1)",
                    _ => "series_uid = ?1",
                };
                transaction.execute(&format!("DELETE FROM {table} WHERE {of_series}"), [series])?;
            }
            let orphans = without_row(&transaction, paths)?;
            transaction.commit()?;
            orphans
        };
        failpoint::reach("tidy.committed");
        // A crash before the last of them leaves files without a row: the next start removes them.
        let mut bytes = 0;
        for path in orphans {
            bytes += self.discard(&self.absolute(&path))?;
        }
        Ok(Some(bytes))
    }
}

/// Series that may be removed with the moment of their last event, the oldest first; all, or only `series`.
fn settled(
    connection: &Connection,
    series: Option<&str>,
) -> Result<Vec<(String, i64)>, SpoolError> {
    let mut query = connection.prepare_cached(SETTLED)?;
    let rows = query.query_map((series, BATCH), |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn paths_of(connection: &Connection, series: &str) -> Result<BTreeSet<String>, SpoolError> {
    let mut query = connection.prepare_cached(
        "SELECT path FROM instances WHERE series_uid = ?1
         UNION SELECT path FROM deliveries WHERE job IN (SELECT id FROM jobs WHERE series_uid = ?1)",
    )?;
    let paths = query.query_map([series], |row| row.get(0))?;
    Ok(paths.collect::<Result<_, _>>()?)
}

/// Those of `paths` that no row names any more: equal content of two series is one file.
fn without_row(
    connection: &Connection,
    mut paths: BTreeSet<String>,
) -> Result<BTreeSet<String>, SpoolError> {
    let mut named = connection.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM instances WHERE path = ?1)
             OR EXISTS (SELECT 1 FROM deliveries WHERE path = ?1)",
    )?;
    let mut kept = Vec::new();
    for path in &paths {
        if named.query_row([path], |row| row.get::<_, bool>(0))? {
            kept.push(path.clone());
        }
    }
    for path in kept {
        paths.remove(&path);
    }
    Ok(paths)
}
