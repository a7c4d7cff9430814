use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::{Fault, duration};

/// Section `[spool]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Made if it is not there.
    pub directory: PathBuf,
    /// Below this much free disk space nothing more is taken in: the room that finishing what is there needs, the
    /// database's own included …
    #[serde(default = "default_min_free_bytes")]
    pub min_free_bytes: u64,
    /// … until this much is free again; by default a tenth more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume_free_bytes: Option<u64>,
    /// When the spool holds this much, nothing more is taken in …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// … until it holds no more than this; by default a tenth less. Finished work makes room before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume_bytes: Option<u64>,
    /// How long finished work is kept after its last delivery.
    #[serde(with = "duration", default = "default_retain_for")]
    #[schemars(with = "duration::Text")]
    pub retain_for: Duration,
    /// While the spool holds more than this, finished work is removed whatever its age, the oldest first; by default
    /// `resume_bytes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain_bytes: Option<u64>,
    /// How often a job is started before it is given up, crashes of the process included.
    #[serde(default = "default_max_attempts")]
    pub max_attempts: u32,
}

fn default_min_free_bytes() -> u64 {
    1 << 30
}

fn default_retain_for() -> Duration {
    Duration::from_hours(7 * 24)
}

fn default_max_attempts() -> u32 {
    3
}

impl Config {
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            min_free_bytes: default_min_free_bytes(),
            resume_free_bytes: None,
            max_bytes: None,
            resume_bytes: None,
            retain_for: default_retain_for(),
            retain_bytes: None,
            max_attempts: default_max_attempts(),
        }
    }

    /// Low watermark of the disk's free space.
    pub(super) fn resume_free_bytes(&self) -> u64 {
        let tenth_more = self.min_free_bytes.saturating_add(self.min_free_bytes / 10);
        self.resume_free_bytes.unwrap_or(tenth_more)
    }

    /// Low watermark of the quota, if there is one.
    pub(super) fn resume_bytes(&self) -> Option<u64> {
        self.max_bytes.map(|max| self.resume_bytes.unwrap_or(max - max / 10))
    }

    /// What finished work may fill, if that is limited.
    pub(super) fn retain_bytes(&self) -> Option<u64> {
        self.retain_bytes.or_else(|| self.resume_bytes())
    }

    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut check = |holds: bool, key: &str, problem: &str| {
            if !holds {
                faults.push(Fault::new(key, problem));
            }
        };
        let named = !self.directory.as_os_str().is_empty();
        check(named, "directory", "is empty; name a folder on a local disk");
        check(self.max_attempts > 0, "max_attempts", "must be at least 1");
        check(
            self.resume_free_bytes() >= self.min_free_bytes,
            "resume_free_bytes",
            "must not be below min_free_bytes",
        );
        check(
            self.max_bytes != Some(0),
            "max_bytes",
            "must be at least 1; leave it out for no quota",
        );
        match (self.max_bytes, self.resume_bytes) {
            (Some(max), Some(resume)) => {
                check(resume <= max, "resume_bytes", "must not be above max_bytes");
            }
            (None, Some(_)) => check(false, "resume_bytes", "means nothing without max_bytes"),
            _ => {}
        }
        faults
    }
}
