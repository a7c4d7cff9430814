use std::path::PathBuf;

use crate::durable::{self, DurableError};

/// What can go wrong in the spool. After any of these the spool is as it was before the call.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error(transparent)]
    Disk(#[from] DurableError),
    #[error(
        "spool database: {0}; make room if the disk is full; if it is damaged, move the spool directory aside and start with an empty one"
    )]
    Database(#[from] rusqlite::Error),
    #[error(
        "the spool {path} is in use by another process; give each daemon its own spool.directory"
    )]
    Locked { path: PathBuf },
    #[error(
        "there is no spool in {path} (no spool.db): no daemon has started with this configuration yet; start `cdal serve`, or correct spool.directory"
    )]
    Missing { path: PathBuf },
    #[error(
        "the spool {path} has schema {found}, this program knows {known}; use the program version that wrote it"
    )]
    Schema { path: PathBuf, found: i64, known: i64 },
    #[error(
        "only {free_bytes} bytes are free on the disk, fewer than min_free_bytes = {min_free_bytes}; free some disk space"
    )]
    LowDisk { free_bytes: u64, min_free_bytes: u64 },
    #[error(
        "the spool holds {used_bytes} bytes and takes nothing more in above max_bytes = {max_bytes}; finished work is removed by itself, so look for destinations that are down"
    )]
    QuotaReached { used_bytes: u64, max_bytes: u64 },
    #[error(
        "{open} requests for storage commitment wait for their report already; look for senders that are down"
    )]
    TooManyCommitments { open: u64 },
    #[error("{what} {id} is {state} and cannot become {wanted}")]
    State { what: &'static str, id: String, state: &'static str, wanted: &'static str },
    #[error(
        "another device or a later start has taken over {what} {id}; what is said about it here counts no more"
    )]
    Overtaken { what: &'static str, id: String },
    #[error(
        "a payload of the shared queue is not what was put in: {sha256}; look after the server's disk"
    )]
    Damaged { sha256: String },
    /// Of an outage nothing need be done but to end it: everybody tries again.
    #[error("shared queue: {problem}; check the server, the network and [shared]")]
    Shared { problem: String, is_outage: bool },
    #[error("{id} names no job and no delivery here; `cdal spool list --all` shows them")]
    Unknown { id: String },
}

impl SpoolError {
    /// Whether the same start may succeed later with nothing changed in the configuration: another process ends, the disk
    /// has room again, the server answers.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        use rusqlite::ErrorCode::{
            DatabaseBusy, DatabaseLocked, DiskFull, OutOfMemory, SystemIoFailure,
        };
        match self {
            Self::Locked { .. } | Self::LowDisk { .. } => true,
            Self::Disk(error) => durable::may_pass(&error.source),
            Self::Database(error) => matches!(
                error.sqlite_error_code(),
                Some(DatabaseBusy | DatabaseLocked | DiskFull | OutOfMemory | SystemIoFailure)
            ),
            error => error.is_outage(),
        }
    }

    /// Whether the shared queue's server is out of reach: told once, by [`Shared`](super::Shared) itself.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Shared { is_outage: true, .. })
    }

    /// Whether the shared queue's server answered so, or would not answer; otherwise it says nothing of the server.
    pub(super) fn is_of_the_server(&self) -> bool {
        matches!(
            self,
            Self::Shared { .. }
                | Self::Damaged { .. }
                | Self::Overtaken { .. }
                | Self::State { .. }
                | Self::Unknown { .. }
        )
    }

    /// Whether what it is about is somebody else's by now, so that trying again is no use.
    #[must_use]
    pub fn is_overtaken(&self) -> bool {
        matches!(self, Self::Overtaken { .. })
    }
}

impl From<sqlx::Error> for SpoolError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error::{
            BeginFailed, Database, Io, PoolClosed, PoolTimedOut, Protocol, Tls, WorkerCrashed,
        };
        // Errors of the connection, of access, of a database that is not there, of resources, and of a server that stops
        // (appendix A of its manual).
        const OUTAGES: [&str; 6] = ["08", "28", "3D", "53", "57", "25006"];
        match error {
            Database(error) => {
                let code = error.code().unwrap_or_default();
                let is_outage = OUTAGES.iter().any(|class| code.starts_with(class));
                // Not its details: they quote rows, and those hold UIDs.
                Self::Shared { problem: format!("{} ({code})", error.message()), is_outage }
            }
            Io(_) | Tls(_) | Protocol(_) | PoolTimedOut | PoolClosed | WorkerCrashed
            | BeginFailed => Self::Shared { problem: error.to_string(), is_outage: true },
            error => Self::Shared { problem: error.to_string(), is_outage: false },
        }
    }
}
