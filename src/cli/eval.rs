use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;

use super::output::ProgressLine;
use super::{EngineArgs, ExitStatus};
use crate::{
    durable::write_whole,
    eval::{self, Failure, Gallery, Progress, Report, Step, html, summary::Statistic},
    sampler::Stopping,
    segmenter::Request,
    truth::{Dataset, Split},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model bundle
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Folder with `images/` and `labels/` of equal names; a label's may end in `_mask`
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Only the cases that a file such as {"train": [...], "val": [...]} lists under NAME
    #[arg(long, value_name = "FILE:NAME")]
    split: Option<Split>,
    /// Where the report goes as JSON; - is stdout
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the report goes as one page with pictures of the worst and best cases
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Where those pictures go as PNG files: result and truth on the same slices
    #[arg(long, value_name = "DIR")]
    overlays: Option<PathBuf>,
    /// Independent samples a mask is voted from; the bundle says how many by default
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    votes: Option<u16>,
    /// Time-steps after which a sample ends, with what the last one predicts; all of the model's by default
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    steps: Option<u16>,
    /// When a vote may end early: never, exact, certified[:DICE] or adaptive[:ERROR]
    #[arg(long, value_name = "RULE", default_value_t)]
    stop: Stopping,
    /// Of the noise; the same seed gives the same masks
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Only the first N cases
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    #[command(flatten)]
    engine: EngineArgs,
}

/// # Errors
/// If there is nothing to compare or no report can be written, before the model is loaded where possible. A case that
/// cannot be compared is reported as failed, and the exit status is 1.
pub fn run(args: Args) -> anyhow::Result<ExitStatus> {
    let dataset =
        Dataset::open(&args.data, args.split.clone(), args.limit.map(|limit| limit as usize))?;
    prepare_outputs([&args.json, &args.html].into_iter().flatten())?;
    if let Some(folder) = &args.overlays {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("{}: cannot be made", folder.display()))?;
    }
    let segmenter = args.engine.open(&args.bundle)?;
    let labels = &segmenter.bundle().manifest.labels;
    let most = segmenter.bundle().manifest.diffusion.steps;
    if let Some(steps) = args.steps.filter(|&steps| usize::from(steps) > most) {
        bail!("--steps {steps}: the model has {most} time-steps; give 1 to {most}");
    }
    let request = Request {
        votes: args.votes.map(usize::from),
        steps: args.steps.map(usize::from),
        seed: args.seed,
        stopping: args.stop,
        ..Request::default()
    };
    let mut line = ProgressLine::new();
    let show = |progress: &Progress<'_>| show(progress, &mut line);
    let (report, gallery) = eval::evaluate(&segmenter, &dataset, &request, show)?;

    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    if let Some(path) = &args.html {
        write_whole(path, html::page(&report, &gallery, labels).as_bytes())?;
    }
    if let Some(folder) = &args.overlays {
        write_overlays(folder, &gallery)?;
    }
    table(&report);
    Ok(if report.failed.is_empty() { ExitStatus::Done } else { ExitStatus::JobFailed })
}

fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}

/// To a file, or to stdout for `-`.
pub(super) fn write_json(path: &Path, report: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(report).expect("a report serialises");
    if is_stdout(path) {
        out!("{text}")?;
    } else {
        write_whole(path, format!("{text}\n").as_bytes())?;
    }
    Ok(())
}

/// An hour of work must not end at a folder that is not there.
pub(super) fn prepare_outputs<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> anyhow::Result<()> {
    for path in paths.filter(|path| !is_stdout(path)) {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if path.is_dir() || folder.is_some_and(|folder| !folder.is_dir()) {
            bail!("{}: cannot be written; give a file in a folder that exists", path.display());
        }
    }
    Ok(())
}

fn write_overlays(folder: &Path, gallery: &Gallery) -> anyhow::Result<()> {
    for picture in gallery.worst().iter().chain(gallery.best()) {
        let path = |what: &str| folder.join(format!("{}.{what}.png", picture.case));
        write_whole(&path("result"), &picture.result)?;
        write_whole(&path("truth"), &picture.truth)?;
    }
    Ok(())
}

fn show(progress: &Progress<'_>, line: &mut ProgressLine) {
    let Progress { number, of, step } = progress;
    line.clear();
    let case = match step {
        Step::Begun(stem) => return line.draw(format_args!("{number}/{of}  {stem}")),
        Step::Failed(Failure { case, reason }) => {
            // Most reasons begin with the name of the case.
            let reason = reason.strip_prefix(&format!("{case}: ")).unwrap_or(reason);
            return say!("{number}/{of}  FAILED  {case}: {reason}");
        }
        Step::Measured(case) => case,
    };
    let each = |value: fn(&eval::LabelReport) -> Option<f64>, digits| {
        let values = case.labels.iter().map(|label| figure(value(label), digits));
        values.collect::<Vec<_>>().join(" ")
    };
    say!(
        "{number}/{of}  {}  Dice {}  HD95 {} {}  {:.0} ms",
        case.case,
        each(|label| label.dice, 4),
        each(|label| label.hd95, 2),
        case.unit().name(),
        case.milliseconds
    );
}

fn table(report: &Report) {
    const MEAN: &str = "mean of labels";
    let names = report.summary.labels.iter().map(|label| label.name.as_str());
    let width = names.chain([MEAN]).map(|name| name.chars().count()).max().unwrap_or(0);
    let hd95 = format!("HD95, {}", report.hd95_unit.name());
    say!("\n{:width$}  {:24}{:24}{hd95}", "", "Dice", "IoU");
    let row = |name: &str, means: [&Statistic; 3]| {
        let [dice, iou, hd95] = means;
        let (dice, iou) = (interval(dice, 4), interval(iou, 4));
        let left_out = match hd95.undefined {
            0 => String::new(),
            n => format!("  ({n} not defined)"),
        };
        say!("{name:width$}  {dice:24}{iou:24}{}{left_out}", interval(hd95, 2));
    };
    for label in &report.summary.labels {
        row(&label.name, [&label.means.dice, &label.means.iou, &label.means.hd95]);
    }
    if report.summary.labels.len() > 1 {
        let means = &report.summary.mean;
        row(MEAN, [&means.dice, &means.iou, &means.hd95]);
    }
    for label in report.summary.labels.iter().filter(|label| label.missed + label.invented > 0) {
        let (name, missed, invented) = (&label.name, label.missed, label.invented);
        say!("{name}: cases missed {missed}, marked without truth {invented}");
    }
    if !report.failed.is_empty() {
        let names: Vec<_> = report.failed.iter().map(|failure| failure.case.as_str()).collect();
        let (count, of) = (names.len(), names.len() + report.cases.len());
        say!("{count} of {of} cases failed and count in no mean: {}", names.join(", "));
    }
    say!(
        "cases {}, model {} {}, time-steps {}, votes {}, seed {}, {:.0} ms a case",
        report.cases.len(),
        report.model.name,
        report.model.version,
        report.steps,
        report.votes,
        report.seed,
        report.summary.milliseconds
    );
}

fn interval(statistic: &Statistic, digits: usize) -> String {
    let mean = figure(statistic.mean, digits);
    match (statistic.low, statistic.high) {
        (Some(low), Some(high)) => format!("{mean} [{low:.digits$}, {high:.digits$}]"),
        _ => mean,
    }
}

fn figure(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.digits$}"))
}
