use std::fmt;

use rusqlite::{Row, params};

use super::deliveries::{self, Entry};
use super::{
    Config, Count, DeliveryState, JobId, JobReport, JobState, Spool, SpoolError, Statement, Usage,
    jobs, now_ms,
};

/// The operator's side of the spool: looks at it, tries again what failed, gives up what will not do.
///
/// Safe beside the process that owns the spool: it only reads and changes states, along the same machine; payloads are
/// removed by the owner alone. Names no patient and no UID unless asked for an [`Identity`].
#[derive(Debug)]
pub struct Desk(Spool);

/// What an operator names: a job or a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Job(JobId),
    Delivery(i64),
}

/// A delivery as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    pub id: i64,
    pub job: JobId,
    pub destination: String,
    pub state: DeliveryState,
    pub bytes: u64,
    pub attempts: u32,
    /// Since 1970.
    pub created_ms: i64,
    /// Of the last failure.
    pub reason: Option<String>,
}

/// The UIDs of a job, for whoever may see them.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Identity {
    pub series: String,
    pub instances: Vec<String>,
    pub products: Vec<String>,
}

impl Item {
    /// A job's 16 hexadecimal digits, or a delivery's number.
    ///
    /// # Errors
    /// If `text` is neither.
    pub fn parse(text: &str) -> Result<Self, SpoolError> {
        JobId::parse(text)
            .map(Self::Job)
            .or_else(|| text.parse().ok().map(Self::Delivery))
            .ok_or_else(|| SpoolError::Unknown { id: text.to_owned() })
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(job) => write!(f, "job {job}"),
            Self::Delivery(id) => write!(f, "delivery {id}"),
        }
    }
}

impl Desk {
    /// # Errors
    /// If there is no spool, or another version of this program made it.
    pub fn open(config: Config) -> Result<Self, SpoolError> {
        Spool::open_beside(config).map(Self)
    }

    /// # Errors
    /// If the disk cannot be asked.
    pub fn usage(&self) -> Result<Usage, SpoolError> {
        self.0.usage()
    }

    /// # Errors
    /// If the database refuses.
    pub fn count(&self) -> Result<Count, SpoolError> {
        self.0.count()
    }

    /// # Errors
    /// If the database refuses.
    pub fn statements(&self) -> Result<Vec<Statement>, SpoolError> {
        self.0.statements()
    }

    /// # Errors
    /// If the database refuses.
    pub fn job(&self, id: &JobId) -> Result<Option<JobReport>, SpoolError> {
        self.0.job(id)
    }

    /// Bytes of objects that are to go to the queue that devices share and are only here.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn unreplicated_bytes(&self) -> Result<u64, SpoolError> {
        self.0.unreplicated_bytes()
    }

    /// Jobs in any of `states`, the oldest first.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn jobs(&self, states: &[JobState]) -> Result<Vec<JobReport>, SpoolError> {
        let mut found = self.0.recent_jobs(u32::MAX)?;
        found.retain(|job| states.contains(&job.state));
        found.reverse();
        Ok(found)
    }

    /// Deliveries in any of `states`, the oldest first; those of one job, or of all.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn letters(
        &self,
        states: &[DeliveryState],
        job: Option<&JobId>,
    ) -> Result<Vec<Letter>, SpoolError> {
        let database = self.0.database();
        let mut query = database.prepare_cached(
            "SELECT * FROM deliveries WHERE destination <> '' AND (?1 IS NULL OR job = ?1) ORDER BY id",
        )?;
        let mut letters = query
            .query_map([job.map(JobId::as_str)], read_letter)?
            .collect::<Result<Vec<_>, _>>()?;
        letters.retain(|letter| states.contains(&letter.state));
        Ok(letters)
    }

    /// # Errors
    /// If the database refuses, or there is no such job.
    pub fn identity(&self, job: &JobId) -> Result<Identity, SpoolError> {
        let database = self.0.database();
        let list = |text: &str, key: &str| -> Result<Vec<String>, SpoolError> {
            let mut query = database.prepare(text)?;
            let rows = query.query_map([key], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        };
        let series = list("SELECT series_uid FROM jobs WHERE id = ?1", job.as_str())?
            .pop()
            .ok_or_else(|| SpoolError::Unknown { id: job.to_string() })?;
        Ok(Identity {
            instances: list(
                "SELECT sop_uid FROM instances WHERE series_uid = ?1 ORDER BY id",
                &series,
            )?,
            products: list(
                "SELECT DISTINCT sop_uid FROM deliveries WHERE job = ?1 ORDER BY id",
                job.as_str(),
            )?,
            series,
        })
    }

    /// A failed or quarantined job runs again, with the objects that came first under their UIDs; a dead letter is
    /// sent again.
    ///
    /// # Errors
    /// If there is no such item, or it is in another state.
    pub fn retry(&self, item: &Item) -> Result<(), SpoolError> {
        let mut database = self.0.database();
        let transaction = database.transaction()?;
        let now = now_ms();
        match item {
            Item::Job(job) => {
                let found = jobs::state_of(&transaction, job)?;
                if !found.waits_for_a_person() {
                    return Err(jobs::cannot_become(job, found, JobState::Ready));
                }
                jobs::run_again(&transaction, job, "tried again by an operator")?;
            }
            Item::Delivery(id) => {
                deliveries::move_to(&transaction, *id, DeliveryState::Pending, None)?;
                transaction.execute(
                    "UPDATE deliveries SET attempts = 0, next_attempt_ms = 0, created_ms = ?2
                     WHERE id = ?1",
                    params![id, now],
                )?;
            }
        }
        Ok(transaction.commit()?)
    }

    /// Gives up a failed or quarantined job, a dead letter, or a delivery that is pending. The owner removes what is
    /// then finished.
    ///
    /// # Errors
    /// If there is no such item, or it is in another state.
    pub fn drop(&self, item: &Item) -> Result<(), SpoolError> {
        let mut database = self.0.database();
        let transaction = database.transaction()?;
        let reason = Some("given up by an operator");
        match item {
            Item::Job(job) => jobs::move_to(&transaction, job, JobState::Dropped, reason)?,
            Item::Delivery(id) => {
                deliveries::move_to(&transaction, *id, DeliveryState::Dropped, reason)?;
                let destination: String = transaction.query_row(
                    "SELECT destination FROM deliveries WHERE id = ?1",
                    [id],
                    |row| row.get(0),
                )?;
                deliveries::post(
                    &transaction,
                    &destination,
                    Entry { dropped: 1, ..Entry::default() },
                )?;
            }
        }
        Ok(transaction.commit()?)
    }
}

fn read_letter(row: &Row<'_>) -> rusqlite::Result<Letter> {
    Ok(Letter {
        id: row.get("id")?,
        job: JobId::from_column(row, "job")?,
        destination: row.get("destination")?,
        state: row.get("state")?,
        bytes: row.get("bytes")?,
        attempts: row.get("attempts")?,
        created_ms: row.get("created_ms")?,
        reason: row.get("reason")?,
    })
}
