//! What goes from here to the queue that devices share.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{OptionalExtension, params};

use super::instances::Payload;
use super::jobs::{self, JobId};
use super::shared::{Handover, Object, Shared};
use super::{Arrival, JobState, Spool, SpoolError, now_ms};
use crate::domain::Uid;

impl Spool {
    /// From now on an object is safe once it is on `shared` too, and refused while that is out of reach.
    pub fn replicate_to(&self, shared: Arc<Shared>) {
        let _ = self.replica.set(shared);
    }

    /// The oldest ready job with everything of its series, if there is one.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn next_handover(&self) -> Result<Option<(JobId, Handover)>, SpoolError> {
        let database = self.database();
        let found = database
            .prepare_cached(
                "SELECT id, series_uid FROM jobs WHERE state = 'ready' AND not_before_ms <= ?1
                 ORDER BY seq LIMIT 1",
            )?
            .query_row([now_ms()], |row| Ok((JobId::from_column(row, "id")?, row.get(1)?)))
            .optional()?;
        let Some((job, series)) = found else { return Ok(None) };
        let series: String = series;
        let objects = database
            .prepare_cached(
                "SELECT sop_uid, sop_class_uid, sha256, path, bytes FROM instances
                 WHERE series_uid = ?1 AND state = 'accepted' ORDER BY id",
            )?
            .query_map([&series], |row| {
                let path: String = row.get(3)?;
                Ok(Object {
                    sop_instance_uid: row.get(0)?,
                    sop_class_uid: row.get(1)?,
                    sha256: row.get(2)?,
                    extension: extension_of(&path),
                    path: self.absolute(&path),
                    bytes: row.get(4)?,
                })
            })?
            .collect::<Result<_, _>>()?;
        Ok(Some((job, Handover { series, objects, is_complete: true })))
    }

    /// `handover` is on the shared queue, as part of `as_job`. Returns whether that was all of it: an object that came
    /// meanwhile has to go there too.
    ///
    /// # Errors
    /// If the database refuses; it is then handed over once more, which changes nothing there.
    pub fn handed_over(
        &self,
        job: &JobId,
        handover: &Handover,
        as_job: &JobId,
    ) -> Result<bool, SpoolError> {
        let mut database = self.database_unsynced()?;
        let transaction = database.transaction()?;
        for object in &handover.objects {
            transaction
                .prepare_cached(
                    "UPDATE instances SET is_shared = 1 WHERE sop_uid = ?1 AND sha256 = ?2",
                )?
                .execute([&object.sop_instance_uid, &object.sha256])?;
        }
        let rest: u64 = transaction.query_row(
            "SELECT count(*) FROM instances WHERE series_uid = ?1 AND state = 'accepted' AND NOT is_shared",
            [&handover.series],
            |row| row.get(0),
        )?;
        let is_all = rest == 0 && jobs::state_of(&transaction, job)? == JobState::Ready;
        if is_all {
            let reason = format!("on the shared queue as job {as_job}");
            jobs::move_to(&transaction, job, JobState::Shared, Some(&reason))?;
            transaction.execute(
                "UPDATE jobs SET shared_as = ?2 WHERE id = ?1",
                params![job.as_str(), as_job.as_str()],
            )?;
        }
        transaction.commit()?;
        Ok(is_all)
    }

    /// The queue refuses this one: others go first for `delay`.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn postpone_handover(&self, job: &JobId, delay: Duration) -> Result<(), SpoolError> {
        let delay_ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
        self.database().execute(
            "UPDATE jobs SET not_before_ms = ?2 WHERE id = ?1 AND state = 'ready'",
            params![job.as_str(), now_ms().saturating_add(delay_ms)],
        )?;
        Ok(())
    }

    /// What is on the disk is not what came in: a person has to look.
    ///
    /// # Errors
    /// If the database refuses, or the job is not ready any more.
    pub fn set_aside(&self, job: &JobId, reason: &str) -> Result<(), SpoolError> {
        jobs::move_to(&self.database(), job, JobState::Quarantined, Some(reason))
    }

    /// Bytes of objects that are to go to the shared queue and are only here.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn unreplicated_bytes(&self) -> Result<u64, SpoolError> {
        Ok(self
            .database()
            .prepare_cached(
                "SELECT coalesce(sum(bytes), 0) FROM instances WHERE state = 'accepted' AND NOT is_shared
                   AND series_uid IN (SELECT series_uid FROM jobs WHERE state IN ('received', 'ready'))",
            )?
            .query_row([], |row| row.get(0))?)
    }

    pub(super) fn replicate(
        &self,
        replica: &Shared,
        arrival: &Arrival,
        payload: &Payload,
    ) -> Result<(), SpoolError> {
        let Payload { sha256, path, bytes } = payload;
        let object = Object {
            sop_instance_uid: arrival.sop_instance_uid.to_string(),
            sop_class_uid: arrival.sop_class_uid.as_ref().map_or("", Uid::as_str).to_owned(),
            sha256: sha256.clone(),
            path: self.absolute(path),
            extension: extension_of(path),
            bytes: *bytes,
        };
        let series = arrival.series_instance_uid.to_string();
        replica.enqueue(&Handover { series, objects: vec![object], is_complete: false })?;
        self.database_unsynced()?.execute(
            "UPDATE instances SET is_shared = 1 WHERE sop_uid = ?1 AND sha256 = ?2",
            params![arrival.sop_instance_uid.as_str(), sha256],
        )?;
        Ok(())
    }
}

/// What stands behind the digest in a payload's name.
fn extension_of(path: &str) -> String {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    name.split_once('.').map_or("dcm", |(_, extension)| extension).to_owned()
}
