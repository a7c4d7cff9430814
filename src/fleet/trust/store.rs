//! Metadata that was verified, as it is kept on the disk of a device.
//!
//! Invariant: each file is written in whole, synced and renamed as soon as it is verified, and what it says of how old
//! nothing may be ([`Floors`]) right after it. A power cut between the two leaves a newer file over older floors, and
//! `refresh` then raises the floors from the file.

use std::fs;
use std::path::{Path, PathBuf};

use super::floors::Floors;
use super::metadata::{Content, File, Role};
use crate::durable::{self, DurableError, failpoint};

#[derive(Debug)]
pub(super) struct Store {
    metadata: PathBuf,
    floors: PathBuf,
}

impl Store {
    /// Both are made where they are missing.
    pub fn open(metadata: &Path, floors: &Path) -> Result<Self, DurableError> {
        durable::create_directory(metadata)?;
        durable::remove_parts(metadata)?;
        Ok(Self { metadata: metadata.to_owned(), floors: floors.to_owned() })
    }

    /// A file that was kept, if it is there and whole. Whether its signatures still count is for the caller to say.
    pub fn read<T: Content>(&self) -> Option<File<T>> {
        File::read(&fs::read(self.path(T::ROLE)).ok()?).ok()
    }

    /// # Errors
    /// If the disk refuses.
    pub fn keep<T: Content>(&self, file: &File<T>) -> Result<(), DurableError> {
        durable::write_whole(&self.path(T::ROLE), &file.bytes)?;
        failpoint::reach("trust.kept");
        Ok(())
    }

    pub fn floors(&self) -> Floors {
        let kept = fs::read(&self.floors).ok();
        kept.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// # Errors
    /// If the disk refuses.
    pub fn keep_floors(&self, floors: &Floors) -> Result<(), DurableError> {
        let bytes = serde_json::to_vec(floors).expect("numbers serialise");
        durable::write_whole(&self.floors, &bytes)
    }

    fn path(&self, role: Role) -> PathBuf {
        self.metadata.join(role.file())
    }
}
