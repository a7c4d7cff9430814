//! What a device on its way from release to release keeps, is told, says and has to do.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::duration;
use crate::fleet::rollout::{Failure, Named};
use crate::fleet::{Probation, Release};

/// First wait after a failure that may pass; every further one doubles it.
const FIRST_WAIT: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_hours(1);

/// What can be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// The device's own configuration files alone, and the model that they name.
    Own,
    Release(Named),
}

/// A verified release for this device, and what it has to show.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    pub named: Named,
    pub probation: Probation,
}

/// How far the candidate has come. The candidate lives inside, so that there is none where none belongs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Runs the last good content and knows of nothing newer.
    Idle,
    /// Signed, meant for this device, above the floor.
    Verified(Candidate),
    WaitingWave {
        candidate: Candidate,
        /// This device's turn, milliseconds since 1970.
        start_ms: u64,
    },
    Downloading {
        candidate: Candidate,
        setback: Setback,
    },
    /// Every byte is there under its hash.
    Staged {
        candidate: Candidate,
        setback: Setback,
    },
    /// It reproduced its golden case in a process of its own.
    Validated(Sound),
    WaitSafePoint(Sound),
    Trial(Trial),
    /// Runs the last good content after it gave up a release.
    RolledBack {
        failure: Failure,
    },
}

/// Failures in a row that may pass.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setback {
    pub times: u32,
    /// Of these the last ones that were time-outs, in a row.
    #[serde(default)]
    pub timeouts: u32,
    /// Not to be tried again before.
    pub until_ms: u64,
    pub reason: Option<String>,
}

/// A candidate that passed validation; nothing else makes one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sound {
    pub(super) candidate: Candidate,
    pub(super) timing: Timing,
}

/// The golden case's time, measured alike for both.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    pub candidate_ms: f64,
    /// `None` where the last good content cannot run.
    pub last_good_ms: Option<f64>,
}

/// On probation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    pub candidate: Candidate,
    /// Goes back to it.
    pub last_good: Content,
    /// Loads of the candidate that may still begin.
    pub boots_left: u32,
    #[serde(with = "duration")]
    pub healthy: Duration,
    /// Jobs and golden runs that went well.
    pub jobs: u64,
    pub failures: u64,
    pub timing: Timing,
}

/// Why a release is never tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quarantined {
    pub counter: u64,
    pub reason: String,
    pub since_ms: u64,
}

/// What was last heard of the repository.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    #[default]
    NotAsked,
    Fine,
    /// The clock cannot be right: nothing can be said about what has expired.
    TimeUntrusted(String),
    /// Old, damaged or forged metadata, or a release this device cannot take: nothing of it is taken up.
    Refused(String),
    Unreachable(String),
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The repository was asked; what it holds for this device is told by [`Machine::offer`].
    Asked(Standing),
    /// The collector's word: `Some` holds the rollout.
    Hold(Option<String>),
    /// The turn of this device in the candidate's rollout.
    Placed {
        start_ms: u64,
    },
    /// Time went by.
    Clock,
    Downloaded,
    DownloadFailed {
        reason: String,
    },
    Validation(Verdict),
    /// No job under way and none waiting, or inside the window.
    SafePoint,
    /// The content to load is about to be loaded, by a process that starts or at the swap.
    Boot,
    Loaded(Content),
    LoadFailed {
        content: Content,
        reason: String,
    },
    /// The process served in good health for so long.
    Healthy(Duration),
    JobDone,
    JobFailed {
        reason: String,
    },
    /// A golden run beside or in place of traffic.
    Golden(Result<Duration, String>),
    /// What must not happen once: not a number in the output, say.
    Broken {
        reason: String,
    },
}

/// What came of a validation.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    Sound(Timing),
    /// The same release would fail the same way again.
    Deterministic(String),
    /// It may pass: the machine lacked memory, or the process was killed from outside.
    Transient(String),
    /// It took longer than it may: because of the machine, or, if that goes on, because of the release.
    TimedOut(String),
}

/// What a person has to be able to see afterwards.
#[derive(Debug, Clone, PartialEq)]
pub enum Note {
    Accepted {
        release: Named,
    },
    /// Goes on trial: the model is swapped.
    Trial {
        from: Content,
        to: Named,
    },
    Committed {
        release: Named,
        before: Content,
    },
    /// Given up; `swapped`: it had been loaded, or was about to be, and the model is swapped back.
    GivenUp {
        release: Named,
        to: Content,
        reason: String,
        swapped: bool,
    },
    SafeMode {
        reason: String,
    },
}

/// Why a release is not taken up. Nothing changes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "release {offered} is below release {floor}, which this device has seen; publish older content under a new counter"
    )]
    BelowFloor { offered: u64, floor: u64 },
    #[error(
        "release {counter} has other content than the one of that number that this device has seen; a counter names one release for ever"
    )]
    OtherContent { counter: u64 },
    #[error(
        "release {counter} was given up: {reason}; publish it under a new counter to have it tried again"
    )]
    Quarantined { counter: u64, reason: String },
    #[error("release {on_trial} is on trial; it comes to its end first")]
    OnTrial { on_trial: u64 },
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq)]
pub enum Duty {
    /// Nothing but to ask the repository now and then.
    Rest,
    /// Find out when it is this device's turn.
    Place(Named),
    Download(Named),
    Validate(Named),
    /// Swap as soon as the point is safe.
    Swap(Named),
    /// Watch the one on trial.
    Watch(Named),
    /// Nothing before, or before something else happens.
    Wait {
        until_ms: Option<u64>,
    },
}

/// What may be loaded now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Load {
    Run(Content),
    /// Nothing can be loaded: take images in and keep them, compute nothing.
    SafeMode {
        reason: String,
    },
}

impl Content {
    #[must_use]
    pub fn named(&self) -> Option<&Named> {
        match self {
            Self::Own => None,
            Self::Release(named) => Some(named),
        }
    }
}

impl std::fmt::Display for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Own => f.write_str("the device's own configuration"),
            Self::Release(named) => write!(f, "release {}", named.counter),
        }
    }
}

impl Candidate {
    /// `digest`: SHA-256 of the manifest as it was signed, hexadecimal.
    #[must_use]
    pub fn new(release: &Release, digest: impl Into<String>) -> Self {
        let named = Named { counter: release.counter, digest: digest.into() };
        Self { named, probation: release.probation.clone() }
    }
}

impl Setback {
    pub(super) fn after(&self, reason: String, now_ms: u64) -> Self {
        let doubled = FIRST_WAIT.saturating_mul(1 << self.times.min(16)).min(LONGEST_WAIT);
        Self {
            times: self.times.saturating_add(1),
            timeouts: 0,
            until_ms: now_ms.saturating_add(doubled.as_millis() as u64),
            reason: Some(reason),
        }
    }
}

impl Timing {
    /// Why the candidate is too slow, if it is.
    pub(super) fn too_slow(&self, measured_ms: f64, slowdown: f64) -> Option<String> {
        let last_good_ms = self.last_good_ms?;
        (measured_ms > slowdown * last_good_ms).then(|| {
            format!(
                "the golden case takes {measured_ms:.1} ms, more than {slowdown} times the {last_good_ms:.1} ms of the last good release"
            )
        })
    }
}

impl Trial {
    pub(super) fn waits_for(&self) -> String {
        let Probation { healthy, jobs, .. } = &self.candidate.probation;
        let mut unmet = Vec::new();
        if self.healthy < *healthy {
            let whole = Duration::from_secs(self.healthy.as_secs());
            unmet.push(format!(
                "{} of {} in good health",
                duration::format(whole),
                duration::format(*healthy)
            ));
        }
        if self.jobs < *jobs {
            unmet.push(format!("{} of {jobs} jobs or golden runs", self.jobs));
        }
        format!("probation: {}", unmet.join(", "))
    }
}
