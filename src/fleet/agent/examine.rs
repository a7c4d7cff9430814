//! Tries a release in a process of its own, which may crash, hang or eat memory without harm to the daemon.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::{Blueprint, Bounds};

/// Of a reason, so much is kept.
const MAX_REASON: usize = 500;

/// The hidden subcommand that examines.
pub const SUBCOMMAND: &str = "fleet-examine";

/// How a release is examined.
#[derive(Debug, Clone)]
pub struct Examiner {
    /// This program.
    pub program: PathBuf,
    /// The device's own configuration files.
    pub files: Vec<PathBuf>,
    pub bounds: Bounds,
}

/// What the process says before it ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// The golden case came out right; the best time of a few runs.
    GoldenMs(f64),
    /// The same would go wrong again.
    Fault(String),
}

/// How an examination ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Examined {
    Sound {
        golden_ms: f64,
    },
    Fault(String),
    /// It says nothing about the release.
    Transient(String),
    /// Out of time: the release hangs, or the machine is busy beyond measure.
    TimedOut(String),
    Stopped,
}

impl Examiner {
    /// Runs the golden case of what `blueprint` describes.
    #[must_use]
    pub fn examine(&self, blueprint: &Blueprint, is_stopped: &dyn Fn() -> bool) -> Examined {
        let Bounds { memory_bytes, time } = self.bounds;
        let seconds = time.as_secs().max(1);
        let mut command = Command::new(&self.program);
        command.arg(SUBCOMMAND);
        command.args(["--memory-bytes", &memory_bytes.to_string()]);
        command.args(["--processor-seconds", &(seconds * cores()).to_string()]);
        for file in self.files.iter().chain(&blueprint.configuration) {
            command.arg("--config").arg(file);
        }
        for file in &self.files {
            command.arg("--own").arg(file);
        }
        for (name, folder) in &blueprint.bundles {
            let mut both = std::ffi::OsString::from(format!("{name}="));
            both.push(folder);
            command.arg("--bundle").arg(both);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                return Examined::Transient(format!("start {}: {error}", self.program.display()));
            }
        };
        let started = Instant::now();
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if is_stopped() => {
                    let _ = (child.kill(), child.wait());
                    return Examined::Stopped;
                }
                Ok(None) if started.elapsed() > time => {
                    let _ = (child.kill(), child.wait());
                    return Examined::TimedOut(format!("it did not end within {seconds} s"));
                }
                Ok(None) => std::thread::sleep(Duration::from_millis(20)),
                Err(error) => return Examined::Transient(error.to_string()),
            }
        };
        let mut said = String::new();
        let mut stdout = child.stdout.take().expect("stdout is piped").take(64 << 10);
        if let Err(error) = stdout.read_to_string(&mut said) {
            return Examined::Transient(error.to_string());
        }
        let line = said.lines().next_back().unwrap_or_default();
        match serde_json::from_str(line) {
            Ok(Finding::GoldenMs(golden_ms)) if status.success() => Examined::Sound { golden_ms },
            Ok(Finding::Fault(reason)) => Examined::Fault(bounded(&reason)),
            _ => ended(status, seconds),
        }
    }
}

/// Without a word.
fn ended(status: std::process::ExitStatus, seconds: u64) -> Examined {
    let is = |signal: Signal| status.signal() == Some(signal.as_raw());
    if is(Signal::KILL) || is(Signal::TERM) || is(Signal::INT) || is(Signal::HUP) {
        return Examined::Transient("its process was killed from outside".to_owned());
    }
    if is(Signal::XCPU) {
        let limit = seconds * cores();
        return Examined::Fault(format!("it used more than {limit} s of the processor"));
    }
    Examined::Fault(format!("its process ended with {status}"))
}

fn cores() -> u64 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64)
}

/// One line of bounded length.
fn bounded(reason: &str) -> String {
    let line: String =
        reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON).collect();
    line.trim().to_owned()
}

/// Bounds this process: called by the subcommand before anything else. It ends with the daemon that started it.
///
/// # Errors
/// If the system refuses.
pub fn confine(memory_bytes: u64, processor_seconds: u64) -> std::io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let limit = |soft: u64, hard: u64| Rlimit { current: Some(soft), maximum: Some(hard) };
    setrlimit(Resource::As, limit(memory_bytes, memory_bytes))?;
    setrlimit(Resource::Core, limit(0, 0))?;
    setrlimit(Resource::Cpu, limit(processor_seconds, processor_seconds + 5))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examine(program: &str) -> Examined {
        let bounds = Bounds { time: Duration::from_secs(1), ..Bounds::default() };
        let examiner = Examiner { program: program.into(), files: vec![], bounds };
        examiner.examine(&Blueprint::default(), &|| false)
    }

    #[test]
    fn a_process_that_hangs_fails_or_cannot_start_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("hangs").display().to_string();
        // Written by a process of its own: a file that this one has open for writing could not be run.
        let lines = "printf '#!/bin/sh\\nexec sleep 100\\n' > \"$0\" && chmod +x \"$0\"";
        assert!(Command::new("sh").args(["-c", lines, &script]).status().unwrap().success());
        let hangs = examine(&script);
        assert_eq!(hangs, Examined::TimedOut("it did not end within 1 s".to_owned()));
        assert!(matches!(examine("/bin/false"), Examined::Fault(reason) if reason.contains('1')));
        assert!(matches!(examine("/bin/true"), Examined::Fault(_)), "it has said nothing");
        assert!(matches!(examine("/nowhere/cdal"), Examined::Transient(_)));
    }
}
