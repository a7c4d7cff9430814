use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::{Content, Quarantined, Standing, Store, StoreError};
use crate::fleet::rollout::{Named, Phase};

/// How a device stands, for people and programs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    pub phase: Phase,
    /// What is this device's own.
    pub last_good: Content,
    /// The release that it works on or waits for.
    pub target: Option<Target>,
    /// Which criterion is unmet.
    pub waits_for: Option<String>,
    /// Why the newest release is not for this device.
    pub passed_over: Option<String>,
    pub repository: Standing,
    pub floor: Option<Named>,
    /// Never tried again.
    pub given_up: Vec<Quarantined>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    pub counter: u64,
    pub digest: String,
    /// For people.
    pub name: String,
}

impl Status {
    /// Reads the agent's folder beside the daemon.
    ///
    /// # Errors
    /// If there is none, or another version of this program made it.
    pub fn read(directory: &Path, now_ms: u64) -> Result<Self, StoreError> {
        Self::of(&Store::open_beside(directory)?, now_ms)
    }

    pub(super) fn of(store: &Store, now_ms: u64) -> Result<Self, StoreError> {
        let machine = store.machine();
        let target = match machine.candidate() {
            Some(candidate) => Some(Target {
                counter: candidate.named.counter,
                digest: candidate.named.digest.clone(),
                name: store.release(&candidate.named.digest)?.map(|r| r.name).unwrap_or_default(),
            }),
            None => None,
        };
        Ok(Self {
            phase: machine.phase(),
            last_good: machine.last_good().clone(),
            target,
            waits_for: machine.waits_for(now_ms),
            passed_over: store.fact("passed_over")?,
            repository: machine.repository().clone(),
            floor: machine.floor().cloned(),
            given_up: machine.quarantine().values().cloned().collect(),
        })
    }

    /// What the phase means.
    #[must_use]
    pub fn words(&self) -> &'static str {
        match self.phase {
            Phase::Idle | Phase::Committed => "nothing to do",
            Phase::Verified => "a new release is verified",
            Phase::WaitingWave => "waits for its turn",
            Phase::Downloading => "fetches the release",
            Phase::Staged => "tries the release in a process apart",
            Phase::Validated | Phase::WaitSafePoint => "the release is ready to be run",
            Phase::Trial => "the release runs on trial",
            Phase::RolledBack => "gave the last release up",
            Phase::SafeMode => "safe mode: images are taken in and wait, nothing is computed",
        }
    }

    /// Why the repository is not followed, if it is not.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        match &self.repository {
            Standing::Fine | Standing::NotAsked => None,
            Standing::TimeUntrusted(reason) => {
                Some(format!("not believed, as the clock cannot be trusted: {reason}"))
            }
            Standing::Refused(reason) => Some(format!("not believed: {reason}")),
            Standing::Unreachable(reason) => Some(format!("out of reach: {reason}")),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "state      {} ({})", self.phase, self.words())?;
        writeln!(f, "last good  {}", self.last_good)?;
        if let Some(Target { counter, name, .. }) = &self.target {
            writeln!(f, "target     release {counter} ({name})")?;
        }
        if let Some(waits_for) = &self.waits_for {
            writeln!(f, "waits for  {waits_for}")?;
        }
        match self.trouble() {
            Some(trouble) => writeln!(f, "repository {trouble}")?,
            None if self.repository == Standing::NotAsked => {
                writeln!(f, "repository not asked yet")?;
            }
            None => writeln!(f, "repository verified")?,
        }
        if let Some(reason) = &self.passed_over {
            writeln!(f, "not taken  {reason}")?;
        }
        for Quarantined { counter, reason, .. } in &self.given_up {
            writeln!(f, "given up   release {counter}: {reason}")?;
        }
        Ok(())
    }
}
