use std::path::PathBuf;

use super::{EngineArgs, ExitStatus};
use crate::bundle::Bundle;

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
        Command::Check { bundle, engine } => {
            let segmenter = engine.open(&bundle)?;
            let difference = segmenter.check_golden()?;
            let manifest = &segmenter.bundle().manifest;
            println!(
                "{} {}: digests agree, graphs load, golden case within {difference:.1e}",
                manifest.name, manifest.version
            );
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
