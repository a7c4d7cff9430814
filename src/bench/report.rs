use serde::{Deserialize, Serialize};

use super::load::Load;
use super::stats::{self, Estimate, Percentile, Steadiness};
use crate::domain::Precision;
use crate::engine::{Placement, Runtime};
use crate::telemetry::{energy::Energy, machine::Machine};

/// The schema below; it changes when a field changes its meaning or goes.
pub const SCHEMA: u32 = 1;

/// A benchmark: the JSON document that `cdal bench` writes and `cdal bench compare` reads, field for field. What was not
/// measured or is not known is null. Times are in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub schema: u32,
    pub machine: Machine,
    /// Of this program.
    pub software_version: String,
    /// What ONNX Runtime says of its own build.
    pub runtime: String,
    pub input: Input,
    pub load: Load,
    /// Cases of each point before those that count.
    pub warm_up: usize,
    /// One for each combination of a sweep; against a daemon, the bare sampler and the daemon.
    pub points: Vec<Point>,
    pub cold_start: Option<ColdStart>,
    pub after_idle: Option<AfterIdle>,
    /// Most memory the process held, with all models of a sweep loaded.
    pub peak_memory_bytes: Option<u64>,
    /// Over all that was measured, warm-up left out.
    pub energy: Option<Energy>,
    pub daemon: Option<Daemon>,
}

impl Report {
    /// Of this program on this machine, with `points` alone: the rest is for the caller to add.
    pub(super) fn new(
        runtime: &Runtime,
        input: Input,
        load: Load,
        warm_up: usize,
        points: Vec<Point>,
    ) -> Self {
        Self {
            schema: SCHEMA,
            machine: Machine::read(),
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime: runtime.build.to_owned(),
            input,
            load,
            warm_up,
            points,
            cold_start: None,
            after_idle: None,
            peak_memory_bytes: None,
            energy: None,
            daemon: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// File, folder, or what was made up.
    pub name: String,
    /// SHA-256 of all files, hexadecimal.
    pub sha256: String,
    /// Of each case in turn: slices, rows, columns.
    pub shapes: Vec<[usize; 3]>,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    pub model: String,
    pub model_version: String,
    /// SHA-256 of the bundle, hexadecimal.
    pub model_digest: String,
    /// Time-steps that a sample took.
    pub steps: usize,
    /// Votes that were asked for, and the rule by which fewer may do.
    pub votes: usize,
    pub stop: String,
    pub provider: String,
    /// Threads inside an operator; null where the runtime chose.
    pub threads: Option<usize>,
    /// In which the denoiser computed. Not known of reports of before there were several.
    #[serde(default)]
    pub precision: Option<Precision>,
    /// Who ran the nodes of the model's graphs, by the runtime's own record of a step. Empty in reports of before it was kept.
    #[serde(default)]
    pub nodes: Vec<Placement>,
}

/// One setting and what it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Unique in the report: what distinguishes it from the others.
    pub name: String,
    pub setting: Setting,
    /// Of each case, in order: from the intended start to the encoded mask; against a daemon, from the last byte in to
    /// the destination's Success.
    pub latencies: Vec<f64>,
    pub percentiles: Vec<Percentile>,
    pub steadiness: Option<Steadiness>,
    /// Answers by the time that it took to give them.
    pub cases_per_second: f64,
    /// In the order in which a case passes them.
    pub stages: Vec<Stage>,
}

/// A part of a case's way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    pub name: String,
    pub median: f64,
    pub mean: f64,
}

/// From the start of a process to its first mask on the disk; the files are in the page cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ColdStart {
    pub times: Vec<f64>,
    pub median: f64,
}

/// The first case after a pause.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AfterIdle {
    pub idle_seconds: f64,
    pub latencies: Vec<f64>,
    pub median: f64,
}

/// What goes beyond the points where a daemon was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Daemon {
    pub address: String,
    /// That sent at once.
    pub associations: usize,
    /// Latency less what the model computed for the same case (prepare to assemble); null where several sent at once.
    pub over_model: Option<Estimate>,
    /// Median latency less the median of the same case in this process, decoding and encoding included; likewise.
    pub over_bare: Option<Estimate>,
    /// Cases a second by those of the bare sampler in the same run.
    pub throughput_share: Option<Estimate>,
    /// What a write of 4 KiB and its sync take on the disk of the spool; null where the daemon is not ours.
    pub disk_sync: Option<f64>,
    pub memory: Vec<Memory>,
    /// Bytes in 1,000 cases, after the first quarter of them.
    pub memory_growth: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Done before.
    pub cases: usize,
    pub resident_bytes: u64,
}

/// One case as it was measured: latency and the time of each stage, in ms.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub latency: f64,
    pub stages: Vec<(String, f64)>,
}

impl Point {
    /// `seconds`: what all of `samples` together took.
    #[must_use]
    pub fn new(name: String, setting: Setting, samples: &[Sample], seconds: f64) -> Self {
        let latencies: Vec<f64> = samples.iter().map(|sample| sample.latency).collect();
        Self {
            name,
            setting,
            percentiles: stats::percentiles(&latencies),
            steadiness: stats::steadiness(&latencies),
            cases_per_second: samples.len() as f64 / seconds,
            stages: stages(samples),
            latencies,
        }
    }

    #[must_use]
    pub fn median(&self) -> Option<f64> {
        stats::median(&self.latencies)
    }
}

fn stages(samples: &[Sample]) -> Vec<Stage> {
    let Some(first) = samples.first() else { return Vec::new() };
    let stage = |name: &String| {
        let of = |sample: &Sample| sample.stages.iter().find(|stage| stage.0 == *name).map(|s| s.1);
        let times: Vec<f64> = samples.iter().filter_map(of).collect();
        let median = stats::median(&times)?;
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        Some(Stage { name: name.clone(), median, mean })
    };
    first.stages.iter().filter_map(|(name, _)| stage(name)).collect()
}
