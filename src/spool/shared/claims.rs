//! Jobs under leases.

use std::time::Duration;

use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{Executor, Row};
use tempfile::TempDir;

use super::enqueue::job_id;
use super::payloads::{self, Content};
use super::{Shared, ms};
use crate::durable::{self, DurableError, failpoint};
use crate::spool::{Claim, JobId, Product, Retry, SpoolError};

/// A job that was taken, without its payloads.
struct Taken {
    job: JobId,
    series: String,
    revision: u32,
    attempt: u32,
    epoch: i64,
    queue_ms: i64,
}

impl Shared {
    pub(super) fn take(&self) -> Result<Option<Claim>, SpoolError> {
        loop {
            let Some(taken) = self.run(0, self.take_oldest())? else { return Ok(None) };
            failpoint::reach("shared.claimed");
            match self.fetch(&taken) {
                Ok(claim) => return Ok(Some(claim)),
                Err(error) => {
                    let claim = bare(&taken);
                    if !matches!(error, SpoolError::Damaged { .. }) {
                        // It is no fault of the job's that it cannot be read now. If that cannot be said either, its
                        // lease runs out.
                        let _ = self.put_back(&claim);
                        return Err(error);
                    }
                    self.end(&claim, &error.to_string())?;
                    tracing::error!(job = %claim.job, %error, "a job on the shared queue is damaged");
                }
            }
        }
    }

    async fn take_oldest(&self) -> Result<Option<Taken>, SpoolError> {
        let pool = self.pool().await?;
        let lease = ms(self.config.lease);
        self.give_back_expired(pool).await?;
        let mut transaction = pool.begin().await?;
        unsynced(&mut transaction).await?;
        let found = sqlx::query(
            "UPDATE jobs SET state = 'running', attempts = attempts + 1, epoch = epoch + 1, holder = $2,
                    lease_until_ms = now_ms() + $3, queue_ms = greatest(0, now_ms() - ready_ms)
             WHERE seq = (SELECT seq FROM jobs
                          WHERE state = 'ready' AND not_before_ms <= now_ms()
                            AND (model = $1 OR model = '' OR $1 = '')
                          ORDER BY seq LIMIT 1 FOR UPDATE SKIP LOCKED)
             RETURNING id, series_uid, revision, attempts, epoch, coalesce(queue_ms, 0)",
        )
        .bind(&self.means.model)
        .bind(&self.holder)
        .bind(lease)
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(row) = found else { return Ok(None) };
        let number = |column: usize| -> Result<u32, SpoolError> {
            Ok(row.try_get::<i64, _>(column)?.try_into().unwrap_or(u32::MAX))
        };
        let taken = Taken {
            job: job_id(row.try_get(0)?)?,
            series: row.try_get(1)?,
            revision: number(2)?,
            attempt: number(3)?,
            epoch: row.try_get(4)?,
            queue_ms: row.try_get(5)?,
        };
        let folder = self.folder()?;
        transaction.commit().await?;
        self.held().jobs.insert(taken.job.clone(), (taken.epoch, folder));
        Ok(Some(taken))
    }

    /// Jobs of devices that gave no sign of life for a lease.
    async fn give_back_expired(&self, pool: &PgPool) -> Result<(), SpoolError> {
        sqlx::query(
            "UPDATE jobs SET
                 state = CASE WHEN later.there THEN 'superseded'
                              WHEN attempts >= $2 THEN 'failed' ELSE 'ready' END,
                 finished_ms = CASE WHEN later.there OR attempts >= $2 THEN now_ms() END,
                 reason = 'the device ' || split_part(holder, '/', 1) || ' gave no sign of life',
                 holder = NULL, lease_until_ms = NULL, not_before_ms = 0
             FROM (SELECT seq, EXISTS (SELECT 1 FROM jobs AS later WHERE later.series_uid = expired.series_uid
                                       AND later.revision > expired.revision) AS there
                   FROM jobs AS expired
                   WHERE state = 'running' AND lease_is_over(lease_until_ms, $1)) AS later
             WHERE jobs.seq = later.seq AND state = 'running' AND lease_is_over(lease_until_ms, $1)",
        )
        .bind(ms(self.config.lease))
        .bind(i64::from(self.spool.max_attempts))
        .execute(pool)
        .await?;
        Ok(())
    }

    /// Brings the payloads here, in order of arrival.
    fn fetch(&self, taken: &Taken) -> Result<Claim, SpoolError> {
        let objects = self.run(0, async {
            let rows = sqlx::query(
                "SELECT day::text, sha256, extension, bytes FROM instances
                 WHERE series_uid = $1 AND state = 'accepted' ORDER BY id",
            )
            .bind(&taken.series)
            .fetch_all(self.pool().await?)
            .await?;
            let mut objects = Vec::with_capacity(rows.len());
            for row in rows {
                let object: (String, String, String, i64) =
                    (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
                objects.push(object);
            }
            Ok(objects)
        })?;
        let folder = {
            let held = self.held();
            let (_, folder) = held.jobs.get(&taken.job).expect("it was taken");
            folder.path().to_owned()
        };
        let bytes = objects.iter().map(|(.., bytes)| bytes.cast_unsigned()).sum();
        let files = self.run(bytes, async {
            let pool = self.pool().await?;
            let mut files = Vec::with_capacity(objects.len());
            for (day, sha256, extension, bytes) in &objects {
                let payload =
                    (day.as_str(), sha256.as_str(), extension.as_str(), bytes.cast_unsigned());
                files.push(self.borrow(pool, &folder, payload).await?);
            }
            Ok(files)
        })?;
        Ok(Claim { files, ..bare(taken) })
    }

    pub(super) fn conclude(
        &self,
        claim: &Claim,
        products: &[Product],
        destinations: &[String],
        compute: Duration,
    ) -> Result<(), SpoolError> {
        let bytes = products.iter().map(|product| product.bytes.len() as u64).sum();
        self.run(bytes, async {
            let pool = self.pool().await?;
            let mut connection = pool.acquire().await?;
            let day = self.day(&mut connection).await?;
            let mut transaction = sqlx::Connection::begin(&mut *connection).await?;
            self.leave(
                &mut transaction,
                claim,
                "UPDATE jobs SET state = 'done', finished_ms = now_ms(), reason = NULL, holder = NULL,
                        lease_until_ms = NULL, compute_ms = $4, computed_by = $5, model_digest = $6
                 WHERE id = $1 AND epoch = $2 AND holder = $3 AND state = 'running'",
                (ms(compute), self.device(), &self.means.model_digest),
            )
            .await?;
            sqlx::query(
                "UPDATE jobs SET state = 'superseded', finished_ms = now_ms()
                 FROM (SELECT series_uid, revision FROM jobs WHERE id = $1) AS done
                 WHERE jobs.series_uid = done.series_uid AND jobs.revision < done.revision
                   AND jobs.state = 'failed'",
            )
            .bind(claim.job.as_str())
            .execute(&mut *transaction)
            .await?;
            if let Some(warnings) = crate::spool::warnings(products) {
                sqlx::query("UPDATE jobs SET reason = $2 WHERE id = $1")
                    .bind(claim.job.as_str())
                    .bind(warnings)
                    .execute(&mut *transaction)
                    .await?;
            }
            for product in products {
                enter(&mut transaction, &day, &claim.job, product, destinations).await?;
            }
            failpoint::reach("shared.finished");
            transaction.commit().await?;
            Ok(())
        })?;
        self.held().jobs.remove(&claim.job);
        self.tell_now();
        Ok(())
    }

    /// Ends a job for good.
    pub(super) fn end(&self, claim: &Claim, reason: &str) -> Result<(), SpoolError> {
        self.run(0, async {
            let mut connection = self.pool().await?.acquire().await?;
            self.leave(
                &mut connection,
                claim,
                "UPDATE jobs SET state = 'failed', finished_ms = now_ms(), reason = $5, holder = NULL,
                        lease_until_ms = NULL, queue_ms = coalesce(queue_ms, $4), computed_by = $6
                 WHERE id = $1 AND epoch = $2 AND holder = $3 AND state = 'running'",
                (0, reason, self.device()),
            )
            .await
        })?;
        self.held().jobs.remove(&claim.job);
        Ok(())
    }

    pub(super) fn again(
        &self,
        claim: &Claim,
        reason: &str,
        delay: Duration,
    ) -> Result<Retry, SpoolError> {
        let became: String = self.run(0, async {
            let row = sqlx::query(
                "UPDATE jobs SET
                     state = CASE WHEN later.there THEN 'superseded'
                                  WHEN attempts >= $4 THEN 'failed' ELSE 'ready' END,
                     finished_ms = CASE WHEN later.there OR attempts >= $4 THEN now_ms() END,
                     reason = $5, not_before_ms = now_ms() + $6, holder = NULL, lease_until_ms = NULL
                 FROM (SELECT EXISTS (SELECT 1 FROM jobs AS later JOIN jobs AS this USING (series_uid)
                                      WHERE this.id = $1 AND later.revision > this.revision)
                       AS there) AS later
                 WHERE id = $1 AND epoch = $2 AND holder = $3 AND state = 'running'
                 RETURNING state",
            )
            .bind(claim.job.as_str())
            .bind(claim.epoch)
            .bind(&self.holder)
            .bind(i64::from(self.spool.max_attempts))
            .bind(reason)
            .bind(ms(delay))
            .fetch_optional(self.pool().await?)
            .await?;
            Ok(row.ok_or_else(|| overtaken(&claim.job))?.try_get(0)?)
        })?;
        self.held().jobs.remove(&claim.job);
        Ok(match became.as_str() {
            "ready" => Retry::Scheduled,
            "failed" => Retry::GivenUp,
            _ => Retry::Superseded,
        })
    }

    /// A job that was taken and not begun.
    fn put_back(&self, claim: &Claim) -> Result<(), SpoolError> {
        self.held().jobs.remove(&claim.job);
        self.run(0, async {
            sqlx::query(
                "UPDATE jobs SET state = 'ready', attempts = attempts - 1, holder = NULL, lease_until_ms = NULL
                 WHERE id = $1 AND epoch = $2 AND holder = $3 AND state = 'running'",
            )
            .bind(claim.job.as_str())
            .bind(claim.epoch)
            .bind(&self.holder)
            .execute(self.pool().await?)
            .await?;
            Ok(())
        })
    }

    pub(super) fn next_chance(&self) -> Result<Duration, SpoolError> {
        let wait: Option<i64> = self.run(0, async {
            let row = sqlx::query(
                "SELECT min(CASE state WHEN 'ready' THEN not_before_ms ELSE lease_until_ms END) - now_ms()
                 FROM jobs WHERE state IN ('ready', 'running') AND (model = $1 OR model = '' OR $1 = '')",
            )
            .bind(&self.means.model)
            .fetch_one(self.pool().await?)
            .await?;
            Ok(row.try_get(0)?)
        })?;
        let wait = wait.map(|ms| Duration::from_millis(ms.max(10).cast_unsigned()));
        Ok(wait.map_or(self.config.poll, |wait| wait.min(self.config.poll)))
    }

    /// Runs `update` of a job that is held, and of no other.
    async fn leave(
        &self,
        connection: &mut PgConnection,
        claim: &Claim,
        update: &'static str,
        (number, word, other): (i64, &str, &str),
    ) -> Result<(), SpoolError> {
        let done = sqlx::query(update)
            .bind(claim.job.as_str())
            .bind(claim.epoch)
            .bind(&self.holder)
            .bind(number)
            .bind(word)
            .bind(other)
            .execute(connection)
            .await?;
        if done.rows_affected() == 0 {
            self.held().jobs.remove(&claim.job);
            return Err(overtaken(&claim.job));
        }
        Ok(())
    }

    pub(super) fn folder(&self) -> Result<TempDir, SpoolError> {
        let desk = self.desk();
        std::fs::create_dir_all(&desk).map_err(DurableError::of("create", &desk))?;
        Ok(TempDir::new_in(&desk).map_err(DurableError::of("create a folder in", desk))?)
    }
}

/// Records a product and its deliveries. One that goes nowhere is recorded as sent to the queue itself.
async fn enter(
    transaction: &mut PgConnection,
    day: &str,
    job: &JobId,
    product: &Product,
    destinations: &[String],
) -> Result<(), SpoolError> {
    use sha2::{Digest, Sha256};
    let sha256 = durable::hex(&Sha256::digest(&product.bytes));
    let content = Content::Bytes(&product.bytes);
    payloads::deposit(transaction, (day, &sha256), content).await?;
    let (class, instance, syntax) = match &product.dicom {
        Some(object) => (
            object.sop_class_uid.as_str(),
            object.sop_instance_uid.as_str(),
            object.transfer_syntax.as_str(),
        ),
        None => ("", product.name.as_str(), ""),
    };
    let nowhere = [String::new()];
    let (places, state) =
        if destinations.is_empty() { (&nowhere[..], "sent") } else { (destinations, "pending") };
    for destination in places {
        sqlx::query(
            "INSERT INTO deliveries (job, destination, name, sop_class_uid, sop_uid, transfer_syntax,
                                     sha256, bytes, day, state, created_ms, settled_ms)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::date, $10, now_ms(),
                     CASE WHEN $10 = 'sent' THEN now_ms() END)",
        )
        .bind(job.as_str())
        .bind(destination)
        .bind(&product.name)
        .bind(class)
        .bind(instance)
        .bind(syntax)
        .bind(&sha256)
        .bind(product.bytes.len() as i64)
        .bind(day)
        .bind(state)
        .execute(&mut *transaction)
        .await?;
    }
    Ok(())
}

/// This transaction's commit does not wait for the disk: a lease that a crash undoes is noticed by its holder.
pub(super) async fn unsynced(transaction: &mut PgConnection) -> Result<(), SpoolError> {
    transaction.execute("SET LOCAL synchronous_commit = off").await?;
    Ok(())
}

fn bare(taken: &Taken) -> Claim {
    Claim {
        job: taken.job.clone(),
        attempt: taken.attempt,
        epoch: taken.epoch,
        files: Vec::new(),
        revision: taken.revision,
        queue: Duration::from_millis(taken.queue_ms.max(0).cast_unsigned()),
    }
}

fn overtaken(job: &JobId) -> SpoolError {
    SpoolError::Overtaken { what: "job", id: job.to_string() }
}
