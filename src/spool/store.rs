use std::fs::{self, File};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, TransactionBehavior};

use super::content::Resent;
use super::room::Room;
use super::{Config, Content, Recovery, Shared, SpoolError};
use crate::durable::{self, DurableError, Lock};

/// Raised with every change of the tables.
const SCHEMA: i64 = 5;

/// Of schema 2; see `ADDITIONS`.
const TABLES: &str = "
    CREATE TABLE instances (
        id          INTEGER PRIMARY KEY,
        sop_uid     TEXT NOT NULL,
        series_uid  TEXT NOT NULL,
        sha256      TEXT NOT NULL,
        path        TEXT NOT NULL,
        bytes       INTEGER NOT NULL,
        association INTEGER NOT NULL,
        received_ms INTEGER NOT NULL,
        state       TEXT NOT NULL,
        UNIQUE (sop_uid, sha256)
    ) STRICT;
    CREATE UNIQUE INDEX one_accepted_instance ON instances (sop_uid) WHERE state = 'accepted';
    CREATE INDEX instances_of_series ON instances (series_uid);
    CREATE INDEX instances_of_payload ON instances (path);

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
        created_ms      INTEGER NOT NULL,
        next_attempt_ms INTEGER NOT NULL DEFAULT 0,
        settled_ms      INTEGER,
        reason          TEXT,
        UNIQUE (job, destination, sop_uid)
    ) STRICT;
    CREATE INDEX deliveries_due ON deliveries (destination, state, id);
    CREATE INDEX deliveries_of_payload ON deliveries (path);

    -- What each destination got, since the spool was made: outlives the deliveries.
    CREATE TABLE accounts (
        destination TEXT PRIMARY KEY,
        attempts    INTEGER NOT NULL DEFAULT 0,
        sent        INTEGER NOT NULL DEFAULT 0,
        sent_bytes  INTEGER NOT NULL DEFAULT 0,
        dead        INTEGER NOT NULL DEFAULT 0,
        dropped     INTEGER NOT NULL DEFAULT 0
    ) STRICT;
";

const STORAGE_COMMITMENT: &str = "
    -- Empty for what came before this column.
    ALTER TABLE instances ADD COLUMN sop_class_uid TEXT NOT NULL DEFAULT '';

    -- What senders want to know of us.
    CREATE TABLE commitments (
        id              INTEGER PRIMARY KEY,
        requester       TEXT NOT NULL,
        transaction_uid TEXT NOT NULL,
        objects         TEXT NOT NULL,
        state           TEXT NOT NULL,
        attempts        INTEGER NOT NULL DEFAULT 0,
        created_ms      INTEGER NOT NULL,
        next_attempt_ms INTEGER NOT NULL DEFAULT 0,
        settled_ms      INTEGER,
        UNIQUE (requester, transaction_uid)
    ) STRICT;
    CREATE INDEX commitments_due ON commitments (requester, state, next_attempt_ms);

    -- Pending deliveries that their destination has taken and not yet committed to keep. Without a transaction it is
    -- still to be asked; a verdict is 0 or a Failure Reason.
    CREATE TABLE custody (
        delivery        INTEGER PRIMARY KEY REFERENCES deliveries (id) ON DELETE CASCADE,
        transaction_uid TEXT,
        deadline_ms     INTEGER,
        verdict         INTEGER
    ) STRICT;
    CREATE INDEX custody_of_transaction ON custody (transaction_uid);
";

const SHARED_QUEUE: &str = "
    -- Whether the object is on the queue that devices share.
    ALTER TABLE instances ADD COLUMN is_shared INTEGER NOT NULL DEFAULT 0;
";

const SHARED_JOBS: &str = "
    -- Of a job that was handed over: its number on the queue that devices share.
    ALTER TABLE jobs ADD COLUMN shared_as TEXT;
    -- Until then it stood in the reason alone.
    UPDATE jobs SET shared_as = substr(reason, length('on the shared queue as job ') + 1)
    WHERE state = 'shared' AND reason LIKE 'on the shared queue as job %';
";

/// What was added to `TABLES`, and the version that it made.
const ADDITIONS: [(i64, &str); 3] = [(3, STORAGE_COMMITMENT), (4, SHARED_QUEUE), (5, SHARED_JOBS)];

/// The spool of this process. Shared behind an `Arc`; calls block, one at a time where they touch the database.
#[derive(Debug)]
pub struct Spool {
    pub(super) config: Config,
    connection: Mutex<Connection>,
    /// The database's write-ahead log.
    log: Arc<File>,
    pub(super) room: Room,
    /// Held shared from a payload's rename to its row, and alone while payloads are removed: otherwise a removal
    /// could take the file of an object that has come again and is not recorded yet.
    pub(super) payloads: RwLock<()>,
    /// Where every object has to be before its sender is told that it is safe.
    pub(super) replica: OnceLock<Arc<Shared>>,
    /// Reads objects, where their content matters.
    pub(super) content: OnceLock<Arc<dyn Content>>,
    pub(super) came_again: Resent,
    /// `None` beside the process that owns the spool.
    _lock: Option<Lock>,
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
            .map_err(DurableError::of("create", root))?;
        let lock = lock(root)?;
        for folder in ["incoming", "instances", "products"] {
            durable::create_directory(&root.join(folder))?;
        }
        let (connection, log) = connect(root)?;
        durable::sync_directory(root)?;
        let spool = Self::new(config, connection, log, Some(lock));
        let recovery = spool.recover()?;
        spool.measure()?;
        Ok((spool, recovery))
    }

    /// Opens a spool that is there, whether or not another process owns it. Whoever calls this may change states, but
    /// neither adds nor removes payloads.
    pub(super) fn open_beside(config: Config) -> Result<Self, SpoolError> {
        let database = config.directory.join("spool.db");
        if !database.exists() {
            return Err(SpoolError::Missing { path: config.directory });
        }
        let (connection, log) = connect(&config.directory)?;
        let spool = Self::new(config, connection, log, None);
        spool.measure()?;
        Ok(spool)
    }

    fn new(config: Config, connection: Connection, log: File, lock: Option<Lock>) -> Self {
        let (connection, log) = (Mutex::new(connection), Arc::new(log));
        let (room, payloads, replica, content, came_again) = Default::default();
        Self { config, connection, log, room, payloads, replica, content, came_again, _lock: lock }
    }

    /// Where objects are written before `store`.
    #[must_use]
    pub fn incoming(&self) -> PathBuf {
        self.config.directory.join("incoming")
    }

    /// A number that changes with every change that another process makes, such as an operator's retry.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn changes_from_outside(&self) -> Result<i64, SpoolError> {
        Ok(self.database().query_row("PRAGMA data_version", [], |row| row.get(0))?)
    }

    pub(super) fn absolute(&self, relative: &str) -> PathBuf {
        self.config.directory.join(relative)
    }

    pub(super) fn database(&self) -> MutexGuard<'_, Connection> {
        // A panic while holding the lock rolled its transaction back; the connection is still good.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database for changes that do not wait for the disk (invariant 10).
    pub(super) fn database_unsynced(&self) -> Result<Unsynced<'_>, SpoolError> {
        let database = self.database();
        database.pragma_update(None, "synchronous", "NORMAL")?;
        Ok(Unsynced(database))
    }

    /// Brings what was committed so far to the disk, on another thread.
    pub(super) fn sync_soon(&self) {
        let log = Arc::clone(&self.log);
        let sync = move || {
            if let Err(error) = log.sync_data() {
                tracing::error!(%error, "the spool's log cannot be synced");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("sync".to_owned()).spawn(sync) {
            tracing::warn!(%error, "the spool's log will be synced with the next object");
        }
    }
}

/// Commits wait for the disk again when this ends.
pub(super) struct Unsynced<'a>(MutexGuard<'a, Connection>);

impl Deref for Unsynced<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl DerefMut for Unsynced<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.0
    }
}

impl Drop for Unsynced<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.pragma_update(None, "synchronous", "FULL") {
            tracing::error!(%error, "the spool's database does not wait for the disk any more");
        }
    }
}

fn lock(root: &Path) -> Result<Lock, SpoolError> {
    let path = root.join("lock");
    let lock = Lock::take(&path).map_err(DurableError::of("lock", &path))?;
    lock.ok_or_else(|| SpoolError::Locked { path: root.to_owned() })
}

/// The database and its write-ahead log, which keeps its file while a connection is open.
fn connect(root: &Path) -> Result<(Connection, File), SpoolError> {
    let mut connection = Connection::open(root.join("spool.db"))?;
    connection.busy_timeout(Duration::from_secs(5))?; // an operator's command may be writing
    connection.set_transaction_behavior(TransactionBehavior::Immediate); // a later upgrade does not wait
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found != 0 && !(2..=SCHEMA).contains(&found) {
        return Err(SpoolError::Schema { path: root.to_owned(), found, known: SCHEMA });
    }
    if found < SCHEMA {
        let transaction = connection.transaction()?;
        if found == 0 {
            transaction.execute_batch(TABLES)?;
        }
        for (_, addition) in ADDITIONS.iter().filter(|(version, _)| *version > found) {
            transaction.execute_batch(addition)?;
        }
        transaction.pragma_update(None, "user_version", SCHEMA)?;
        transaction.commit()?;
    }
    let log = root.join("spool.db-wal");
    let log = File::open(&log).map_err(DurableError::of("open", log))?;
    Ok((connection, log))
}

/// Milliseconds since 1970, as the spool keeps time.
#[must_use]
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
