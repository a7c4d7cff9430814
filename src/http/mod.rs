//! HTTP: cases in, jobs and masks out; the Open Inference Protocol; metrics; the status page.
//!
//! Limits: `max_connections` requests at once, fewer from one address, further ones wait; health, metrics and the status
//! page are answered beyond them (`connections`). Bodies up to `max_body_bytes`, streamed to the disk with at most 1 MiB of
//! each in memory. The head of a request, silence and slowness inside a body, and of a client that takes its answer, are
//! bounded in time (`pace`). A case is answered with 202 when it is on the disk and recorded: the same promise as a C-STORE
//! response.
//!
//! Every request says for whom it is meant, and none that changes something may come from another site's page (`origin`).
//!
//! Off unless `http.listen` is set. Beyond the loopback interface it needs TLS, and tokens or client certificates.
//! The routes stand in one table, `routes`; `openapi.json` describes them, and a test holds the two together.
//!
//! The receiving side is here too: STOW-RS (PS3.18 section 10.5) and webhooks into a folder, `station`.
//!
//! Called by `daemon` and `cli::workstation`; `fleet` serves its collector's router with the same listener, limits and tokens.

mod accept;
mod body;
mod cases;
mod config;
mod connections;
mod door;
mod encoding;
mod fresh;
mod gallery;
mod inference;
mod jobs;
mod metrics;
mod model;
mod multipart;
mod origin;
mod outgoing;
mod pace;
mod problem;
mod routes;
mod serve;
mod station;
mod status;
mod tensor;
mod tokens;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use config::Config;
pub use door::Manners;
pub use gallery::{Drawing, Gallery, Pictures};
pub use model::{Ask, Description, Engine, InferError, Model};
pub use problem::{Problem, Segments, json, too_large};
pub use serve::{Limits, Peer, Server, blocking, serve};
pub use status::self_contained;
pub use tokens::Tokens;

use crate::ingest::Intake;
use crate::spool::{Shared, Spool};
use crate::tls::TlsError;

/// The description of every route, OpenAPI 3.1.
pub const OPENAPI: &str = include_str!("openapi.json");

/// What the routes work with.
pub struct Context {
    pub spool: Arc<Spool>,
    /// The queue that this device shares with others, if it does.
    pub shared: Option<Arc<Shared>>,
    pub intake: Intake,
    /// For the Open Inference Protocol; a daemon without a model has none.
    pub model: Option<Arc<dyn Model>>,
    /// Of a daemon that follows a repository of releases.
    pub updates: Option<Arc<dyn Updates>>,
    pub gallery: Arc<Gallery>,
    pub vitals: Box<dyn Fn() -> Vitals + Send + Sync>,
}

/// How updates stand.
pub trait Updates: Send + Sync {
    /// `None` if that cannot be read now.
    fn describe(&self) -> Option<UpdateState>;
}

/// For people, and for programs that watch many devices.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct UpdateState {
    /// Such as `idle`, `trial` or `safe_mode`.
    pub phase: String,
    /// What that means.
    pub words: String,
    /// The content that is the device's own.
    pub last_good: String,
    /// Counter of the release that is worked on or waited for.
    pub target: Option<u64>,
    pub waits_for: Option<String>,
    /// Why the repository is not followed.
    pub trouble: Option<String>,
    /// Whether a person should look: nothing is computed, or the repository is not believed.
    pub is_bad: bool,
}

/// How the daemon is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vitals {
    /// Not draining.
    pub serving: bool,
    /// For how long the present job has been computed.
    pub working: Option<Duration>,
    /// Names and kinds of the destinations in force.
    pub destinations: Vec<(String, &'static str)>,
}

/// Why HTTP could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("listen on {address}: {source}; choose a free address for http.listen")]
    Listen { address: String, source: std::io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{}: {problem}", path.display())]
    Credential { path: PathBuf, problem: String },
}

impl HttpError {
    fn credential(path: &Path, problem: impl Into<String>) -> Self {
        Self::Credential { path: path.to_owned(), problem: problem.into() }
    }
}

/// Every route with its method, such as `("get", "/v1/jobs/{id}")`.
#[must_use]
pub fn routes() -> Vec<(&'static str, &'static str)> {
    routes::table().iter().map(|route| (route.method, route.path)).collect()
}
