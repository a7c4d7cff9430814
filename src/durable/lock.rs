//! A file that one owner at a time holds (flock(2)).

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

/// Held until it is dropped, or until the process ends.
///
/// A child process that was started meanwhile has a copy of the file until it runs its program, and the kernel keeps the
/// lock as long as any copy is open. The owner therefore unlocks the file rather than only closing it: otherwise the next
/// owner in the same process would now and then find it locked by nobody.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Makes the file at `path` where it is missing, and locks it. `None` if another owner holds it.
    ///
    /// # Errors
    /// If the file cannot be made or the file system has no locks.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        let file = File::create(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.0.unlock(); // closing it releases it as well, if later
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_with_its_owner_although_a_child_still_has_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let owner = Lock::take(&path).unwrap().expect("nobody holds it");
        assert!(Lock::take(&path).unwrap().is_none(), "one owner at a time");
        // What a child has between its start and its program: the same open file.
        let copy = owner.0.try_clone().unwrap();
        drop(owner);
        assert!(Lock::take(&path).unwrap().is_some());
        drop(copy);
    }
}
