use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use ndarray::{Axis, concatenate};
use safetensors::{Dtype, tensor::TensorView};

use super::output::OutputError;
use super::{EngineArgs, ExitStatus};
use crate::{
    bundle::{Bundle, Variant, prepare},
    codec,
    durable::write_whole,
    engine::{Placement, placements},
    segmenter::{Segmenter, interface},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Check digests and graphs, and run the golden case
    Check {
        bundle: PathBuf,
        /// Say as well which execution provider ran which nodes of a step, and their part of its time
        #[arg(long)]
        nodes: bool,
        #[command(flatten)]
        engine: EngineArgs,
    },
    /// Write images as the network sees them: what `cdal_onnx quantize` calibrates on
    Crops {
        bundle: PathBuf,
        /// A .safetensors file; `image` [N, C, H, W]
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Crops at most of each input, evenly spread over it
        #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
        each: u16,
        /// DICOM file or series folder, NIfTI, PNG or TIFF
        #[arg(required = true, value_name = "INPUT")]
        inputs: Vec<PathBuf>,
    },
    /// Say what a bundle is
    Inspect { bundle: PathBuf },
}

/// # Errors
/// If the bundle is not sound.
pub fn run(args: Args) -> anyhow::Result<ExitStatus> {
    match args.command {
        Command::Check { bundle, nodes, engine } => {
            let runtime = engine.runtime()?;
            let segmenter = Segmenter::open(Arc::clone(&runtime), &bundle, engine.options())?;
            let difference = segmenter.check_golden()?;
            let manifest = &segmenter.bundle().manifest;
            out!(
                "{} {}: digests agree, graphs load, golden case within {difference:.1e}",
                manifest.name,
                manifest.version
            )?;
            if !manifest.variants.is_empty() {
                out!("runs in {} here", segmenter.precision()?.name())?;
            }
            if nodes {
                let graphs = segmenter.graphs()?;
                let ran = placements(&runtime, &graphs, interface(manifest), &engine.options())?;
                ran.iter().try_for_each(show)?;
            }
        }
        Command::Crops { bundle, out, each, inputs } => {
            let manifest = Bundle::open(&bundle)?.manifest;
            let mut crops = Vec::new();
            for input in &inputs {
                for case in codec::read(input)? {
                    let prepared = prepare(&manifest, &case.volume)?;
                    let stride = prepared.crops.len().div_ceil(usize::from(each));
                    let chosen = prepared.crops.iter().skip(stride / 2).step_by(stride);
                    crops.extend(chosen.map(|&crop| prepared.pixels(crop).to_owned()));
                }
            }
            let views: Vec<_> = crops.iter().map(|crop| crop.view()).collect();
            let images = concatenate(Axis(0), &views).context("the inputs hold no image")?;
            let bytes: Vec<u8> = images.iter().flat_map(|value| value.to_le_bytes()).collect();
            let tensor = TensorView::new(Dtype::F32, images.shape().to_vec(), &bytes)?;
            write_whole(&out, &safetensors::serialize([("image", tensor)], None)?)?;
            out!("{} crops, {}", images.dim().0, out.display())?;
        }
        Command::Inspect { bundle } => {
            let bundle = Bundle::open(&bundle)?;
            let m = &bundle.manifest;
            out!("{} {}", m.name, m.version)?;
            out!("digest      {}", bundle.digest)?;
            out!(
                "input       {} channel(s), {} x {}",
                m.input.channels,
                m.input.size[0],
                m.input.size[1]
            )?;
            out!("time-steps  {}", m.diffusion.steps)?;
            out!("votes       {}", m.votes)?;
            for Variant { precision, dice, cases, .. } in &m.variants {
                let name = precision.name();
                out!("variant     {name}, Dice {dice:.4} with fp32's masks on {cases} cases")?;
            }
            for label in &m.labels {
                out!("label {}     {}", label.value, label.name)?;
            }
            if let Some(p) = &m.provenance {
                out!(
                    "weights     {}\ndata        {}\nlicence     {}",
                    p.weights,
                    p.data,
                    p.licence
                )?;
            }
        }
    }
    Ok(ExitStatus::Done)
}

/// Such as `denoiser    120 nodes by CPUExecutionProvider: 40 Conv 61.2 %, 30 GroupNorm 20.5 %`.
fn show(placement: &Placement) -> Result<(), OutputError> {
    let Placement { graph, provider, nodes, operators, microseconds } = placement;
    let spent = |name: &String| microseconds.get(name).copied().unwrap_or(0);
    let all: u64 = microseconds.values().sum();
    let mut operators: Vec<(&String, &usize)> = operators.iter().collect();
    operators.sort_by_key(|(name, count)| std::cmp::Reverse((spent(name), **count)));
    let share = |name| 100.0 * spent(name) as f64 / all.max(1) as f64;
    let operators: Vec<String> = operators
        .into_iter()
        .map(|(name, count)| format!("{count} {name} {:.1} %", share(name)))
        .collect();
    out!("{graph:<10} {nodes:>4} nodes by {provider}: {}", operators.join(", "))
}
