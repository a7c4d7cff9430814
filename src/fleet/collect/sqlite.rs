use std::path::{Path, PathBuf};

use rusqlite::{Connection, Transaction, params};

use super::store::{MAX_ALARMS, Store, StoreError, parse, text};
use crate::durable::Lock;
use crate::fleet::rollout::Record;

/// Raised with every change of the tables.
const SCHEMA: i64 = 1;

const TABLES: &str = "
    CREATE TABLE devices  (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
    CREATE TABLE rollouts (digest TEXT PRIMARY KEY, release TEXT NOT NULL, halt TEXT NOT NULL) STRICT;
    CREATE TABLE entries  (
        digest TEXT NOT NULL,
        device TEXT NOT NULL,
        record TEXT NOT NULL,
        PRIMARY KEY (digest, device)
    ) STRICT;
    CREATE TABLE alarms   (seq INTEGER PRIMARY KEY, record TEXT NOT NULL) STRICT;
";

/// The embedded store: one file, one owner.
pub struct Sqlite {
    path: PathBuf,
    connection: Connection,
    _lock: Lock,
}

impl Sqlite {
    /// Opens the database at `path` or makes it. Its folder must be there.
    ///
    /// # Errors
    /// If it cannot be used or another process uses it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let lock = lock(path)?;
        let wrong = |source| StoreError::Sqlite { path: path.to_owned(), source };
        let connection = Connection::open(path).map_err(wrong)?;
        let found = prepare(&connection).map_err(wrong)?;
        if found != SCHEMA {
            return Err(StoreError::Schema { path: path.to_owned(), found, known: SCHEMA });
        }
        Ok(Self { path: path.to_owned(), connection, _lock: lock })
    }

    fn wrong(&self, source: rusqlite::Error) -> StoreError {
        StoreError::Sqlite { path: self.path.clone(), source }
    }

    fn rows<const N: usize>(&self, sql: &str) -> Result<Vec<[String; N]>, StoreError> {
        let read = || {
            let mut statement = self.connection.prepare(sql)?;
            let rows = statement.query_map([], |row| {
                let mut columns = [const { String::new() }; N];
                for (index, column) in columns.iter_mut().enumerate() {
                    *column = row.get(index)?;
                }
                Ok(columns)
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|source| self.wrong(source))
    }
}

impl Store for Sqlite {
    fn load(&mut self) -> Result<Vec<Record>, StoreError> {
        let mut records = Vec::new();
        for [id, record] in self.rows("SELECT id, record FROM devices")? {
            records.push(Record::Device { id, device: parse("devices", &record)? });
        }
        for [digest, release, halt] in self.rows("SELECT digest, release, halt FROM rollouts")? {
            let release = parse("rollouts", &release)?;
            records.push(Record::Rollout { digest, release, halt: parse("rollouts", &halt)? });
        }
        for [digest, device, record] in self.rows("SELECT digest, device, record FROM entries")? {
            records.push(Record::Entry { digest, device, entry: parse("entries", &record)? });
        }
        for [record] in self.rows("SELECT record FROM alarms ORDER BY seq")? {
            records.push(Record::Alarm(parse("alarms", &record)?));
        }
        Ok(records)
    }

    fn save(&mut self, records: &[Record]) -> Result<(), StoreError> {
        let path = self.path.clone();
        let wrong = |source| StoreError::Sqlite { path: path.clone(), source };
        let transaction = self.connection.transaction().map_err(wrong)?;
        records.iter().try_for_each(|record| write(&transaction, record)).map_err(wrong)?;
        transaction.commit().map_err(wrong)
    }
}

fn write(transaction: &Transaction<'_>, record: &Record) -> rusqlite::Result<()> {
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
        transaction.prepare_cached(sql)?.execute(values).map(drop)
    };
    match record {
        Record::Device { id, device } => {
            run("INSERT OR REPLACE INTO devices VALUES (?1, ?2)", params![id, text(device)])
        }
        Record::Rollout { digest, release, halt } => run(
            "INSERT OR REPLACE INTO rollouts VALUES (?1, ?2, ?3)",
            params![digest, text(release), text(halt)],
        ),
        Record::Entry { digest, device, entry } => run(
            "INSERT OR REPLACE INTO entries VALUES (?1, ?2, ?3)",
            params![digest, device, text(entry)],
        ),
        Record::Forgotten { id } => {
            run("DELETE FROM entries WHERE device = ?1", params![id])?;
            run("DELETE FROM devices WHERE id = ?1", params![id])
        }
        Record::Alarm(alarm) => {
            run("INSERT INTO alarms (record) VALUES (?1)", params![text(alarm)])?;
            let old = "DELETE FROM alarms
                       WHERE seq <= (SELECT seq FROM alarms ORDER BY seq DESC LIMIT 1 OFFSET ?1)";
            run(old, params![MAX_ALARMS])
        }
    }
}

/// Makes the tables where there are none; the schema that is there then.
fn prepare(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let version = || connection.query_row("PRAGMA user_version", [], |row| row.get(0));
    if version()? == 0 {
        let transaction = connection.unchecked_transaction()?;
        transaction.execute_batch(TABLES)?;
        transaction.pragma_update(None, "user_version", SCHEMA)?;
        transaction.commit()?;
    }
    version()
}

fn lock(path: &Path) -> Result<Lock, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let refused = |error: std::io::Error| {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
        let source = rusqlite::Error::SqliteFailure(code, Some(error.to_string()));
        StoreError::Sqlite { path: path.to_owned(), source }
    };
    let lock = Lock::take(Path::new(&name)).map_err(refused)?;
    lock.ok_or_else(|| StoreError::Locked { path: path.to_owned() })
}
