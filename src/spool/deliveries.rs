use std::path::PathBuf;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{DeliveryState, DicomObject, JobId, Product, Spool, SpoolError, custody, now_ms};
use crate::domain::Uid;
use crate::durable::failpoint;

/// One product on its way to one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub id: i64,
    pub job: JobId,
    pub destination: String,
    pub name: String,
    /// `None` for a file of another format.
    pub dicom: Option<DicomObject>,
    /// The file.
    pub path: PathBuf,
    /// Of the file, hexadecimal.
    pub sha256: String,
    pub bytes: u64,
    /// How often it was tried before.
    pub attempts: u32,
    /// Of the lease it was handed out under; 0 in the embedded spool, whose only reader needs none.
    pub lease: i64,
}

/// What there is to do for a destination or for a sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next<T> {
    Due(Box<T>),
    /// Nothing is due before this much time has passed.
    After(Duration),
    Nothing,
}

impl<T> Next<T> {
    /// Of what is to be done next, and when.
    pub(super) fn of(first: Option<(T, i64)>) -> Self {
        match first {
            None => Self::Nothing,
            Some((what, due_ms)) => match u64::try_from(due_ms.saturating_sub(now_ms())) {
                Ok(wait_ms @ 1..) => Self::After(Duration::from_millis(wait_ms)),
                _ => Self::Due(Box::new(what)),
            },
        }
    }
}

/// A finished job's figures, once none of its deliveries is pending any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    pub queue_ms: u64,
    pub compute_ms: u64,
    /// From the end of the computation to the last destination's word.
    pub deliver_ms: u64,
    pub sent: u64,
    pub dead: u64,
}

/// What is added to a destination's account.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Entry {
    pub attempts: u64,
    pub sent: u64,
    pub sent_bytes: u64,
    pub dead: u64,
    pub dropped: u64,
}

/// A destination's account. `sent` and the like count since the spool was made; `pending` and `dead` are now.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct Statement {
    pub destination: String,
    pub attempts: u64,
    pub sent: u64,
    pub sent_bytes: u64,
    pub pending: u64,
    pub pending_bytes: u64,
    pub dead: u64,
    /// Given up by a person.
    pub dropped: u64,
}

impl Spool {
    /// The oldest pending delivery to `destination`, when it is due. While it waits for its next attempt, all behind
    /// it wait: a destination gets its objects in the order in which they were made.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn next_delivery(&self, destination: &str) -> Result<Next<Delivery>, SpoolError> {
        let oldest = self
            .database()
            .prepare_cached(
                "SELECT * FROM deliveries WHERE destination = ?1 AND state = 'pending'
                    AND id NOT IN (SELECT delivery FROM custody)
                 ORDER BY id LIMIT 1",
            )?
            .query_row([destination], |row| {
                Ok((self.read_delivery(row)?, row.get::<_, i64>("next_attempt_ms")?))
            })
            .optional()?;
        Ok(Next::of(oldest))
    }

    /// What waits for its next attempt at `destination` is due now.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn hurry(&self, destination: &str) -> Result<(), SpoolError> {
        self.database().execute(
            "UPDATE deliveries SET next_attempt_ms = 0 WHERE destination = ?1 AND state = 'pending'",
            [destination],
        )?;
        Ok(())
    }

    /// The destination confirmed it.
    ///
    /// # Errors
    /// If the database refuses; it is then sent once more, which destinations must bear.
    pub fn sent(&self, delivery: &Delivery) -> Result<Option<Account>, SpoolError> {
        self.leave_pending(delivery, DeliveryState::Sent, None)
    }

    /// The destination refused it for good. It is kept for a person.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn bury(&self, delivery: &Delivery, reason: &str) -> Result<Option<Account>, SpoolError> {
        self.leave_pending(delivery, DeliveryState::Dead, Some(reason))
    }

    /// Try again after `delay`.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn postpone(
        &self,
        delivery: &Delivery,
        reason: &str,
        delay: Duration,
    ) -> Result<(), SpoolError> {
        let delay_ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
        let mut database = self.database_unsynced()?;
        let transaction = database.transaction()?;
        let attempts = end_attempt(&transaction, delivery.id)?;
        transaction.execute(
            "UPDATE deliveries SET reason = ?2, next_attempt_ms = ?3 WHERE id = ?1 AND state = 'pending'",
            params![delivery.id, reason, now_ms().saturating_add(delay_ms)],
        )?;
        post(&transaction, &delivery.destination, Entry { attempts, ..Entry::default() })?;
        Ok(transaction.commit()?)
    }

    /// Makes dead letters of what has been pending to `destination` for longer than `age`. Returns how many.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn bury_older(&self, destination: &str, age: Duration) -> Result<u64, SpoolError> {
        let age_ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        let now = now_ms();
        let mut database = self.database();
        let transaction = database.transaction()?;
        let dead = transaction.execute(
            "UPDATE deliveries SET state = 'dead', settled_ms = ?2,
                    reason = 'pending for too long; last: ' || coalesce(reason, 'not tried')
             WHERE destination = ?1 AND state = 'pending' AND created_ms < ?3
               AND id NOT IN (SELECT delivery FROM custody)",
            params![destination, now, now.saturating_sub(age_ms)],
        )? as u64;
        post(&transaction, destination, Entry { dead, ..Entry::default() })?;
        transaction.commit()?;
        Ok(dead)
    }

    /// What each destination got since the spool was made, and what is on the way to it.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn statements(&self) -> Result<Vec<Statement>, SpoolError> {
        let database = self.database();
        let mut query = database.prepare_cached(
            "SELECT destination, coalesce(accounts.attempts, 0) AS attempts, coalesce(sent, 0) AS sent,
                    coalesce(sent_bytes, 0) AS sent_bytes, coalesce(dropped, 0) AS dropped,
                    coalesce(pending, 0) AS pending, coalesce(pending_bytes, 0) AS pending_bytes,
                    coalesce(dead, 0) AS dead
             FROM (SELECT destination FROM accounts UNION SELECT destination FROM deliveries)
             LEFT JOIN (SELECT destination, attempts, sent, sent_bytes, dropped FROM accounts) AS accounts
                  USING (destination)
             LEFT JOIN (SELECT destination, count(*) FILTER (WHERE state = 'pending') AS pending,
                               sum(bytes) FILTER (WHERE state = 'pending') AS pending_bytes,
                               count(*) FILTER (WHERE state = 'dead') AS dead
                        FROM deliveries GROUP BY destination) USING (destination)
             WHERE destination <> '' ORDER BY destination",
        )?;
        let statements = query.query_map([], |row| {
            Ok(Statement {
                destination: row.get("destination")?,
                attempts: row.get("attempts")?,
                sent: row.get("sent")?,
                sent_bytes: row.get("sent_bytes")?,
                pending: row.get("pending")?,
                pending_bytes: row.get("pending_bytes")?,
                dead: row.get("dead")?,
                dropped: row.get("dropped")?,
            })
        })?;
        Ok(statements.collect::<Result<_, _>>()?)
    }

    /// Pending deliveries to destinations other than `known`: those that were taken out of the configuration.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn pending_elsewhere(&self, known: &[String]) -> Result<Vec<(String, u64)>, SpoolError> {
        let database = self.database();
        let mut query = database.prepare(
            "SELECT destination, count(*) FROM deliveries WHERE state = 'pending' GROUP BY destination",
        )?;
        let mut rows = query
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<Vec<(String, u64)>, _>>()?;
        rows.retain(|(destination, _)| !known.contains(destination));
        Ok(rows)
    }

    fn leave_pending(
        &self,
        delivery: &Delivery,
        state: DeliveryState,
        reason: Option<&str>,
    ) -> Result<Option<Account>, SpoolError> {
        let mut database = self.database_unsynced()?;
        let transaction = database.transaction()?;
        let attempts = end_attempt(&transaction, delivery.id)?;
        let bytes = move_to(&transaction, delivery.id, state, reason)?;
        let sent = u64::from(state == DeliveryState::Sent);
        let entry = Entry { attempts, sent, sent_bytes: sent * bytes, dead: 1 - sent, dropped: 0 };
        post(&transaction, &delivery.destination, entry)?;
        let account = account(&transaction, &delivery.job)?;
        failpoint::reach("delivery.recorded");
        transaction.commit()?;
        failpoint::reach("delivery.committed");
        Ok(account)
    }

    pub(super) fn read_delivery(&self, row: &Row<'_>) -> rusqlite::Result<Delivery> {
        let uid = |column: &str| uid_of(&row.get::<_, String>(column)?);
        let is_dicom = !row.get::<_, String>("sop_class_uid")?.is_empty();
        let dicom = is_dicom
            .then(|| -> rusqlite::Result<_> {
                Ok(DicomObject {
                    sop_class_uid: uid("sop_class_uid")?,
                    sop_instance_uid: uid("sop_uid")?,
                    transfer_syntax: uid("transfer_syntax")?,
                })
            })
            .transpose()?;
        Ok(Delivery {
            id: row.get("id")?,
            job: JobId::from_column(row, "job")?,
            destination: row.get("destination")?,
            name: row.get("name")?,
            dicom,
            path: self.absolute(&row.get::<_, String>("path")?),
            sha256: row.get("sha256")?,
            bytes: row.get("bytes")?,
            attempts: row.get("attempts")?,
            lease: 0,
        })
    }
}

/// A UID as it was stored.
pub(super) fn uid_of(text: &str) -> rusqlite::Result<Uid> {
    let wrong = |error| {
        let text = rusqlite::types::Type::Text;
        rusqlite::Error::FromSqlConversionFailure(0, text, Box::new(error))
    };
    Uid::parse(text).map_err(wrong)
}

/// Counts the attempt that ends, if it has not been counted when the destination took the object. Returns how many
/// attempts are new.
fn end_attempt(connection: &Connection, delivery: i64) -> Result<u64, SpoolError> {
    let counted = custody::leave(connection, delivery)?;
    if !counted {
        connection
            .execute("UPDATE deliveries SET attempts = attempts + 1 WHERE id = ?1", [delivery])?;
    }
    Ok(u64::from(!counted))
}

/// Records a delivery in `state`. A file that is no DICOM object has an empty class and transfer syntax, and its name
/// in place of the SOP Instance UID.
pub(super) fn insert(
    connection: &Connection,
    job: &JobId,
    (destination, state): (&str, DeliveryState),
    product: &Product,
    path: &str,
    sha256: &str,
) -> Result<(), SpoolError> {
    let (class, instance, syntax) = match &product.dicom {
        Some(object) => (
            object.sop_class_uid.as_str(),
            object.sop_instance_uid.as_str(),
            object.transfer_syntax.as_str(),
        ),
        None => ("", product.name.as_str(), ""),
    };
    connection
        .prepare_cached(
            "INSERT INTO deliveries (job, destination, name, sop_class_uid, sop_uid, transfer_syntax,
                                     path, sha256, bytes, state, created_ms, settled_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?
        .execute(params![
            job.as_str(),
            destination,
            product.name,
            class,
            instance,
            syntax,
            path,
            sha256,
            product.bytes.len() as i64,
            state,
            now_ms(),
            (state != DeliveryState::Pending).then(now_ms)
        ])?;
    Ok(())
}

/// The one way from state to state, along [`DeliveryState::next`]. Returns the size of the payload.
pub(super) fn move_to(
    connection: &Connection,
    id: i64,
    state: DeliveryState,
    reason: Option<&str>,
) -> Result<u64, SpoolError> {
    let found: Option<(DeliveryState, u64)> = connection
        .prepare_cached("SELECT state, bytes FROM deliveries WHERE id = ?1")?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (found, bytes) = found.ok_or_else(|| SpoolError::Unknown { id: id.to_string() })?;
    if !found.next().contains(&state) {
        return Err(SpoolError::State {
            what: "delivery",
            id: id.to_string(),
            state: found.as_str(),
            wanted: state.as_str(),
        });
    }
    let settled = (state != DeliveryState::Pending).then(now_ms);
    custody::leave(connection, id)?;
    connection
        .prepare_cached(
            "UPDATE deliveries SET state = ?2, reason = ?3, settled_ms = ?4 WHERE id = ?1",
        )?
        .execute(params![id, state, reason, settled])?;
    Ok(bytes)
}

/// Counts what happened at `destination`.
pub(super) fn post(
    connection: &Connection,
    destination: &str,
    entry: Entry,
) -> Result<(), SpoolError> {
    let Entry { attempts, sent, sent_bytes, dead, dropped } = entry;
    connection
        .prepare_cached(
            "INSERT INTO accounts (destination, attempts, sent, sent_bytes, dead, dropped)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (destination) DO UPDATE SET
                 attempts = attempts + excluded.attempts, sent = sent + excluded.sent,
                 sent_bytes = sent_bytes + excluded.sent_bytes, dead = dead + excluded.dead,
                 dropped = dropped + excluded.dropped",
        )?
        .execute(params![destination, attempts, sent, sent_bytes, dead, dropped])?;
    Ok(())
}

fn account(connection: &Connection, job: &JobId) -> Result<Option<Account>, SpoolError> {
    let (pending, sent, dead): (u64, u64, u64) = connection
        .prepare_cached(
            "SELECT count(*) FILTER (WHERE state = 'pending'), count(*) FILTER (WHERE state = 'sent'),
                    count(*) FILTER (WHERE state = 'dead')
             FROM deliveries WHERE job = ?1",
        )?
        .query_row([job.as_str()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    if pending > 0 {
        return Ok(None);
    }
    let (queue, compute, finished): (i64, i64, i64) = connection.query_row(
        "SELECT coalesce(queue_ms, 0), coalesce(compute_ms, 0), coalesce(finished_ms, 0)
         FROM jobs WHERE id = ?1",
        [job.as_str()],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    Ok(Some(Account {
        queue_ms: queue.max(0).cast_unsigned(),
        compute_ms: compute.max(0).cast_unsigned(),
        deliver_ms: now_ms().saturating_sub(finished).max(0).cast_unsigned(),
        sent,
        dead,
    }))
}
