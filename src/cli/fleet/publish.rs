//! A release from its description: what it says, what it brings, and whether devices could run it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use semver::VersionReq;
use serde::Deserialize;

use super::super::EngineArgs;
use super::super::examine::leaves_the_device_its_own;
use super::super::serve::generation;
use super::keys::{At, tell};
use super::{ExitStatus, Misconfigured};
use crate::bundle::Bundle;
use crate::config::Settings;
use crate::domain::{Fault, duration};
use crate::durable::sha256_of_file;
use crate::fleet::agent::Blueprint;
use crate::fleet::repository::{Draft, Keyring, Repository, RepositoryError};
use crate::fleet::{Blob, BundleRef, Probation, Release, Rollout, SCHEMA, Wave};
use crate::segmenter::Segmenter;
use crate::spool::now_ms;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Describes the release; what it names is looked for beside it
    release: PathBuf,
    #[command(flatten)]
    at: At,
    /// Look at everything and publish nothing
    #[arg(long)]
    check: bool,
}

#[derive(Debug, clap::Args)]
pub struct PackArgs {
    /// The repository's folder
    #[arg(long, value_name = "FOLDER")]
    repository: PathBuf,
    /// Folder on the stick; what it holds already is not copied again
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// The oldest release whose models go along; all by default
    #[arg(long, value_name = "COUNTER", default_value_t = 0)]
    from: u64,
}

/// A release as its publisher writes it down.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    name: String,
    /// The next by default.
    #[serde(default)]
    counter: u64,
    cdal: VersionReq,
    hardware: Vec<String>,
    groups: Vec<String>,
    configuration: Option<PathBuf>,
    /// Configuration files of devices that the release is tried on before it is published.
    #[serde(default)]
    devices: Vec<PathBuf>,
    #[serde(default)]
    bundles: BTreeMap<String, PathBuf>,
    rollout: Plan,
    #[serde(default)]
    probation: Trial,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    /// As `2026-12-01T02:00:00Z`; at once by default.
    start: Option<jiff::Timestamp>,
    #[serde(default)]
    canary: Vec<String>,
    waves: Vec<Wave>,
    #[serde(default = "failure_threshold")]
    failure_threshold: f64,
    #[serde(default = "silence", with = "duration")]
    silence: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Trial {
    #[serde(with = "duration")]
    healthy: Duration,
    jobs: u64,
    failures: u64,
    slowdown: f64,
    boots: u32,
}

impl Default for Trial {
    fn default() -> Self {
        Self { healthy: Duration::from_mins(30), jobs: 10, failures: 0, slowdown: 3.0, boots: 3 }
    }
}

fn failure_threshold() -> f64 {
    0.05
}

fn silence() -> Duration {
    Duration::from_hours(1)
}

/// # Errors
/// Everything that is wrong with the release. Devices see nothing of it then.
pub fn run(args: &Args) -> anyhow::Result<ExitStatus> {
    let folder = args.release.parent().unwrap_or(Path::new("."));
    let description = read(&args.release)?;
    let devices: Vec<_> = description.devices.iter().map(|file| folder.join(file)).collect();
    let (draft, blueprint, mut faults) = draft(description, folder);
    let is_whole = faults.is_empty();
    faults.extend(draft.release.faults());
    faults.retain(|fault| fault.key != "counter" || draft.release.counter != 0);
    faults.extend(unmet_here(&draft.release));
    // Without the files that a release names, devices would say the same again.
    if is_whole {
        faults.extend(on_devices(&draft.release, &blueprint, &devices));
    }
    if args.check {
        faults.extend(golden(&blueprint));
    }
    let at = open(&args.at, &draft.release, &mut faults);
    let Some((repository, keys)) = at.filter(|_| faults.is_empty()) else {
        let lines = faults
            .iter()
            .map(|fault| format!("{}: {} {}", args.release.display(), fault.key, fault.problem));
        let all = anyhow!(lines.collect::<Vec<_>>().join("\n"));
        return Err(all.context(Misconfigured("the release is not published")));
    };
    if blueprint.configuration.is_some() && devices.is_empty() {
        say!("no `devices` are named, so the configuration was tried on none");
    }
    let name = draft.release.name.clone();
    if args.check {
        let (blobs, bytes) = size(&draft.release);
        say!("release {name}: no faults; {blobs} files, {bytes} bytes");
        return Ok(ExitStatus::Done);
    }
    let (counter, state) = repository.publish(draft, &keys, args.at.validity.validity())?;
    tell(&state, &format!("release {counter} ({name})"));
    Ok(ExitStatus::Done)
}

/// The repository and the keys, if there are no faults in them.
fn open(at: &At, release: &Release, faults: &mut Vec<Fault>) -> Option<(Repository, Keyring)> {
    let mut noted = |key: &str, error: RepositoryError| {
        faults.push(Fault::new(key, error.to_string()));
    };
    let keys = Keyring::read(&at.keys).map_err(|error| noted("--key", error)).ok();
    let repository =
        Repository::open(&at.repository).map_err(|error| noted("--repository", error)).ok();
    let repository = repository?;
    match repository.obstacles(&release.name, release.counter) {
        Ok(more) => faults.extend(more),
        Err(error) => noted("--repository", error),
    }
    Some((repository, keys?))
}

/// A release is published with a program that could run it: what is tried here is tried as devices will.
fn unmet_here(release: &Release) -> Option<Fault> {
    let version =
        semver::Version::parse(env!("CARGO_PKG_VERSION")).expect("Cargo's version is one");
    let required = &release.cdal;
    (!required.matches(&version)).then(|| {
        let problem = format!(
            "asks for {required}, and this program is {version}: no device of this version would take the release; \
             correct it, or publish with a version that it asks for"
        );
        Fault::new("cdal", problem)
    })
}

/// What `cdal bundle check` says of the bundles.
fn golden(blueprint: &Blueprint) -> Vec<Fault> {
    let engine = EngineArgs::of_this_machine();
    let runtime = match engine.runtime() {
        Ok(runtime) => runtime,
        Err(_) if blueprint.bundles.is_empty() => return Vec::new(),
        Err(error) => return vec![Fault::new("bundles", format!("cannot be checked: {error:#}"))],
    };
    let check = |(name, folder): (&String, &PathBuf)| {
        let checked = Segmenter::open(Arc::clone(&runtime), folder, engine.options())
            .and_then(|segmenter| segmenter.check_golden());
        Some(Fault::new(format!("bundles.{name}"), checked.err()?.to_string()))
    };
    blueprint.bundles.iter().filter_map(check).collect()
}

/// # Errors
/// If the disk refuses.
pub fn pack(args: &PackArgs) -> anyhow::Result<ExitStatus> {
    let packed = Repository::open(&args.repository)?.pack(&args.out, args.from)?;
    say!(
        "{}: {} releases; files new: {}, bytes: {}",
        args.out.display(),
        packed.releases,
        packed.files,
        packed.bytes
    );
    Ok(ExitStatus::Done)
}

fn read(path: &Path) -> anyhow::Result<Description> {
    let wrong = Misconfigured("the release is not published");
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => return Err(anyhow!("{}: {error}", path.display()).context(wrong)),
    };
    let toml = toml::Deserializer::parse(&text).map_err(|error| error.to_string());
    let read = toml.and_then(|toml| {
        serde_path_to_error::deserialize(toml)
            .map_err(|error| format!("{}: {}", error.path(), error.inner().message()))
    });
    read.map_err(|problem| anyhow!("{}: {}", path.display(), problem.trim_end()).context(wrong))
}

/// The release with where its content lies, what a device would make of it, and what of it cannot be had.
fn draft(description: Description, folder: &Path) -> (Draft, Blueprint, Vec<Fault>) {
    let (mut blobs, mut faults) = (BTreeMap::new(), Vec::new());
    let mut blob = |path: PathBuf| -> anyhow::Result<Blob> {
        let sha256 = sha256_of_file(&path)?;
        let length = fs::metadata(&path).with_context(|| path.display().to_string())?.len();
        blobs.insert(sha256.clone(), path);
        Ok(Blob { sha256, length })
    };
    let Plan { start, canary, waves, failure_threshold, silence } = description.rollout;
    let Trial { healthy, jobs, failures, slowdown, boots } = description.probation;
    let mut blueprint = Blueprint::default();
    let mut configuration = None;
    if let Some(file) = description.configuration.map(|file| folder.join(file)) {
        match blob(file.clone()) {
            Ok(found) => (configuration, blueprint.configuration) = (Some(found), Some(file)),
            Err(error) => faults.push(Fault::new("configuration", format!("{error:#}"))),
        }
    }
    let mut bundles = BTreeMap::new();
    for (name, bundle) in description.bundles {
        let bundle = folder.join(bundle);
        match reference(&bundle, &mut blob) {
            Ok(found) => {
                bundles.insert(name.clone(), found);
                blueprint.bundles.insert(name, bundle);
            }
            Err(error) => faults.push(Fault::new(format!("bundles.{name}"), format!("{error:#}"))),
        }
    }
    let start_ms = match start {
        Some(at) => at.as_millisecond(),
        None => now_ms(),
    };
    let release = Release {
        schema: SCHEMA,
        counter: description.counter,
        name: description.name,
        cdal: description.cdal,
        hardware: description.hardware,
        groups: description.groups,
        configuration,
        bundles,
        rollout: Rollout {
            start_ms: u64::try_from(start_ms).unwrap_or(0),
            canary,
            waves,
            failure_threshold,
            silence,
        },
        probation: Probation { healthy, jobs, failures, slowdown, boots },
    };
    (Draft { release, blobs }, blueprint, faults)
}

/// A bundle whose digests agree, with every file of its folder: its card and licence go along.
fn reference(
    folder: &Path,
    blob: &mut impl FnMut(PathBuf) -> anyhow::Result<Blob>,
) -> anyhow::Result<BundleRef> {
    let bundle = Bundle::open(folder)?;
    for variant in &bundle.manifest.variants {
        bundle.variant(variant)?;
    }
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_file() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.insert(name, blob(path)?);
        }
    }
    Ok(BundleRef { digest: bundle.digest, files })
}

/// What devices of these configurations would say of the release.
fn on_devices(release: &Release, blueprint: &Blueprint, devices: &[PathBuf]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let (mut groups, mut hardware) = (BTreeSet::new(), BTreeSet::new());
    for device in devices {
        match as_changed(device, blueprint) {
            Ok(settings) => {
                let fleet = settings.fleet;
                groups.extend(fleet.iter().map(|fleet| fleet.group.clone()));
                hardware.extend(fleet.map(|fleet| fleet.hardware));
            }
            Err(error) => {
                let problem = format!("on {}: {error:#}", device.display());
                faults.push(Fault::new("configuration", problem));
            }
        }
    }
    if devices.is_empty() || !faults.is_empty() {
        return faults;
    }
    let mut check = |key: &str, named: &[String], known: &BTreeSet<String>| {
        for name in named.iter().filter(|name| !known.contains(*name)) {
            let known = known.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            let problem = format!("names {name}, and no file of `devices` is of it ({known})");
            faults.push(Fault::new(key, problem));
        }
    };
    check("groups", &release.groups, &groups);
    check("hardware", &release.hardware, &hardware);
    faults
}

/// The configuration of `device` under the release, as the device itself will judge it.
fn as_changed(device: &PathBuf, blueprint: &Blueprint) -> anyhow::Result<Settings> {
    let files = std::slice::from_ref(device);
    let own = generation::load(files, &Blueprint::default())?;
    let new = generation::load(files, blueprint)?;
    leaves_the_device_its_own(&own.settings, &new.settings)?;
    Ok(new.settings)
}

fn size(release: &Release) -> (usize, u64) {
    let blobs: BTreeMap<_, _> = release.blobs().map(|blob| (&blob.sha256, blob.length)).collect();
    (blobs.len(), blobs.values().sum())
}
