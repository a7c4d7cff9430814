use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, params};
use serde_json::{Map, Value, json};

use super::{Candidate, Event, Machine, Note, Refusal};
use crate::durable::{self, DurableError, Lock, failpoint};
use crate::fleet::Release;
use crate::telemetry::audit::{self, End};

/// Raised with every change of the tables.
const SCHEMA: i64 = 1;

const TABLES: &str = "
    -- The one row that says what is to be loaded.
    CREATE TABLE state (
        id         INTEGER PRIMARY KEY CHECK (id = 1),
        machine    TEXT NOT NULL,
        changed_ms INTEGER NOT NULL
    ) STRICT;

    -- Signed manifests that were verified, as they read.
    CREATE TABLE releases (
        digest   TEXT PRIMARY KEY,
        counter  INTEGER NOT NULL,
        manifest TEXT NOT NULL
    ) STRICT;

    -- `floors`: versions of the repository's metadata that were seen; `passed_over`: why the newest release is not taken.
    CREATE TABLE facts (
        name  TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT;

    -- Lines as in the audit trail, with a chain of their own.
    CREATE TABLE audit (
        seq  INTEGER PRIMARY KEY,
        line TEXT NOT NULL
    ) STRICT;
";

/// The database of one device's agent: the commit point of every update.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    connection: Connection,
    machine: Machine,
    end: End,
    /// `None` beside the process that owns it.
    _lock: Option<Lock>,
}

/// What keeps the agent from working.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("fleet.directory {}: another process uses it; one daemon has one folder", directory.display())]
    InUse { directory: PathBuf },
    #[error("fleet.directory {}: there is no agent's database; the daemon makes it at its start", directory.display())]
    Missing { directory: PathBuf },
    #[error("the agent's database in {}: {problem}; keep it for an inquiry and give fleet.directory another folder", directory.display())]
    Unreadable { directory: PathBuf, problem: String },
    #[error("the agent's database: {0}")]
    Database(#[from] rusqlite::Error),
    #[error(transparent)]
    Disk(#[from] DurableError),
}

impl Store {
    /// Opens or makes the database.
    ///
    /// # Errors
    /// If another process uses it, the disk refuses, or it is not one this program can read.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let create = DurableError::of("create", directory);
        fs::DirBuilder::new().recursive(true).mode(0o750).create(directory).map_err(create)?;
        let path = directory.join("lock");
        let lock = Lock::take(&path).map_err(DurableError::of("lock", &path))?;
        let lock = lock.ok_or_else(|| StoreError::InUse { directory: directory.to_owned() })?;
        let path = directory.join("agent.db");
        let is_new = !path.exists();
        let mut connection = Connection::open(&path)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        let transaction = connection.transaction()?;
        if transaction.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))? == 0 {
            transaction.execute_batch(TABLES)?;
            let machine = text_of(&Machine::default());
            transaction.execute("INSERT INTO state VALUES (1, ?1, 0)", [machine])?;
            transaction.pragma_update(None, "user_version", SCHEMA)?;
        }
        transaction.commit()?;
        if is_new {
            durable::sync_directory(directory)?;
        }
        Self::read(directory, connection, Some(lock))
    }

    /// Looks at the database beside the daemon that owns it.
    ///
    /// # Errors
    /// If there is none, or another version of this program made it.
    pub fn open_beside(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join("agent.db");
        if !path.exists() {
            return Err(StoreError::Missing { directory: directory.to_owned() });
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&path, flags)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.pragma_update(None, "query_only", true)?;
        Self::read(directory, connection, None)
    }

    fn read(
        directory: &Path,
        connection: Connection,
        lock: Option<Lock>,
    ) -> Result<Self, StoreError> {
        let unreadable =
            |problem: String| StoreError::Unreadable { directory: directory.to_owned(), problem };
        let schema: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if schema != SCHEMA {
            let problem = format!("it is of schema {schema}, this program reads {SCHEMA}");
            return Err(unreadable(problem));
        }
        let text: String =
            connection.query_row("SELECT machine FROM state", [], |row| row.get(0))?;
        let machine = serde_json::from_str(&text).map_err(|error| unreadable(error.to_string()))?;
        let last = "SELECT seq, line FROM audit ORDER BY seq DESC LIMIT 1";
        let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, u64>(0)?, row.get::<_, String>(1)?));
        let end = connection.query_row(last, [], row).optional()?.map(|(seq, line)| {
            let line: Value = serde_json::from_str(&line).unwrap_or_default();
            End { seq, seal: line["seal"].as_str().unwrap_or_default().to_owned() }
        });
        let end = end.unwrap_or_default();
        Ok(Self { directory: directory.to_owned(), connection, machine, end, _lock: lock })
    }

    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Applies what happened. The new state and its line of the audit are on the disk when this returns, in one
    /// transaction.
    ///
    /// # Errors
    /// If the disk refuses; then nothing changed.
    pub fn apply(&mut self, event: Event, now_ms: u64) -> Result<Option<Note>, StoreError> {
        self.apply_all([event], now_ms)
    }

    /// Several at once: on the disk are all of them or none. Gives the last note.
    ///
    /// # Errors
    /// If the disk refuses; then nothing changed.
    pub fn apply_all(
        &mut self,
        events: impl IntoIterator<Item = Event>,
        now_ms: u64,
    ) -> Result<Option<Note>, StoreError> {
        let mut machine = self.machine.clone();
        let notes: Vec<_> =
            events.into_iter().filter_map(|event| machine.apply(event, now_ms)).collect();
        if machine != self.machine || !notes.is_empty() {
            self.keep(machine, &notes, now_ms, |_| Ok(()))?;
        }
        Ok(notes.into_iter().next_back())
    }

    /// Takes up a verified release: its manifest, the floors of the repository and the new state in one transaction.
    ///
    /// # Errors
    /// If the disk refuses; then nothing changed.
    pub fn offer(
        &mut self,
        release: &Release,
        digest: &str,
        floors: &str,
        now_ms: u64,
    ) -> Result<Result<Option<Note>, Refusal>, StoreError> {
        self.take_up(Machine::offer, release, digest, floors, now_ms)
    }

    /// Keeps what [`Machine::offer_instead`] says of an older release.
    ///
    /// # Errors
    /// If it cannot be kept.
    pub fn offer_instead(
        &mut self,
        release: &Release,
        digest: &str,
        floors: &str,
        now_ms: u64,
    ) -> Result<Result<Option<Note>, Refusal>, StoreError> {
        self.take_up(Machine::offer_instead, release, digest, floors, now_ms)
    }

    fn take_up(
        &mut self,
        offer: fn(&mut Machine, Candidate) -> Result<Option<Note>, Refusal>,
        release: &Release,
        digest: &str,
        floors: &str,
        now_ms: u64,
    ) -> Result<Result<Option<Note>, Refusal>, StoreError> {
        let mut machine = self.machine.clone();
        let note = match offer(&mut machine, Candidate::new(release, digest)) {
            Ok(note) => note,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let manifest = text_of(release);
        let notes: Vec<_> = note.iter().cloned().collect();
        self.keep(machine, &notes, now_ms, |transaction| {
            transaction.execute(
                "INSERT OR REPLACE INTO releases VALUES (?1, ?2, ?3)",
                params![digest, release.counter as i64, manifest],
            )?;
            transaction
                .execute("INSERT OR REPLACE INTO facts VALUES ('floors', ?1)", [floors])
                .map(drop)
        })?;
        Ok(Ok(note))
    }

    fn keep(
        &mut self,
        machine: Machine,
        notes: &[Note],
        now_ms: u64,
        more: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), StoreError> {
        let mut end = self.end.clone();
        let step = machine.phase().as_str();
        let transaction = self.connection.transaction()?;
        transaction.execute(
            "UPDATE state SET machine = ?1, changed_ms = ?2",
            params![text_of(&machine), now_ms as i64],
        )?;
        more(&transaction)?;
        for note in notes {
            let line = audit::seal(&mut end, fields_of(note));
            transaction.execute(
                "INSERT INTO audit VALUES (?1, ?2)",
                params![end.seq as i64, line.trim_end()],
            )?;
        }
        let is_step = machine.stage() != self.machine.stage() || !notes.is_empty();
        if is_step {
            tracing::debug!(phase = step, "the agent's state changes");
            failpoint::reach("fleet.recorded");
        }
        transaction.commit()?;
        if is_step {
            failpoint::reach("fleet.committed");
        }
        (self.machine, self.end) = (machine, end);
        for note in notes {
            let mut fields = fields_of(note);
            if let Some(Value::String(event)) = fields.remove("event") {
                audit::record(event_name(&event), Value::Object(fields));
            }
        }
        Ok(())
    }

    /// # Errors
    /// If the database refuses.
    pub fn release(&self, digest: &str) -> Result<Option<Release>, StoreError> {
        let query = "SELECT manifest FROM releases WHERE digest = ?1";
        let text: Option<String> =
            self.connection.query_row(query, [digest], |row| row.get(0)).optional()?;
        let parse = |text: String| {
            serde_json::from_str(&text).map_err(|error| StoreError::Unreadable {
                directory: self.directory.clone(),
                problem: error.to_string(),
            })
        };
        text.map(parse).transpose()
    }

    /// Manifests of the releases that may still be loaded: the last good one and the candidate.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn needed(&self) -> Result<Vec<Release>, StoreError> {
        let machine = &self.machine;
        let named = [machine.last_good().named(), machine.candidate().map(|c| &c.named)];
        let found = named.into_iter().flatten().map(|named| self.release(&named.digest));
        Ok(found.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    /// # Errors
    /// If the database refuses.
    pub fn fact(&self, name: &str) -> Result<Option<String>, StoreError> {
        let query = "SELECT value FROM facts WHERE name = ?1";
        Ok(self.connection.query_row(query, [name], |row| row.get(0)).optional()?)
    }

    /// # Errors
    /// If the disk refuses.
    pub fn set_fact(&mut self, name: &str, value: Option<&str>) -> Result<(), StoreError> {
        if self.fact(name)?.as_deref() == value {
            return Ok(());
        }
        match value {
            Some(value) => self
                .connection
                .execute("INSERT OR REPLACE INTO facts VALUES (?1, ?2)", [name, value])?,
            None => self.connection.execute("DELETE FROM facts WHERE name = ?1", [name])?,
        };
        Ok(())
    }

    /// The audit's lines, the oldest first.
    ///
    /// # Errors
    /// If the database refuses.
    pub fn audit(&self) -> Result<Vec<String>, StoreError> {
        let mut statement = self.connection.prepare("SELECT line FROM audit ORDER BY seq")?;
        let lines = statement.query_map([], |row| row.get(0))?;
        Ok(lines.collect::<Result<_, _>>()?)
    }
}

fn text_of(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("it is plain data")
}

fn event_name(event: &str) -> &'static str {
    match event {
        "release_accepted" => "release_accepted",
        "release_on_trial" => "release_on_trial",
        "release_committed" => "release_committed",
        "release_given_up" => "release_given_up",
        _ => "safe_mode",
    }
}

/// What the audit trail says: counters, digests and reasons.
fn fields_of(note: &Note) -> Map<String, Value> {
    let value = match note {
        Note::Accepted { release } => {
            json!({ "event": "release_accepted", "counter": release.counter, "digest": release.digest })
        }
        Note::Trial { from, to } => json!({
            "event": "release_on_trial", "counter": to.counter, "digest": to.digest,
            "before": from.to_string(),
        }),
        Note::Committed { release, before } => json!({
            "event": "release_committed", "counter": release.counter, "digest": release.digest,
            "before": before.to_string(),
        }),
        Note::GivenUp { release, to, reason, swapped } => json!({
            "event": "release_given_up", "counter": release.counter, "digest": release.digest,
            "reason": reason, "swapped": swapped, "back_to": to.to_string(),
        }),
        Note::SafeMode { reason } => json!({ "event": "safe_mode", "reason": reason }),
    };
    match value {
        Value::Object(fields) => fields,
        _ => unreachable!("an object was written"),
    }
}
