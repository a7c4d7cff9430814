//! The command line: one file per subcommand. The only room that prints, and the only one that uses `anyhow`.
//!
//! Human text goes to stderr, data to stdout: see [`output`].

#[macro_use]
mod output;

mod bench;
mod bundle;
mod config;
mod doctor;
mod eval;
mod examine;
mod exit;
mod fleet;
mod phantom;
mod segment;
pub mod serve;
mod signals;
mod spool;
mod train;
mod workstation;

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::domain::PrecisionChoice;
use crate::engine::{Options, Provider};

use self::output::OutputError;

pub use self::exit::ExitStatus;

#[derive(Debug, Parser)]
#[command(name = "cdal", version, about, after_help = exit::HELP)]
pub struct CommandLine {
    /// error, warn, info, debug or trace; `CDAL_LOG` overrides it.
    #[arg(long, global = true, default_value = "info", value_parser = ["error", "warn", "info", "debug", "trace"])]
    pub log: String,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Segment images once: DICOM, NIfTI, PNG or TIFF in, masks out
    Segment(segment::Args),
    /// Run the daemon: images in, masks out
    Serve(serve::Args),
    /// The receiving side: takes masks by DICOM, STOW-RS and serial line, and webhooks, into a folder
    Workstation(workstation::Args),
    /// What waits in the daemon's spool: list, show, retry, drop
    Spool(spool::Args),
    /// Measure a bundle against images with truth: Dice, IoU, HD95
    Eval(eval::Args),
    /// Measure latency and throughput, of the sampler or of a daemon; compare two reports
    Bench(bench::Args),
    /// Train a generator and leave a finished bundle
    Train(train::Args),
    /// Check or describe a model bundle
    Bundle(bundle::Args),
    /// Make synthetic cases with ground truth
    Phantom(phantom::Args),
    /// Check and show configuration files
    Config(config::Args),
    /// Releases for many devices: sign and publish, collect reports, watch, pause and resume
    Fleet(fleet::Args),
    #[command(name = "fleet-examine", hide = true)]
    Examine(examine::Args),
    /// Look at what this machine has: runtime, devices, clock, disk, ports, peers
    Doctor(doctor::Args),
}

/// Which runtime library and execution provider to use.
#[derive(Debug, clap::Args)]
struct EngineArgs {
    /// ONNX Runtime library, in place of the one that is found
    #[arg(long, value_name = "FILE")]
    runtime: Option<PathBuf>,
    /// Who runs the graphs; a GPU that cannot be used is an error, never a silent change to the CPU
    #[arg(long, value_enum, default_value_t = ProviderArg::Cpu)]
    provider: ProviderArg,
    /// Threads inside an operator; the runtime chooses by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Let the CPU run what the GPU's provider cannot, in place of refusing the model
    #[arg(long)]
    allow_cpu_nodes: bool,
    /// Of the denoiser: the fastest that the bundle holds, or one of them
    #[arg(long, value_enum, default_value_t = PrecisionArg::Auto)]
    precision: PrecisionArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PrecisionArg {
    Auto,
    Fp32,
    Fp16,
    Int8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProviderArg {
    Cpu,
    Cuda,
    Tensorrt,
}

impl EngineArgs {
    /// What a command has without any of these options.
    fn of_this_machine() -> Self {
        Self {
            runtime: None,
            provider: ProviderArg::Cpu,
            threads: None,
            allow_cpu_nodes: false,
            precision: PrecisionArg::Auto,
        }
    }

    fn options(&self) -> Options {
        let provider = match self.provider {
            ProviderArg::Cpu => Provider::Cpu,
            ProviderArg::Cuda => Provider::Cuda,
            ProviderArg::Tensorrt => Provider::TensorRt,
        };
        Options {
            provider,
            device: 0,
            intra_threads: self.threads.map(usize::from),
            allow_cpu_nodes: self.allow_cpu_nodes,
            precision: match self.precision {
                PrecisionArg::Auto => PrecisionChoice::Auto,
                PrecisionArg::Fp32 => PrecisionChoice::Fp32,
                PrecisionArg::Fp16 => PrecisionChoice::Fp16,
                PrecisionArg::Int8 => PrecisionChoice::Int8,
            },
        }
    }
}

/// Says of an error that it lies in what was configured, not in a job.
#[derive(Debug)]
struct Misconfigured(&'static str);

impl std::fmt::Display for Misconfigured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

/// Runs a command; the one place that prints errors.
#[must_use]
pub fn run(command_line: CommandLine) -> ExitStatus {
    let command = || match command_line.command {
        Command::Segment(args) => segment::run(args),
        Command::Serve(args) => serve::run(&args),
        Command::Workstation(args) => workstation::run(args),
        Command::Spool(args) => spool::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Train(args) => train::run(&args),
        Command::Bundle(args) => bundle::run(args),
        Command::Phantom(args) => phantom::run(args),
        Command::Config(args) => config::run(args),
        Command::Fleet(args) => fleet::run(args),
        Command::Examine(args) => examine::run(args),
        Command::Doctor(args) => doctor::run(&args),
    };
    // The panic's own message is on stderr already.
    let Ok(result) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(command)) else {
        return ExitStatus::Internal;
    };
    result.unwrap_or_else(|error| {
        if matches!(error.downcast_ref(), Some(OutputError::Closed)) {
            return ExitStatus::Done; // the reader had what it wanted
        }
        say!("cdal: {}", told_once(&error));
        exit::status_of(&error)
    })
}

/// What failed and why. An error that already quotes its cause is not followed by it again.
fn told_once(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if told.is_empty() {
            told = cause;
        } else if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let quoted = Err::<(), _>(anyhow!("no such file")).context("read a.toml: no such file");
        assert_eq!(told_once(&quoted.unwrap_err()), "read a.toml: no such file");
        let fresh = Err::<(), _>(anyhow!("no such file")).context("read a.toml");
        assert_eq!(told_once(&fresh.unwrap_err()), "read a.toml: no such file");
    }
}
