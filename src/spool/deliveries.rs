use std::path::PathBuf;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{DeliveryState, DicomObject, JobId, Product, Spool, SpoolError, now_ms};
use crate::domain::Uid;

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
}

/// What a destination has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    Due(Box<Delivery>),
    /// Nothing is due before this much time has passed.
    After(Duration),
    Nothing,
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

impl Spool {
    /// The oldest delivery to `destination` that is due.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn next_delivery(&self, destination: &str) -> Result<Next, SpoolError> {
        let database = self.database();
        let now = now_ms();
        let due = database
            .prepare_cached(
                "SELECT * FROM deliveries
                 WHERE destination = ?1 AND state = 'pending' AND next_attempt_ms <= ?2
                 ORDER BY id LIMIT 1",
            )?
            .query_row(params![destination, now], |row| self.read_delivery(row))
            .optional()?;
        if let Some(delivery) = due {
            return Ok(Next::Due(Box::new(delivery)));
        }
        let earliest: Option<i64> = database
            .prepare_cached(
                "SELECT min(next_attempt_ms) FROM deliveries
                 WHERE destination = ?1 AND state = 'pending'",
            )?
            .query_row([destination], |row| row.get(0))?;
        Ok(earliest.map_or(Next::Nothing, |ms| {
            Next::After(Duration::from_millis(ms.saturating_sub(now).max(1).cast_unsigned()))
        }))
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
        self.database().execute(
            "UPDATE deliveries SET attempts = attempts + 1, reason = ?2, next_attempt_ms = ?3
             WHERE id = ?1 AND state = 'pending'",
            params![delivery.id, reason, now_ms().saturating_add(delay_ms)],
        )?;
        Ok(())
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
        let mut database = self.database();
        let transaction = database.transaction()?;
        transaction.execute(
            "UPDATE deliveries SET attempts = attempts + 1, state = ?2, reason = ?3
             WHERE id = ?1 AND state = 'pending'",
            params![delivery.id, state, reason],
        )?;
        let account = account(&transaction, &delivery.job)?;
        transaction.commit()?;
        Ok(account)
    }

    fn read_delivery(&self, row: &Row<'_>) -> rusqlite::Result<Delivery> {
        let uid = |column: &str| {
            let text: String = row.get(column)?;
            Uid::parse(&text).map_err(|error| {
                rusqlite::Error::FromSqlConversionFailure(
                    0,
                    rusqlite::types::Type::Text,
                    Box::new(error),
                )
            })
        };
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
        })
    }
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
                                     path, sha256, bytes, state)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
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
            state
        ])?;
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
