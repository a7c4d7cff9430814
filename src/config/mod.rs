//! Configuration of the daemon: files and environment → merged tree → checked [`Settings`].
//!
//! Later files win over earlier ones, `CDAL_SECTION__KEY` environment variables over all. Everything is strict:
//! an unknown key, a wrong type or a value out of range is a fault, and *all* faults are reported at once, each
//! with where it was written, the key, the value and what would be right. A relative path lies in the folder of the file
//! that names it ([`paths`]). Each room owns its section; this room composes them.
//!
//! Called by `cli`.

mod check;
mod environment;
mod error;
mod paths;
mod reload;
mod tree;

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use crate::domain::{Fault, PrecisionChoice};
use crate::engine::{Options, Provider};
use crate::ingest::dicom::CalledAeTitle;
use crate::sampler::Stopping;
use crate::{daemon, deliver, fleet, http, ingest, spool};

pub use error::{ConfigError, Finding};
pub use tree::Origin;

/// A whole configuration file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    #[serde(default)]
    pub runtime: Runtime,
    pub model: Model,
    pub spool: spool::Config,
    /// Without it this device works alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<spool::shared::Config>,
    #[serde(default)]
    pub ingest: ingest::Config,
    #[serde(default)]
    pub results: daemon::Results,
    #[serde(default)]
    pub http: http::Config,
    #[serde(default)]
    pub commitment: deliver::ReportConfig,
    #[serde(default)]
    pub destination: Vec<deliver::Config>,
    #[serde(default)]
    pub daemon: daemon::Config,
    /// Without it nothing is ever updated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<fleet::agent::Config>,
}

/// Section `[runtime]`: ONNX Runtime and where it computes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Runtime {
    /// ONNX Runtime's library; without it the usual places are searched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library: Option<PathBuf>,
    /// It must be there: nothing falls back silently.
    #[serde(serialize_with = "provider_name")]
    pub provider: Provider,
    /// Threads of one operator; 0 lets ONNX Runtime choose.
    pub intra_threads: usize,
    /// Whether the CPU may run what the provider cannot; else such a model is refused.
    pub allow_cpu_nodes: bool,
    /// The fastest that the bundle holds, or one of fp32, fp16 and int8.
    pub precision: PrecisionChoice,
    /// Folder for what is built for this machine, such as TensorRT's engines; without it, the service's or the user's cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
}

impl Runtime {
    /// How sessions are made.
    #[must_use]
    pub fn options(&self) -> Options {
        Options {
            provider: self.provider,
            device: 0,
            intra_threads: Some(self.intra_threads).filter(|&threads| threads > 0),
            allow_cpu_nodes: self.allow_cpu_nodes,
            precision: self.precision,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn provider_name<S: Serializer>(provider: &Provider, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(provider.name())
}

/// Section `[model]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Folder of the model bundle.
    pub bundle: PathBuf,
    /// Instead of the bundle's own number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub votes: Option<usize>,
    /// When a vote may end early: never, exact, certified[:DICE] or adaptive[:ERROR].
    #[serde(default)]
    #[schemars(with = "String")]
    pub stop: Stopping,
    /// Milliseconds of sampling after which a mask is made of the votes drawn so far, and marked as such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    #[serde(default)]
    pub seed: u64,
}

impl Settings {
    /// What the daemon needs of it.
    #[must_use]
    pub fn daemon(&self) -> daemon::Settings {
        daemon::Settings {
            daemon: self.daemon.clone(),
            spool: self.spool.clone(),
            shared: self.shared.clone(),
            ingest: self.ingest.clone(),
            http: self.http.clone(),
            commitment: self.commitment.clone(),
            destinations: self.destination.clone(),
        }
    }

    /// The first 12 digits of the SHA-256 of all of it.
    fn revision(&self) -> String {
        let text = toml::to_string(self).expect("settings are plain data");
        let hash = <sha2::Sha256 as sha2::Digest>::digest(text);
        crate::durable::hex(&hash)[..12].to_owned()
    }

    /// Whether a report of storage commitment finds its way in.
    fn hears_reports_of(&self, destination: &deliver::Config) -> bool {
        let dicom = &self.ingest.dicom;
        let called = destination.calling_ae_title.as_deref().unwrap_or(deliver::CALLING_AE_TITLE);
        destination.commitment.is_none()
            || !dicom.is_on()
            || dicom.called_ae_title == CalledAeTitle::Any
            || called.trim() == dicom.ae_title.trim()
    }

    fn has_a_way_in(&self) -> bool {
        self.ingest.dicom.is_on() || self.ingest.folder.path.is_some() || self.http.listen.is_some()
    }

    /// Everything the rooms find wrong, with whole keys.
    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if !self.has_a_way_in() {
            let problem = "nothing would be taken in; give at least one of [ingest.dicom], ingest.folder.path and http.listen";
            faults.push(Fault::new("ingest", problem));
        }
        let mut under = |section: &str, found: Vec<Fault>| {
            faults.extend(
                found.into_iter().map(|f| Fault::new(format!("{section}.{}", f.key), f.problem)),
            );
        };
        if self.model.votes.is_some_and(|votes| !(1..=1000).contains(&votes)) {
            under("model", vec![Fault::new("votes", "must be 1 to 1000")]);
        }
        if self.model.deadline_ms == Some(0) {
            under("model", vec![Fault::new("deadline_ms", "must be at least 1, or left out")]);
        }
        if self.runtime.intra_threads > 1024 {
            under("runtime", vec![Fault::new("intra_threads", "must be at most 1024")]);
        }
        under("spool", self.spool.faults());
        let shared = self.shared.as_ref();
        under("shared", shared.map(spool::shared::Config::faults).unwrap_or_default());
        under("ingest", self.ingest.faults());
        under("results", self.results.faults());
        under("http", self.http.faults());
        under("commitment", self.commitment.faults());
        under("daemon", self.daemon.faults());
        under("fleet", self.fleet.as_ref().map(fleet::agent::Config::faults).unwrap_or_default());
        for (index, destination) in self.destination.iter().enumerate() {
            under(&format!("destination[{index}]"), destination.faults());
            if !self.hears_reports_of(destination) {
                let fault = Fault::new(
                    "commitment",
                    "is reported to calling_ae_title, which ingest.dicom does not answer to; give both the same AE \
                     title, or set ingest.dicom.called_ae_title to \"any\"",
                );
                under(&format!("destination[{index}]"), vec![fault]);
            }
            if destination.commitment.is_some() && !self.ingest.dicom.is_on() {
                let problem = "is reported to [ingest.dicom], which is not there; add it, or leave commitment out";
                under(&format!("destination[{index}]"), vec![Fault::new("commitment", problem)]);
            }
            if self.shared.is_some() && destination.commitment.is_some() {
                let problem = "is reported to one device and asked for by another where [shared] is in force; leave it out";
                under(&format!("destination[{index}]"), vec![Fault::new("commitment", problem)]);
            }
            if self.destination[..index].iter().any(|other| other.name == destination.name) {
                let fault = Fault::new("name", "is used twice; each destination needs its own");
                under(&format!("destination[{index}]"), vec![fault]);
            }
        }
        faults
    }
}

/// A configuration that was read and found right.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub settings: Settings,
    /// The first 12 digits of the SHA-256 of what is in force; written into results.
    pub revision: String,
    /// `model.bundle` as it is written: a release knows its models by name.
    written_bundle: String,
    origins: tree::Origins,
}

impl Loaded {
    /// `model.bundle` as it is written, before it is taken for a path.
    #[must_use]
    pub fn written_bundle(&self) -> &str {
        &self.written_bundle
    }

    /// With the model of a release in place of the configured one.
    #[must_use]
    pub fn with_bundle(mut self, folder: PathBuf) -> Self {
        self.settings.model.bundle = folder;
        self.revision = self.settings.revision();
        self
    }

    /// Every value in force with where it comes from, in the order of the sections: `(key, value, origin)`.
    #[must_use]
    pub fn values(&self) -> Vec<(String, String, Origin)> {
        let value = toml::Value::try_from(&self.settings).expect("settings are plain data");
        tree::leaves(&value)
            .into_iter()
            .map(|(key, value)| {
                let origin = self.origins.get(&key).cloned().unwrap_or(Origin::Default);
                (key, value, origin)
            })
            .collect()
    }
}

/// The JSON Schema of a configuration file, for editors and other programs. Ranges and what depends on several keys are
/// checked by [`load`] alone.
#[must_use]
pub fn schema() -> serde_json::Value {
    let settings = schemars::generate::SchemaSettings::draft2020_12();
    let mut schema = settings.into_generator().into_root_schema_for::<Settings>().to_value();
    schema["title"] = "Configuration of cdal serve".into();
    schema
}

/// Reads `files` and the process's environment.
///
/// # Errors
/// Everything that is wrong.
pub fn load(files: &[&Path]) -> Result<Loaded, ConfigError> {
    load_with(files, std::env::vars())
}

/// Reads `files` and the given environment.
///
/// # Errors
/// Everything that is wrong.
pub fn load_with(
    files: &[&Path],
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded, ConfigError> {
    let (variables, mut findings) = environment::read(environment);
    let (mut tree, origins) = tree::merge(files, variables)?;
    let written_bundle = tree::get_mut(&mut tree, "model.bundle")
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default();
    paths::resolve(&mut tree, &origins);
    let settings = check::check(tree, &origins, &mut findings);
    match settings {
        Some(settings) if findings.is_empty() => {
            let revision = settings.revision();
            Ok(Loaded { settings, revision, written_bundle, origins })
        }
        _ => Err(ConfigError::Faults(findings)),
    }
}

#[cfg(test)]
mod tests;
