use std::str::FromStr;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Executor, Row};
use tokio::runtime::Handle;

use super::store::{MAX_ALARMS, Store, StoreError, parse, text};
use crate::fleet::rollout::Record;

/// Raised with every change of the tables.
const SCHEMA: i64 = 1;

/// Names the advisory lock of the one collector: "cdal" and a number.
const LOCK: i64 = 0x6364_616c_0001;

const TABLES: &str = "
    CREATE SCHEMA IF NOT EXISTS cdal_fleet;
    CREATE TABLE cdal_fleet.version  (version BIGINT NOT NULL);
    CREATE TABLE cdal_fleet.devices  (id TEXT PRIMARY KEY, record TEXT NOT NULL);
    CREATE TABLE cdal_fleet.rollouts (digest TEXT PRIMARY KEY, release TEXT NOT NULL, halt TEXT NOT NULL);
    CREATE TABLE cdal_fleet.entries  (
        digest TEXT NOT NULL,
        device TEXT NOT NULL,
        record TEXT NOT NULL,
        PRIMARY KEY (digest, device)
    );
    CREATE TABLE cdal_fleet.alarms   (seq BIGSERIAL PRIMARY KEY, record TEXT NOT NULL);
";

/// The store on a PostgreSQL server, in a schema of its own. One connection, which holds the lock: who loses it makes
/// another, and finds out whether another collector came in between.
pub struct Postgres {
    options: PgConnectOptions,
    runtime: Handle,
    connection: Option<PgConnection>,
}

impl Postgres {
    /// `url` is as in `postgres://user:password@host/database?sslmode=verify-full`. Calls block on `runtime`, so that
    /// they must not come from one of its tasks.
    ///
    /// # Errors
    /// If the server cannot be used or another collector uses the database.
    pub fn open(url: &str, runtime: Handle) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(url)?;
        let connection = runtime.block_on(connect(&options))?;
        Ok(Self { options, runtime, connection: Some(connection) })
    }

    /// Runs `work` on the connection, or on a new one where that was lost.
    fn run<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let runtime = self.runtime.clone();
        runtime.block_on(async {
            let mut connection = match self.connection.take() {
                Some(connection) => connection,
                None => connect(&self.options).await?,
            };
            let done = work(&mut connection).await;
            if done.is_ok() {
                self.connection = Some(connection);
            }
            done
        })
    }
}

impl Store for Postgres {
    fn load(&mut self) -> Result<Vec<Record>, StoreError> {
        self.run(async |connection| load(connection).await)
    }

    fn save(&mut self, records: &[Record]) -> Result<(), StoreError> {
        self.run(async |connection| {
            let mut transaction = connection.begin().await?;
            for record in records {
                write(&mut transaction, record).await?;
            }
            Ok(transaction.commit().await?)
        })
    }
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection, StoreError> {
    let mut connection = PgConnection::connect_with(options).await?;
    let is_free: bool = sqlx::query("SELECT pg_try_advisory_lock($1)")
        .bind(LOCK)
        .fetch_one(&mut connection)
        .await?
        .try_get(0)?;
    if !is_free {
        return Err(StoreError::PostgresLocked);
    }
    let is_there: bool = sqlx::query("SELECT to_regclass('cdal_fleet.version') IS NOT NULL")
        .fetch_one(&mut connection)
        .await?
        .try_get(0)?;
    if !is_there {
        let mut transaction = connection.begin().await?;
        transaction.execute(sqlx::raw_sql(TABLES)).await?;
        sqlx::query("INSERT INTO cdal_fleet.version VALUES ($1)")
            .bind(SCHEMA)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
    }
    let version = sqlx::query("SELECT version FROM cdal_fleet.version");
    let found: i64 = version.fetch_one(&mut connection).await?.try_get(0)?;
    if found != SCHEMA {
        return Err(StoreError::PostgresSchema { found, known: SCHEMA });
    }
    Ok(connection)
}

async fn load(connection: &mut PgConnection) -> Result<Vec<Record>, StoreError> {
    let mut records = Vec::new();
    let devices = sqlx::query("SELECT id, record FROM cdal_fleet.devices");
    for row in devices.fetch_all(&mut *connection).await? {
        let device = parse("devices", row.try_get(1)?)?;
        records.push(Record::Device { id: row.try_get(0)?, device });
    }
    let rollouts = sqlx::query("SELECT digest, release, halt FROM cdal_fleet.rollouts");
    for row in rollouts.fetch_all(&mut *connection).await? {
        let release = parse("rollouts", row.try_get(1)?)?;
        let halt = parse("rollouts", row.try_get(2)?)?;
        records.push(Record::Rollout { digest: row.try_get(0)?, release, halt });
    }
    let entries = sqlx::query("SELECT digest, device, record FROM cdal_fleet.entries");
    for row in entries.fetch_all(&mut *connection).await? {
        let entry = parse("entries", row.try_get(2)?)?;
        records.push(Record::Entry { digest: row.try_get(0)?, device: row.try_get(1)?, entry });
    }
    let alarms = sqlx::query("SELECT record FROM cdal_fleet.alarms ORDER BY seq");
    for row in alarms.fetch_all(&mut *connection).await? {
        records.push(Record::Alarm(parse("alarms", row.try_get(0)?)?));
    }
    Ok(records)
}

async fn write(connection: &mut PgConnection, record: &Record) -> Result<(), StoreError> {
    let query = match record {
        Record::Device { id, device } => sqlx::query(
            "INSERT INTO cdal_fleet.devices VALUES ($1, $2)
             ON CONFLICT (id) DO UPDATE SET record = excluded.record",
        )
        .bind(id)
        .bind(text(device)),
        Record::Rollout { digest, release, halt } => sqlx::query(
            "INSERT INTO cdal_fleet.rollouts VALUES ($1, $2, $3)
             ON CONFLICT (digest) DO UPDATE SET release = excluded.release, halt = excluded.halt",
        )
        .bind(digest)
        .bind(text(release))
        .bind(text(halt)),
        Record::Entry { digest, device, entry } => sqlx::query(
            "INSERT INTO cdal_fleet.entries VALUES ($1, $2, $3)
             ON CONFLICT (digest, device) DO UPDATE SET record = excluded.record",
        )
        .bind(digest)
        .bind(device)
        .bind(text(entry)),
        Record::Forgotten { id } => {
            let entries = sqlx::query("DELETE FROM cdal_fleet.entries WHERE device = $1").bind(id);
            entries.execute(&mut *connection).await?;
            sqlx::query("DELETE FROM cdal_fleet.devices WHERE id = $1").bind(id)
        }
        Record::Alarm(alarm) => {
            let insert = sqlx::query("INSERT INTO cdal_fleet.alarms (record) VALUES ($1)");
            insert.bind(text(alarm)).execute(&mut *connection).await?;
            // By place, not by number: a crash leaves gaps in them.
            sqlx::query(
                "DELETE FROM cdal_fleet.alarms
                 WHERE seq <= (SELECT seq FROM cdal_fleet.alarms ORDER BY seq DESC OFFSET $1 LIMIT 1)",
            )
            .bind(MAX_ALARMS)
        }
    };
    query.execute(connection).await?;
    Ok(())
}
