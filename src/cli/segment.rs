use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde::Serialize;

use super::output::{OutputError, ProgressLine};
use super::{EngineArgs, ExitStatus};
use crate::{
    codec::{self, Case, Source, mask_png, nifti, overlay, seg},
    domain::{Precision, Segmentation},
    durable::{write_together, write_whole},
    engine::{Purpose, Runtime},
    sampler::Stopping,
    segmenter::{Ending, Outcome, Preview, RecordedNoise, Request, Segmenter, SegmenterError},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model bundle
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Where results go, named after their cases
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Independent samples a mask is voted from; the bundle says how many by default
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    votes: Option<u16>,
    /// When a vote may end early: never, exact (same mask), certified[:DICE] or adaptive[:ERROR] against the full vote
    #[arg(long, value_name = "RULE", default_value_t)]
    stop: Stopping,
    /// Milliseconds after which the mask must be there: the vote ends with what is drawn, and the result says so
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..))]
    deadline: Option<u32>,
    /// Of the noise; the same seed gives the same mask
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Recorded noise (x_init, z, noise) in place of the seed's, for inputs of one window
    #[arg(long, value_name = "FILE")]
    noise: Option<PathBuf>,
    /// What to write; by default seg for DICOM, nifti for NIfTI, png for the rest
    #[arg(long, value_enum, value_delimiter = ',')]
    format: Vec<Format>,
    /// Show <case>.preview.png after the first vote, or as many as one batch holds, and whenever they have doubled, until the
    /// result is there
    #[arg(long)]
    preview: bool,
    /// One JSON object for each case on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
    /// DICOM file or series folder, NIfTI, PNG or TIFF
    #[arg(required = true, value_name = "INPUT")]
    inputs: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// DICOM Segmentation, binary
    Seg,
    /// DICOM Segmentation, fractional: how far the votes agree
    Fractional,
    /// NIfTI mask on the input's grid
    Nifti,
    /// The mask as pixels (label values) beside a picture of it on the image
    Png,
}

#[derive(Serialize)]
struct Report<'a> {
    case: &'a str,
    /// [D, H, W].
    shape: &'a [usize],
    votes: usize,
    ending: Ending,
    /// Of the denoiser.
    precision: Precision,
    /// Voxels of each label, in the order of `labels`.
    voxels: Vec<usize>,
    labels: Vec<LabelVoxels<'a>>,
    milliseconds: Milliseconds,
    files: Vec<PathBuf>,
    /// What was left out or assumed when the input was read.
    warnings: &'a [String],
}

/// A label of the model with what the mask holds of it.
#[derive(Serialize)]
struct LabelVoxels<'a> {
    /// In the mask.
    value: u8,
    name: &'a str,
    voxels: usize,
}

#[derive(Serialize)]
struct Milliseconds {
    decode: f64,
    prepare: f64,
    condition: f64,
    denoise: f64,
    assemble: f64,
    encode: f64,
}

/// # Errors
/// If the model does not load or the results cannot be told. A case that cannot be read, segmented or written is reported,
/// the others go on, and the exit status is 1; nothing half-written stays behind.
pub fn run(args: Args) -> anyhow::Result<ExitStatus> {
    let noise = args.noise.as_deref().map(RecordedNoise::read).transpose()?.map(Arc::new);
    let segmenter = args.engine.open(&args.bundle)?;
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("{}: cannot be made", args.out.display()))?;
    let request = Request {
        votes: args.votes.map(usize::from),
        seed: args.seed,
        noise,
        stopping: args.stop,
        deadline: args.deadline.map(|ms| Duration::from_millis(ms.into())),
        ..Request::default()
    };
    let mut work = Work { args: &args, segmenter: &segmenter, request, names: HashSet::new() };
    let (mut line, mut failed) = (ProgressLine::new(), 0);
    for (index, input) in args.inputs.iter().enumerate() {
        line.draw(format_args!("{}/{}  {}", index + 1, args.inputs.len(), input.display()));
        let mut is_whole = true;
        work.input(input, |result| {
            line.clear();
            let Err(error) = result else { return Ok(()) };
            if ends_all(&error) {
                return Err(error);
            }
            is_whole = false;
            say!("cdal: {}", super::told_once(&error));
            Ok(())
        })?;
        failed += usize::from(!is_whole);
    }
    if failed == 0 {
        return Ok(ExitStatus::Done);
    }
    if args.inputs.len() > 1 {
        say!("cdal: {failed} of {} inputs failed, see above", args.inputs.len());
    }
    Ok(ExitStatus::JobFailed)
}

/// Whether it would happen with every other input, too.
fn ends_all(error: &anyhow::Error) -> bool {
    error.is::<OutputError>() || error.downcast_ref().is_some_and(SegmenterError::is_final)
}

/// What all inputs have in common.
struct Work<'a> {
    args: &'a Args,
    segmenter: &'a Segmenter,
    request: Request,
    /// Of the cases so far: results bear them.
    names: HashSet<String>,
}

impl Work<'_> {
    /// Segments every case of an input. `done` is called after each with what became of it, and may end the work.
    fn input(
        &mut self,
        input: &Path,
        mut done: impl FnMut(anyhow::Result<()>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        let cases = match codec::read(input) {
            Ok(cases) => cases,
            Err(error) => return done(Err(error.into())),
        };
        let decode = started.elapsed().as_secs_f64() * 1e3 / cases.len() as f64;
        cases.iter().try_for_each(|case| done(self.case(input, case, decode)))
    }

    fn case(&mut self, input: &Path, case: &Case, decode: f64) -> anyhow::Result<()> {
        let Self { args, segmenter, request, names } = self;
        if !names.insert(case.name.clone()) {
            bail!(
                "{}: another input is named {} too, their results would have one name; segment them into two folders",
                input.display(),
                case.name
            );
        }
        for warning in &case.warnings {
            say!("{}: warning: {warning}", case.name);
        }
        let path = args.out.join(format!("{}.preview.png", case.name));
        let preview = args.preview.then(|| preview(segmenter, case, path.clone()));
        let outcome = segmenter
            .segment(&case.volume, &Request { preview, ..request.clone() })
            .with_context(|| input.display().to_string())?;
        let started = Instant::now();
        let files = write(args, segmenter, case, &outcome)?;
        if args.preview {
            let _ = std::fs::remove_file(path);
        }
        let encode = started.elapsed().as_secs_f64() * 1e3;
        report(self, case, &outcome, files, [decode, encode])
    }
}

/// Draws the mask so far to `path`. A picture that cannot be written is no reason to give up the case.
fn preview(segmenter: &Segmenter, case: &Case, path: PathBuf) -> Preview {
    let labels = segmenter.bundle().manifest.labels.clone();
    let (volume, name) = (case.volume.clone(), case.name.clone());
    Preview::new(Duration::ZERO, move |Segmentation { mask, .. }, votes| {
        let written = overlay::png(&volume, &mask, &labels)
            .map_err(anyhow::Error::from)
            .and_then(|png| Ok(write_whole(&path, &png)?));
        match written {
            Ok(()) => say!("{name}: {votes} votes, {}", path.display()),
            Err(error) => say!("{name}: no preview: {error:#}"),
        }
    })
}

/// Encodes everything first, then writes: a case leaves all its files or none.
fn write(
    args: &Args,
    segmenter: &Segmenter,
    case: &Case,
    outcome: &Outcome,
) -> anyhow::Result<Vec<PathBuf>> {
    let labels = &segmenter.bundle().manifest.labels;
    let Segmentation { mask, .. } = &outcome.segmentation;
    let geometry = case.volume.geometry.as_ref();
    let mut results: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    for format in formats(args, case) {
        let path = |suffix: &str| args.out.join(format!("{}{suffix}", case.name));
        match format {
            Format::Seg | Format::Fractional => {
                let Source::Dicom(source) = &case.source else {
                    bail!(
                        "{}: only a DICOM input has the identity that a DICOM SEG needs; choose --format nifti or png",
                        case.name
                    );
                };
                let (kind, suffix) = match format {
                    Format::Fractional => (seg::Kind::Fractional, ".fractional.dcm"),
                    _ => (seg::Kind::Binary, ".seg.dcm"),
                };
                let form = seg::Form { kind, ..seg::Form::default() };
                let provenance = segmenter.provenance(outcome, args.seed, "");
                let seg = seg::encode(
                    form,
                    source,
                    geometry,
                    &outcome.segmentation,
                    labels,
                    &provenance,
                )?;
                results.push((path(suffix), seg.bytes));
            }
            Format::Nifti => {
                results.push((path(".nii.gz"), nifti::encode_mask(&case.source, geometry, mask)?));
            }
            Format::Png => {
                if mask.dim().0 == 1 {
                    let flat = mask.index_axis(ndarray::Axis(0), 0);
                    results.push((path(".mask.png"), mask_png::encode(flat, labels)?));
                }
                results.push((path(".overlay.png"), overlay::png(&case.volume, mask, labels)?));
            }
        }
    }
    write_together(&results)?;
    Ok(results.into_iter().map(|(path, _)| path).collect())
}

fn formats(args: &Args, case: &Case) -> Vec<Format> {
    if !args.format.is_empty() {
        let mut formats: Vec<Format> = Vec::new();
        for format in &args.format {
            if !formats.contains(format) {
                formats.push(*format);
            }
        }
        return formats;
    }
    match case.source {
        Source::Dicom(_) => vec![Format::Seg],
        Source::Nifti(_) => vec![Format::Nifti],
        Source::Raster => vec![Format::Png],
    }
}

fn report(
    work: &Work<'_>,
    case: &Case,
    outcome: &Outcome,
    files: Vec<PathBuf>,
    [decode, encode]: [f64; 2],
) -> anyhow::Result<()> {
    let mask = &outcome.segmentation.mask;
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let stages = &outcome.stages;
    let labels = work.segmenter.bundle().manifest.labels.iter().map(|label| {
        let voxels = mask.iter().filter(|&&value| value == label.value).count();
        LabelVoxels { value: label.value, name: &label.name, voxels }
    });
    let labels: Vec<_> = labels.collect();
    let report = Report {
        case: &case.name,
        shape: mask.shape(),
        votes: outcome.votes,
        ending: outcome.ending,
        precision: outcome.precision,
        voxels: labels.iter().map(|label| label.voxels).collect(),
        labels,
        milliseconds: Milliseconds {
            decode,
            prepare: ms(stages.prepare),
            condition: ms(stages.condition),
            denoise: ms(stages.denoise),
            assemble: ms(stages.assemble),
            encode,
        },
        files,
        warnings: &case.warnings,
    };
    if work.args.json {
        out!("{}", serde_json::to_string(&report).expect("a report serialises"))?;
    } else {
        let total = decode
            + encode
            + ms(stages.prepare + stages.condition + stages.denoise + stages.assemble);
        let files: Vec<_> = report.files.iter().map(|path| path.display().to_string()).collect();
        let Ending { rule, votes_drawn, is_cut, .. } = outcome.ending;
        let votes = match rule {
            Stopping::Never if !is_cut => format!("{} votes", outcome.votes),
            _ => format!("{votes_drawn:.1} of {} votes", outcome.votes),
        };
        say!("{}: {votes}, {total:.0} ms, {}", case.name, files.join(", "));
    }
    Ok(())
}

impl EngineArgs {
    pub(super) fn runtime(&self) -> anyhow::Result<Arc<Runtime>> {
        Ok(Arc::new(Runtime::load(Purpose::Inference, self.runtime.as_deref())?))
    }

    /// Opens a bundle with the runtime and provider that were asked for.
    pub(super) fn open(&self, bundle: &Path) -> anyhow::Result<Segmenter> {
        Ok(Segmenter::open(self.runtime()?, bundle, self.options())?)
    }
}
