use std::io::Read;

use super::Config;
use crate::fleet::trust::{self, Device, Source, Trust, TrustError};
use crate::fleet::{Blob, Release};

/// Where releases come from. Whoever implements it hands out nothing that is not verified; bytes of blobs are verified
/// by whoever reads them.
pub trait Supply: Send {
    /// The newest release and the floors to keep, given the floors that were kept.
    ///
    /// # Errors
    /// If nothing can be said, or nothing of it may be believed.
    fn check(&mut self, floors: Option<&str>) -> Result<Checked, Trouble>;

    /// The bytes of a blob from `offset` on.
    ///
    /// # Errors
    /// In words, if they cannot be had.
    fn open(&mut self, blob: &Blob, offset: u64) -> Result<Box<dyn Read>, String>;

    /// The floors to keep after a check that failed: what it verified before it failed stays in force.
    fn floors(&self) -> Option<String> {
        None
    }
}

/// What the repository holds.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The newest, with the SHA-256 of its manifest as it was signed; `None` in a repository without releases.
    pub newest: Option<(Release, String)>,
    /// The others that are meant for this device, newest first.
    pub older: Vec<(Release, String)>,
    /// To be kept and handed in with the next check.
    pub floors: String,
}

/// Why the repository says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    #[error("{0}")]
    TimeUntrusted(String),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Unreachable(String),
}

/// The repository that the configuration names, as this device sees it.
///
/// # Errors
/// If it or the root of trust cannot be used at all.
pub fn supply(config: &Config) -> Result<Box<dyn Supply>, Trouble> {
    let refused = |error: &dyn std::fmt::Display| Trouble::Refused(error.to_string());
    let source =
        Source::parse(&config.repository, config.ca.clone()).map_err(|error| refused(&error))?;
    let device = Device::new(&config.group, &config.hardware);
    let trust = Trust::open(device, source, &config.root, &config.directory.join("trust"));
    Ok(Box::new(trust.map_err(|error| refused(&error))?))
}

impl Supply for Trust {
    fn check(&mut self, floors: Option<&str>) -> Result<Checked, Trouble> {
        // What this program wrote itself; of another version's floors, the ones on the disk are left to hold.
        let kept = floors.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let trust::Checked { newest, older, floors } = Trust::check(self, &kept)?;
        let floors = serde_json::to_string(&floors).expect("numbers serialise");
        Ok(Checked { newest, older, floors })
    }

    fn open(&mut self, blob: &Blob, offset: u64) -> Result<Box<dyn Read>, String> {
        self.open_blob(blob, offset)
    }

    fn floors(&self) -> Option<String> {
        Some(serde_json::to_string(&Trust::floors(self)).expect("numbers serialise"))
    }
}

impl From<TrustError> for Trouble {
    fn from(error: TrustError) -> Self {
        let words = error.to_string();
        match error {
            TrustError::TimeUntrusted { .. } => Self::TimeUntrusted(words),
            TrustError::Unreachable(_) | TrustError::Disk(_) => Self::Unreachable(words),
            TrustError::Expired { .. } | TrustError::Rollback { .. } | TrustError::Forged(_) => {
                Self::Refused(words)
            }
        }
    }
}
