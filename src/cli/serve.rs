use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;

use super::signals::Signals;
use super::{ExitStatus, Misconfigured};
use crate::config::{self, Loaded};
use crate::daemon::{self, Daemon, SegmentWorker, Worker};
use crate::engine::{Options, Purpose, Runtime};
use crate::segmenter::{Request, Segmenter};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file; a later one wins over an earlier one
    #[arg(long, required = true)]
    config: Vec<PathBuf>,
}

/// # Errors
/// If the daemon does not start.
pub fn run(args: &Args) -> anyhow::Result<ExitStatus> {
    let files: Vec<_> = args.config.iter().map(PathBuf::as_path).collect();
    let loaded = config::load(&files)?;
    let worker = worker(&loaded).context(Misconfigured("the daemon cannot start"))?;
    tracing::info!(revision = loaded.revision, "configuration loaded");
    serve(loaded.settings.daemon(), worker)
}

/// Runs the daemon with `worker` until a signal, then drains it. A second signal ends the draining.
///
/// Prints `{"ready":true,"dicom":"ADDRESS:PORT"}` on stdout once peers can connect.
///
/// # Errors
/// If the daemon does not start.
pub fn serve(settings: daemon::Settings, worker: impl Worker) -> anyhow::Result<ExitStatus> {
    let runtime = tokio::runtime::Runtime::new().context("start the async runtime")?;
    let result = runtime.block_on(async {
        let mut signals = Signals::listen().context("listen for signals")?;
        let daemon = Daemon::start(settings, worker).await?;
        let address = daemon.dicom_address().to_string();
        println!("{}", serde_json::json!({ "ready": true, "dicom": address }));
        signals.next().await;
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

/// The worker that segments: the bundle is loaded and its golden case has run before peers can connect.
fn worker(loaded: &Loaded) -> anyhow::Result<SegmentWorker> {
    let config::Settings { runtime, model, .. } = &loaded.settings;
    let library = Runtime::load(Purpose::Inference, runtime.library.as_deref())?;
    let options = Options {
        provider: runtime.provider,
        device: 0,
        intra_threads: Some(runtime.intra_threads).filter(|&threads| threads > 0),
    };
    let segmenter = Segmenter::open(Arc::new(library), &model.bundle, options)?;
    let request = Request {
        votes: model.votes,
        stopping: model.stop,
        seed: model.seed,
        ..Request::default()
    };
    Ok(SegmentWorker::new(segmenter, request, loaded.revision.clone()))
}
