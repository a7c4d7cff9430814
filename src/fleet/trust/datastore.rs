use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::durable::{self, DurableError};

/// The metadata that was last believed, as `tough` keeps it. It writes without a sync and file by file; here that
/// happens in a copy, which takes the place of the whole when everything in it is right and on the disk.
#[derive(Debug)]
pub(super) struct Datastore {
    directory: PathBuf,
}

impl Datastore {
    pub(super) fn open(directory: &Path) -> Result<Self, DurableError> {
        durable::create_directory(directory)?;
        let store = Self { directory: directory.to_owned() };
        let (now, old) = (store.now(), store.old());
        if !now.exists() && old.exists() {
            // The power went between the two renames of a swap.
            fs::rename(&old, &now).map_err(DurableError::of("rename to", &now))?;
        }
        durable::create_directory(&now)?;
        Ok(store)
    }

    pub(super) fn directory(&self) -> &PathBuf {
        &self.directory
    }

    /// A copy to be written to; what an earlier one left is gone.
    pub(super) fn copy(&self) -> Result<PathBuf, DurableError> {
        let part = self.directory.join(format!("metadata{}", durable::PART_SUFFIX));
        remove(&part)?;
        durable::create_directory(&part)?;
        let now = self.now();
        for file in fs::read_dir(&now).map_err(DurableError::of("list", &now))?.flatten() {
            let (from, to) = (file.path(), part.join(file.file_name()));
            fs::copy(&from, &to).map_err(DurableError::of("copy to", &to))?;
        }
        Ok(part)
    }

    /// Puts the copy in the place of the whole.
    pub(super) fn swap(&self, copy: &Path) -> Result<(), DurableError> {
        for file in fs::read_dir(copy).map_err(DurableError::of("list", copy))?.flatten() {
            let path = file.path();
            let synced = File::open(&path).and_then(|file| file.sync_all());
            synced.map_err(DurableError::of("sync", &path))?;
        }
        durable::sync_directory(copy)?;
        let (now, old) = (self.now(), self.old());
        remove(&old)?;
        fs::rename(&now, &old).map_err(DurableError::of("rename to", &old))?;
        fs::rename(copy, &now).map_err(DurableError::of("rename to", &now))?;
        durable::sync_directory(&self.directory)?;
        remove(&old)
    }

    fn now(&self) -> PathBuf {
        self.directory.join("metadata")
    }

    fn old(&self) -> PathBuf {
        self.directory.join("metadata.old")
    }
}

fn remove(folder: &Path) -> Result<(), DurableError> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(DurableError::of("remove", folder))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_changes_nothing_until_it_is_swapped_in_as_a_whole() {
        let home = tempfile::tempdir().unwrap();
        let store = Datastore::open(home.path()).unwrap();
        let read = |name: &str| fs::read_to_string(home.path().join("metadata").join(name)).ok();
        let first = store.copy().unwrap();
        fs::write(first.join("root.json"), "1").unwrap();
        store.swap(&first).unwrap();
        let second = store.copy().unwrap();
        fs::write(second.join("root.json"), "2").unwrap();
        assert_eq!(read("root.json").as_deref(), Some("1"));
        drop(store);

        // As the power left it between the two renames.
        fs::rename(home.path().join("metadata"), home.path().join("metadata.old")).unwrap();
        let store = Datastore::open(home.path()).unwrap();
        assert_eq!(read("root.json").as_deref(), Some("1"));
        let third = store.copy().unwrap();
        fs::write(third.join("root.json"), "3").unwrap();
        store.swap(&third).unwrap();
        assert_eq!(read("root.json").as_deref(), Some("3"));
    }
}
