//! One generation of the daemon: a configuration with its worker, and the hand-over to it from the one before.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;

use super::super::Misconfigured;
use super::reload::{Reload, choice};
use crate::config::{self, Loaded};
use crate::daemon::{
    self, Claim, Daemon, JobError, NoModel, Product, Pulse, SegmentWorker, Worker,
};
use crate::engine::{Purpose, Runtime};
use crate::fleet::agent::{Agent, Blueprint, Content, Event, Load, Served};
use crate::fleet::rollout::Phase;
use crate::http::{Drawing, Gallery, Model, UpdateState, Updates};
use crate::segmenter::Segmenter;
use crate::telemetry;

/// What is needed to serve.
pub(super) struct Generation {
    pub(super) settings: daemon::Settings,
    pub(super) worker: Box<dyn Worker>,
    /// What a hang-up signal does.
    pub(super) reload: Box<dyn FnMut(&Daemon) + Send>,
}

/// A generation on its way to the loop that serves, which answers once it serves, or that it does not.
pub(super) struct HandOver {
    pub(super) generation: Generation,
    pub(super) answer: mpsc::Sender<Result<Pulse, String>>,
    /// There is nothing behind it: if it cannot serve, the process ends.
    pub(super) is_last_resort: bool,
}

/// Reads `files`, with what a release lays over them. If the release brings one model, it is that one; of several the
/// configuration names one.
pub(in crate::cli) fn load(files: &[PathBuf], blueprint: &Blueprint) -> anyhow::Result<Loaded> {
    let files: Vec<&Path> =
        files.iter().chain(&blueprint.configuration).map(PathBuf::as_path).collect();
    let loaded = config::load(&files)?;
    let bundles = &blueprint.bundles;
    let named = bundles.get(loaded.written_bundle());
    let only = bundles.values().next().filter(|_| bundles.len() == 1);
    match named.or(only) {
        Some(folder) => Ok(loaded.with_bundle(folder.clone())),
        None if bundles.is_empty() => Ok(loaded),
        None => {
            let names: Vec<_> = bundles.keys().map(String::as_str).collect();
            let problem = format!("the release brings the models {}", names.join(", "));
            Err(anyhow::anyhow!(problem))
                .context(Misconfigured("model.bundle names none of the release's models"))
        }
    }
}

/// Loads the model: the golden case has run when this returns.
pub(in crate::cli) fn segmenter(settings: &config::Settings) -> anyhow::Result<Segmenter> {
    let config::Settings { runtime, model, .. } = settings;
    let library = library(runtime)?;
    Ok(Segmenter::open_at_once(library, &model.bundle, runtime.options())?)
}

/// ONNX Runtime, which a process loads once for all generations.
fn library(runtime: &config::Runtime) -> anyhow::Result<Arc<Runtime>> {
    static LIBRARY: Mutex<Option<Arc<Runtime>>> = Mutex::new(None);
    let mut library = LIBRARY.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = &*library {
        return Ok(Arc::clone(library));
    }
    let loaded = Runtime::load(Purpose::Inference, runtime.library.as_deref())?;
    let loaded = Arc::new(loaded.with_cache(runtime.cache.clone()));
    *library = Some(Arc::clone(&loaded));
    Ok(loaded)
}

/// Loads a model for a configuration.
pub(super) fn make(
    files: Vec<PathBuf>,
    blueprint: Blueprint,
    loaded: Loaded,
) -> anyhow::Result<(Generation, Arc<Segmenter>)> {
    let chosen = watch::Sender::new(choice(&loaded));
    let worker = SegmentWorker::new(segmenter(&loaded.settings)?, chosen.subscribe());
    let segmenter = worker.segmenter();
    if let Some(level) = loaded.settings.daemon.log {
        telemetry::set_level(level.as_str());
    }
    tracing::info!(revision = loaded.revision, "configuration loaded");
    let settings = loaded.settings.daemon();
    let mut reload = Reload { files, blueprint, loaded, choice: chosen };
    let reload = Box::new(move |daemon: &Daemon| reload.run(daemon));
    Ok((Generation { settings, worker: Box::new(worker), reload }, segmenter))
}

/// Takes everything in and computes nothing.
pub(super) fn without_model(settings: daemon::Settings) -> Generation {
    let reload = |_: &Daemon| tracing::warn!("in safe mode nothing is reloaded");
    Generation { settings, worker: Box::new(NoModel), reload: Box::new(reload) }
}

/// The generation of what the agent says is to be loaded, and its model.
pub(super) fn of(
    load: &Load,
    blueprint: &Blueprint,
    files: &[PathBuf],
    agent: &Agent,
) -> anyhow::Result<(Generation, Option<Arc<Segmenter>>)> {
    let loaded = self::load(files, blueprint)?;
    let (mut generation, segmenter, content) = match load {
        Load::SafeMode { .. } => (without_model(loaded.settings.daemon()), None, None),
        Load::Run(content) => {
            let (made, segmenter) = make(files.to_vec(), blueprint.clone(), loaded)?;
            (made, Some(segmenter), Some(content.clone()))
        }
    };
    let watched = Watched { worker: generation.worker, content, agent: agent.clone() };
    generation.worker = Box::new(watched);
    Ok((generation, segmenter))
}

/// Tells the agent what became of each job: it counts on trial.
struct Watched {
    worker: Box<dyn Worker>,
    /// None in safe mode.
    content: Option<Content>,
    agent: Agent,
}

impl Worker for Watched {
    fn process(&mut self, claim: &Claim) -> Result<Vec<Product>, JobError> {
        let work = std::panic::AssertUnwindSafe(|| self.worker.process(claim));
        let result = std::panic::catch_unwind(work);
        let event = match &result {
            Ok(Ok(_)) => Event::JobDone,
            Ok(Err(JobError::Model(reason))) => Event::Broken { reason: reason.clone() },
            Ok(Err(error)) => Event::JobFailed { reason: error.to_string() },
            Err(_) => Event::JobFailed { reason: "the worker panicked".to_owned() },
        };
        if let Some(content) = &self.content {
            self.agent.job(content, event);
        }
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn pictures(&mut self) -> Option<Drawing> {
        self.worker.pictures()
    }

    fn show_previews(&mut self, gallery: &Arc<Gallery>) {
        self.worker.show_previews(gallery);
    }

    fn model(&self) -> Option<Arc<dyn Model>> {
        self.worker.model()
    }

    fn updates(&self) -> Option<Arc<dyn Updates>> {
        Some(Arc::new(Followed(self.agent.clone())))
    }

    fn takes_jobs(&self) -> bool {
        self.worker.takes_jobs()
    }
}

/// How updates stand, for the status page and the metrics.
struct Followed(Agent);

impl Updates for Followed {
    fn describe(&self) -> Option<UpdateState> {
        let status = self.0.status().ok()?;
        let trouble = status.trouble();
        Some(UpdateState {
            phase: status.phase.to_string(),
            words: status.words().to_owned(),
            last_good: status.last_good.to_string(),
            target: status.target.as_ref().map(|target| target.counter),
            is_bad: trouble.is_some() || status.phase == Phase::SafeMode,
            waits_for: status.waits_for,
            trouble,
        })
    }
}

/// The generation that serves, as the agent sees it.
pub(super) struct Serving {
    pub(super) pulse: Pulse,
    pub(super) segmenter: Option<Arc<Segmenter>>,
}

impl Served for Serving {
    fn is_healthy(&self) -> bool {
        self.pulse.is_healthy()
    }

    fn is_busy(&self) -> bool {
        // Without a model jobs wait for the very update that this would hold back.
        self.segmenter.is_some() && self.pulse.is_busy()
    }

    fn golden(&self) -> Result<Duration, String> {
        let segmenter = self.segmenter.as_ref().ok_or("no model is loaded")?;
        super::super::examine::golden(segmenter).map_err(|error| error.to_string())
    }
}
