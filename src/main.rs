use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let command_line = cdal::cli::CommandLine::parse();
    cdal::telemetry::start(&command_line.log);
    cdal::cli::run(command_line).into()
}
