use std::path::PathBuf;

use rusqlite::{OptionalExtension, Row, params};

use super::{DeliveryState, JobId, JobState, Spool, SpoolError};
use crate::domain::Uid;

/// A job as people and clients see it: no patient data, no UID. Times in milliseconds, moments since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobReport {
    pub id: JobId,
    pub state: JobState,
    /// 1 for the first job of its series.
    pub revision: u32,
    pub attempts: u32,
    /// Objects that are there for it.
    pub objects: u64,
    /// Why it failed, waits or is in quarantine; of one that is done, what to know about its products.
    pub reason: Option<String>,
    pub last_received_ms: i64,
    pub finished_ms: Option<i64>,
    pub queue_ms: Option<i64>,
    pub compute_ms: Option<i64>,
    /// Its number on the queue that devices share, once it was handed over.
    pub shared_as: Option<JobId>,
    pub products: Vec<ProductReport>,
    pub deliveries: Vec<DeliveryReport>,
}

impl JobReport {
    /// The number that it is, or was, computed under.
    #[must_use]
    pub fn computed_as(&self) -> &JobId {
        self.shared_as.as_ref().unwrap_or(&self.id)
    }
}

/// A result that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProductReport {
    pub name: String,
    /// Hexadecimal.
    pub sha256: String,
    pub bytes: u64,
    pub place: Place,
}

/// Where a result is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the spool.
    File(PathBuf),
    /// On the queue that devices share, among what came on this day.
    Day(String),
}

/// How far one product is on its way to one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryReport {
    pub destination: String,
    pub state: DeliveryState,
    pub attempts: u32,
    /// Of the last failure.
    pub reason: Option<String>,
}

/// Deliveries to one destination, counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DestinationReport {
    pub destination: String,
    pub pending: u64,
    pub sent: u64,
    pub dead: u64,
    /// Of the oldest pending delivery's last failure.
    pub reason: Option<String>,
}

impl Spool {
    /// # Errors
    /// If the database refuses.
    pub fn job(&self, id: &JobId) -> Result<Option<JobReport>, SpoolError> {
        let report = self
            .database()
            .prepare_cached(&select_jobs("id = ?1"))?
            .query_row([id.as_str()], read_job)
            .optional()?;
        report.map(|report| self.with_deliveries(report)).transpose()
    }

    /// The last `limit` jobs, newest first.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn recent_jobs(&self, limit: u32) -> Result<Vec<JobReport>, SpoolError> {
        let reports = self
            .database()
            .prepare_cached(&select_jobs("true ORDER BY seq DESC LIMIT ?1"))?
            .query_map([limit], read_job)?
            .collect::<Result<Vec<_>, _>>()?;
        reports.into_iter().map(|report| self.with_deliveries(report)).collect()
    }

    /// The newest job that an object takes part in.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn job_of(&self, sop_instance_uid: &Uid) -> Result<Option<JobId>, SpoolError> {
        Ok(self
            .database()
            .prepare_cached(
                "SELECT jobs.id FROM jobs JOIN instances USING (series_uid)
                 WHERE instances.sop_uid = ?1 ORDER BY jobs.seq DESC LIMIT 1",
            )?
            .query_row([sop_instance_uid.as_str()], |row| JobId::from_column(row, "id"))
            .optional()?)
    }

    /// Every destination that ever got a delivery, by name.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn destinations(&self) -> Result<Vec<DestinationReport>, SpoolError> {
        let database = self.database();
        let mut query = database.prepare_cached(
            "SELECT destination, count(*) FILTER (WHERE state = 'pending') AS pending,
                    count(*) FILTER (WHERE state = 'sent') AS sent,
                    count(*) FILTER (WHERE state = 'dead') AS dead,
                    (SELECT reason FROM deliveries AS oldest
                     WHERE oldest.destination = deliveries.destination AND oldest.state = 'pending'
                     ORDER BY oldest.id LIMIT 1) AS reason
             FROM deliveries WHERE destination <> '' GROUP BY destination ORDER BY destination",
        )?;
        let reports = query.query_map([], |row| {
            Ok(DestinationReport {
                destination: row.get("destination")?,
                pending: row.get("pending")?,
                sent: row.get("sent")?,
                dead: row.get("dead")?,
                reason: row.get("reason")?,
            })
        })?;
        Ok(reports.collect::<Result<_, _>>()?)
    }

    fn with_deliveries(&self, report: JobReport) -> Result<JobReport, SpoolError> {
        let database = self.database();
        let products = database
            .prepare_cached(
                "SELECT name, path, sha256, bytes FROM deliveries WHERE job = ?1
                 GROUP BY name ORDER BY min(id)",
            )?
            .query_map([report.id.as_str()], |row| {
                Ok(ProductReport {
                    name: row.get("name")?,
                    sha256: row.get("sha256")?,
                    bytes: row.get("bytes")?,
                    place: Place::File(self.absolute(&row.get::<_, String>("path")?)),
                })
            })?
            .collect::<Result<_, _>>()?;
        let deliveries = database
            .prepare_cached(
                "SELECT destination, state, attempts, reason FROM deliveries
                 WHERE job = ?1 AND destination <> '' ORDER BY id",
            )?
            .query_map(params![report.id.as_str()], |row| {
                Ok(DeliveryReport {
                    destination: row.get("destination")?,
                    state: row.get("state")?,
                    attempts: row.get("attempts")?,
                    reason: row.get("reason")?,
                })
            })?
            .collect::<Result<_, _>>()?;
        Ok(JobReport { products, deliveries, ..report })
    }
}

fn select_jobs(condition: &str) -> String {
    format!(
        "SELECT *, (SELECT count(*) FROM instances WHERE instances.series_uid = jobs.series_uid
                    AND instances.state = 'accepted') AS objects
         FROM jobs WHERE {condition}"
    )
}

fn read_job(row: &Row<'_>) -> rusqlite::Result<JobReport> {
    Ok(JobReport {
        id: JobId::from_column(row, "id")?,
        state: row.get("state")?,
        revision: row.get("revision")?,
        attempts: row.get("attempts")?,
        objects: row.get("objects")?,
        reason: row.get("reason")?,
        last_received_ms: row.get("last_received_ms")?,
        finished_ms: row.get("finished_ms")?,
        queue_ms: row.get("queue_ms")?,
        compute_ms: row.get("compute_ms")?,
        shared_as: row.get::<_, Option<String>>("shared_as")?.as_deref().and_then(JobId::parse),
        products: Vec::new(),
        deliveries: Vec::new(),
    })
}
