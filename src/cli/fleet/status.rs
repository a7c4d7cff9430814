use std::path::PathBuf;

use anyhow::Context;

use super::{ExitStatus, Misconfigured};
use crate::config;
use crate::fleet::agent::Status;
use crate::spool::now_ms;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The daemon's configuration file; a later one wins over an earlier one
    #[arg(long, required = true)]
    config: Vec<PathBuf>,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Looks beside the daemon, whether it runs or not.
///
/// # Errors
/// If this device has no agent, or its daemon never ran.
pub fn run(args: &Args) -> anyhow::Result<ExitStatus> {
    let files: Vec<_> = args.config.iter().map(PathBuf::as_path).collect();
    let fleet = config::load(&files)?.settings.fleet;
    let fleet =
        fleet.context(Misconfigured("there is no section [fleet]; this device is not updated"))?;
    let status = Status::read(&fleet.directory, u64::try_from(now_ms()).unwrap_or_default())?;
    if args.json {
        out!("{}", serde_json::to_string(&status)?)?;
    } else {
        say!("{}", status.to_string().trim_end());
    }
    Ok(ExitStatus::Done)
}
