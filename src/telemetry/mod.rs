//! Logging. Called once, by `main`.
//!
//! Human text goes to stderr, one line per event, fields first. Data never goes through here: stdout
//! belongs to the commands. No patient's name, no id and no UID may be put in a field; a job id may.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Environment variable that overrides the level, in the syntax of `tracing` filters
/// (`debug`, `info,cdal::deliver=trace`).
pub const LEVEL_VARIABLE: &str = "CDAL_LOG";

/// Starts logging at `level` unless the environment says otherwise. `dicom-ul` and other crates stay at
/// errors only: their messages quote what peers sent.
///
/// A second call does nothing, so that tests may call it too.
pub fn start(level: &str) {
    let filter = std::env::var(LEVEL_VARIABLE)
        .ok()
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| EnvFilter::new(format!("off,cdal={level}")));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .try_init();
}
