//! Storage commitment of destinations (PS3.4 annex J): a delivery that was taken stays pending until its destination
//! has committed to keep it. What it refuses, or says nothing about in time, is sent again.

use std::collections::HashMap;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::deliveries::{Entry, post};
use super::{Delivery, Spool, SpoolError, now_ms};
use crate::domain::{SopReference, Uid};
use crate::durable::failpoint;

/// Objects that one request asks about.
const MAX_OBJECTS: u32 = 1000;

/// Are these safe with you?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inquiry {
    /// Names the question in its answer. Nobody can guess it.
    pub transaction: Uid,
    pub deliveries: Vec<Delivery>,
}

/// What a destination said of an object that it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Safe,
    /// With its Failure Reason (PS3.3 section C.14.1.1).
    Failed(u16),
    /// Nothing, in time.
    Silence,
}

impl Spool {
    /// The destination took it and will be asked to commit to it.
    ///
    /// # Errors
    /// If the database refuses; it is then sent once more.
    pub fn taken(&self, delivery: &Delivery) -> Result<(), SpoolError> {
        let mut database = self.database();
        let transaction = database.transaction()?;
        transaction.execute(
            "UPDATE deliveries SET attempts = attempts + 1, reason = NULL WHERE id = ?1",
            [delivery.id],
        )?;
        transaction.execute("INSERT INTO custody (delivery) VALUES (?1)", [delivery.id])?;
        post(&transaction, &delivery.destination, Entry { attempts: 1, ..Entry::default() })?;
        Ok(transaction.commit()?)
    }

    /// What `destination` is to be asked about, if there is anything. From now on its report is known by the
    /// transaction, and expected for `patience`.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn inquire(
        &self,
        destination: &str,
        patience: Duration,
    ) -> Result<Option<Inquiry>, SpoolError> {
        let patience_ms = i64::try_from(patience.as_millis()).unwrap_or(i64::MAX);
        let mut database = self.database();
        let transaction = database.transaction()?;
        let deliveries = transaction
            .prepare_cached(
                "SELECT deliveries.* FROM deliveries JOIN custody ON delivery = id
                 WHERE destination = ?1 AND state = 'pending' AND transaction_uid IS NULL
                 ORDER BY id LIMIT ?2",
            )?
            .query_map(params![destination, MAX_OBJECTS], |row| self.read_delivery(row))?
            .collect::<Result<Vec<_>, _>>()?;
        if deliveries.is_empty() {
            return Ok(None);
        }
        let chance: String =
            transaction.query_row("SELECT hex(randomblob(16))", [], |row| row.get(0))?;
        let inquiry = Inquiry { transaction: Uid::derived(&["commitment", &chance]), deliveries };
        let deadline_ms = now_ms().saturating_add(patience_ms);
        for delivery in &inquiry.deliveries {
            transaction.execute(
                "UPDATE custody SET transaction_uid = ?2, deadline_ms = ?3 WHERE delivery = ?1",
                params![delivery.id, inquiry.transaction.as_str(), deadline_ms],
            )?;
        }
        transaction.commit()?;
        failpoint::reach("custody.asked");
        Ok(Some(inquiry))
    }

    /// A destination reports on what it was asked about. Returns of how many deliveries this was news: none if the
    /// transaction is unknown, or over.
    ///
    /// # Errors
    /// If the database refuses; the destination is told that, and reports again.
    pub fn report_custody(
        &self,
        transaction_uid: &Uid,
        safe: &[SopReference],
        failed: &[(SopReference, u16)],
    ) -> Result<usize, SpoolError> {
        let safe = safe.iter().map(|object| (object, 0));
        let failed = failed.iter().map(|(object, reason)| (object, (*reason).max(1)));
        let verdicts: HashMap<&str, u16> = safe
            .chain(failed)
            .map(|(object, verdict)| (object.sop_instance_uid.as_str(), verdict))
            .collect();
        let mut database = self.database();
        let transaction = database.transaction()?;
        let asked = transaction
            .prepare_cached(
                "SELECT id, sop_uid FROM deliveries JOIN custody ON delivery = id
                 WHERE transaction_uid = ?1 AND verdict IS NULL",
            )?
            .query_map([transaction_uid.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<Vec<(i64, String)>, _>>()?;
        let mut news = 0;
        for (delivery, instance) in asked {
            if let Some(verdict) = verdicts.get(instance.as_str()) {
                news += transaction.execute(
                    "UPDATE custody SET verdict = ?2 WHERE delivery = ?1",
                    params![delivery, verdict],
                )?;
            }
        }
        transaction.commit()?;
        failpoint::reach("custody.reported");
        Ok(news)
    }

    /// What has been decided about what `destination` took, in order.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn verdicts(&self, destination: &str) -> Result<Vec<(Delivery, Verdict)>, SpoolError> {
        let database = self.database();
        let mut query = database.prepare_cached(
            "SELECT deliveries.*, verdict FROM deliveries JOIN custody ON delivery = id
             WHERE destination = ?1 AND (verdict IS NOT NULL OR deadline_ms <= ?2) ORDER BY id",
        )?;
        let verdicts = query.query_map(params![destination, now_ms()], |row| {
            let verdict = match row.get::<_, Option<u16>>("verdict")? {
                Some(0) => Verdict::Safe,
                Some(reason) => Verdict::Failed(reason),
                None => Verdict::Silence,
            };
            Ok((self.read_delivery(row)?, verdict))
        })?;
        Ok(verdicts.collect::<Result<_, _>>()?)
    }

    /// In how long the next of what `destination` was asked about is to be sent again, if it says nothing.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn next_silence(&self, destination: &str) -> Result<Option<Duration>, SpoolError> {
        let deadline_ms: Option<i64> = self
            .database()
            .prepare_cached(
                "SELECT min(deadline_ms) FROM custody JOIN deliveries ON delivery = id
                 WHERE destination = ?1",
            )?
            .query_row([destination], |row| row.get(0))
            .optional()?
            .flatten();
        Ok(deadline_ms
            .map(|ms| Duration::from_millis(ms.saturating_sub(now_ms()).max(1).cast_unsigned())))
    }
}

/// The delivery is with its destination no more, or for good. Returns whether it was there.
pub(super) fn leave(connection: &Connection, delivery: i64) -> Result<bool, SpoolError> {
    let left = connection
        .prepare_cached("DELETE FROM custody WHERE delivery = ?1")?
        .execute([delivery])?;
    Ok(left > 0)
}
