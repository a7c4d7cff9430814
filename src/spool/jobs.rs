use std::fmt;
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{DeliveryState, JobState, Product, Spool, SpoolError, deliveries, now_ms};
use crate::domain::Uid;
use crate::durable::{self, failpoint};

/// Names a job in logs and on the command line. Random: it says nothing about the patient.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JobId(String);

impl JobId {
    /// `None` if `text` from outside is not the name of a job: 16 hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_id =
            text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        is_id.then(|| Self(text.to_owned()))
    }

    pub(super) fn from_column(row: &Row<'_>, column: &str) -> rusqlite::Result<Self> {
        row.get(column).map(Self)
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A job taken by the worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub job: JobId,
    /// 1 for the first.
    pub attempt: u32,
    /// Of this claim: an older one counts no more.
    pub epoch: i64,
    /// Every accepted object of the series, in order of arrival.
    pub files: Vec<PathBuf>,
    /// 1 for the first job of its series; late objects make the next.
    pub revision: u32,
    /// From ready to claimed.
    pub queue: Duration,
}

/// What follows a transient failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    Scheduled,
    /// The attempts are used up: the job has failed.
    GivenUp,
    /// A later revision covers the series.
    Superseded,
}

/// How much there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    pub received: u64,
    pub ready: u64,
    pub running: u64,
    pub failed: u64,
    pub quarantined: u64,
    pub pending_deliveries: u64,
    pub dead_deliveries: u64,
    /// Senders' requests for storage commitment that are not answered yet.
    pub pending_reports: u64,
}

impl Spool {
    /// Makes `job` ready if its series was still being received.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn complete(&self, job: &JobId) -> Result<bool, SpoolError> {
        let changed = self.database_unsynced()?.execute(
            "UPDATE jobs SET state = 'ready', ready_ms = ?2 WHERE id = ?1 AND state = 'received'",
            params![job.0, now_ms()],
        )?;
        Ok(changed > 0)
    }

    /// Makes `job` ready again if it has failed: its sender has sent the series again.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn resent(&self, job: &JobId) -> Result<bool, SpoolError> {
        let mut database = self.database();
        let transaction = database.transaction()?;
        if state_of(&transaction, job)? != JobState::Failed {
            return Ok(false);
        }
        run_again(&transaction, job, "sent again by its sender")?;
        transaction.commit()?;
        Ok(true)
    }

    /// Makes every series ready that got nothing for `idle`, but for those in `busy`. Returns their jobs, and in how long
    /// the next one will be idle. A clock that was set back makes a series ready early rather than never: a late object
    /// opens a new revision.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn complete_idle(
        &self,
        idle: Duration,
        busy: &[Uid],
    ) -> Result<(Vec<JobId>, Option<Duration>), SpoolError> {
        let busy: Vec<&str> = busy.iter().map(Uid::as_str).collect();
        let busy = serde_json::to_string(&busy).expect("a list of texts serialises");
        let database = self.database();
        let now = now_ms();
        let cutoff = now.saturating_sub(i64::try_from(idle.as_millis()).unwrap_or(i64::MAX));
        let ready = database
            .prepare_cached(
                "UPDATE jobs SET state = 'ready', ready_ms = ?1
                 WHERE state = 'received' AND (last_received_ms <= ?2 OR last_received_ms > ?1)
                   AND series_uid NOT IN (SELECT value FROM json_each(?3))
                 RETURNING id",
            )?
            .query_map(params![now, cutoff, busy], |row| JobId::from_column(row, "id"))?
            .collect::<Result<_, _>>()?;
        let oldest: Option<i64> = database
            .prepare_cached(
                "SELECT min(last_received_ms) FROM jobs
                 WHERE state = 'received' AND series_uid NOT IN (SELECT value FROM json_each(?1))",
            )?
            .query_row([&busy], |row| row.get(0))?;
        let wait = oldest
            .map(|ms| Duration::from_millis(ms.saturating_sub(cutoff).max(1).cast_unsigned()));
        Ok((ready, wait))
    }

    /// Takes the oldest ready job, if there is one.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn claim(&self) -> Result<Option<Claim>, SpoolError> {
        let mut database = self.database_unsynced()?;
        let transaction = database.transaction()?;
        let now = now_ms();
        let found = transaction
            .prepare_cached(
                "SELECT id, series_uid, revision, attempts, ready_ms FROM jobs
                 WHERE state = 'ready' AND not_before_ms <= ?1 ORDER BY seq LIMIT 1",
            )?
            .query_row([now], |row| {
                let ready_ms: Option<i64> = row.get("ready_ms")?;
                let series: String = row.get("series_uid")?;
                let (attempts, revision): (u32, u32) = (row.get("attempts")?, row.get("revision")?);
                let job = JobId::from_column(row, "id")?;
                Ok((job, series, revision, attempts + 1, ready_ms.unwrap_or(now)))
            })
            .optional()?;
        let Some((job, series, revision, attempt, ready_ms)) = found else { return Ok(None) };
        let queue_ms = now.saturating_sub(ready_ms).max(0);
        move_to(&transaction, &job, JobState::Running, None)?;
        transaction.execute(
            "UPDATE jobs SET attempts = ?2, queue_ms = ?3 WHERE id = ?1",
            params![job.0, attempt, queue_ms],
        )?;
        let files = transaction
            .prepare_cached(
                "SELECT path FROM instances WHERE series_uid = ?1 AND state = 'accepted' ORDER BY id",
            )?
            .query_map([series], |row| row.get::<_, String>(0))?
            .map(|path| path.map(|path| self.absolute(&path)))
            .collect::<Result<_, _>>()?;
        transaction.commit()?;
        self.sync_soon(); // while the job is computed: one that brings the machine down counts as started
        failpoint::reach("job.claimed");
        let queue = Duration::from_millis(queue_ms.cast_unsigned());
        let epoch = i64::from(attempt);
        Ok(Some(Claim { job, attempt, epoch, files, revision, queue }))
    }

    /// Whether the job is still with whoever made this claim.
    ///
    /// # Errors
    /// `Overtaken` if it is not.
    pub(super) fn holds(&self, claim: &Claim) -> Result<(), SpoolError> {
        let attempts: Option<i64> = self
            .database()
            .prepare_cached("SELECT attempts FROM jobs WHERE id = ?1 AND state = 'running'")?
            .query_row([&claim.job.0], |row| row.get(0))
            .optional()?;
        let is_held = attempts == Some(claim.epoch);
        let overtaken = || SpoolError::Overtaken { what: "job", id: claim.job.to_string() };
        is_held.then_some(()).ok_or_else(overtaken)
    }

    /// In how long a ready job that waits for its next attempt may be claimed.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn next_claim(&self) -> Result<Option<Duration>, SpoolError> {
        let earliest: Option<i64> = self
            .database()
            .prepare_cached("SELECT min(not_before_ms) FROM jobs WHERE state = 'ready'")?
            .query_row([], |row| row.get(0))?;
        Ok(earliest
            .map(|ms| Duration::from_millis(ms.saturating_sub(now_ms()).max(0).cast_unsigned())))
    }

    /// Ends a running job with its products, each to be sent to every one of `destinations`. Without a destination
    /// they stay in the spool.
    ///
    /// # Errors
    /// If the disk refuses; the job is then still running.
    pub fn finish(
        &self,
        job: &JobId,
        products: &[Product],
        destinations: &[String],
        compute: Duration,
    ) -> Result<(), SpoolError> {
        let _shared = self.payloads.read().unwrap_or_else(PoisonError::into_inner);
        let mut files = Vec::with_capacity(products.len());
        for product in products {
            let synced = durable::write(&self.incoming(), &product.bytes)?;
            let extension = product.name.rsplit_once('.').map_or("dcm", |(_, extension)| extension);
            let sha256 = synced.sha256.clone();
            let path = format!("products/{sha256}.{extension}");
            self.keep(synced, &path)?;
            files.push((product, path, sha256));
        }
        failpoint::reach("finish.renamed");
        let mut database = self.database_unsynced()?;
        let transaction = database.transaction()?;
        move_to(&transaction, job, JobState::Done, super::warnings(products).as_deref())?;
        transaction.execute(
            "UPDATE jobs SET compute_ms = ?2 WHERE id = ?1",
            params![job.0, i64::try_from(compute.as_millis()).unwrap_or(i64::MAX)],
        )?;
        supersede_failed(&transaction, job)?;
        for (product, path, sha256) in &files {
            if destinations.is_empty() {
                let kept = ("", DeliveryState::Sent);
                deliveries::insert(&transaction, job, kept, product, path, sha256)?;
            }
            for destination in destinations {
                let pending = (destination.as_str(), DeliveryState::Pending);
                deliveries::insert(&transaction, job, pending, product, path, sha256)?;
            }
        }
        failpoint::reach("finish.recorded");
        transaction.commit()?;
        self.sync_soon();
        failpoint::reach("finish.committed");
        Ok(())
    }

    /// Ends a running job that will never give a result.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn fail(&self, job: &JobId, reason: &str) -> Result<(), SpoolError> {
        let mut database = self.database();
        let transaction = database.transaction()?;
        move_to(&transaction, job, JobState::Failed, Some(reason))?;
        Ok(transaction.commit()?)
    }

    /// Puts a running job back after a transient failure, to be claimed again after `delay`.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn retry(&self, job: &JobId, reason: &str, delay: Duration) -> Result<Retry, SpoolError> {
        let mut database = self.database();
        let transaction = database.transaction()?;
        let delay_ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
        let retry = requeue(&transaction, job, reason, self.config.max_attempts, delay_ms)?;
        transaction.commit()?;
        Ok(retry)
    }

    /// # Errors
    /// If the database refuses.
    pub fn count(&self) -> Result<Count, SpoolError> {
        Ok(self.database().query_row(
            "SELECT (SELECT count(*) FROM jobs WHERE state = 'received'),
                    (SELECT count(*) FROM jobs WHERE state = 'ready'),
                    (SELECT count(*) FROM jobs WHERE state = 'running'),
                    (SELECT count(*) FROM jobs WHERE state = 'failed'),
                    (SELECT count(*) FROM jobs WHERE state = 'quarantined'),
                    (SELECT count(*) FROM deliveries WHERE state = 'pending'),
                    (SELECT count(*) FROM deliveries WHERE state = 'dead'),
                    (SELECT count(*) FROM commitments WHERE state = 'pending')",
            [],
            |row| {
                Ok(Count {
                    received: row.get(0)?,
                    ready: row.get(1)?,
                    running: row.get(2)?,
                    failed: row.get(3)?,
                    quarantined: row.get(4)?,
                    pending_deliveries: row.get(5)?,
                    dead_deliveries: row.get(6)?,
                    pending_reports: row.get(7)?,
                })
            },
        )?)
    }
}

/// The job a new object of `series` belongs to: the one that has not started, or a new revision.
/// `state` is `Received` for an accepted object, `Quarantined` for a contradictory one, with the reason.
pub(super) fn open_job(
    connection: &Connection,
    series: &str,
    now: i64,
    state: JobState,
    reason: Option<&str>,
) -> Result<JobId, SpoolError> {
    let open = connection
        .prepare_cached(
            "SELECT id FROM jobs WHERE series_uid = ?1 AND state IN ('received', 'ready', 'quarantined')
             ORDER BY revision DESC LIMIT 1",
        )?
        .query_row([series], |row| JobId::from_column(row, "id"))
        .optional()?;
    if let Some(job) = open {
        connection.execute(
            "UPDATE jobs SET last_received_ms = ?2, reason = coalesce(?4, reason),
                    state = CASE WHEN ?3 = 'quarantined' THEN ?3 ELSE state END
             WHERE id = ?1",
            params![job.0, now, state, reason],
        )?;
        return Ok(job);
    }
    Ok(connection.query_row(
        "INSERT INTO jobs (series_uid, revision, state, reason, last_received_ms)
         VALUES (?1, 1 + (SELECT coalesce(max(revision), 0) FROM jobs WHERE series_uid = ?1), ?2, ?3, ?4)
         RETURNING id",
        params![series, state, reason, now],
        |row| JobId::from_column(row, "id"),
    )?)
}

pub(super) fn requeue(
    connection: &Connection,
    job: &JobId,
    reason: &str,
    max_attempts: u32,
    delay_ms: i64,
) -> Result<Retry, SpoolError> {
    let (attempts, superseded): (u32, bool) = connection.query_row(
        "SELECT attempts, EXISTS (SELECT 1 FROM jobs later WHERE later.series_uid = jobs.series_uid
                                  AND later.revision > jobs.revision)
         FROM jobs WHERE id = ?1",
        [&job.0],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    if superseded {
        move_to(connection, job, JobState::Superseded, Some(reason))?;
        return Ok(Retry::Superseded);
    }
    if attempts >= max_attempts {
        move_to(connection, job, JobState::Failed, Some(reason))?;
        return Ok(Retry::GivenUp);
    }
    move_to(connection, job, JobState::Ready, Some(reason))?;
    connection.execute(
        "UPDATE jobs SET not_before_ms = ?2 WHERE id = ?1",
        params![job.0, now_ms().saturating_add(delay_ms)],
    )?;
    Ok(Retry::Scheduled)
}

pub(super) fn state_of(connection: &Connection, job: &JobId) -> Result<JobState, SpoolError> {
    connection
        .prepare_cached("SELECT state FROM jobs WHERE id = ?1")?
        .query_row([&job.0], |row| row.get(0))
        .optional()?
        .ok_or_else(|| SpoolError::Unknown { id: job.0.clone() })
}

pub(super) fn cannot_become(job: &JobId, found: JobState, wanted: JobState) -> SpoolError {
    let (state, wanted) = (found.as_str(), wanted.as_str());
    SpoolError::State { what: "job", id: job.0.clone(), state, wanted }
}

/// What failed in earlier revisions of the same series is covered by this one.
fn supersede_failed(connection: &Connection, done: &JobId) -> Result<(), SpoolError> {
    connection.execute(
        "UPDATE jobs SET state = 'superseded', finished_ms = ?2
         FROM (SELECT series_uid, revision FROM jobs WHERE id = ?1) AS done
         WHERE jobs.series_uid = done.series_uid AND jobs.revision < done.revision
           AND jobs.state = 'failed'",
        params![done.0, now_ms()],
    )?;
    Ok(())
}

/// Makes a job ready that has no result, with all its attempts.
pub(super) fn run_again(
    connection: &Connection,
    job: &JobId,
    reason: &str,
) -> Result<(), SpoolError> {
    move_to(connection, job, JobState::Ready, Some(reason))?;
    connection.execute(
        "UPDATE jobs SET attempts = 0, not_before_ms = 0, ready_ms = ?2 WHERE id = ?1",
        params![job.0, now_ms()],
    )?;
    Ok(())
}

/// The one way from state to state, along [`JobState::next`].
pub(super) fn move_to(
    connection: &Connection,
    job: &JobId,
    state: JobState,
    reason: Option<&str>,
) -> Result<(), SpoolError> {
    let found = state_of(connection, job)?;
    if !found.next().contains(&state) {
        return Err(cannot_become(job, found, state));
    }
    let ended = !matches!(state, JobState::Received | JobState::Ready | JobState::Running);
    connection
        .prepare_cached("UPDATE jobs SET state = ?2, reason = ?3, finished_ms = ?4 WHERE id = ?1")?
        .execute(params![job.0, state, reason, ended.then(now_ms)])?;
    Ok(())
}
