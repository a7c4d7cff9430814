use std::fs::{self, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;

use super::{Config, Recovery, SpoolError, durable};

/// Raised with every change of the tables.
const SCHEMA: i64 = 1;

const TABLES: &str = "
    CREATE TABLE instances (
        id          INTEGER PRIMARY KEY,
        sop_uid     TEXT NOT NULL,
        series_uid  TEXT NOT NULL,
        sha256      TEXT NOT NULL,
        path        TEXT NOT NULL,
        association INTEGER NOT NULL,
        received_ms INTEGER NOT NULL,
        state       TEXT NOT NULL,
        UNIQUE (sop_uid, sha256)
    ) STRICT;
    CREATE UNIQUE INDEX one_accepted_instance ON instances (sop_uid) WHERE state = 'accepted';
    CREATE INDEX instances_of_series ON instances (series_uid);

    CREATE TABLE jobs (
        seq              INTEGER PRIMARY KEY,
        id               TEXT NOT NULL UNIQUE DEFAULT (lower(hex(randomblob(8)))),
        series_uid       TEXT NOT NULL,
        revision         INTEGER NOT NULL,
        state            TEXT NOT NULL,
        attempts         INTEGER NOT NULL DEFAULT 0,
        reason           TEXT,
        not_before_ms    INTEGER NOT NULL DEFAULT 0,
        last_received_ms INTEGER NOT NULL,
        ready_ms         INTEGER,
        finished_ms      INTEGER,
        queue_ms         INTEGER,
        compute_ms       INTEGER,
        UNIQUE (series_uid, revision)
    ) STRICT;
    CREATE INDEX jobs_by_state ON jobs (state, seq);

    CREATE TABLE deliveries (
        id              INTEGER PRIMARY KEY,
        job             TEXT NOT NULL REFERENCES jobs (id),
        destination     TEXT NOT NULL,
        name            TEXT NOT NULL,
        sop_class_uid   TEXT NOT NULL,
        sop_uid         TEXT NOT NULL,
        transfer_syntax TEXT NOT NULL,
        path            TEXT NOT NULL,
        sha256          TEXT NOT NULL,
        bytes           INTEGER NOT NULL,
        state           TEXT NOT NULL,
        attempts        INTEGER NOT NULL DEFAULT 0,
        next_attempt_ms INTEGER NOT NULL DEFAULT 0,
        reason          TEXT,
        UNIQUE (job, destination, sop_uid)
    ) STRICT;
    CREATE INDEX deliveries_due ON deliveries (destination, state, id);
";

/// The spool of this process. Shared behind an `Arc`; calls block, one at a time where they touch the database.
#[derive(Debug)]
pub struct Spool {
    pub(super) config: Config,
    connection: Mutex<Connection>,
    _lock: File,
}

impl Spool {
    /// Opens or makes the spool and puts right what a crash left behind.
    ///
    /// # Errors
    /// If another process uses it, the disk refuses, or the database is not one this program can read.
    pub fn open(config: Config) -> Result<(Self, Recovery), SpoolError> {
        let root = &config.directory;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700) // patient data
            .create(root)
            .map_err(SpoolError::io("create", root))?;
        let lock = lock(root)?;
        for folder in ["incoming", "instances", "products"] {
            durable::create_directory(&root.join(folder))?;
        }
        let connection = connect(root)?;
        durable::sync_directory(root)?;
        let spool = Self { config, connection: Mutex::new(connection), _lock: lock };
        let recovery = spool.recover()?;
        Ok((spool, recovery))
    }

    /// Where objects are written before `store`.
    #[must_use]
    pub fn incoming(&self) -> PathBuf {
        self.config.directory.join("incoming")
    }

    /// # Errors
    /// `LowDisk` below the watermark.
    pub fn check_free_space(&self) -> Result<(), SpoolError> {
        let free_bytes = self.free_bytes()?;
        let min_free_bytes = self.config.min_free_bytes;
        if free_bytes < min_free_bytes {
            return Err(SpoolError::LowDisk { free_bytes, min_free_bytes });
        }
        Ok(())
    }

    /// Disk space that is left.
    ///
    /// # Errors
    /// If it cannot be measured.
    pub fn free_bytes(&self) -> Result<u64, SpoolError> {
        let root = &self.config.directory;
        let disk = rustix::fs::statvfs(root)
            .map_err(|error| SpoolError::io("measure", root)(error.into()))?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    pub(super) fn absolute(&self, relative: &str) -> PathBuf {
        self.config.directory.join(relative)
    }

    pub(super) fn database(&self) -> MutexGuard<'_, Connection> {
        // A panic while holding the lock rolled its transaction back; the connection is still good.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock(root: &Path) -> Result<File, SpoolError> {
    let path = root.join("lock");
    let file = File::create(&path).map_err(SpoolError::io("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SpoolError::Locked { path: root.to_owned() }),
        Err(TryLockError::Error(error)) => Err(SpoolError::io("lock", &path)(error)),
    }
}

fn connect(root: &Path) -> Result<Connection, SpoolError> {
    let mut connection = Connection::open(root.join("spool.db"))?;
    connection.busy_timeout(Duration::from_secs(5))?; // a person may be reading with the sqlite3 tool
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    match found {
        SCHEMA => {}
        0 => {
            let transaction = connection.transaction()?;
            transaction.execute_batch(TABLES)?;
            transaction.pragma_update(None, "user_version", SCHEMA)?;
            transaction.commit()?;
        }
        found => {
            return Err(SpoolError::Schema { path: root.to_owned(), found, known: SCHEMA });
        }
    }
    Ok(connection)
}

/// Milliseconds since 1970, as the spool keeps time.
#[must_use]
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
