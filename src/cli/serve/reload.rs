use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;

use super::generation::load;
use crate::config::{self, Loaded};
use crate::daemon::{Choice, Daemon};
use crate::fleet::agent::Blueprint;
use crate::segmenter::Request;
use crate::telemetry::{self, audit};

/// What is in force, and how it is replaced.
pub(super) struct Reload {
    pub(super) files: Vec<PathBuf>,
    pub(super) blueprint: Blueprint,
    pub(super) loaded: Loaded,
    pub(super) choice: watch::Sender<Choice>,
}

impl Reload {
    /// Reads the files again. A configuration with a fault changes nothing.
    pub(super) fn run(&mut self, daemon: &Daemon) {
        let refused = |reason: &dyn std::fmt::Display| {
            tracing::error!(
                "the new configuration is not used, the old one stays in force: {reason}"
            );
            audit::record("reload_refused", json!({ "configuration": self.loaded.revision }));
        };
        let new = match load(&self.files, &self.blueprint) {
            Ok(new) => new,
            Err(error) => return refused(&format!("{error:#}")),
        };
        let (loaded, needs_restart) = self.loaded.reload(new);
        let settings = &loaded.settings;
        if let Err(error) = daemon.reload(&settings.destination, &settings.ingest.dicom.completion)
        {
            return refused(&error);
        }
        self.choice.send_replace(choice(&loaded));
        if let Some(level) = settings.daemon.log {
            telemetry::set_level(level.as_str());
        }
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

pub(super) fn choice(loaded: &Loaded) -> Choice {
    let config::Model { votes, stop, deadline_ms, seed, .. } = loaded.settings.model;
    let deadline = deadline_ms.map(Duration::from_millis);
    let request = Request { votes, stopping: stop, deadline, seed, ..Request::default() };
    let results = loaded.settings.results.clone();
    Choice { request, results, revision: loaded.revision.clone() }
}
