//! Benchmarks: how long a case takes, how sure that is, and where the time goes.
//!
//! [`measure`] puts a [`Load`] on the sampler in this process; [`daemon`] on a daemon over DICOM, with the bare sampler
//! beside it; [`compare`] tells whether two reports differ. [`stats`] says what may be concluded. The report's type
//! documents the JSON schema; [`html::page`] makes one self-contained page of it. Nothing here prints. Called by `cli`.
//!
//! Invariants: whatever is compared within a report is measured in turns, so that drift of the machine hits all alike;
//! a percentile that too few cases bear out is not given; every latency is kept, so that others can judge.

pub mod compare;
pub mod daemon;
mod direct;
pub mod html;
mod input;
mod load;
mod report;
pub mod stats;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use direct::{Choice, Direct, Sweep};
pub use input::Inputs;
pub use load::{Answered, Arrivals, Clock, Load, Monotonic, drive};
pub use report::{
    AfterIdle, ColdStart, Daemon, Input, Memory, Point, Report, SCHEMA, Sample, Setting, Stage,
};

use crate::codec::CodecError;
use crate::durable::DurableError;
use crate::engine::Runtime;
use crate::segmenter::SegmenterError;
use crate::telemetry::{energy::Meter, machine::peak_memory_bytes};

/// How often the points of a sweep take turns.
const ROUNDS: usize = 10;
/// How often a cold start and the case after a pause are measured.
const RARE: usize = 3;

/// Why something cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error(transparent)]
    Segmenter(#[from] SegmenterError),
    #[error(transparent)]
    Durable(#[from] DurableError),
    #[error("{path}: holds several cases; give each by itself")]
    SeveralCases { path: PathBuf },
    #[error("a temporary file or folder cannot be used: {0}")]
    Scratch(std::io::Error),
    #[error("sweep of {key}: {value:?} means nothing")]
    Sweep { key: &'static str, value: String },
    #[error("{steps} time-steps are asked for; the model has {most}")]
    Steps { steps: usize, most: usize },
    #[error("the child process for the cold start: {0}")]
    Child(String),
    #[error("the daemon: {0}")]
    Daemon(String),
}

/// What [`measure`] does.
#[derive(Debug)]
pub struct Plan {
    /// At least one.
    pub choices: Vec<(String, Choice)>,
    pub load: Load,
    /// Of each choice.
    pub cases: usize,
    pub warm_up: usize,
    /// Pause before each case after idling; zero leaves that out.
    pub idle: Duration,
    /// This program and its arguments before the input, whose first line on stdout tells of the first mask.
    pub cold_start: Option<Vec<String>>,
}

/// Measures every choice of the plan. `tell` is told, in a few words, what is going on.
///
/// # Errors
/// If something does not load or a case fails.
pub fn measure(
    runtime: &Arc<Runtime>,
    plan: &Plan,
    inputs: Option<Inputs>,
    tell: &mut dyn FnMut(&str),
) -> Result<Report, BenchError> {
    tell("loading");
    let subjects = Direct::load(runtime, &plan.choices)?;
    let inputs = match inputs {
        Some(inputs) => inputs,
        None => Inputs::made_for(&subjects[0].segmenter.bundle().manifest)?,
    };
    tell(&format!("warming up, {} cases each", plan.warm_up));
    for subject in &subjects {
        for number in 0..plan.warm_up {
            subject.run(inputs.of(number))?;
        }
    }
    tell(&format!("measuring {} cases each, {}", plan.cases, plan.load));
    let meter = Meter::start(Path::new("/sys"));
    let mut runs = vec![Run::default(); subjects.len()];
    for Turn { point, first, cases } in turns(subjects.len(), plan.cases) {
        let subject = &subjects[point];
        if subjects.len() > 1 {
            subject.run(inputs.of(first))?; // wakes its threads, and lets those of the last one fall asleep
        }
        let answered = drive(plan.load, &Monotonic::start(), cases, |number| {
            subject.run(inputs.of(first + number))
        })?;
        runs[point].add(answered);
    }
    let energy = meter.stop();
    let after_idle = after_idle(&subjects[0], &inputs, plan.idle, tell)?;
    let peak_memory_bytes = peak_memory_bytes();
    // After the peak was read: it makes sessions of its own.
    let mut points = Vec::with_capacity(subjects.len());
    for (((name, _), subject), run) in plan.choices.iter().zip(&subjects).zip(runs) {
        let setting = subject.setting(runtime)?;
        points.push(Point::new(name.clone(), setting, &run.samples, run.seconds));
    }
    let cold_start = cold_start(plan.cold_start.as_deref(), inputs.of(0), tell)?;
    let report = Report::new(runtime, inputs.facts, plan.load, plan.warm_up, points);
    Ok(Report { cold_start, after_idle, peak_memory_bytes, energy, ..report })
}

/// Cases of one point in a row.
struct Turn {
    point: usize,
    /// Number of the first case.
    first: usize,
    cases: usize,
}

/// `cases` of each point, in [`ROUNDS`] rounds that begin with another point each. One point takes them all in a row.
fn turns(points: usize, cases: usize) -> Vec<Turn> {
    let rounds = if points == 1 { 1 } else { ROUNDS.min(cases) };
    let bounds = |round: usize| round * cases / rounds;
    (0..rounds)
        .flat_map(|round| (0..points).map(move |place| (round, (place + round) % points)))
        .map(|(round, point)| {
            let first = bounds(round);
            Turn { point, first, cases: bounds(round + 1) - first }
        })
        .collect()
}

#[derive(Clone, Default)]
struct Run {
    samples: Vec<Sample>,
    /// All its turns together.
    seconds: f64,
}

impl Run {
    fn add(&mut self, answered: Vec<Answered<direct::Stages>>) {
        self.seconds += answered.last().map_or(0.0, |last| last.ended.as_secs_f64());
        self.samples.extend(
            answered
                .into_iter()
                .map(|query| Sample { latency: ms(query.latency()), stages: query.answer }),
        );
    }
}

fn after_idle(
    subject: &Direct,
    inputs: &Inputs,
    idle: Duration,
    tell: &mut dyn FnMut(&str),
) -> Result<Option<AfterIdle>, BenchError> {
    if idle.is_zero() {
        return Ok(None);
    }
    tell(&format!("pausing {RARE} times for {:.0} s", idle.as_secs_f64()));
    let mut latencies = Vec::with_capacity(RARE);
    for number in 0..RARE {
        std::thread::sleep(idle);
        let started = Instant::now();
        subject.run(inputs.of(number))?;
        latencies.push(ms(started.elapsed()));
    }
    let median = stats::median(&latencies).expect("some were measured");
    Ok(Some(AfterIdle { idle_seconds: idle.as_secs_f64(), latencies, median }))
}

fn cold_start(
    command: Option<&[String]>,
    input: &Path,
    tell: &mut dyn FnMut(&str),
) -> Result<Option<ColdStart>, BenchError> {
    let Some([program, arguments @ ..]) = command else { return Ok(None) };
    tell(&format!("starting {RARE} processes"));
    let mut times = Vec::with_capacity(RARE);
    for _ in 0..RARE {
        let out = tempfile::tempdir().map_err(BenchError::Scratch)?;
        let started = Instant::now();
        let mut child = Command::new(program)
            .args(arguments)
            .arg("--out")
            .arg(out.path())
            .arg(input)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|error| BenchError::Child(error.to_string()))?;
        let mut line = String::new();
        let stdout = child.stdout.take().expect("stdout is piped");
        let read = std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line);
        times.push(ms(started.elapsed()));
        let status = child.wait().map_err(|error| BenchError::Child(error.to_string()))?;
        if !status.success() || !read.is_ok_and(|bytes| bytes > 0) {
            return Err(BenchError::Child(format!("it gave no mask, {status}")));
        }
    }
    let median = stats::median(&times).expect("some were measured");
    Ok(Some(ColdStart { times, median }))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_take_turns_and_each_gets_every_case() {
        let all = turns(3, 25);
        for point in 0..3 {
            let own: Vec<_> = all.iter().filter(|turn| turn.point == point).collect();
            let numbers: Vec<usize> =
                own.iter().flat_map(|turn| turn.first..turn.first + turn.cases).collect();
            assert_eq!(numbers, (0..25).collect::<Vec<_>>());
            assert_eq!(own.len(), ROUNDS);
        }
        let first: Vec<usize> = all.chunks(3).map(|round| round[0].point).collect();
        assert_eq!(first[..4], [0, 1, 2, 0], "no point is always the first");
        assert_eq!(turns(1, 25).len(), 1);
        assert_eq!(turns(2, 3).len(), 6);
    }
}
