//! What this device holds, and the sign of life that keeps it.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use sqlx::Executor;
use sqlx::postgres::PgListener;
use tempfile::TempDir;

use super::{CHANNEL, Shared, ms};
use crate::spool::{JobId, SpoolError};

/// Leases, each with its epoch and the folder in which its payloads lie.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) jobs: HashMap<JobId, (i64, TempDir)>,
    pub(super) deliveries: HashMap<i64, (i64, TempDir)>,
}

impl Shared {
    /// Renews what is held, and calls `on_change` when a device says that there is something to do, until this is
    /// dropped.
    pub fn start(self: &Arc<Self>, on_change: impl Fn() + Send + 'static) {
        let runtime = self.runtime.as_ref().expect("there until dropped");
        runtime.spawn(beat(Arc::downgrade(self)));
        runtime.spawn(listen(Arc::downgrade(self), on_change));
    }

    /// Renews every lease of this device once, and asks the server anything where there is none. A lease that expired is
    /// renewed as well, if nobody else has taken it.
    ///
    /// # Errors
    /// If the server refuses.
    pub fn renew(&self) -> Result<(), SpoolError> {
        self.run(0, self.renew_held())
    }

    async fn renew_held(&self) -> Result<(), SpoolError> {
        let (jobs, deliveries) = {
            let held = self.held();
            let jobs: Vec<_> =
                held.jobs.iter().map(|(job, (epoch, _))| (job.clone(), *epoch)).collect();
            let deliveries: Vec<_> =
                held.deliveries.iter().map(|(id, (epoch, _))| (*id, *epoch)).collect();
            (jobs, deliveries)
        };
        if jobs.is_empty() && deliveries.is_empty() {
            // The sign of life is one of the server's as well: an idle device learns by it whether that is reached.
            self.pool().await?.execute("SELECT 1").await?;
            return Ok(());
        }
        let (pool, lease) = (self.pool().await?, ms(self.config.lease));
        for (job, epoch) in jobs {
            let renewed = sqlx::query(
                "UPDATE jobs SET lease_until_ms = now_ms() + $4
                 WHERE id = $1 AND epoch = $2 AND holder = $3 AND state = 'running'",
            )
            .bind(job.as_str())
            .bind(epoch)
            .bind(&self.holder)
            .bind(lease)
            .execute(pool)
            .await?;
            // What ended meanwhile is not held any more.
            if renewed.rows_affected() == 0 && self.held().jobs.contains_key(&job) {
                tracing::warn!(%job, "another device has taken over a job of this one");
            }
        }
        for (delivery, epoch) in deliveries {
            sqlx::query(
                "UPDATE deliveries SET lease_until_ms = now_ms() + $4
                 WHERE id = $1 AND epoch = $2 AND holder = $3 AND state = 'pending'",
            )
            .bind(delivery)
            .bind(epoch)
            .bind(&self.holder)
            .bind(lease)
            .execute(pool)
            .await?;
        }
        Ok(())
    }
}

async fn beat(shared: Weak<Shared>) {
    loop {
        let Some(alive) = shared.upgrade() else { return };
        let heartbeat = alive.config.heartbeat;
        let done = alive.in_time(0, alive.renew_held()).await;
        alive.notice(&done);
        if let Err(error) = done
            && !error.is_outage()
        {
            tracing::error!(%error, "leases cannot be renewed");
        }
        drop(alive);
        tokio::time::sleep(heartbeat).await;
    }
}

async fn listen(shared: Weak<Shared>, on_change: impl Fn()) {
    loop {
        let Some(alive) = shared.upgrade() else { return };
        let (pool, poll) = (alive.pool.clone(), alive.config.poll);
        drop(alive);
        // Until it is there the others' words are missed; everybody also looks now and then.
        if let Ok(mut listener) = PgListener::connect_with(&pool).await
            && listener.listen(CHANNEL).await.is_ok()
        {
            while listener.try_recv().await.is_ok() {
                if shared.strong_count() == 0 {
                    return;
                }
                on_change();
            }
        }
        tokio::time::sleep(poll).await;
    }
}
