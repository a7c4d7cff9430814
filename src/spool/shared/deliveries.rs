//! Deliveries under leases: whoever asks first sends next, in order.

use std::time::Duration;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Acquire, Row};

use super::claims::unsynced;
use super::enqueue::{job_id, strange};
use super::{Shared, ms};
use crate::domain::Uid;
use crate::durable::failpoint;
use crate::spool::deliveries::Entry;
use crate::spool::{Account, Delivery, DeliveryState, DicomObject, Next, SpoolError};

impl Shared {
    pub(super) fn next_in_line(&self, destination: &str) -> Result<Next<Delivery>, SpoolError> {
        enum Head {
            Mine(Box<(Delivery, String)>),
            Wait(i64),
        }
        let head = self.run(0, async {
            let pool = self.pool().await?;
            // Most asks find nothing: no transaction for that.
            let any = sqlx::query(
                "SELECT 1 FROM deliveries WHERE destination = $1 AND state = 'pending' LIMIT 1",
            );
            if any.bind(destination).fetch_optional(pool).await?.is_none() {
                return Ok(Head::Wait(i64::MAX));
            }
            let mut transaction = pool.begin().await?;
            unsynced(&mut transaction).await?;
            // The oldest, whoever has it: skipping one that is held would send the next before it.
            let row = sqlx::query(
                "SELECT *, day::text AS on_day,
                        greatest(next_attempt_ms, CASE WHEN holder IS NULL OR holder = $2
                                 OR lease_is_over(lease_until_ms, $3) THEN 0 ELSE lease_until_ms END)
                        - now_ms() AS wait_ms
                 FROM deliveries WHERE destination = $1 AND state = 'pending'
                 ORDER BY id LIMIT 1 FOR UPDATE",
            )
            .bind(destination)
            .bind(&self.holder)
            .bind(ms(self.config.lease))
            .fetch_optional(&mut *transaction)
            .await?;
            // Settled while this waited for it: there may be another behind it.
            let Some(row) = row else { return Ok(Head::Wait(0)) };
            let wait_ms: i64 = row.try_get("wait_ms")?;
            if wait_ms > 0 {
                return Ok(Head::Wait(wait_ms));
            }
            let epoch = row.try_get::<i64, _>("epoch")? + 1;
            let delivery = read(&row, epoch)?;
            sqlx::query(
                "UPDATE deliveries SET epoch = $2, holder = $3, lease_until_ms = now_ms() + $4 WHERE id = $1",
            )
            .bind(delivery.id)
            .bind(epoch)
            .bind(&self.holder)
            .bind(ms(self.config.lease))
            .execute(&mut *transaction)
            .await?;
            transaction.commit().await?;
            Ok(Head::Mine(Box::new((delivery, row.try_get("on_day")?))))
        })?;
        let (mut delivery, day) = match head {
            Head::Mine(mine) => *mine,
            Head::Wait(wait_ms) => {
                let wait = Duration::from_millis(wait_ms.max(10).cast_unsigned());
                return Ok(Next::After(wait.min(self.config.poll)));
            }
        };
        let folder = self.folder()?;
        let path = folder.path().to_owned();
        self.held().deliveries.insert(delivery.id, (delivery.lease, folder));
        let borrowed = self.run(delivery.bytes, async {
            let pool = self.pool().await?;
            self.borrow(pool, &path, (&day, &delivery.sha256, "payload", delivery.bytes)).await
        });
        match borrowed {
            Ok(path) => delivery.path = path,
            Err(SpoolError::Damaged { .. }) => {
                self.settle(
                    &delivery,
                    DeliveryState::Dead,
                    "the payload is damaged on the server",
                )?;
                return Ok(Next::After(Duration::from_millis(10)));
            }
            Err(error) => {
                self.held().deliveries.remove(&delivery.id);
                return Err(error);
            }
        }
        Ok(Next::Due(Box::new(delivery)))
    }

    /// The delivery leaves the line.
    pub(super) fn settle(
        &self,
        delivery: &Delivery,
        state: DeliveryState,
        reason: &str,
    ) -> Result<Option<Account>, SpoolError> {
        let account = self.run(0, async {
            let mut connection = self.pool().await?.acquire().await?;
            let mut transaction = connection.begin().await?;
            let settled = sqlx::query(
                "UPDATE deliveries SET state = $4, reason = nullif($5, ''), settled_ms = now_ms(),
                        attempts = attempts + 1, holder = NULL, lease_until_ms = NULL
                 WHERE id = $1 AND epoch = $2 AND holder = $3 AND state = 'pending'",
            )
            .bind(delivery.id)
            .bind(delivery.lease)
            .bind(&self.holder)
            .bind(state.as_str())
            .bind(reason)
            .execute(&mut *transaction)
            .await?;
            if settled.rows_affected() == 0 {
                return Err(overtaken(delivery));
            }
            let sent = u64::from(state == DeliveryState::Sent);
            let entry = Entry {
                attempts: 1,
                sent,
                sent_bytes: sent * delivery.bytes,
                dead: 1 - sent,
                dropped: 0,
            };
            post(&mut transaction, &delivery.destination, entry).await?;
            let account = account(&mut transaction, delivery.job.as_str()).await?;
            failpoint::reach("shared.settled");
            transaction.commit().await?;
            Ok(account)
        });
        self.held().deliveries.remove(&delivery.id);
        account
    }

    pub(super) fn later(
        &self,
        delivery: &Delivery,
        reason: &str,
        delay: Duration,
    ) -> Result<(), SpoolError> {
        let done = self.run(0, async {
            let mut connection = self.pool().await?.acquire().await?;
            let mut transaction = connection.begin().await?;
            let postponed = sqlx::query(
                "UPDATE deliveries SET reason = $4, next_attempt_ms = now_ms() + $5,
                        attempts = attempts + 1, holder = NULL, lease_until_ms = NULL
                 WHERE id = $1 AND epoch = $2 AND holder = $3 AND state = 'pending'",
            )
            .bind(delivery.id)
            .bind(delivery.lease)
            .bind(&self.holder)
            .bind(reason)
            .bind(ms(delay))
            .execute(&mut *transaction)
            .await?;
            if postponed.rows_affected() == 0 {
                return Err(overtaken(delivery));
            }
            let entry = Entry { attempts: 1, ..Entry::default() };
            post(&mut transaction, &delivery.destination, entry).await?;
            Ok(transaction.commit().await?)
        });
        self.held().deliveries.remove(&delivery.id);
        done
    }

    pub(super) fn bury_old(&self, destination: &str, age: Duration) -> Result<u64, SpoolError> {
        self.run(0, async {
            let mut connection = self.pool().await?.acquire().await?;
            let mut transaction = connection.begin().await?;
            let buried = sqlx::query(
                "UPDATE deliveries SET state = 'dead', settled_ms = now_ms(), holder = NULL,
                        lease_until_ms = NULL,
                        reason = 'pending for too long; last: ' || coalesce(reason, 'not tried')
                 WHERE destination = $1 AND state = 'pending' AND created_ms < now_ms() - $2
                   AND (holder IS NULL OR holder = $3 OR lease_is_over(lease_until_ms, $4))",
            )
            .bind(destination)
            .bind(ms(age))
            .bind(&self.holder)
            .bind(ms(self.config.lease))
            .execute(&mut *transaction)
            .await?
            .rows_affected();
            let entry = Entry { dead: buried, ..Entry::default() };
            post(&mut transaction, destination, entry).await?;
            transaction.commit().await?;
            Ok(buried)
        })
    }

    pub(super) fn at_once(&self, destination: &str) -> Result<(), SpoolError> {
        self.run(0, async {
            sqlx::query(
                "UPDATE deliveries SET next_attempt_ms = 0
                 WHERE destination = $1 AND state = 'pending' AND next_attempt_ms > 0",
            )
            .bind(destination)
            .execute(self.pool().await?)
            .await?;
            Ok(())
        })
    }
}

fn read(row: &PgRow, lease: i64) -> Result<Delivery, SpoolError> {
    let uid = |column: &str| -> Result<Uid, SpoolError> {
        Uid::parse(row.try_get(column)?).map_err(|_| strange("UID"))
    };
    let is_dicom = !row.try_get::<&str, _>("sop_class_uid")?.is_empty();
    let dicom = is_dicom
        .then(|| -> Result<_, SpoolError> {
            Ok(DicomObject {
                sop_class_uid: uid("sop_class_uid")?,
                sop_instance_uid: uid("sop_uid")?,
                transfer_syntax: uid("transfer_syntax")?,
            })
        })
        .transpose()?;
    Ok(Delivery {
        id: row.try_get("id")?,
        job: job_id(row.try_get("job")?)?,
        destination: row.try_get("destination")?,
        name: row.try_get("name")?,
        dicom,
        path: std::path::PathBuf::new(),
        sha256: row.try_get("sha256")?,
        bytes: row.try_get::<i64, _>("bytes")?.cast_unsigned(),
        attempts: row.try_get::<i64, _>("attempts")?.try_into().unwrap_or(u32::MAX),
        lease,
    })
}

/// Counts what happened at `destination`.
pub(super) async fn post(
    connection: &mut PgConnection,
    destination: &str,
    entry: Entry,
) -> Result<(), SpoolError> {
    let Entry { attempts, sent, sent_bytes, dead, dropped } = entry;
    sqlx::query(
        "INSERT INTO accounts (destination, attempts, sent, sent_bytes, dead, dropped)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (destination) DO UPDATE SET
             attempts = accounts.attempts + excluded.attempts, sent = accounts.sent + excluded.sent,
             sent_bytes = accounts.sent_bytes + excluded.sent_bytes,
             dead = accounts.dead + excluded.dead, dropped = accounts.dropped + excluded.dropped",
    )
    .bind(destination)
    .bind(attempts.cast_signed())
    .bind(sent.cast_signed())
    .bind(sent_bytes.cast_signed())
    .bind(dead.cast_signed())
    .bind(dropped.cast_signed())
    .execute(connection)
    .await?;
    Ok(())
}

async fn account(connection: &mut PgConnection, job: &str) -> Result<Option<Account>, SpoolError> {
    let row = sqlx::query(
        "SELECT count(*) FILTER (WHERE deliveries.state = 'pending'),
                count(*) FILTER (WHERE deliveries.state = 'sent'),
                count(*) FILTER (WHERE deliveries.state = 'dead'),
                coalesce(queue_ms, 0), coalesce(compute_ms, 0),
                greatest(0, now_ms() - coalesce(finished_ms, 0))
         FROM jobs JOIN deliveries ON job = jobs.id WHERE jobs.id = $1 GROUP BY seq",
    )
    .bind(job)
    .fetch_one(connection)
    .await?;
    let number = |column: usize| -> Result<u64, SpoolError> {
        Ok(row.try_get::<i64, _>(column)?.max(0).cast_unsigned())
    };
    if number(0)? > 0 {
        return Ok(None);
    }
    Ok(Some(Account {
        sent: number(1)?,
        dead: number(2)?,
        queue_ms: number(3)?,
        compute_ms: number(4)?,
        deliver_ms: number(5)?,
    }))
}

fn overtaken(delivery: &Delivery) -> SpoolError {
    SpoolError::Overtaken { what: "delivery", id: delivery.id.to_string() }
}
