use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::fleet::rollout::Record;

/// Where a fleet's ledger is kept.
pub trait Store: Send {
    /// Everything that was saved, alarms in their order.
    ///
    /// # Errors
    /// If it cannot be read.
    fn load(&mut self) -> Result<Vec<Record>, StoreError>;

    /// Keeps all of `records` or none; they are safe when it returns.
    ///
    /// # Errors
    /// If they could not be kept.
    fn save(&mut self, records: &[Record]) -> Result<(), StoreError>;
}

/// What a store refused.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("database {}: {source}; check that the disk is there, writable and not full", path.display())]
    Sqlite { path: PathBuf, source: rusqlite::Error },
    #[error("database {}: schema {found}, but this version knows {known}; use the version that wrote it", path.display())]
    Schema { path: PathBuf, found: i64, known: i64 },
    #[error("another collector uses {}; stop it first", path.display())]
    Locked { path: PathBuf },
    #[error("PostgreSQL: {0}; check that the server is there and lets this user in")]
    Postgres(#[from] sqlx::Error),
    #[error(
        "PostgreSQL: schema {found}, but this version knows {known}; use the version that wrote it"
    )]
    PostgresSchema { found: i64, known: i64 },
    #[error("another collector uses this PostgreSQL database; stop it first")]
    PostgresLocked,
    #[error("a row of {table} cannot be read: {problem}; restore the database from a copy")]
    Row { table: &'static str, problem: String },
}

/// Alarms that are kept.
pub(super) const MAX_ALARMS: i64 = 1000;

pub(super) fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("records are plain data")
}

pub(super) fn parse<T: DeserializeOwned>(table: &'static str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text)
        .map_err(|error| StoreError::Row { table, problem: error.to_string() })
}
