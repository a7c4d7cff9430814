//! The collector: devices say how they are, an operator looks, pauses and resumes.
//!
//! Invariants:
//! 1. A device speaks for itself alone: the report's device is a DNS name in the certificate it showed.
//! 2. A collector can delay, never install anything: what a device runs is settled by signatures alone. A device that
//!    cannot reach it keeps running; whether it begins with updates then is the device's own setting.
//! 3. What a report changed is on the disk before it is answered; who looks sees what is kept.
//! 4. Nothing grows without bound: bodies, connections, devices, the rate of each, alarms.
//!
//! ```text
//! POST /v1/reports                      device     a `Report`; answered with an `Answer`
//! GET  /v1/fleet[?counter=N]            operator   a `Fleet`
//! POST /v1/rollouts/{counter}/pause     operator   {"words": "…"}
//! POST /v1/rollouts/{counter}/resume    operator
//! GET  /                                anyone     the page, which asks for /v1/fleet
//! ```
//!
//! Called by `cli` (collect, watch, pause, resume) and `agent` ([`Reporter`]).

mod client;
mod config;
mod desk;
mod releases;
mod reporter;
mod routes;
mod server;
mod sqlite;
mod store;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use client::{ClientConfig, Collector, Unreachable};
pub use config::{AfterCanary, Config};
pub use reporter::{Reporter, Standing, WithoutCollector};
pub use server::Server;
pub use sqlite::Sqlite;
pub use store::{Store, StoreError};

use super::rollout::{Account, Alarm, PlanError};
use crate::http::HttpError;
use crate::tls::TlsError;

/// What a device is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Whether it may begin with the release it aims at, or go on to run it.
    pub go: bool,
    /// Why not, in words.
    pub reason: Option<String>,
    /// Up to this line its audit trail is known here.
    pub audit_seq: u64,
}

/// What an operator sees.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    pub version: String,
    pub now_ms: u64,
    /// Newest first.
    pub releases: Vec<Headline>,
    /// Of the release that was asked for, or the newest.
    pub account: Option<Account>,
    /// Latest first.
    pub alarms: Vec<Alarm>,
    /// Devices that are known, also where there is no release.
    pub devices: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Headline {
    pub counter: u64,
    pub name: String,
    pub paused: bool,
}

/// Why the collector does not start.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    #[error("{}: {problem}", path.display())]
    Config { path: PathBuf, problem: String },
    #[error("listen on {address}: {source}; choose a free address")]
    Listen { address: String, source: std::io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Tokens(#[from] HttpError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("releases in {}: {problem}", path.display())]
    Releases { path: PathBuf, problem: String },
    #[error(transparent)]
    Plan(#[from] PlanError),
}
