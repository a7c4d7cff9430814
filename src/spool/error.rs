use std::path::PathBuf;

/// What can go wrong in the spool. After any of these the spool is as it was before the call.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("{action} {path}: {source}; check that the disk is there, writable and not full")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error(
        "spool database: {0}; if it is damaged, move the spool directory aside and start with an empty one"
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
    #[error("job {job} is {state}, not {wanted}")]
    JobState { job: String, state: &'static str, wanted: &'static str },
}

impl SpoolError {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
