//! What is finished goes after its age: its rows, then the days that nothing names any more.

use sqlx::{AssertSqlSafe, Executor, Row};

use super::{Shared, ms, payloads};
use crate::spool::{SpoolError, Tidied};

/// Series removed in one transaction.
const BATCH: i64 = 256;

/// Days that are kept in any case: payloads are put into today's, which may be yesterday's by the time of the commit.
const DAYS: i32 = 2;

impl Shared {
    pub(super) fn remove_finished(&self) -> Result<Tidied, SpoolError> {
        let series = self.run(0, self.forget())?;
        let bytes = self.run(0, self.drop_days())?;
        Ok(Tidied { series, bytes })
    }

    async fn forget(&self) -> Result<u64, SpoolError> {
        let pool = self.pool().await?;
        let mut transaction = pool.begin().await?;
        // As in the embedded spool: no job to run and none that waits for a person, every delivery confirmed or given up.
        let rows = sqlx::query(
            "SELECT series_uid
             FROM jobs LEFT JOIN deliveries ON deliveries.job = jobs.id
             GROUP BY series_uid
             HAVING bool_and(jobs.state IN ('done', 'superseded', 'dropped'))
                AND bool_and(coalesce(deliveries.state, 'sent') IN ('sent', 'dropped'))
                AND max(CASE jobs.state WHEN 'dropped' THEN 0 ELSE
                            greatest(coalesce(jobs.finished_ms, 0), coalesce(deliveries.settled_ms, 0)) END)
                    <= now_ms() - $1
             ORDER BY min(seq) LIMIT $2",
        )
        .bind(ms(self.spool.retain_for))
        .bind(BATCH)
        .fetch_all(&mut *transaction)
        .await?;
        let mut removed = 0;
        for row in rows {
            let series: String = row.try_get(0)?;
            // Whoever brings an object of it waits, and then brings it to a series that is new.
            let free: bool =
                sqlx::query("SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))")
                    .bind(&series)
                    .fetch_one(&mut *transaction)
                    .await?
                    .try_get(0)?;
            let still = sqlx::query(
                "SELECT 1 FROM jobs LEFT JOIN deliveries ON deliveries.job = jobs.id
                 WHERE series_uid = $1 AND (jobs.state NOT IN ('done', 'superseded', 'dropped')
                                            OR deliveries.state IN ('pending', 'dead'))",
            )
            .bind(&series)
            .fetch_optional(&mut *transaction)
            .await?;
            if !free || still.is_some() {
                continue;
            }
            for delete in [
                "DELETE FROM deliveries WHERE job IN (SELECT id FROM jobs WHERE series_uid = $1)",
                "DELETE FROM jobs WHERE series_uid = $1",
                "DELETE FROM instances WHERE series_uid = $1",
            ] {
                sqlx::query(delete).bind(&series).execute(&mut *transaction).await?;
            }
            removed += 1;
        }
        transaction.commit().await?;
        Ok(removed)
    }

    /// Returns how many bytes that freed.
    async fn drop_days(&self) -> Result<u64, SpoolError> {
        let pool = self.pool().await?;
        let days = sqlx::query(
            "SELECT child.relname::text FROM pg_inherits
             JOIN pg_class AS child ON child.oid = inhrelid
             WHERE inhparent = 'chunks'::regclass AND child.relname ~ '^chunks_[0-9]{8}$'
               AND to_date(right(child.relname, 8), 'YYYYMMDD') < (now() AT TIME ZONE 'UTC')::date - $1
               AND NOT EXISTS (SELECT 1 FROM instances
                               WHERE day = to_date(right(child.relname, 8), 'YYYYMMDD'))
               AND NOT EXISTS (SELECT 1 FROM deliveries
                               WHERE day = to_date(right(child.relname, 8), 'YYYYMMDD'))
             ORDER BY 1",
        )
        .bind(DAYS)
        .fetch_all(pool)
        .await?;
        let mut freed = 0;
        for row in days {
            let name: String = row.try_get(0)?;
            let mut transaction = pool.begin().await?;
            payloads::lock_partitions(&mut transaction).await?;
            let bytes: Option<i64> = sqlx::query("SELECT pg_total_relation_size(to_regclass($1))")
                .bind(&name)
                .fetch_one(&mut *transaction)
                .await?
                .try_get(0)?;
            // A name of digits, as the query above wants it.
            let drop = format!("DROP TABLE IF EXISTS {name}");
            transaction.execute(AssertSqlSafe(drop)).await?;
            transaction.commit().await?;
            freed += bytes.unwrap_or(0).max(0).cast_unsigned();
        }
        Ok(freed)
    }
}
