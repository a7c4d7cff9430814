use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    cdal::cli::run(cdal::cli::CommandLine::parse()).into()
}
