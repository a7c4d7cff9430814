mod collect;
mod keys;
mod publish;
mod status;
mod tuf;
mod verify;
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
    /// Make a repository of releases, with its keys
    Init(keys::InitArgs),
    /// Put a release into the repository
    Publish(publish::Args),
    /// Add signatures to what waits for them
    Sign(keys::SignArgs),
    /// Change whose keys are believed
    Rotate(keys::RotateArgs),
    /// Sign anew what would expire; a timer should do it every day
    Refresh(keys::RefreshArgs),
    /// What a repository holds: keys, dates, releases, what waits
    Show(keys::ShowArgs),
    /// Judge a repository as a new device would
    Verify(verify::Args),
    /// Fetch from any TUF repository without delegations, as the TUF conformance suite does
    Tuf(tuf::Args),
    /// Copy the repository for sites without a network
    Pack(publish::PackArgs),
    /// How this device stands: what it runs, what it waits for
    Status(status::Args),
    /// Run the collector: devices report to it, operators look and pause
    Collect(collect::Args),
    /// Show a rollout while it goes on
    Watch(watch::Args),
    /// Keep devices from beginning with a release
    Pause(watch::PauseArgs),
    /// Let a rollout go on, also past the canary groups
    Resume(watch::ResumeArgs),
    /// Take a device out of every account, as one that was scrapped
    Forget(watch::ForgetArgs),
}

/// # Errors
/// If the action fails.
pub fn run(args: Args) -> anyhow::Result<ExitStatus> {
    match args.action {
        Action::Init(args) => keys::init(&args),
        Action::Publish(args) => publish::run(&args),
        Action::Sign(args) => keys::sign(&args),
        Action::Rotate(args) => keys::rotate(&args),
        Action::Refresh(args) => keys::refresh(&args),
        Action::Show(args) => keys::show(&args),
        Action::Verify(args) => verify::run(&args),
        Action::Tuf(args) => tuf::run(&args),
        Action::Pack(args) => publish::pack(&args),
        Action::Status(args) => status::run(&args),
        Action::Collect(args) => collect::run(&args),
        Action::Watch(args) => watch::run(&args),
        Action::Pause(args) => watch::pause(&args),
        Action::Resume(args) => watch::resume(&args),
        Action::Forget(args) => watch::forget(&args),
    }
}
