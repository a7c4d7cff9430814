//! The queue that several devices share, on a PostgreSQL server. Every device keeps its own spool before it: what came
//! in is on its disk first, and stays there until its age, whatever becomes of the server.
//!
//! Invariants, at every moment including the death of any device or of the server:
//! 1. A job and the payloads of its objects are committed together, a result and its deliveries too. No transaction is
//!    open while anything is computed or sent.
//! 2. Who takes a job or a delivery holds a lease, which it renews while it lives. Each lease has an epoch one higher
//!    than the last and the name of its holder; what comes under another changes nothing. The server's clock decides.
//! 3. A destination's deliveries are handed out one at a time, the oldest first, to whichever device asks; each account
//!    counts each result of a job once.
//! 4. A payload is cut into pieces of at most 1 MiB and is held against its digest on the way in and out.
//! 5. Only days that no row names are dropped, and only rows of finished series are removed: what is undelivered, dead,
//!    failed or in quarantine waits for as long as it takes.
//! 6. States change as in the embedded spool, along `JobState::next` and `DeliveryState::next`.
//!
//! A lease may get lost with a server that crashes (its commit does not wait for the disk): the holder is then told so,
//! and the job is done again with the same result under the same UIDs.

mod claims;
mod config;
mod deliveries;
mod desk;
mod enqueue;
mod heartbeat;
mod payloads;
mod retention;

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{Executor, Row, SqlSafeStr};
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;

use self::heartbeat::Held;
use super::{Content, SpoolError};
use crate::durable::DurableError;

pub use config::{Config, Durability};
pub use enqueue::{Enqueued, Handover, Object};

/// Raised by one with every file.
const MIGRATIONS: [(i64, &str, &str); 1] =
    [(1, "the queue that devices share", include_str!("0001_queue.sql"))];

/// The worker, two ways in, the relay, the heartbeat, who asks by HTTP, and some destinations.
const CONNECTIONS: u32 = 8;

/// Where events are told of.
const CHANNEL: &str = "cdal_spool";

/// What this device computes with, and how it treats what is finished.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Means {
    /// Name of its model: jobs for another are left to other devices. Empty: it takes any.
    pub model: String,
    /// Of the model, written into each job that it computes.
    pub model_digest: String,
}

/// The shared queue as this process sees it. Shared behind an `Arc`; calls block, and must not come from an async task.
pub struct Shared {
    config: Config,
    spool: super::Config,
    means: Means,
    /// The device and this run of its process.
    holder: String,
    pool: PgPool,
    /// Set once the tables are known to be there.
    prepared: OnceCell<()>,
    /// The last day for which there is a partition.
    day: Mutex<Option<String>>,
    held: Mutex<Held>,
    /// Results that somebody fetches leave the device's own work its connections.
    fetching: Mutex<()>,
    reach: AtomicU8,
    /// Its own: it outlives the daemon's for as long as a job under way needs it.
    runtime: Option<Runtime>,
    /// Reads objects, where their content matters.
    content: OnceLock<Arc<dyn Content>>,
}

/// Values of `Shared::reach`.
const UNKNOWN: u8 = 0;
const REACHED: u8 = 1;
const LOST: u8 = 2;

impl Shared {
    /// Nothing is asked of the server yet: a device starts without it. `spool` is the device's own.
    ///
    /// # Errors
    /// If the password cannot be read.
    pub fn open(config: Config, spool: super::Config, means: Means) -> Result<Self, SpoolError> {
        let refused = |problem| SpoolError::Shared { problem, is_outage: false };
        let options = config.options().map_err(refused)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("shared")
            .enable_all()
            .build()
            .map_err(|error| refused(format!("start a thread: {error}")))?;
        let pool = {
            let _inside = runtime.enter();
            PgPoolOptions::new()
                .max_connections(CONNECTIONS)
                .acquire_timeout(config.timeout)
                .connect_lazy_with(options)
        };
        let run = RandomState::new().hash_one(std::process::id());
        let holder = format!("{}/{run:016x}", config.device);
        let (prepared, day, held, fetching) = Default::default();
        let (reach, runtime) = (AtomicU8::new(UNKNOWN), Some(runtime));
        Ok(Self {
            config,
            spool,
            means,
            holder,
            pool,
            prepared,
            day,
            held,
            fetching,
            reach,
            runtime,
            content: OnceLock::new(),
        })
    }

    /// From now on objects are known by their content, as in the device's own spool.
    pub fn understand(&self, content: Arc<dyn Content>) {
        let _ = self.content.set(content);
    }

    /// Whether the server answered the last call.
    #[must_use]
    pub fn is_reached(&self) -> bool {
        self.reach.load(Ordering::Relaxed) == REACHED
    }

    /// Who may be told apart from other devices by it.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.config.device
    }

    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Asks the server anything.
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn ping(&self) -> Result<(), SpoolError> {
        self.run(0, async {
            self.pool().await?.execute("SELECT 1").await?;
            Ok(())
        })
    }

    /// Whether it makes sense to bring something now. Asks only if the last call found the server out of reach.
    ///
    /// # Errors
    /// If it still is.
    pub(super) fn check_reach(&self) -> Result<(), SpoolError> {
        if self.reach.load(Ordering::Relaxed) == LOST { self.ping() } else { Ok(()) }
    }

    /// Waits for `work`, within the time that so many bytes may take.
    fn run<T>(
        &self,
        bytes: u64,
        work: impl Future<Output = Result<T, SpoolError>>,
    ) -> Result<T, SpoolError> {
        let runtime = self.runtime.as_ref().expect("there until dropped");
        let done = runtime.block_on(self.in_time(bytes, work));
        self.notice(&done);
        done
    }

    async fn in_time<T>(
        &self,
        bytes: u64,
        work: impl Future<Output = Result<T, SpoolError>>,
    ) -> Result<T, SpoolError> {
        let patience = self.config.timeout + Duration::from_secs(bytes >> 20);
        tokio::time::timeout(patience, work).await.unwrap_or_else(|_| {
            let problem = format!("no answer within {patience:?}");
            Err(SpoolError::Shared { problem, is_outage: true })
        })
    }

    /// Tells of an outage when it begins and when it ends. `done` is what came of asking the server: what failed before it
    /// was asked, as on a full disk, says nothing of it.
    fn notice<T>(&self, done: &Result<T, SpoolError>) {
        let now = match done {
            Err(error) if error.is_outage() => LOST,
            Err(error) if !error.is_of_the_server() => return,
            _ => REACHED,
        };
        let before = self.reach.swap(now, Ordering::Relaxed);
        match (before, done) {
            (UNKNOWN | REACHED, Err(error)) if now == LOST => {
                tracing::warn!(%error, "the shared queue is out of reach; will try again");
            }
            (LOST, _) if now == REACHED => tracing::info!("the shared queue is back"),
            _ => {}
        }
    }

    /// The connections, once the tables are there.
    async fn pool(&self) -> Result<&PgPool, SpoolError> {
        self.prepared.get_or_try_init(|| self.prepare()).await?;
        Ok(&self.pool)
    }

    async fn prepare(&self) -> Result<(), SpoolError> {
        // Made only where it is missing: the daemon's role need not be allowed to.
        let is_there: bool = sqlx::query("SELECT to_regnamespace('cdal_spool') IS NOT NULL")
            .fetch_one(&self.pool)
            .await?
            .try_get(0)?;
        if !is_there {
            self.pool.execute("CREATE SCHEMA IF NOT EXISTS cdal_spool").await?;
        }
        let migrations = MIGRATIONS.map(|(version, what, text)| {
            Migration::new(version, what.into(), MigrationType::Simple, text.into_sql_str(), false)
        });
        let mut migrator = Migrator::with_migrations(migrations.to_vec());
        migrator.set_ignore_missing(true); // of a newer version: they only add
        migrator.dangerous_set_table_name("cdal_spool.migrations");
        migrator.run(&self.pool).await.map_err(sqlx::Error::from)?;
        Ok(())
    }

    /// Tells all devices that there is something to do. They look by themselves, too.
    async fn tell(&self) {
        let told = sqlx::query("SELECT pg_notify($1, '')").bind(CHANNEL).execute(&self.pool).await;
        if let Err(error) = told {
            tracing::debug!(%error, "other devices are not told");
        }
    }

    /// As [`Shared::tell`], after something that is done already: whether others are told changes nothing of it.
    fn tell_now(&self) {
        let runtime = self.runtime.as_ref().expect("there until dropped");
        let told = async {
            self.tell().await;
            Ok(())
        };
        let _ = runtime.block_on(self.in_time(0, told));
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where payloads lie while this device works on them.
    fn desk(&self) -> PathBuf {
        self.spool.directory.join("borrowed")
    }

    /// Removes what an earlier run of this device has left on its desk. For whoever owns the spool.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn clear_desk(&self) -> Result<(), SpoolError> {
        let desk = self.desk();
        match fs::remove_dir_all(&desk) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(DurableError::of("remove", desk)(error).into())
            }
            _ => Ok(()),
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("holder", &self.holder).finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background(); // may be dropped by an async task
        }
    }
}

fn ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
