use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Subcommand, ValueEnum};

use super::{EngineArgs, ExitStatus, eval};
use crate::bench::{
    self, Arrivals, Choice, Inputs, Load, Plan, Point, Report, SCHEMA, Sweep,
    compare::{Comparison, Verdict, compare},
    daemon::{self, Own, Target},
    html,
    stats::{Estimate, Percentile},
};
use crate::domain::duration;
use crate::durable::write_whole;
use crate::engine::Runtime;
use crate::sampler::Stopping;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// The sampler in this process: cases decoded, segmented, encoded
    Run(RunArgs),
    /// A daemon over DICOM, from the last byte in to the destination's Success, beside the bare sampler
    Daemon(DaemonArgs),
    /// Whether two reports really differ; exit status 0 if they do not, 1 if they do, 2 usage, 3 if they cannot be compared
    Compare(CompareArgs),
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Model bundle
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Cases that count, of each point
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    cases: u32,
    /// Cases before those that count
    #[arg(long, value_name = "N", default_value_t = 5)]
    warm_up: u32,
    /// Open loop: so many cases a second, whatever the answers; without it each case waits for the one before
    #[arg(long, value_name = "PER_SECOND", value_parser = positive)]
    rate: Option<f64>,
    /// Times between the arrivals of an open loop
    #[arg(long, value_enum, default_value_t = ArrivalsArg::Poisson, requires = "rate")]
    arrivals: ArrivalsArg,
    /// Independent samples a mask is voted from; the bundle says how many by default
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    votes: Option<u16>,
    /// When a vote may end early: never, exact, certified[:DICE] or adaptive[:ERROR]
    #[arg(long, value_name = "RULE", default_value_t)]
    stop: Stopping,
    /// Where the report goes as JSON; - is stdout
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the report goes as one page with plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    #[command(flatten)]
    common: Common,
    /// A case: DICOM file or series folder, NIfTI, PNG or TIFF; several take turns. A phantom by default
    #[arg(long, value_name = "INPUT")]
    input: Vec<PathBuf>,
    /// Time-steps after which a sample ends; all of the model's by default
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    steps: Option<u16>,
    /// Measure several values in turns: bundle, votes, steps, stop, provider, threads or precision; may be given again
    #[arg(long, value_name = "KEY=A,B", conflicts_with = "rate")]
    sweep: Vec<Sweep>,
    /// Pause before each of three more cases; 0s leaves them out
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse)]
    idle: Duration,
    /// Leave out the time from the start of a process to its first mask
    #[arg(long)]
    no_cold_start: bool,
}

#[derive(Debug, clap::Args)]
struct DaemonArgs {
    #[command(flatten)]
    common: Common,
    /// A DICOM file or series folder. A phantom by default
    #[arg(long, value_name = "INPUT")]
    input: Option<PathBuf>,
    /// Scanners that send at once, each over its own association
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    associations: u16,
    /// A running daemon that serves the bundle; without it one is started
    #[arg(long, value_name = "HOST:PORT", requires = "receive")]
    connect: Option<String>,
    /// AE title of the running daemon
    #[arg(long, value_name = "TITLE", default_value = "CDAL", requires = "connect")]
    aet: String,
    /// Where the running daemon sends its masks: this program listens there
    #[arg(long, value_name = "ADDRESS:PORT", requires = "connect")]
    receive: Option<SocketAddr>,
    /// HTTP of the running daemon: its metrics tell what the model took and how much memory it holds
    #[arg(long, value_name = "HOST:PORT", requires = "connect")]
    metrics: Option<String>,
    /// Release the association after each case, for a daemon with `on_release = "complete"`
    #[arg(long, requires = "connect")]
    release_each: bool,
    /// Folder for the spool of the daemon that is started, on the disk that is to be measured
    #[arg(long, value_name = "DIR", conflicts_with = "connect")]
    spool: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct CompareArgs {
    a: PathBuf,
    b: PathBuf,
    /// Smaller differences are not of interest; two starts of one program differ by about a percent
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0, value_parser = positive)]
    least: f64,
    /// Compare although the reports come from different machines
    #[arg(long)]
    across_machines: bool,
    /// The comparison as JSON on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ArrivalsArg {
    Fixed,
    Poisson,
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| format!("{text:?} is not a number above 0"))
}

/// # Errors
/// If something cannot be loaded, measured or written.
pub fn run(args: Args) -> anyhow::Result<ExitStatus> {
    match args.action {
        Action::Run(args) => run_sampler(&args),
        Action::Daemon(args) => run_daemon(&args),
        Action::Compare(args) => run_compare(&args),
    }
}

fn run_sampler(args: &RunArgs) -> anyhow::Result<ExitStatus> {
    let common = &args.common;
    common.prepare_outputs()?;
    let choice = Choice { steps: args.steps.map(usize::from), ..common.choice() };
    let plan = Plan {
        choices: choice.combine(&args.sweep)?,
        load: common.load(),
        cases: common.cases as usize,
        warm_up: common.warm_up as usize,
        idle: args.idle,
        cold_start: if args.no_cold_start { None } else { Some(common.segment_command()?) },
    };
    let inputs = if args.input.is_empty() { None } else { Some(Inputs::open(&args.input)?) };
    let report = bench::measure(&common.runtime()?, &plan, inputs, &mut tell)?;
    common.publish(&report)
}

fn run_daemon(args: &DaemonArgs) -> anyhow::Result<ExitStatus> {
    let common = &args.common;
    common.prepare_outputs()?;
    let target = match (&args.connect, args.receive) {
        (Some(address), Some(receive)) => Target::Running {
            address: address.clone(),
            ae_title: args.aet.clone(),
            metrics: args.metrics.clone(),
            receive,
            release_each: args.release_each,
        },
        _ => Target::Own(Own {
            program: program()?,
            runtime: common.engine.runtime.clone(),
            spool: args.spool.clone(),
        }),
    };
    let plan = daemon::Plan {
        choice: common.choice(),
        target,
        load: common.load(),
        cases: common.cases as usize,
        warm_up: common.warm_up as usize,
        associations: usize::from(args.associations),
    };
    let inputs = args.input.clone().map(|input| Inputs::open(&[input])).transpose()?;
    let report = daemon::measure(&common.runtime()?, &plan, inputs, &mut tell)?;
    common.publish(&report)
}

fn program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("find this program")
}

fn tell(what: &str) {
    say!("{what}");
}

impl Common {
    fn runtime(&self) -> anyhow::Result<Arc<Runtime>> {
        self.engine.runtime()
    }

    fn choice(&self) -> Choice {
        Choice {
            bundle: self.bundle.clone(),
            votes: self.votes.map(usize::from),
            steps: None,
            stopping: self.stop,
            options: self.engine.options(),
        }
    }

    fn load(&self) -> Load {
        let arrivals = match self.arrivals {
            ArrivalsArg::Fixed => Arrivals::Fixed,
            ArrivalsArg::Poisson => Arrivals::Poisson,
        };
        self.rate.map_or(Load::Closed, |per_second| Load::Open { per_second, arrivals })
    }

    /// `cdal segment` with this model, before `--out` and the input.
    fn segment_command(&self) -> anyhow::Result<Vec<String>> {
        let mut command = vec![program()?.display().to_string(), "segment".into(), "--json".into()];
        if self.engine.allow_cpu_nodes {
            command.push("--allow-cpu-nodes".into());
        }
        let mut add = |name: &str, value: String| command.extend([format!("--{name}"), value]);
        add("bundle", self.bundle.display().to_string());
        add("stop", self.stop.to_string());
        add("provider", self.engine.options().provider.name().to_owned());
        add("precision", format!("{:?}", self.engine.precision).to_lowercase());
        if let Some(votes) = self.votes {
            add("votes", votes.to_string());
        }
        if let Some(threads) = self.engine.threads {
            add("threads", threads.to_string());
        }
        if let Some(runtime) = &self.engine.runtime {
            add("runtime", runtime.display().to_string());
        }
        Ok(command)
    }

    fn prepare_outputs(&self) -> anyhow::Result<()> {
        eval::prepare_outputs([&self.json, &self.html].into_iter().flatten())
    }

    /// Writes the report where it is wanted, and its figures for people.
    fn publish(&self, report: &Report) -> anyhow::Result<ExitStatus> {
        if let Some(path) = &self.json {
            eval::write_json(path, report)?;
        }
        if let Some(path) = &self.html {
            write_whole(path, html::page(report).as_bytes())?;
        }
        show(report);
        Ok(ExitStatus::Done)
    }
}

fn show(report: &Report) {
    let width = report.points.iter().map(|point| point.name.len()).max().unwrap_or(0).max(9);
    let heads: Vec<String> = bench::stats::SHARES
        .iter()
        .map(|share| format!("{:28}", format!("p{}, ms", share * 100.0)))
        .collect();
    say!("\n{:width$}  {}cases/s", "", heads.concat());
    for point in &report.points {
        let name = if point.name.is_empty() { "all cases" } else { &point.name };
        let cells: Vec<String> =
            point.percentiles.iter().map(|p| format!("{:28}", percentile(p))).collect();
        say!("{name:width$}  {}{:.2}", cells.concat(), point.cases_per_second);
    }
    report.points.iter().for_each(show_stages);
    for point in &report.points {
        let name = if point.name.is_empty() { "it" } else { &point.name };
        match &point.steadiness {
            None => say!("{name}: too few cases to tell whether they were steady"),
            Some(found) if found.steady => {}
            Some(found) => say!(
                "{name} was NOT STEADY: the second half took {:.2} times as long as the first; warm up for longer, or \
                 keep the machine to this",
                found.ratio
            ),
        }
    }
    if let Some(daemon) = &report.daemon {
        show_daemon(daemon);
    }
    if let Some(cold) = &report.cold_start {
        say!("start of a process to its first mask: {:.0} ms", cold.median);
    }
    if let Some(idle) = &report.after_idle {
        let seconds = idle.idle_seconds;
        say!("after {seconds} s of idling: {:.2} ms", idle.median);
    }
    if let Some(bytes) = report.peak_memory_bytes {
        say!("peak memory: {} MiB", bytes >> 20);
    }
    if let Some(energy) = &report.energy {
        say!("energy: {:.1} J ({})", energy.joules, energy.source);
    }
}

fn show_stages(point: &Point) {
    let stages: Vec<String> =
        point.stages.iter().map(|stage| format!("{} {:.2}", stage.name, stage.median)).collect();
    let name = if point.name.is_empty() { "stages" } else { &point.name };
    if !stages.is_empty() {
        say!("{name}, ms: {}", stages.join(", "));
    }
}

fn show_daemon(daemon: &bench::Daemon) {
    let figure = |what: &str, estimate: Option<Estimate>, digits: usize, unit: &str| {
        if let Some(Estimate { value, low, high }) = estimate {
            say!("{what}: {value:.digits$}{} {unit}", interval(low, high, digits));
        }
    };
    figure("over the model's compute", daemon.over_model, 2, "ms");
    figure("over the bare sampler", daemon.over_bare, 2, "ms");
    figure("throughput by the sampler's own", daemon.throughput_share, 3, "");
    if let Some(sync) = daemon.disk_sync {
        say!("a synced write of 4 KiB on the spool's disk: {sync:.2} ms");
    }
    if let (Some(first), Some(last), Some(growth)) =
        (daemon.memory.first(), daemon.memory.last(), daemon.memory_growth)
    {
        say!(
            "memory of the daemon: {} MiB after {} cases, {} MiB after {}; {:+.2} MiB in 1,000 cases",
            first.resident_bytes >> 20,
            first.cases,
            last.resident_bytes >> 20,
            last.cases,
            growth / f64::from(1 << 20)
        );
    }
}

fn percentile(percentile: &Percentile) -> String {
    let Percentile { value, low, high, needed, .. } = percentile;
    match value {
        None => format!("too few ({needed})"),
        Some(value) => format!("{value:.2}{}", interval(*low, *high, 2)),
    }
}

fn interval(low: Option<f64>, high: Option<f64>, digits: usize) -> String {
    let side = |side: Option<f64>| side.map_or_else(|| "-".into(), |at| format!("{at:.digits$}"));
    match (low, high) {
        (None, None) => String::new(),
        _ => format!(" [{}, {}]", side(low), side(high)),
    }
}

fn run_compare(args: &CompareArgs) -> anyhow::Result<ExitStatus> {
    let (a, b) = match (read(&args.a), read(&args.b)) {
        (Ok(a), Ok(b)) => (a, b),
        (a, b) => {
            for error in [a.err(), b.err()].into_iter().flatten() {
                say!("cdal: {}", super::told_once(&error));
            }
            return Ok(ExitStatus::NotCompared);
        }
    };
    let comparison = compare(&a, &b, args.least / 100.0);
    for machine in &comparison.machines {
        say!("THE MACHINES DIFFER: {machine}");
    }
    if !comparison.machines.is_empty() && !args.across_machines {
        say!("not compared; --across-machines compares all the same");
        return Ok(ExitStatus::NotCompared);
    }
    for difference in &comparison.differences {
        say!("differs: {difference}");
    }
    if args.json {
        out!("{}", serde_json::to_string(&comparison).expect("a comparison serialises"))?;
    }
    show_comparison(&comparison);
    if comparison.points.is_empty() {
        say!("cdal: the reports have no point in common");
        return Ok(ExitStatus::NotCompared);
    }
    Ok(if comparison.is_real() { ExitStatus::JobFailed } else { ExitStatus::Done })
}

fn show_comparison(comparison: &Comparison) {
    for point in &comparison.points {
        let name = if point.name.is_empty() { String::new() } else { format!("{}: ", point.name) };
        let verdict = match point.verdict {
            Verdict::Faster => "B is faster, the difference is real",
            Verdict::Slower => "B is slower, the difference is real",
            Verdict::Same => "no real difference",
        };
        let Estimate { value, low, high } = point.ratio;
        say!(
            "{name}{:.2} ms and {:.2} ms, ratio {value:.4}{}, p {:.2e}: {verdict}",
            point.a,
            point.b,
            interval(low, high, 4),
            point.p
        );
    }
    for name in &comparison.unmatched {
        say!("only in one report: {name}");
    }
}

fn read(path: &Path) -> anyhow::Result<Report> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{}: cannot be read", path.display()))?;
    let not_one = || format!("{}: no report of `cdal bench` of schema {SCHEMA}", path.display());
    let report: Report = serde_json::from_str(&text).with_context(not_one)?;
    if report.schema != SCHEMA {
        bail!("{}, but {}", not_one(), report.schema);
    }
    Ok(report)
}
