//! The daemon: DICOM and HTTP in → spool → worker → deliveries out.
//!
//! Invariants: one thread owns the worker and takes one job at a time from the spool; no state that matters lives
//! outside the spool, so that a kill at any moment loses nothing; a stop ends within its deadline, and what is left
//! continues at the next start.
//!
//! Called by `cli::serve`.

mod job;
mod jobs;
mod run;
mod segment;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::{Fault, duration};
use crate::spool::SpoolError;
use crate::{deliver, http, ingest, spool};

pub use crate::spool::Product;
pub use job::{JobError, Worker};
pub use run::{Daemon, Drained, Health, Phase};
pub use segment::SegmentWorker;

/// Section `[daemon]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Longest time between the signal to stop and the end of the process.
    #[serde(with = "duration")]
    pub drain_deadline: Duration,
    /// Wait before a job is tried again after a failure that may pass.
    #[serde(with = "duration")]
    pub retry_delay: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { drain_deadline: Duration::from_secs(30), retry_delay: Duration::from_secs(5) }
    }
}

impl Config {
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let too_long = self.drain_deadline > Duration::from_hours(1);
        too_long.then(|| Fault::new("drain_deadline", "must be at most 1h")).into_iter().collect()
    }
}

/// All that the daemon needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub daemon: Config,
    pub spool: spool::Config,
    pub ingest: ingest::Config,
    pub http: http::Config,
    pub destinations: Vec<deliver::Config>,
}

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error("listen on {address}: {source}; choose a free address for ingest.dicom.listen")]
    Listen { address: String, source: std::io::Error },
    #[error(transparent)]
    Http(#[from] http::HttpError),
    #[error("destination {name}: {faults}")]
    Destination { name: String, faults: String },
    #[error("start the worker's thread: {0}")]
    Thread(std::io::Error),
}
