//! The daemon: DICOM and HTTP in → spool → worker → deliveries out.
//!
//! Invariants: one thread owns the worker and takes one job at a time from the spool; no state that matters lives
//! outside the spool, so that a kill at any moment loses nothing; a stop ends within its deadline, and what is left
//! continues at the next start.
//!
//! Where devices share a queue, complete series go there from the spool, and jobs and deliveries are taken from there;
//! what the spool itself still has to deliver from before goes on.
//!
//! Called by `cli::serve`.

mod destinations;
mod job;
mod jobs;
mod keep;
mod relay;
mod reporters;
mod run;
mod segment;
mod service;
mod sharing;

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::{Fault, duration};
use crate::spool::{SpoolError, shared};
use crate::tls::TlsError;
use crate::{deliver, http, ingest, spool};

pub use crate::spool::{Claim, Product};
pub use job::{JobError, NoModel, Worker};
pub use reporters::Reporters;
pub use run::{Daemon, Drained, Health, Phase, Pulse};
pub use segment::{Choice, Extra, Results, SegmentWorker};
pub use service::ServiceManager;

/// Section `[daemon]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Longest time between the signal to stop and the end of the process.
    #[serde(with = "duration")]
    #[schemars(with = "duration::Text")]
    pub drain_deadline: Duration,
    /// Wait before a job is tried again after a failure that may pass.
    #[serde(with = "duration")]
    #[schemars(with = "duration::Text")]
    pub retry_delay: Duration,
    /// A job that computes for longer counts as hung: the watchdog of the service manager is no longer answered.
    #[serde(with = "duration")]
    #[schemars(with = "duration::Text")]
    pub job_deadline: Duration,
    /// Instead of `--log`; the environment variable `CDAL_LOG` wins over both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<LogLevel>,
    /// The audit trail is appended to this file; none is kept without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<PathBuf>,
}

/// From what on things are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            drain_deadline: Duration::from_secs(30),
            retry_delay: Duration::from_secs(5),
            job_deadline: Duration::from_mins(10),
            log: None,
            audit: None,
        }
    }
}

impl Config {
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self.drain_deadline > Duration::from_hours(1) {
            faults.push(Fault::new("drain_deadline", "must be at most 1h"));
        }
        if self.job_deadline < Duration::from_secs(1) {
            faults.push(Fault::new("job_deadline", "must be at least 1s"));
        }
        faults
    }
}

/// All that the daemon needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub daemon: Config,
    pub spool: spool::Config,
    /// Without it this device works alone.
    pub shared: Option<shared::Config>,
    pub ingest: ingest::Config,
    pub http: http::Config,
    pub commitment: deliver::ReportConfig,
    pub destinations: Vec<deliver::Config>,
}

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error("listen on {address}: {source}; choose a free address for ingest.dicom.listen")]
    Listen { address: String, source: std::io::Error },
    #[error("ingest.dicom.tls: {0}")]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Http(#[from] http::HttpError),
    #[error("destination {name}: {faults}")]
    Destination { name: String, faults: String },
    #[error(
        "the daemon before this one still holds the spool after its drain; restart the process"
    )]
    HandOver,
    #[error("start the worker's thread: {0}")]
    Thread(std::io::Error),
}
