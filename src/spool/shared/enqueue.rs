//! From a device's spool onto the shared queue.

use std::collections::HashMap;
use std::path::PathBuf;

use sqlx::postgres::PgConnection;
use sqlx::{Connection, Row};

use super::payloads::{self, Content};
use super::{Shared, ms};
use crate::durable::failpoint;
use crate::spool::content::Likeness;
use crate::spool::{InstanceState, JobId, JobState, SpoolError};

/// One object in a device's spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub sop_instance_uid: String,
    /// Empty for what is no DICOM object.
    pub sop_class_uid: String,
    /// Of the file, hexadecimal.
    pub sha256: String,
    pub path: PathBuf,
    pub extension: String,
    pub bytes: u64,
}

/// Objects of one series.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handover {
    pub series: String,
    /// In order of arrival.
    pub objects: Vec<Object>,
    /// More is not expected: the job is ready.
    pub is_complete: bool,
}

/// What became of a handover. All of it is on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enqueued {
    /// The newest job of the series.
    pub job: JobId,
    pub state: JobState,
    /// Objects that were not there before.
    pub new_objects: usize,
}

impl Shared {
    /// Puts objects onto the queue, with their payloads, all or none. Once more of the same changes nothing.
    ///
    /// # Errors
    /// If a file is not what was recorded, or the server refuses.
    pub fn enqueue(&self, handover: &Handover) -> Result<Enqueued, SpoolError> {
        let bytes = handover.objects.iter().map(|object| object.bytes).sum();
        let enqueued = self.run(bytes, async {
            let pool = self.pool().await?;
            let mut connection = pool.acquire().await?;
            let day = self.day(&mut connection).await?;
            let mut transaction = connection.begin().await?;
            let enqueued = self.enter(&mut transaction, &day, handover).await?;
            failpoint::reach("shared.recorded");
            transaction.commit().await?;
            failpoint::reach("shared.committed");
            Ok(enqueued)
        })?;
        if handover.is_complete {
            self.run(0, async {
                self.tell().await;
                Ok(())
            })?;
        }
        Ok(enqueued)
    }

    async fn enter(
        &self,
        transaction: &mut PgConnection,
        day: &str,
        handover: &Handover,
    ) -> Result<Enqueued, SpoolError> {
        let series = handover.series.as_str();
        // Devices may bring the same series at once.
        sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))")
            .bind(series)
            .execute(&mut *transaction)
            .await?;
        let known = known(transaction, &handover.objects).await?;
        let (mut accepted, mut contradicted, mut reason) = (0, 0, None);
        for object in &handover.objects {
            let of_uid = known.get(&object.sop_instance_uid).map_or(&[][..], Vec::as_slice);
            if of_uid.iter().any(|known| known.sha256 == object.sha256) {
                continue;
            }
            let first = of_uid.iter().find(|k| k.state == InstanceState::Accepted.as_str());
            let state = match first {
                None => InstanceState::Accepted,
                Some(known) => match self.liken(known, object).await? {
                    Likeness::Same => continue,
                    Likeness::Better => {
                        forget_broken(transaction, &object.sop_instance_uid).await?;
                        InstanceState::Accepted
                    }
                    other @ Likeness::Other(_) => {
                        reason = other.reason();
                        InstanceState::Quarantined
                    }
                },
            };
            let content = Content::File(&object.path);
            payloads::deposit(transaction, (day, &object.sha256), content).await?;
            sqlx::query(
                "INSERT INTO instances
                     (sop_uid, sop_class_uid, series_uid, sha256, extension, bytes, day, state, device)
                 VALUES ($1, $2, $3, $4, $5, $6, $7::text::date, $8, $9)",
            )
            .bind(&object.sop_instance_uid)
            .bind(&object.sop_class_uid)
            .bind(series)
            .bind(&object.sha256)
            .bind(&object.extension)
            .bind(object.bytes.cast_signed())
            .bind(day)
            .bind(state.as_str())
            .bind(self.device())
            .execute(&mut *transaction)
            .await?;
            match state {
                InstanceState::Accepted => accepted += 1,
                InstanceState::Quarantined => contradicted += 1,
            }
        }
        if accepted > 0 {
            self.open_job(transaction, series, JobState::Received, None).await?;
        }
        if contradicted > 0 {
            self.open_job(transaction, series, JobState::Quarantined, reason).await?;
        }
        if handover.is_complete && accepted + contradicted == 0 {
            try_again(transaction, series).await?;
        }
        if handover.is_complete {
            sqlx::query(
                "UPDATE jobs SET state = 'ready', ready_ms = now_ms(),
                        model = CASE WHEN model = '' THEN $2 ELSE model END
                 WHERE series_uid = $1 AND state = 'received'",
            )
            .bind(series)
            .bind(&self.means.model)
            .execute(&mut *transaction)
            .await?;
        }
        let newest = sqlx::query(
            "SELECT id, state FROM jobs WHERE series_uid = $1 ORDER BY revision DESC LIMIT 1",
        )
        .bind(series)
        .fetch_one(&mut *transaction)
        .await?;
        Ok(Enqueued {
            job: job_id(newest.try_get(0)?)?,
            state: state(newest.try_get(1)?)?,
            new_objects: accepted + contradicted,
        })
    }

    /// What an object is to the one that was accepted under its UID, which is brought here to be read.
    async fn liken(&self, known: &Known, object: &Object) -> Result<Likeness, SpoolError> {
        let content = self.content.get();
        if content.is_none() {
            return Ok(Likeness::Other(Vec::new()));
        }
        let folder = self.folder()?;
        let Known { sha256, day, extension, bytes, .. } = known;
        let payload = (day.as_str(), sha256.as_str(), extension.as_str(), *bytes);
        match self.borrow(self.pool().await?, folder.path(), payload).await {
            Ok(path) => Ok(Likeness::of(content, &path, &object.path)),
            Err(SpoolError::Damaged { .. }) => Ok(Likeness::Better),
            Err(error) => Err(error),
        }
    }

    /// The job that has not started takes new objects in, or a new revision does.
    async fn open_job(
        &self,
        transaction: &mut PgConnection,
        series: &str,
        state: JobState,
        reason: Option<String>,
    ) -> Result<(), SpoolError> {
        let open = sqlx::query(
            "UPDATE jobs SET last_received_ms = now_ms(), reason = coalesce($3, reason),
                    state = CASE WHEN $2 = 'quarantined' THEN $2 ELSE state END
             WHERE id = (SELECT id FROM jobs WHERE series_uid = $1
                         AND state IN ('received', 'ready', 'quarantined')
                         ORDER BY revision DESC LIMIT 1 FOR UPDATE)",
        )
        .bind(series)
        .bind(state.as_str())
        .bind(&reason)
        .execute(&mut *transaction)
        .await?;
        if open.rows_affected() > 0 {
            return Ok(());
        }
        sqlx::query(
            "INSERT INTO jobs (id, series_uid, revision, state, reason, last_received_ms, model, device)
             VALUES (substr(replace(gen_random_uuid()::text, '-', ''), 1, 16), $1,
                     1 + (SELECT coalesce(max(revision), 0) FROM jobs WHERE series_uid = $1),
                     $2, $3, now_ms(), $4, $5)",
        )
        .bind(series)
        .bind(state.as_str())
        .bind(reason)
        .bind(&self.means.model)
        .bind(self.device())
        .execute(&mut *transaction)
        .await?;
        Ok(())
    }

    /// Makes series ready of which nothing came for `idle` and a lease on top: the device that received them is gone.
    /// Returns how many.
    ///
    /// # Errors
    /// If the server refuses.
    pub fn complete_abandoned(&self, idle: std::time::Duration) -> Result<u64, SpoolError> {
        self.run(0, async {
            let pool = self.pool().await?;
            let done = sqlx::query(
                "UPDATE jobs SET state = 'ready', ready_ms = now_ms()
                 WHERE state = 'received' AND lease_is_over(last_received_ms + $1, $1)",
            )
            .bind(ms(idle + self.config.lease))
            .execute(pool)
            .await?;
            if done.rows_affected() > 0 {
                self.tell().await;
            }
            Ok(done.rows_affected())
        })
    }
}

/// Something that came under a SOP Instance UID.
struct Known {
    sha256: String,
    state: String,
    day: String,
    extension: String,
    bytes: u64,
}

/// All of it, by SOP Instance UID.
async fn known(
    transaction: &mut PgConnection,
    objects: &[Object],
) -> Result<HashMap<String, Vec<Known>>, SpoolError> {
    let uids: Vec<&str> = objects.iter().map(|object| object.sop_instance_uid.as_str()).collect();
    let rows = sqlx::query(
        "SELECT sop_uid, sha256, state, day::text, extension, bytes FROM instances
         WHERE sop_uid = ANY ($1)",
    )
    .bind(uids)
    .fetch_all(transaction)
    .await?;
    let mut known: HashMap<String, Vec<Known>> = HashMap::new();
    for row in rows {
        known.entry(row.try_get(0)?).or_default().push(Known {
            sha256: row.try_get(1)?,
            state: row.try_get(2)?,
            day: row.try_get(3)?,
            extension: row.try_get(4)?,
            bytes: row.try_get::<i64, _>(5)?.cast_unsigned(),
        });
    }
    Ok(known)
}

/// What was accepted under this UID cannot be read, and another file takes its place.
async fn forget_broken(transaction: &mut PgConnection, sop_uid: &str) -> Result<(), SpoolError> {
    sqlx::query("DELETE FROM instances WHERE sop_uid = $1 AND state = 'accepted'")
        .bind(sop_uid)
        .execute(transaction)
        .await?;
    Ok(())
}

/// A whole series came again: if it has failed or was given up, somebody still wants its result.
async fn try_again(transaction: &mut PgConnection, series: &str) -> Result<(), SpoolError> {
    sqlx::query(
        "UPDATE jobs SET state = 'ready', ready_ms = now_ms(), attempts = 0, not_before_ms = 0,
                finished_ms = NULL, reason = 'all of its objects were sent again'
         WHERE id = (SELECT id FROM jobs WHERE series_uid = $1 ORDER BY revision DESC LIMIT 1)
           AND state = 'failed'",
    )
    .bind(series)
    .execute(transaction)
    .await?;
    Ok(())
}

pub(super) fn job_id(text: &str) -> Result<JobId, SpoolError> {
    JobId::parse(text).ok_or_else(|| strange("id of a job"))
}

pub(super) fn state(word: &str) -> Result<JobState, SpoolError> {
    JobState::parse(word).ok_or_else(|| strange("state of a job"))
}

/// What is in the tables, but cannot be.
pub(super) fn strange(what: &str) -> SpoolError {
    let problem = format!("an unknown {what}; use the program version that wrote it");
    SpoolError::Shared { problem, is_outage: false }
}
