//! A client for any TUF repository without delegations, as other implementations have one. It speaks the protocol of
//! TUF's conformance suite, so that what a device believes can be held against what everybody else believes.
//!
//! Called by `cli` (`fleet tuf`).

use std::fs;
use std::path::{Path, PathBuf};

use super::metadata::{File, Root};
use super::refresh::{Refresh, Refreshed};
use super::source::{Fetcher, Source};
use super::store::Store;
use super::{TrustError, now_ms, read_root, runtime, timestamp};
use crate::durable::{self, DurableError};

/// Metadata of one repository, kept in a folder.
#[derive(Debug)]
pub struct Client {
    store: Store,
    metadata: Source,
    root: File<Root>,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    /// Makes `folder` trust `root`, which was had from elsewhere.
    ///
    /// # Errors
    /// If it is no root, or the disk refuses.
    pub fn init(folder: &Path, root: &Path) -> Result<(), TrustError> {
        let root = read_root(root)?;
        open(folder)?.keep(&root)?;
        Ok(())
    }

    /// `metadata`: where the files of metadata lie.
    ///
    /// # Errors
    /// If `folder` has no root, or the disk refuses.
    pub fn open(folder: &Path, metadata: Source) -> Result<Self, TrustError> {
        let root = read_root(&folder.join("root.json"))?;
        let (store, runtime) = (open(folder)?, runtime(folder)?);
        Ok(Self { store, metadata, root, runtime })
    }

    /// Brings the metadata up to date.
    ///
    /// # Errors
    /// If a part of it cannot be had or may not be believed; what was verified before that part stays.
    pub fn refresh(&mut self) -> Result<(), TrustError> {
        self.look().map(drop)
    }

    /// Brings the metadata up to date, and the target `name` into `folder`. If it is there already, it is not fetched.
    ///
    /// # Errors
    /// If it cannot be had or is not what is listed; nothing of it is left then.
    pub fn download(
        &mut self,
        name: &str,
        targets: &Source,
        folder: &Path,
    ) -> Result<PathBuf, TrustError> {
        let listed = self.look()?;
        let broken = |problem: String| TrustError::Forged(format!("{name}: {problem}"));
        let target = listed.targets.get(name);
        let target = target.ok_or_else(|| broken("is not listed in targets.json".to_owned()))?;
        let path = folder.join(file_name(name));
        let there = fs::metadata(&path).is_ok_and(|there| there.len() == target.length);
        if there && fs::read(&path).is_ok_and(|bytes| target.check(&bytes).is_ok()) {
            return Ok(path);
        }
        let url = listed.place(targets.base(), name, target).map_err(broken)?;
        let bytes = self.runtime.block_on(Fetcher::new(targets.clone()).whole(&url, target.length));
        let bytes = bytes.map_err(|error| TrustError::Unreachable(error.to_string()))?;
        target.check(&bytes).map_err(broken)?;
        durable::write_whole(&path, &bytes)?;
        Ok(path)
    }

    fn look(&mut self) -> Result<Refreshed, TrustError> {
        let fetcher = Fetcher::new(self.metadata.clone());
        let fetch = |name: &str, limit: u64| {
            let url = self.metadata.base().join(name).expect("a plain name joins");
            self.runtime.block_on(fetcher.whole(&url, limit))
        };
        let (store, floors, now) = (&self.store, self.store.floors(), timestamp(now_ms()));
        Refresh { store, fetch: &fetch, floors, now }.run(self.root.clone())
    }
}

fn open(folder: &Path) -> Result<Store, DurableError> {
    Store::open(folder, &folder.join("floors"))
}

/// One file in one folder for every target's name, however many folders that names.
fn file_name(name: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    let encode =
        |byte: u8| if plain(&byte) { char::from(byte).into() } else { format!("%{byte:02X}") };
    let name: String = name.bytes().map(encode).collect();
    // No target becomes the folder itself or the one above it.
    match name.strip_prefix('.') {
        Some(rest) => format!("%2E{rest}"),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_targets_name_stays_within_its_folder() {
        assert_eq!(file_name("a/b c.txt"), "a%2Fb%20c.txt");
        assert_eq!(file_name("../../etc"), "%2E.%2F..%2Fetc");
        assert_eq!(file_name(".."), "%2E.");
    }
}
