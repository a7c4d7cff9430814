//! The command line: one file for each subcommand. The only room that prints, and where `anyhow` ends.

mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Few-step diffusion segmentation next to the scanner.
#[derive(Debug, Parser)]
#[command(name = "cdal", version)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a generator and leave a finished bundle
    Train(train::Arguments),
}

/// Runs the command that was asked for.
#[must_use]
pub fn run(arguments: Arguments) -> ExitCode {
    let result = match arguments.command {
        Command::Train(arguments) => train::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cdal: {error:#}");
            ExitCode::from(1)
        }
    }
}
