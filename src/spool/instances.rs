use std::sync::PoisonError;

use rusqlite::{Connection, OptionalExtension, params};

use super::content::Likeness;
use super::jobs::{self, JobId};
use super::{InstanceState, JobState, Spool, SpoolError, now_ms};
use crate::domain::Uid;
use crate::durable::{Synced, failpoint};

/// An object that came in, as far as the spool needs to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    pub sop_instance_uid: Uid,
    /// `None` for what is no DICOM object.
    pub sop_class_uid: Option<Uid>,
    pub series_instance_uid: Uid,
    /// Number of the association that brought it, unique within a run of the process; 0 where there was none.
    pub association: u64,
    /// Of its payload file: `dcm`, `nii`, `png`, …. Before it may stand how its giver named it: `scan.nii`.
    pub extension: String,
}

/// What became of an arrival. In every case it is on the disk and recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// Joined `job`, whose series now has `instances` objects.
    Accepted { job: JobId, instances: u64 },
    /// The same instance was here before: nothing changed.
    Duplicate,
    /// As `Duplicate`, and with it all objects of a series without a result have come again: `job` tries once more.
    Resent { job: JobId },
    /// Another content under a known SOP Instance UID: both are kept, `job` waits for a person.
    Quarantined { job: JobId },
}

impl Spool {
    /// Records a synced object; it is safe when this returns, on the shared queue too if [`Spool::replicate_to`] says so.
    ///
    /// # Errors
    /// If the disk is full or refuses; then nothing is recorded. If the shared queue refuses; then it is recorded here,
    /// and the sender has to bring it again.
    pub fn store(&self, arrival: &Arrival, object: Synced) -> Result<Stored, SpoolError> {
        self.check_free_space()?;
        let (stored, payload) = self.record(arrival, object)?;
        if let Some(replica) = self.replica.get() {
            // Also one that was here before: the answer to it may have been that it is not safe.
            self.replicate(replica, arrival, &payload)?;
        }
        Ok(stored)
    }

    fn record(&self, arrival: &Arrival, object: Synced) -> Result<(Stored, Payload), SpoolError> {
        let _shared = self.payloads.read().unwrap_or_else(PoisonError::into_inner);
        let mut came = Payload {
            sha256: object.sha256.clone(),
            path: format!("instances/{}.{}", object.sha256, arrival.extension),
            bytes: object.bytes,
        };
        let mut file = object.path().to_owned();
        let mut object = Some(object);
        loop {
            // Files are compared without holding the database, which others wait for.
            let known = accepted(&self.database(), &arrival.sop_instance_uid)?;
            let likeness = match &known {
                None => None,
                Some(known) if known.sha256 == came.sha256 => Some(Likeness::Same),
                Some(known) => {
                    let known = self.absolute(&known.path);
                    Some(Likeness::of(self.content.get(), &known, &file))
                }
            };
            if !self.has(known.as_ref(), likeness.as_ref())
                && let Some(object) = object.take()
            {
                if let (Some(known), Some(Likeness::Same)) = (&known, &likeness) {
                    // Its file is gone: this one takes its place where it is the very same.
                    came.path.clone_from(&known.path);
                }
                self.keep(object, &came.path)?;
                file = self.absolute(&came.path);
                failpoint::reach("store.renamed");
            }
            if let Some(done) = self.enter(arrival, &came, known, likeness)? {
                return Ok(done);
            }
        }
    }

    /// Whether what came need not be kept.
    fn has(&self, known: Option<&Accepted>, likeness: Option<&Likeness>) -> bool {
        likeness == Some(&Likeness::Same)
            && known.is_some_and(|known| {
                std::fs::metadata(self.absolute(&known.path)).is_ok_and(|f| f.len() == known.bytes)
            })
    }

    /// Writes the row. `None` if another association has brought something under this UID meanwhile.
    fn enter(
        &self,
        arrival: &Arrival,
        came: &Payload,
        known: Option<Accepted>,
        likeness: Option<Likeness>,
    ) -> Result<Option<(Stored, Payload)>, SpoolError> {
        let Payload { sha256, path, bytes } = came;
        let mut database = self.database();
        let transaction = database.transaction()?;
        if accepted(&transaction, &arrival.sop_instance_uid)? != known {
            return Ok(None);
        }
        let now = now_ms();
        let state = match (known, &likeness) {
            (Some(known), Some(Likeness::Same)) => {
                let again = self.came_again(&transaction, &known.series, arrival)?;
                transaction.commit()?;
                let stored = again.map_or(Stored::Duplicate, |job| Stored::Resent { job });
                let Accepted { sha256, path, bytes, .. } = known;
                return Ok(Some((stored, Payload { sha256, path, bytes })));
            }
            (_, Some(Likeness::Other(_))) => InstanceState::Quarantined,
            (_, Some(_)) => {
                transaction.execute(
                    "DELETE FROM instances WHERE sop_uid = ?1 AND state = 'accepted'",
                    [arrival.sop_instance_uid.as_str()],
                )?;
                InstanceState::Accepted
            }
            (_, None) => InstanceState::Accepted,
        };
        let series = arrival.series_instance_uid.as_str();
        let added = transaction.execute(
            "INSERT INTO instances
                 (sop_uid, series_uid, sha256, path, bytes, association, received_ms, state, sop_class_uid)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (sop_uid, sha256) DO NOTHING",
            params![
                arrival.sop_instance_uid.as_str(),
                series,
                sha256,
                path,
                *bytes as i64,
                arrival.association.cast_signed(),
                now,
                state,
                arrival.sop_class_uid.as_ref().map_or("", Uid::as_str)
            ],
        )?;
        if added == 0 {
            return Ok(Some((Stored::Duplicate, came.clone()))); // of one that is in quarantine already
        }
        let stored = match state {
            InstanceState::Accepted => {
                let job = jobs::open_job(&transaction, series, now, JobState::Received, None)?;
                let instances = count_accepted(&transaction, series)?;
                Stored::Accepted { job, instances }
            }
            InstanceState::Quarantined => {
                let reason = likeness.as_ref().and_then(Likeness::reason);
                let (state, reason) = (JobState::Quarantined, reason.as_deref());
                let job = jobs::open_job(&transaction, series, now, state, reason)?;
                Stored::Quarantined { job }
            }
        };
        failpoint::reach("store.recorded");
        transaction.commit()?;
        failpoint::reach("store.committed");
        Ok(Some((stored, came.clone())))
    }
}

/// What came first under a SOP Instance UID.
#[derive(Debug, PartialEq, Eq)]
struct Accepted {
    sha256: String,
    path: String,
    bytes: u64,
    series: String,
}

/// A file in the spool.
#[derive(Debug, Clone)]
pub(super) struct Payload {
    pub(super) sha256: String,
    /// In the spool's directory.
    pub(super) path: String,
    pub(super) bytes: u64,
}

fn accepted(connection: &Connection, sop_uid: &Uid) -> Result<Option<Accepted>, SpoolError> {
    Ok(connection
        .prepare_cached(
            "SELECT sha256, path, bytes, series_uid FROM instances WHERE sop_uid = ?1 AND state = 'accepted'",
        )?
        .query_row([sop_uid.as_str()], |row| {
            Ok(Accepted {
                sha256: row.get(0)?,
                path: row.get(1)?,
                bytes: row.get(2)?,
                series: row.get(3)?,
            })
        })
        .optional()?)
}

pub(super) fn count_accepted(connection: &Connection, series: &str) -> Result<u64, SpoolError> {
    Ok(connection
        .prepare_cached(
            "SELECT count(*) FROM instances WHERE series_uid = ?1 AND state = 'accepted'",
        )?
        .query_row([series], |row| row.get(0))?)
}
