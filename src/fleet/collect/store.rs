use std::path::PathBuf;

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
    #[error("a row of {table} cannot be read: {problem}; restore the database from a copy")]
    Row { table: &'static str, problem: String },
}
