use std::path::PathBuf;

use crate::durable::DurableError;

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
        "the spool {path} has schema {found}, this program knows {known}; use the program version that wrote it"
    )]
    Schema { path: PathBuf, found: i64, known: i64 },
    #[error(
        "only {free_bytes} bytes are free in the spool, fewer than min_free_bytes = {min_free_bytes}; free some disk space"
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
    #[error("{id} names no job and no delivery here; `cdal spool list --all` shows them")]
    Unknown { id: String },
}
