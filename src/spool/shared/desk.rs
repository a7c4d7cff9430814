//! The queue as the daemon and an operator see it.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{Acquire, Row};

use super::Shared;
use super::deliveries::post;
use super::enqueue::{job_id, state, strange};
use crate::spool::deliveries::Entry;
use crate::spool::{
    Account, Claim, Count, Delivery, DeliveryReport, DeliveryState, DestinationReport, Identity,
    Item, JobId, JobReport, JobState, Letter, Next, Place, Product, ProductReport, Queue, Retry,
    SpoolError, Statement, Tidied,
};

impl Queue for Shared {
    fn claim(&self) -> Result<Option<Claim>, SpoolError> {
        self.take()
    }

    fn next_claim(&self) -> Result<Option<Duration>, SpoolError> {
        self.next_chance().map(Some)
    }

    fn finish(
        &self,
        claim: &Claim,
        products: &[Product],
        destinations: &[String],
        compute: Duration,
    ) -> Result<(), SpoolError> {
        self.conclude(claim, products, destinations, compute)
    }

    fn fail(&self, claim: &Claim, reason: &str) -> Result<(), SpoolError> {
        self.end(claim, reason)
    }

    fn retry(&self, claim: &Claim, reason: &str, delay: Duration) -> Result<Retry, SpoolError> {
        self.again(claim, reason, delay)
    }

    fn next_delivery(&self, destination: &str) -> Result<Next<Delivery>, SpoolError> {
        self.next_in_line(destination)
    }

    fn hurry(&self, destination: &str) -> Result<(), SpoolError> {
        self.at_once(destination)
    }

    fn sent(&self, delivery: &Delivery) -> Result<Option<Account>, SpoolError> {
        self.settle(delivery, DeliveryState::Sent, "")
    }

    fn bury(&self, delivery: &Delivery, reason: &str) -> Result<Option<Account>, SpoolError> {
        self.settle(delivery, DeliveryState::Dead, reason)
    }

    fn postpone(
        &self,
        delivery: &Delivery,
        reason: &str,
        delay: Duration,
    ) -> Result<(), SpoolError> {
        self.later(delivery, reason, delay)
    }

    fn bury_older(&self, destination: &str, age: Duration) -> Result<u64, SpoolError> {
        self.bury_old(destination, age)
    }

    fn count(&self) -> Result<Count, SpoolError> {
        let row = self.run(0, async {
            let all = sqlx::query(
                "SELECT count(*) FILTER (WHERE state = 'received'), count(*) FILTER (WHERE state = 'ready'),
                        count(*) FILTER (WHERE state = 'running'), count(*) FILTER (WHERE state = 'failed'),
                        count(*) FILTER (WHERE state = 'quarantined'),
                        (SELECT count(*) FROM deliveries WHERE state = 'pending'),
                        (SELECT count(*) FROM deliveries WHERE state = 'dead')
                 FROM jobs WHERE state IN ('received', 'ready', 'running', 'failed', 'quarantined')",
            );
            Ok(all.fetch_one(self.pool().await?).await?)
        })?;
        Ok(Count {
            received: number(&row, 0)?,
            ready: number(&row, 1)?,
            running: number(&row, 2)?,
            failed: number(&row, 3)?,
            quarantined: number(&row, 4)?,
            pending_deliveries: number(&row, 5)?,
            dead_deliveries: number(&row, 6)?,
            pending_reports: 0,
        })
    }

    fn statements(&self) -> Result<Vec<Statement>, SpoolError> {
        let rows = self.run(0, async {
            let all = sqlx::query(
                "SELECT destination, coalesce(attempts, 0), coalesce(sent, 0), coalesce(sent_bytes, 0),
                        coalesce(pending, 0), coalesce(pending_bytes, 0)::BIGINT, coalesce(now.dead, 0),
                        coalesce(dropped, 0)
                 FROM accounts FULL JOIN (
                     SELECT destination, count(*) FILTER (WHERE state = 'pending') AS pending,
                            sum(bytes) FILTER (WHERE state = 'pending') AS pending_bytes,
                            count(*) FILTER (WHERE state = 'dead') AS dead
                     FROM deliveries GROUP BY destination) AS now USING (destination)
                 WHERE destination <> '' ORDER BY destination",
            );
            Ok(all.fetch_all(self.pool().await?).await?)
        })?;
        let read = |row: &PgRow| -> Result<Statement, SpoolError> {
            Ok(Statement {
                destination: row.try_get(0)?,
                attempts: number(row, 1)?,
                sent: number(row, 2)?,
                sent_bytes: number(row, 3)?,
                pending: number(row, 4)?,
                pending_bytes: number(row, 5)?,
                dead: number(row, 6)?,
                dropped: number(row, 7)?,
            })
        };
        rows.iter().map(read).collect()
    }

    fn destinations(&self) -> Result<Vec<DestinationReport>, SpoolError> {
        let rows = self.run(0, async {
            let all = sqlx::query(
                "SELECT destination, count(*) FILTER (WHERE state = 'pending'),
                        count(*) FILTER (WHERE state = 'sent'), count(*) FILTER (WHERE state = 'dead'),
                        (array_agg(reason ORDER BY id) FILTER (WHERE state = 'pending'))[1]
                 FROM deliveries WHERE destination <> '' GROUP BY destination ORDER BY destination",
            );
            Ok(all.fetch_all(self.pool().await?).await?)
        })?;
        let read = |row: &PgRow| -> Result<DestinationReport, SpoolError> {
            Ok(DestinationReport {
                destination: row.try_get(0)?,
                pending: number(row, 1)?,
                sent: number(row, 2)?,
                dead: number(row, 3)?,
                reason: row.try_get(4)?,
            })
        };
        rows.iter().map(read).collect()
    }

    fn tidy(&self) -> Result<Tidied, SpoolError> {
        self.remove_finished()
    }
}

/// What an operator does; [`Desk`](crate::spool::Desk) has the same for the embedded spool.
impl Shared {
    /// With its results and deliveries.
    ///
    /// # Errors
    /// If the server refuses.
    pub fn job(&self, id: &JobId) -> Result<Option<JobReport>, SpoolError> {
        self.run(0, async {
            let pool = self.pool().await?;
            let job = sqlx::query(
                "SELECT *, (SELECT count(*) FROM instances WHERE instances.series_uid = jobs.series_uid
                            AND instances.state = 'accepted') AS objects
                 FROM jobs WHERE id = $1",
            );
            let Some(row) = job.bind(id.as_str()).fetch_optional(pool).await? else {
                return Ok(None);
            };
            let deliveries = sqlx::query(
                "SELECT *, day::text AS day_text FROM deliveries WHERE job = $1 ORDER BY id",
            );
            let rows = deliveries.bind(id.as_str()).fetch_all(pool).await?;
            let mut job = report(&row)?;
            for row in &rows {
                let product = product(row)?;
                // Each destination gets all of them.
                if job.products.iter().all(|known| known.name != product.name) {
                    job.products.push(product);
                }
                let destination: String = row.try_get("destination")?;
                if !destination.is_empty() {
                    job.deliveries.push(DeliveryReport {
                        destination,
                        state: delivery_state(row)?,
                        attempts: small(row, "attempts")?,
                        reason: row.try_get("reason")?,
                    });
                }
            }
            Ok(Some(job))
        })
    }

    /// Jobs in any of `states`, the oldest first.
    ///
    /// # Errors
    /// If the server refuses.
    pub fn jobs(&self, states: &[JobState]) -> Result<Vec<JobReport>, SpoolError> {
        let words: Vec<&str> = states.iter().map(|state| state.as_str()).collect();
        let rows = self.run(0, async {
            let jobs = sqlx::query(
                "SELECT *, (SELECT count(*) FROM instances WHERE instances.series_uid = jobs.series_uid
                            AND instances.state = 'accepted') AS objects
                 FROM jobs WHERE state = ANY ($1) ORDER BY seq",
            );
            Ok(jobs.bind(words).fetch_all(self.pool().await?).await?)
        })?;
        rows.iter().map(report).collect()
    }

    /// Deliveries in any of `states`, the oldest first; those of one job, or of all.
    ///
    /// # Errors
    /// If the server refuses.
    pub fn letters(
        &self,
        states: &[DeliveryState],
        job: Option<&JobId>,
    ) -> Result<Vec<Letter>, SpoolError> {
        let words: Vec<&str> = states.iter().map(|state| state.as_str()).collect();
        let rows = self.run(0, async {
            let letters = sqlx::query(
                "SELECT * FROM deliveries
                 WHERE destination <> '' AND state = ANY ($1) AND ($2::text IS NULL OR job = $2)
                 ORDER BY id",
            );
            let letters = letters.bind(words).bind(job.map(JobId::as_str));
            Ok(letters.fetch_all(self.pool().await?).await?)
        })?;
        let read = |row: &PgRow| -> Result<Letter, SpoolError> {
            Ok(Letter {
                id: row.try_get("id")?,
                job: job_id(row.try_get("job")?)?,
                destination: row.try_get("destination")?,
                state: delivery_state(row)?,
                bytes: row.try_get::<i64, _>("bytes")?.cast_unsigned(),
                attempts: small(row, "attempts")?,
                created_ms: row.try_get("created_ms")?,
                reason: row.try_get("reason")?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// # Errors
    /// If the server refuses, or there is no such job.
    pub fn identity(&self, job: &JobId) -> Result<Identity, SpoolError> {
        let list = async |text: &'static str, key: &str| -> Result<Vec<String>, SpoolError> {
            let rows = sqlx::query(text).bind(key).fetch_all(self.pool().await?).await?;
            rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
        };
        self.run(0, async {
            let series = list("SELECT series_uid FROM jobs WHERE id = $1", job.as_str())
                .await?
                .pop()
                .ok_or_else(|| SpoolError::Unknown { id: job.to_string() })?;
            let instances = "SELECT sop_uid FROM instances WHERE series_uid = $1 ORDER BY id";
            let products =
                "SELECT sop_uid FROM deliveries WHERE job = $1 GROUP BY sop_uid ORDER BY min(id)";
            let instances = list(instances, &series).await?;
            let products = list(products, job.as_str()).await?;
            Ok(Identity { series, instances, products })
        })
    }

    /// A failed or quarantined job runs again, with the objects that came first under their UIDs; a dead letter is sent
    /// again.
    ///
    /// # Errors
    /// If there is no such item, or it is in another state.
    pub fn retry_item(&self, item: &Item) -> Result<(), SpoolError> {
        self.run(0, async {
            let pool = self.pool().await?;
            let done = match item {
                Item::Job(job) => sqlx::query(
                    "UPDATE jobs SET state = 'ready', reason = 'tried again by an operator', attempts = 0,
                            not_before_ms = 0, ready_ms = now_ms(), finished_ms = NULL
                     WHERE id = $1 AND state IN ('failed', 'quarantined')",
                )
                .bind(job.as_str().to_owned()),
                Item::Delivery(id) => sqlx::query(
                    "UPDATE deliveries SET state = 'pending', reason = NULL, attempts = 0, settled_ms = NULL,
                            next_attempt_ms = 0, created_ms = now_ms()
                     WHERE id = $1 AND state = 'dead'",
                )
                .bind(*id),
            };
            if done.execute(pool).await?.rows_affected() == 0 {
                return Err(self.why_not(item, "ready").await);
            }
            self.tell().await;
            Ok(())
        })
    }

    /// Gives up a failed or quarantined job, a dead letter, or a delivery that is pending.
    ///
    /// # Errors
    /// If there is no such item, or it is in another state.
    pub fn drop_item(&self, item: &Item) -> Result<(), SpoolError> {
        self.run(0, async {
            let mut connection = self.pool().await?.acquire().await?;
            let mut transaction = connection.begin().await?;
            let dropped = match item {
                Item::Job(job) => {
                    sqlx::query(
                        "UPDATE jobs SET state = 'dropped', reason = 'given up by an operator', finished_ms = now_ms()
                         WHERE id = $1 AND state IN ('failed', 'quarantined') RETURNING NULL::text",
                    )
                    .bind(job.as_str())
                    .fetch_optional(&mut *transaction)
                    .await?
                }
                Item::Delivery(id) => {
                    sqlx::query(
                        "UPDATE deliveries SET state = 'dropped', reason = 'given up by an operator',
                                settled_ms = now_ms(), holder = NULL, lease_until_ms = NULL
                         WHERE id = $1 AND state IN ('pending', 'dead') RETURNING destination",
                    )
                    .bind(id)
                    .fetch_optional(&mut *transaction)
                    .await?
                }
            };
            let Some(row) = dropped else { return Err(self.why_not(item, "dropped").await) };
            if let Some(destination) = row.try_get::<Option<String>, _>(0)? {
                let entry = Entry { dropped: 1, ..Entry::default() };
                post(&mut transaction, &destination, entry).await?;
            }
            Ok(transaction.commit().await?)
        })
    }

    async fn why_not(&self, item: &Item, wanted: &'static str) -> SpoolError {
        let (what, id, query) = match item {
            Item::Job(job) => ("job", job.to_string(), "SELECT state FROM jobs WHERE id = $1"),
            Item::Delivery(id) => {
                ("delivery", id.to_string(), "SELECT state FROM deliveries WHERE id::text = $1")
            }
        };
        let found = sqlx::query(query).bind(&id).fetch_optional(&self.pool).await;
        let word = match found {
            Ok(Some(row)) => row.try_get::<String, _>(0).unwrap_or_default(),
            Ok(None) => return SpoolError::Unknown { id },
            Err(error) => return error.into(),
        };
        let state = JobState::parse(&word).map(JobState::as_str);
        let state = state.or_else(|| DeliveryState::parse(&word).map(DeliveryState::as_str));
        SpoolError::State { what, id, state: state.unwrap_or("in an unknown state"), wanted }
    }
}

fn number(row: &PgRow, column: usize) -> Result<u64, SpoolError> {
    Ok(row.try_get::<i64, _>(column)?.max(0).cast_unsigned())
}

fn report(row: &PgRow) -> Result<JobReport, SpoolError> {
    Ok(JobReport {
        id: job_id(row.try_get("id")?)?,
        state: state(row.try_get("state")?)?,
        revision: small(row, "revision")?,
        attempts: small(row, "attempts")?,
        objects: row.try_get::<i64, _>("objects")?.cast_unsigned(),
        reason: row.try_get("reason")?,
        last_received_ms: row.try_get("last_received_ms")?,
        finished_ms: row.try_get("finished_ms")?,
        queue_ms: row.try_get("queue_ms")?,
        compute_ms: row.try_get("compute_ms")?,
        shared_as: None,
        products: Vec::new(),
        deliveries: Vec::new(),
    })
}

/// Of a row of deliveries.
fn product(row: &PgRow) -> Result<ProductReport, SpoolError> {
    Ok(ProductReport {
        name: row.try_get("name")?,
        sha256: row.try_get("sha256")?,
        bytes: row.try_get::<i64, _>("bytes")?.cast_unsigned(),
        place: Place::Day(row.try_get("day_text")?),
    })
}

fn delivery_state(row: &PgRow) -> Result<DeliveryState, SpoolError> {
    DeliveryState::parse(row.try_get("state")?).ok_or_else(|| strange("state of a delivery"))
}

fn small(row: &PgRow, column: &str) -> Result<u32, SpoolError> {
    Ok(row.try_get::<i64, _>(column)?.try_into().unwrap_or(u32::MAX))
}
