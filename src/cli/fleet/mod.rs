mod collect;
mod watch;

use clap::Subcommand;

use super::{ExitStatus, Misconfigured};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Run the collector: devices report to it, operators look and pause
    Collect(collect::Args),
    /// Show a rollout while it goes on
    Watch(watch::Args),
    /// Keep devices from beginning with a release
    Pause(watch::PauseArgs),
    /// Let a rollout go on, also past the canary groups
    Resume(watch::ResumeArgs),
}

/// # Errors
/// If the action fails.
pub fn run(args: Args) -> anyhow::Result<ExitStatus> {
    match args.action {
        Action::Collect(args) => collect::run(&args),
        Action::Watch(args) => watch::run(&args),
        Action::Pause(args) => watch::pause(&args),
        Action::Resume(args) => watch::resume(&args),
    }
}
