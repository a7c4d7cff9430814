use std::{path::PathBuf, sync::Arc};

use super::{EngineArgs, ExitStatus};
use crate::{
    bundle::Bundle,
    engine::{Placement, placements},
    segmenter::{Segmenter, graphs, interface},
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
        /// Say as well which execution provider ran which nodes of a step
        #[arg(long)]
        nodes: bool,
        #[command(flatten)]
        engine: EngineArgs,
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
            println!(
                "{} {}: digests agree, graphs load, golden case within {difference:.1e}",
                manifest.name, manifest.version
            );
            if nodes {
                let graphs = graphs(segmenter.bundle());
                let ran = placements(&runtime, &graphs, interface(manifest), &engine.options())?;
                ran.iter().for_each(show);
            }
        }
        Command::Inspect { bundle } => {
            let bundle = Bundle::open(&bundle)?;
            let m = &bundle.manifest;
            println!("{} {}", m.name, m.version);
            println!("digest      {}", bundle.digest);
            println!(
                "input       {} channel(s), {} x {}",
                m.input.channels, m.input.size[0], m.input.size[1]
            );
            println!("time-steps  {}", m.diffusion.steps);
            println!("votes       {}", m.votes);
            for label in &m.labels {
                println!("label {}     {}", label.value, label.name);
            }
            if let Some(p) = &m.provenance {
                println!(
                    "weights     {}\ndata        {}\nlicence     {}",
                    p.weights, p.data, p.licence
                );
            }
        }
    }
    Ok(ExitStatus::Done)
}

/// Such as `denoiser    120 nodes by CPUExecutionProvider: 40 Conv, 30 GroupNorm`.
fn show(Placement { graph, provider, nodes, operators }: &Placement) {
    let mut operators: Vec<(&String, &usize)> = operators.iter().collect();
    operators.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let operators: Vec<String> =
        operators.into_iter().map(|(name, count)| format!("{count} {name}")).collect();
    println!("{graph:<10} {nodes:>4} nodes by {provider}: {}", operators.join(", "));
}
