//! The command line: one file per subcommand. The only room that prints, and the only one that uses `anyhow`.
//!
//! Human text goes to stderr, data to stdout.

pub mod config;
pub mod serve;
pub mod train;
pub mod workstation;

mod signals;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::ConfigError;
use crate::daemon::DaemonError;

#[derive(Debug, Parser)]
#[command(name = "cdal", version, about)]
pub struct CommandLine {
    /// error, warn, info, debug or trace; `CDAL_LOG` overrides it.
    #[arg(long, global = true, default_value = "info", value_parser = ["error", "warn", "info", "debug", "trace"])]
    pub log: String,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon: images in, masks out
    Serve(serve::Args),
    /// The receiving side: takes masks by DICOM and serial line into a folder
    Workstation(workstation::Args),
    /// Train a generator and leave a finished bundle
    Train(train::Arguments),
    /// Check and show configuration files
    Config(config::Args),
}

/// How the process ends. The numbers are a contract; 2 (usage) is clap's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    Done = 0,
    JobFailed = 1,
    Usage = 2,
    Internal = 70,
    Configuration = 78,
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status as u8)
    }
}

/// Runs a command; the one place that prints errors.
#[must_use]
pub fn run(command_line: CommandLine) -> ExitStatus {
    let result = match command_line.command {
        Command::Serve(args) => serve::run(&args),
        Command::Workstation(args) => workstation::run(args),
        Command::Train(arguments) => train::run(&arguments).map(|()| ExitStatus::Done),
        Command::Config(args) => config::run(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("cdal: {error:#}");
        match error.downcast_ref::<DaemonError>() {
            Some(DaemonError::Thread(_)) => ExitStatus::Internal,
            Some(_) => ExitStatus::Configuration,
            None if error.is::<ConfigError>() => ExitStatus::Configuration,
            None => ExitStatus::JobFailed,
        }
    })
}
