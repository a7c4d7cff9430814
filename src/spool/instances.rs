use std::sync::PoisonError;

use rusqlite::{Connection, OptionalExtension, params};

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
    /// Of its payload file: `dcm`, `nii`, `png`, ….
    pub extension: &'static str,
}

/// What became of an arrival. In every case it is on the disk and recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// Joined `job`, whose series now has `instances` objects.
    Accepted { job: JobId, instances: u64 },
    /// The same bytes were here before: nothing changed.
    Duplicate,
    /// Other bytes under a known SOP Instance UID: both are kept, `job` waits for a person.
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
        let Some(replica) = self.replica.get() else { return self.record(arrival, object) };
        let (sha256, bytes) = (object.sha256.clone(), object.bytes);
        let stored = self.record(arrival, object)?;
        // Also one that was here before: the answer to it may have been that it is not safe.
        self.replicate(replica, arrival, &sha256, bytes)?;
        Ok(stored)
    }

    fn record(&self, arrival: &Arrival, object: Synced) -> Result<Stored, SpoolError> {
        let _shared = self.payloads.read().unwrap_or_else(PoisonError::into_inner);
        let bytes = object.bytes;
        let sha256 = object.sha256.clone();
        let path = format!("instances/{sha256}.{}", arrival.extension);
        self.keep(object, &path)?;
        failpoint::reach("store.renamed");

        let mut database = self.database();
        let transaction = database.transaction()?;
        let now = now_ms();
        let state = match accepted_sha256(&transaction, &arrival.sop_instance_uid)? {
            Some(known) if known == sha256 => return Ok(Stored::Duplicate),
            Some(_) => InstanceState::Quarantined,
            None => InstanceState::Accepted,
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
                bytes as i64,
                arrival.association.cast_signed(),
                now,
                state,
                arrival.sop_class_uid.as_ref().map_or("", Uid::as_str)
            ],
        )?;
        if added == 0 {
            return Ok(Stored::Duplicate); // of an instance that is in quarantine already
        }
        let stored = match state {
            InstanceState::Accepted => {
                let job = jobs::open_job(&transaction, series, now, JobState::Received)?;
                let instances = count_accepted(&transaction, series)?;
                Stored::Accepted { job, instances }
            }
            InstanceState::Quarantined => {
                let job = jobs::open_job(&transaction, series, now, JobState::Quarantined)?;
                Stored::Quarantined { job }
            }
        };
        failpoint::reach("store.recorded");
        transaction.commit()?;
        failpoint::reach("store.committed");
        Ok(stored)
    }
}

fn accepted_sha256(connection: &Connection, sop_uid: &Uid) -> Result<Option<String>, SpoolError> {
    Ok(connection
        .prepare_cached("SELECT sha256 FROM instances WHERE sop_uid = ?1 AND state = 'accepted'")?
        .query_row([sop_uid.as_str()], |row| row.get(0))
        .optional()?)
}

fn count_accepted(connection: &Connection, series: &str) -> Result<u64, SpoolError> {
    Ok(connection
        .prepare_cached(
            "SELECT count(*) FROM instances WHERE series_uid = ?1 AND state = 'accepted'",
        )?
        .query_row([series], |row| row.get(0))?)
}
