use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::ExitStatus;
use super::serve::generation;
use crate::config::Settings;
use crate::fleet::agent::{self, Blueprint, Finding};
use crate::segmenter::Segmenter;

/// Golden runs; the best time counts.
const RUNS: usize = 3;

/// What the agent of `cdal serve` starts to try a release; not for people.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    memory_bytes: u64,
    #[arg(long)]
    processor_seconds: u64,
    /// As the release would have them
    #[arg(long, required = true)]
    config: Vec<PathBuf>,
    /// The device's own
    #[arg(long)]
    own: Vec<PathBuf>,
    /// NAME=FOLDER
    #[arg(long, value_parser = named)]
    bundle: Vec<(String, PathBuf)>,
}

fn named(text: &str) -> Result<(String, PathBuf), String> {
    let (name, folder) = text.split_once('=').ok_or("must be NAME=FOLDER")?;
    Ok((name.to_owned(), folder.into()))
}

/// Prints what was found as one line of JSON.
///
/// # Errors
/// If this process cannot be confined.
pub fn run(args: Args) -> anyhow::Result<ExitStatus> {
    agent::confine(args.memory_bytes, args.processor_seconds)?;
    let finding = match examine(&args) {
        Ok(time) => Finding::GoldenMs(time.as_secs_f64() * 1e3),
        Err(error) => Finding::Fault(super::told_once(&error)),
    };
    out!("{}", serde_json::to_string(&finding)?)?;
    Ok(ExitStatus::Done)
}

fn examine(args: &Args) -> anyhow::Result<Duration> {
    let own = generation::load(&args.own, &Blueprint::default())?;
    let bundles = args.bundle.iter().cloned().collect();
    let loaded = generation::load(&args.config, &Blueprint { configuration: None, bundles })?;
    leaves_the_device_its_own(&own.settings, &loaded.settings)?;
    let segmenter = generation::segmenter(&loaded.settings)?;
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        best = best.min(golden(&segmenter)?);
    }
    Ok(best)
}

/// What is acknowledged lies in the spool, and the way back to a sound release leads through the agent.
pub(super) fn leaves_the_device_its_own(own: &Settings, new: &Settings) -> anyhow::Result<()> {
    for (key, is_same) in [
        ("section fleet", own.fleet == new.fleet),
        ("spool.directory", own.spool.directory == new.spool.directory),
        ("daemon.audit", own.daemon.audit == new.daemon.audit),
        ("runtime.library", own.runtime.library == new.runtime.library),
    ] {
        anyhow::ensure!(is_same, "{key} belongs to the device alone; a release must not change it");
    }
    Ok(())
}

/// Runs the golden case and takes its time.
pub(super) fn golden(segmenter: &Segmenter) -> anyhow::Result<Duration> {
    let started = Instant::now();
    segmenter.check_golden()?;
    Ok(started.elapsed())
}
