//! How the process ends: its exit status, and which errors lead to which.

use std::io;
use std::process::ExitCode;

use super::Misconfigured;
use crate::config::ConfigError;
use crate::daemon::DaemonError;
use crate::durable;
use crate::engine::EngineError;
use crate::fleet::{agent, collect};
use crate::segmenter::SegmenterError;
use crate::spool::SpoolError;
use crate::train::TrainError;

/// The numbers are a contract, with sysexits.h(3) from 64 on; 2 (usage) is clap's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    Done = 0,
    /// Of `bench compare`: the reports really differ.
    JobFailed = 1,
    Usage = 2,
    /// Of `bench compare` alone: there is nothing to compare.
    NotCompared = 3,
    Internal = 70,
    /// A daemon cannot start now, and may later with the same configuration.
    TemporaryFailure = 75,
    Configuration = 78,
}

/// What `--help` says of them.
pub(super) const HELP: &str = "Exit status: 0 done, 1 a job failed, 2 usage, 70 internal, 75 a daemon cannot start now \
     but may later (port in use, spool held by another process, disk full), 78 configuration. \
     `bench compare` has meanings of its own.";

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status as u8)
    }
}

pub(super) fn status_of(error: &anyhow::Error) -> ExitStatus {
    if let Some(SegmenterError::Engine(EngineError::Gone)) = error.downcast_ref() {
        return ExitStatus::Internal;
    }
    if let Some(DaemonError::Thread(_)) = error.downcast_ref() {
        return ExitStatus::Internal;
    }
    let is_configuration = error.is::<Misconfigured>()
        || error.is::<ConfigError>()
        || error.is::<DaemonError>()
        || matches!(error.downcast_ref(), Some(TrainError::Config(_) | TrainError::Changed { .. }));
    match is_configuration {
        true if may_pass(error) => ExitStatus::TemporaryFailure,
        true => ExitStatus::Configuration,
        false => ExitStatus::JobFailed,
    }
}

/// Whether a start that failed so may succeed later with the same configuration. A service manager tries again then.
fn may_pass(error: &anyhow::Error) -> bool {
    let by_kind = match error.downcast_ref() {
        Some(DaemonError::HandOver) => true,
        Some(DaemonError::Spool(error)) => error.may_pass(),
        _ => error.downcast_ref().is_some_and(SpoolError::may_pass),
    };
    let is_held = matches!(error.downcast_ref(), Some(agent::StoreError::InUse { .. }))
        || matches!(
            error.downcast_ref(),
            Some(collect::CollectError::Store(
                collect::StoreError::Locked { .. }
                    | collect::StoreError::PostgresLocked
                    | collect::StoreError::Postgres(_)
            ))
        );
    // A GPU's driver may come up later than the daemon.
    let is_device =
        matches!(error.downcast_ref(), Some(SegmenterError::Engine(EngineError::Provider { .. })))
            || matches!(error.downcast_ref(), Some(EngineError::Provider { .. }));
    by_kind
        || is_held
        || is_device
        || error
            .chain()
            .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(durable::may_pass))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_ended_is_a_fault_of_the_program() {
        let gone = anyhow::Error::from(SegmenterError::Engine(EngineError::Gone)).context("a.png");
        assert_eq!(status_of(&gone), ExitStatus::Internal);
    }

    #[test]
    fn what_may_pass_is_not_final() {
        let listen = |kind: io::ErrorKind| {
            let address = "127.0.0.1:104".to_owned();
            anyhow::Error::from(DaemonError::Listen { address, source: kind.into() })
        };
        assert_eq!(status_of(&listen(io::ErrorKind::AddrInUse)), ExitStatus::TemporaryFailure);
        assert_eq!(status_of(&listen(io::ErrorKind::PermissionDenied)), ExitStatus::Configuration);
        let locked = SpoolError::Locked { path: "spool".into() };
        let held = anyhow::Error::from(DaemonError::from(locked));
        assert_eq!(status_of(&held), ExitStatus::TemporaryFailure);
        let full = DaemonError::from(SpoolError::LowDisk { free_bytes: 1, min_free_bytes: 2 });
        assert_eq!(status_of(&anyhow::Error::from(full)), ExitStatus::TemporaryFailure);
        let newer = SpoolError::Schema { path: "spool".into(), found: 99, known: 1 };
        let schema = anyhow::Error::from(DaemonError::from(newer));
        assert_eq!(status_of(&schema), ExitStatus::Configuration);
    }
}
