use std::io::Read;

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
}

/// What the repository holds.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The newest, with the SHA-256 of its manifest as it was signed; `None` in a repository without releases.
    pub newest: Option<(Release, String)>,
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

/// # Errors
/// If the repository or the root of trust cannot be used at all.
pub fn supply(_config: &super::Config) -> Result<Box<dyn Supply>, Trouble> {
    Err(Trouble::Refused("no repository".to_owned()))
}
