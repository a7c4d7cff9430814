use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Spool, SpoolError};
use crate::durable::{self, DurableError, Synced};

/// How full the spool is, and whether it takes more in.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// In payloads that have their names.
    used_bytes: AtomicU64,
    /// A high watermark was passed and the low one is not reached again.
    closed: AtomicBool,
}

/// How full the spool and its disk are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// In payloads.
    pub used_bytes: u64,
    /// On the disk, for this program.
    pub free_bytes: u64,
}

impl Spool {
    /// # Errors
    /// If the disk cannot be asked.
    pub fn usage(&self) -> Result<Usage, SpoolError> {
        Ok(Usage {
            used_bytes: self.room.used_bytes.load(Ordering::Relaxed),
            free_bytes: durable::free_bytes(&self.config.directory)?,
        })
    }

    /// Whether more may come in. Once a high watermark is passed, that is so again only below the low one: a spool
    /// at its limit does not open and close with every object.
    ///
    /// # Errors
    /// `LowDisk` or `QuotaReached` while nothing more is taken in, or if objects have to go to a server that is out of
    /// reach.
    pub fn check_free_space(&self) -> Result<(), SpoolError> {
        if let Some(replica) = self.replica.get() {
            replica.check_reach()?;
        }
        let Usage { used_bytes, free_bytes } = self.usage()?;
        let config = &self.config;
        let closed = self.room.closed.load(Ordering::Relaxed);
        let min_free_bytes =
            if closed { config.resume_free_bytes() } else { config.min_free_bytes };
        let max_bytes = if closed { config.resume_bytes() } else { config.max_bytes };
        let low_disk = free_bytes < min_free_bytes;
        let over_quota = max_bytes.is_some_and(|max| used_bytes > max);
        self.room.closed.store(low_disk || over_quota, Ordering::Relaxed);
        match (low_disk, config.max_bytes) {
            (true, _) => Err(SpoolError::LowDisk { free_bytes, min_free_bytes }),
            (false, Some(max_bytes)) if over_quota => {
                Err(SpoolError::QuotaReached { used_bytes, max_bytes })
            }
            _ => Ok(()),
        }
    }

    /// Whether finished work has to go before its time.
    ///
    /// # Errors
    /// If the disk cannot be asked.
    pub fn is_pressed(&self) -> Result<bool, SpoolError> {
        let Usage { used_bytes, free_bytes } = self.usage()?;
        Ok(self.config.retain_bytes().is_some_and(|target| used_bytes > target)
            || free_bytes < self.config.resume_free_bytes())
    }

    /// Counts anew what is there.
    pub(super) fn measure(&self) -> Result<(), SpoolError> {
        let mut used = 0;
        for folder in ["instances", "products"] {
            let folder = self.config.directory.join(folder);
            let entries = fs::read_dir(&folder).map_err(DurableError::of("list", &folder))?;
            used +=
                entries.flatten().filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum::<u64>();
        }
        self.room.used_bytes.store(used, Ordering::Relaxed);
        Ok(())
    }

    /// Gives a payload its name. The caller holds `payloads` until the row is committed.
    pub(super) fn keep(&self, payload: Synced, relative: &str) -> Result<(), SpoolError> {
        let target = self.absolute(relative);
        let (new, bytes) = (!target.exists(), payload.bytes);
        payload.persist(&target)?;
        if new {
            self.room.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Removes a payload that no row names. The caller holds `payloads` alone.
    pub(super) fn discard(&self, path: &Path) -> Result<u64, SpoolError> {
        let bytes = fs::metadata(path).map_or(0, |metadata| metadata.len());
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(DurableError::of("remove", path)(error).into())
            }
            _ => {
                let _ = self.room.used_bytes.fetch_update(
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                    |used| Some(used.saturating_sub(bytes)),
                );
                Ok(bytes)
            }
        }
    }
}
