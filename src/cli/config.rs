use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;

use super::{ExitStatus, Misconfigured};
use crate::bundle::Bundle;
use crate::config::{self, ConfigError, Loaded};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Report every fault, the model's bundle included; exit status 78 if there is one
    Check {
        /// Configuration file; a later one wins over an earlier one, as for `cdal serve`
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Print every value in force with where it comes from
    Show {
        /// Configuration file; a later one wins over an earlier one, as for `cdal serve`
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Print the JSON Schema of a configuration file
    Schema,
}

/// # Errors
/// What is wrong with the configuration.
pub fn run(args: Args) -> anyhow::Result<ExitStatus> {
    match args.action {
        Action::Check { files } => {
            let loaded = load(&files)?;
            bundle(&loaded)?;
            let names: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
            say!("{}: no faults, revision {}", names.join(", "), loaded.revision);
        }
        Action::Show { files } => {
            for (key, value, origin) in load(&files)?.values() {
                out!("{key} = {value}  # {origin}")?;
            }
        }
        Action::Schema => out!("{:#}", config::schema())?,
    }
    Ok(ExitStatus::Done)
}

fn load(files: &[PathBuf]) -> Result<Loaded, ConfigError> {
    config::load(&files.iter().map(PathBuf::as_path).collect::<Vec<_>>())
}

/// Whether the model's files are there and whole. That it runs is for `cdal bundle check` and `cdal doctor` to find out.
fn bundle(loaded: &Loaded) -> anyhow::Result<()> {
    let folder = &loaded.settings.model.bundle;
    match Bundle::open(folder) {
        Ok(_) => Ok(()),
        // The first release brings it.
        Err(error) if loaded.settings.fleet.is_some() && !folder.exists() => {
            say!("model.bundle: {error}; a release has to bring it");
            Ok(())
        }
        Err(error) => Err(error).context(Misconfigured("model.bundle")),
    }
}
