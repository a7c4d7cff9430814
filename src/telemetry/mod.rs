//! Logging, metrics, the audit trail, and what the device's sensors say. Logging is started once, by `main`.
//!
//! Human text goes to stderr, one line per event, fields first. Data never goes through here: stdout
//! belongs to the commands. No patient's name, no id and no UID may be put in a field; a job id may.

pub mod audit;
pub mod energy;
pub mod exposition;
pub mod machine;
mod metrics;
pub mod sensors;

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

pub use exposition::label;
pub use metrics::{Delivered, JobOutcome, Metrics, Rejected, Stage, Way, metrics};

/// Environment variable that overrides the level, in the syntax of `tracing` filters
/// (`debug`, `info,cdal::deliver=trace`).
pub const LEVEL_VARIABLE: &str = "CDAL_LOG";

/// Starts logging at `level` unless the environment says otherwise. Other crates' messages are
/// off: they quote what peers sent.
///
/// A second call does nothing, so that tests may call it too.
pub fn start(level: &str) {
    let filter = std::env::var(LEVEL_VARIABLE)
        .ok()
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| filter(level));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // The layer would report a closed stderr on stderr, and panic.
        .log_internal_errors(false)
        .with_filter_reloading();
    let handle = builder.reload_handle();
    if builder.try_init().is_ok() {
        let _ = SET_FILTER.set(Box::new(move |filter| drop(handle.reload(filter))));
    }
}

static SET_FILTER: OnceLock<Box<dyn Fn(EnvFilter) + Send + Sync>> = OnceLock::new();

/// Logs at `level` from now on, unless the environment says otherwise.
pub fn set_level(level: &str) {
    if let (Some(set), Err(_)) = (SET_FILTER.get(), std::env::var(LEVEL_VARIABLE)) {
        set(filter(level));
    }
}

fn filter(level: &str) -> EnvFilter {
    EnvFilter::new(format!("off,cdal={level}"))
}
