use std::path::PathBuf;

use clap::Subcommand;

use super::ExitStatus;
use crate::config;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Report every fault; exit status 78 if there is one
    Check { file: PathBuf },
    /// Print every value in force with where it comes from
    Show { file: PathBuf },
    /// Print the JSON Schema of a configuration file
    Schema,
}

/// # Errors
/// What is wrong with the configuration.
pub fn run(args: Args) -> anyhow::Result<ExitStatus> {
    match args.action {
        Action::Check { file } => {
            let loaded = config::load(&[&file])?;
            say!("{}: no faults, revision {}", file.display(), loaded.revision);
        }
        Action::Show { file } => {
            for (key, value, origin) in config::load(&[&file])?.values() {
                out!("{key} = {value}  # {origin}")?;
            }
        }
        Action::Schema => out!("{:#}", config::schema())?,
    }
    Ok(ExitStatus::Done)
}
