use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::durable::is_file_name;

/// Of a report's texts for people, bytes.
const MAX_WORDS: usize = 1000;
/// Of a report's counters.
const MAX_COUNTERS: usize = 32;

/// What a device says of itself: no patient data, no names of cases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// As it stands in the device's certificate.
    pub device: String,
    pub group: String,
    pub hardware: String,
    /// Version of this program.
    pub cdal: String,
    /// The release that is the device's own; none has come yet on a new device.
    pub running: Option<Named>,
    /// The release that it works on or waits for.
    pub target: Option<Named>,
    pub phase: Phase,
    /// Why it waits, in words.
    pub waits_for: Option<String>,
    /// The last release that it gave up.
    pub failed: Option<Failure>,
    /// Names and values for people and graphs, such as `jobs_done`.
    pub counters: BTreeMap<String, u64>,
    pub audit: Proof,
}

/// A release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    pub counter: u64,
    /// SHA-256 of the manifest as it was signed, hexadecimal.
    pub digest: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    pub release: Named,
    pub reason: String,
}

/// Where a device stands on its way to a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Idle,
    Verified,
    WaitingWave,
    Downloading,
    Staged,
    Validated,
    WaitSafePoint,
    Trial,
    Committed,
    RolledBack,
    SafeMode,
}

/// The end of a device's audit trail, and the lines that lead there from the end that was known.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    pub seq: u64,
    /// Hexadecimal; empty while there is no line.
    pub seal: String,
    /// As they stand in the trail. Without them only an end that is known already is believed, or the first of all.
    pub lines: Vec<String>,
}

impl Phase {
    /// Whether the device has begun with the release and not ended.
    #[must_use]
    pub fn is_under_way(self) -> bool {
        use Phase::{Downloading, Staged, Trial, Validated, WaitSafePoint};
        matches!(self, Downloading | Staged | Validated | WaitSafePoint | Trial)
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Verified => "verified",
            Self::WaitingWave => "waiting_wave",
            Self::Downloading => "downloading",
            Self::Staged => "staged",
            Self::Validated => "validated",
            Self::WaitSafePoint => "wait_safe_point",
            Self::Trial => "trial",
            Self::Committed => "committed",
            Self::RolledBack => "rolled_back",
            Self::SafeMode => "safe_mode",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Report {
    /// What no device of ours would say; its size as a whole is the reader's to bound.
    ///
    /// # Errors
    /// The field and what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        let name = |key: &str, text: &str| {
            let fine = is_file_name(text);
            let is = "is not a name: 1 to 128 letters, digits, `.`, `-` and `_`";
            if fine { Ok(()) } else { Err(format!("{key} {is}")) }
        };
        let words = |key: &str, text: Option<&String>| match text {
            Some(text) if text.len() > MAX_WORDS => {
                Err(format!("{key} is longer than {MAX_WORDS} bytes"))
            }
            Some(text) if text.chars().any(char::is_control) => {
                Err(format!("{key} holds control characters"))
            }
            _ => Ok(()),
        };
        let hash = |key: &str, text: &str| {
            let fine =
                text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            if fine { Ok(()) } else { Err(format!("{key} is not a SHA-256 in hexadecimal")) }
        };
        name("device", &self.device)?;
        name("group", &self.group)?;
        name("hardware", &self.hardware)?;
        semver::Version::parse(&self.cdal).map_err(|_| "cdal is not a version".to_owned())?;
        words("waits_for", self.waits_for.as_ref())?;
        words("failed.reason", self.failed.as_ref().map(|failed| &failed.reason))?;
        let failed = self.failed.as_ref().map(|failed| &failed.release);
        for (key, release) in [
            ("running", self.running.as_ref()),
            ("target", self.target.as_ref()),
            ("failed", failed),
        ] {
            if let Some(release) = release {
                hash(&format!("{key}.digest"), &release.digest)?;
                // What a database and a page can hold exactly.
                if release.counter > 1 << 53 {
                    return Err(format!("{key}.counter is larger than 2^53"));
                }
            }
        }
        if self.counters.len() > MAX_COUNTERS {
            return Err(format!("counters are more than {MAX_COUNTERS}"));
        }
        self.counters.keys().try_for_each(|key| name("a counter's name", key))?;
        match self.audit.seq {
            0 if !self.audit.seal.is_empty() => Err("audit.seal stands without a line".to_owned()),
            0 => Ok(()),
            _ => hash("audit.seal", &self.audit.seal),
        }
    }
}
