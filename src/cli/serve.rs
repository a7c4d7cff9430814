use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use tokio::sync::watch;

use super::signals::{self, Signals};
use super::{ExitStatus, Misconfigured};
use crate::config::{self, Loaded};
use crate::daemon::{self, Choice, Daemon, SegmentWorker, ServiceManager, Worker};
use crate::engine::{Purpose, Runtime};
use crate::segmenter::{Request, Segmenter};
use crate::telemetry::{self, audit};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file; a later one wins over an earlier one
    #[arg(long, required = true)]
    config: Vec<PathBuf>,
}

/// # Errors
/// If the daemon does not start.
pub fn run(args: &Args) -> anyhow::Result<ExitStatus> {
    let loaded = load(&args.config)?;
    if let Some(path) = &loaded.settings.daemon.audit {
        audit::start(path).context(Misconfigured("the daemon cannot start"))?;
    }
    let choice = watch::Sender::new(choice(&loaded));
    let worker =
        worker(&loaded, choice.subscribe()).context(Misconfigured("the daemon cannot start"))?;
    tracing::info!(revision = loaded.revision, "configuration loaded");
    audit::record(
        "started",
        json!({ "version": env!("CARGO_PKG_VERSION"), "configuration": loaded.revision }),
    );
    let settings = loaded.settings.daemon();
    let mut reload = Reload { files: args.config.clone(), loaded, choice };
    let result = serve_and_reload(settings, worker, |daemon| reload.run(daemon));
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
    serve_and_reload(settings, worker, |_| ())
}

fn serve_and_reload(
    settings: daemon::Settings,
    worker: impl Worker,
    mut reload: impl FnMut(&Daemon),
) -> anyhow::Result<ExitStatus> {
    let runtime = tokio::runtime::Runtime::new().context("start the async runtime")?;
    let result = runtime.block_on(async {
        let mut signals = Signals::listen().context("listen for signals")?;
        let mut hangup = signals::hangup().context("listen for signals")?;
        let manager = ServiceManager::from_environment();
        let daemon = Daemon::start(settings, worker).await?;
        let address = daemon.dicom_address().to_string();
        let http = daemon.http_address().map(|address| address.to_string());
        println!("{}", json!({ "ready": true, "dicom": address, "http": http }));
        manager.ready();
        let interval = manager.interval();
        let mut pulse = tokio::time::interval(interval.unwrap_or(Duration::from_hours(1)));
        loop {
            tokio::select! {
                () = signals.next() => break,
                _ = hangup.recv() => {
                    manager.reloading();
                    reload(&daemon);
                    manager.ready();
                }
                _ = pulse.tick(), if interval.is_some() => {
                    if daemon.is_alive().await {
                        manager.alive();
                    }
                }
            }
        }
        manager.stopping(daemon.drain_deadline());
        tokio::select! {
            _ = daemon.stop() => {}
            () = signals.next() => tracing::warn!("second signal; not waiting any longer"),
        }
        Ok(ExitStatus::Done)
    });
    // A job past the deadline is not waited for: it is in the spool.
    runtime.shutdown_background();
    result
}

fn load(files: &[PathBuf]) -> Result<Loaded, config::ConfigError> {
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let loaded = config::load(&files)?;
    if let Some(level) = loaded.settings.daemon.log {
        telemetry::set_level(level.as_str());
    }
    Ok(loaded)
}

/// What is in force, and how it is replaced.
struct Reload {
    files: Vec<PathBuf>,
    loaded: Loaded,
    choice: watch::Sender<Choice>,
}

impl Reload {
    /// Reads the files again. A configuration with a fault changes nothing.
    fn run(&mut self, daemon: &Daemon) {
        let refused = |reason: &dyn std::fmt::Display| {
            tracing::error!(
                "the new configuration is not used, the old one stays in force: {reason}"
            );
            audit::record("reload_refused", json!({ "configuration": self.loaded.revision }));
        };
        let new = match load(&self.files) {
            Ok(new) => new,
            Err(error) => return refused(&error),
        };
        let (loaded, needs_restart) = self.loaded.reload(new);
        let settings = &loaded.settings;
        if let Err(error) = daemon.reload(&settings.destination, &settings.ingest.dicom.completion)
        {
            return refused(&error);
        }
        self.choice.send_replace(choice(&loaded));
        for key in needs_restart {
            tracing::warn!(
                key,
                "changed in the configuration, but only a restart puts it in force"
            );
        }
        tracing::info!(revision = loaded.revision, "configuration reloaded");
        audit::record("reloaded", json!({ "configuration": loaded.revision }));
        self.loaded = loaded;
    }
}

fn choice(loaded: &Loaded) -> Choice {
    let config::Model { votes, stop, deadline_ms, seed, .. } = loaded.settings.model;
    let deadline = deadline_ms.map(Duration::from_millis);
    let request = Request { votes, stopping: stop, deadline, seed, ..Request::default() };
    let results = loaded.settings.results.clone();
    Choice { request, results, revision: loaded.revision.clone() }
}

/// The worker that segments: the bundle is loaded and its golden case has run before peers can connect.
fn worker(loaded: &Loaded, choice: watch::Receiver<Choice>) -> anyhow::Result<SegmentWorker> {
    let config::Settings { runtime, model, .. } = &loaded.settings;
    let library = Runtime::load(Purpose::Inference, runtime.library.as_deref())?;
    let library = Arc::new(library.with_cache(runtime.cache.clone()));
    let segmenter = Segmenter::open_at_once(library, &model.bundle, runtime.options())?;
    Ok(SegmentWorker::new(segmenter, choice))
}
