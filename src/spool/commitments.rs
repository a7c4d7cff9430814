//! Storage commitment towards senders (PS3.4 annex J): they ask which of their objects are safe here, and are told
//! later. What they are told is looked up when they are told.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::deliveries::uid_of;
use super::state::CommitmentState;
use super::{Next, Spool, SpoolError, now_ms};
use crate::domain::{SopReference, Uid};
use crate::durable::failpoint;

/// Requests that may wait for their report at one time, of all senders together.
const MAX_OPEN: u64 = 10_000;

/// A sender's request: which of these are safe?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commitment {
    pub id: i64,
    /// AE title of the sender.
    pub requester: String,
    pub transaction: Uid,
    pub objects: Vec<SopReference>,
    /// How often a report was tried before.
    pub attempts: u32,
}

/// What the spool has of an object that somebody refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Accepted, on the disk, and readable to its end.
    Safe,
    Unknown,
    /// Under another SOP class.
    OtherClass,
    /// Two contents came under this UID: which of them is meant, nobody knows.
    Contradicted,
    /// It is there, and cannot be read to its end.
    Broken,
}

impl Spool {
    /// Records a request; it is answered, whatever happens, once this returns. The same request again is answered again.
    ///
    /// # Errors
    /// If the disk is full or refuses, or too many requests wait already.
    pub fn ask_commitment(
        &self,
        requester: &str,
        transaction_uid: &Uid,
        objects: &[SopReference],
    ) -> Result<(), SpoolError> {
        self.check_free_space()?;
        let objects: Vec<_> = objects
            .iter()
            .map(|object| (object.sop_class_uid.as_str(), object.sop_instance_uid.as_str()))
            .collect();
        let objects = serde_json::to_string(&objects).expect("a list of texts serialises");
        let mut database = self.database();
        let transaction = database.transaction()?;
        let open: u64 = transaction.query_row(
            "SELECT count(*) FROM commitments WHERE state = 'pending'",
            [],
            |row| row.get(0),
        )?;
        if open >= MAX_OPEN {
            return Err(SpoolError::TooManyCommitments { open });
        }
        transaction.execute(
            "INSERT INTO commitments (requester, transaction_uid, objects, state, created_ms)
             VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (requester, transaction_uid) DO UPDATE SET
                 objects = excluded.objects, state = excluded.state, created_ms = excluded.created_ms,
                 attempts = 0, next_attempt_ms = 0, settled_ms = NULL",
            params![
                requester,
                transaction_uid.as_str(),
                objects,
                CommitmentState::Pending,
                now_ms()
            ],
        )?;
        transaction.commit()?;
        failpoint::reach("commitment.recorded");
        Ok(())
    }

    /// The request of `requester` that is to be answered next.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn next_commitment(&self, requester: &str) -> Result<Next<Commitment>, SpoolError> {
        let first = self
            .database()
            .prepare_cached(
                "SELECT * FROM commitments WHERE requester = ?1 AND state = 'pending'
                 ORDER BY next_attempt_ms, id LIMIT 1",
            )?
            .query_row([requester], |row| {
                Ok((read_commitment(row)?, row.get::<_, i64>("next_attempt_ms")?))
            })
            .optional()?;
        Ok(Next::of(first))
    }

    /// What of `objects` is safe here, in their order.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn held(&self, objects: &[SopReference]) -> Result<Vec<Held>, SpoolError> {
        let held = |object| {
            let (held, path) = self.held_one(&self.database(), object)?;
            // A file is read without the database: others store meanwhile.
            Ok(match (held, path) {
                (Held::Safe, Some(path)) if !self.is_whole(&path) => Held::Broken,
                (held, _) => held,
            })
        };
        objects.iter().map(held).collect()
    }

    /// Of what is safe, as far as the tables know, also where it is.
    fn held_one(
        &self,
        database: &Connection,
        object: &SopReference,
    ) -> Result<(Held, Option<PathBuf>), SpoolError> {
        let mut query = database.prepare_cached(
            "SELECT state = 'accepted', sop_class_uid, path, bytes FROM instances WHERE sop_uid = ?1",
        )?;
        let mut found = query
            .query_map([object.sop_instance_uid.as_str()], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })?
            .collect::<Result<Vec<(bool, String, String, u64)>, _>>()?;
        let Some((accepted, class, path, bytes)) = found.pop() else {
            return Ok((Held::Unknown, None));
        };
        if !found.is_empty() || !accepted {
            return Ok((Held::Contradicted, None));
        }
        let path = self.absolute(&path);
        let is_there = fs::metadata(&path).is_ok_and(|file| file.len() == bytes);
        Ok(match class.as_str() {
            _ if !is_there => (Held::Unknown, None),
            class if class.is_empty() || class == object.sop_class_uid.as_str() => {
                (Held::Safe, Some(path))
            }
            _ => (Held::OtherClass, None),
        })
    }

    /// The sender acknowledged the report.
    ///
    /// # Errors
    /// If the database refuses; it is then told once more.
    pub fn commitment_told(&self, commitment: &Commitment) -> Result<(), SpoolError> {
        failpoint::reach("commitment.told");
        self.database().execute(
            "UPDATE commitments SET state = ?2, attempts = attempts + 1, settled_ms = ?3 WHERE id = ?1",
            params![commitment.id, CommitmentState::Reported, now_ms()],
        )?;
        Ok(())
    }

    /// Tell the sender after `delay`. What has waited for longer than `give_up_after` is given up; returns whether it was.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn postpone_commitment(
        &self,
        commitment: &Commitment,
        delay: Duration,
        give_up_after: Duration,
    ) -> Result<bool, SpoolError> {
        let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let now = now_ms();
        let database = self.database();
        database.execute(
            "UPDATE commitments SET attempts = attempts + 1, next_attempt_ms = ?2 WHERE id = ?1",
            params![commitment.id, now.saturating_add(ms(delay))],
        )?;
        let given_up = database.execute(
            "UPDATE commitments SET state = ?2, settled_ms = ?3 WHERE id = ?1 AND created_ms < ?4",
            params![
                commitment.id,
                CommitmentState::GivenUp,
                now,
                now.saturating_sub(ms(give_up_after))
            ],
        )?;
        Ok(given_up > 0)
    }

    /// What waits for its next report to `requester` is due now.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn hurry_commitments(&self, requester: &str) -> Result<(), SpoolError> {
        self.database().execute(
            "UPDATE commitments SET next_attempt_ms = 0 WHERE requester = ?1 AND state = 'pending'",
            [requester],
        )?;
        Ok(())
    }

    /// Removes what was answered or given up before `cutoff_ms`.
    pub(super) fn forget_commitments(&self, cutoff_ms: i64) -> Result<(), SpoolError> {
        self.database().execute(
            "DELETE FROM commitments WHERE state <> 'pending' AND settled_ms <= ?1",
            [cutoff_ms],
        )?;
        Ok(())
    }
}

fn read_commitment(row: &Row<'_>) -> rusqlite::Result<Commitment> {
    let objects: String = row.get("objects")?;
    let objects: Vec<(String, String)> = serde_json::from_str(&objects).map_err(|error| {
        let text = rusqlite::types::Type::Text;
        rusqlite::Error::FromSqlConversionFailure(0, text, Box::new(error))
    })?;
    let object = |(class, instance): (String, String)| {
        let (sop_class_uid, sop_instance_uid) = (uid_of(&class)?, uid_of(&instance)?);
        Ok(SopReference { sop_class_uid, sop_instance_uid })
    };
    Ok(Commitment {
        id: row.get("id")?,
        requester: row.get("requester")?,
        transaction: uid_of(&row.get::<_, String>("transaction_uid")?)?,
        objects: objects.into_iter().map(object).collect::<rusqlite::Result<_>>()?,
        attempts: row.get("attempts")?,
    })
}
