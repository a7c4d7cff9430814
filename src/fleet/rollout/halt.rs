use std::fmt;

use serde::{Deserialize, Serialize};

use super::utc;

/// What keeps a rollout from going on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Halt {
    pub paused: Option<Pause>,
    /// Whether devices outside the canary groups may begin.
    pub gate_open: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    pub since_ms: u64,
    pub cause: Cause,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    Command { by: String, words: String },
    Failures { failed: usize, began: usize },
}

/// Why a device has to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    Paused(Pause),
    /// After the canary groups a person has to say that it goes on.
    Gate,
    /// Nobody could tell when too many fail.
    Unknown,
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = utc(self.since_ms);
        match &self.cause {
            Cause::Command { by, words } if words.is_empty() => {
                write!(f, "paused by {by} at {since}")
            }
            Cause::Command { by, words } => write!(f, "paused by {by} at {since}: {words}"),
            Cause::Failures { failed, began } => {
                write!(f, "paused at {since}: {failed} of the {began} that began have failed")
            }
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused(pause) => pause.fmt(f),
            Self::Gate => f.write_str("the canary groups come first, then a person has to resume the rollout"),
            Self::Unknown => f.write_str(
                "the collector does not know this release; put its manifest into the folder of releases",
            ),
        }
    }
}
