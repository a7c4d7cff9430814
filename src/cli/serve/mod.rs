//! The daemon's process: one generation after another, as the update agent says, or one for good.

pub(super) mod generation;
mod reload;
mod turns;

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;

use self::generation::{Generation, HandOver, Serving};
use super::{ExitStatus, Misconfigured};
use crate::daemon::{self, Worker};
use crate::fleet::agent::{self, Agent, Blueprint, Examiner, Load, Supply, Swap};
use crate::telemetry::audit;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file; a later one wins over an earlier one
    #[arg(long, required = true)]
    config: Vec<PathBuf>,
}

/// # Errors
/// If the daemon does not start.
pub fn run(args: &Args) -> anyhow::Result<ExitStatus> {
    let loaded = generation::load(&args.config, &Blueprint::default())?;
    if let Some(path) = &loaded.settings.daemon.audit {
        audit::start(path).context(Misconfigured("the daemon cannot start"))?;
    }
    audit::record(
        "started",
        json!({ "version": env!("CARGO_PKG_VERSION"), "configuration": loaded.revision }),
    );
    let result = match loaded.settings.fleet.clone() {
        None => {
            let made = generation::make(args.config.clone(), Blueprint::default(), loaded);
            let (generation, _) = made.context(Misconfigured("the daemon cannot start"))?;
            serve_one(generation)
        }
        Some(config) => {
            let supply =
                agent::supply(&config).context(Misconfigured("the daemon cannot start"))?;
            let trail = loaded.settings.daemon.audit.as_deref();
            let program = std::env::current_exe().context("find this program")?;
            serve_with_agent(&args.config, config, trail, supply, &program)
        }
    };
    audit::record("stopped", json!({}));
    audit::flush(Duration::from_secs(5));
    result
}

/// Runs the daemon with `worker` until a signal, then drains it. A second signal ends the draining.
///
/// Prints `{"ready":true,"dicom":"ADDRESS:PORT","http":"ADDRESS:PORT"}` (or null) on stdout once peers can connect.
///
/// # Errors
/// If the daemon does not start.
pub fn serve(settings: daemon::Settings, worker: impl Worker) -> anyhow::Result<ExitStatus> {
    serve_one(Generation { settings, worker: Box::new(worker), reload: Box::new(|_| ()) })
}

fn serve_one(generation: Generation) -> anyhow::Result<ExitStatus> {
    // Kept: without it the loop would take the missing agent for an end.
    let (hand, turns) = tokio::sync::mpsc::channel(1);
    let (answer, _) = mpsc::channel();
    let first = HandOver { generation, answer, is_last_resort: true };
    hand.try_send(first).unwrap_or_else(|_| unreachable!("there is room for one"));
    turns::run(turns)
}

/// Runs the daemon as the agent says: the first generation, and every one after it, is the agent's. `program` is this
/// program, for trying releases.
///
/// # Errors
/// If the agent's folder cannot be used, or not even a daemon without a model starts.
pub fn serve_with_agent(
    files: &[PathBuf],
    config: agent::Config,
    trail: Option<&Path>,
    supply: Box<dyn Supply>,
    program: &Path,
) -> anyhow::Result<ExitStatus> {
    let bounds = config.validation.clone();
    let examiner = Examiner { program: program.to_owned(), files: files.to_vec(), bounds };
    let agent = Agent::open(config, examiner, trail.map(Path::to_owned))
        .context(Misconfigured("the daemon cannot start"))?;
    let (hand, turns) = tokio::sync::mpsc::channel(1);
    let (files, own) = (files.to_vec(), agent.clone());
    let swap = move |load: &Load, blueprint: &Blueprint| {
        let (generation, segmenter) = match generation::of(load, blueprint, &files, &own) {
            Ok(made) => made,
            Err(error) => return Swap::Stands { reason: super::told_once(&error) },
        };
        let is_last_resort = matches!(load, Load::SafeMode { .. });
        let (answer, answered) = mpsc::channel();
        if hand.blocking_send(HandOver { generation, answer, is_last_resort }).is_err() {
            return Swap::Stopping;
        }
        match answered.recv() {
            Ok(Ok(pulse)) => Swap::Serves(std::sync::Arc::new(Serving { pulse, segmenter })),
            Ok(Err(reason)) => Swap::Fell { reason },
            Err(_) => Swap::Stopping,
        }
    };
    agent.start(supply, swap).context("start the update agent's thread")?;
    let result = turns::run(turns);
    agent.stop();
    result
}
