//! Checkpoint folders that a crash leaves whole: the old one or the new one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{TrainError, tools::file};

pub(super) fn read_floats(path: &Path, count: usize) -> Result<Vec<f32>, TrainError> {
    let bytes = fs::read(path).map_err(|e| file(path, &e))?;
    if bytes.len() != 4 * count {
        let reason = format!(
            "has {} bytes for {count} parameters; the run's parameters changed",
            bytes.len()
        );
        return Err(TrainError::File { path: path.into(), reason });
    }
    Ok(bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().expect("chunks of four")))
        .collect())
}

pub(super) fn sync(path: &Path) -> Result<(), TrainError> {
    fs::File::open(path).and_then(|f| f.sync_all()).map_err(|e| file(path, &e))
}

/// Where a checkpoint stands while its successor takes its place.
fn previous(last: &Path) -> PathBuf {
    last.with_file_name(".previous")
}

/// After a crash between the two renames of [`swap`], the earlier checkpoint is still the last one.
pub(super) fn recover(last: &Path) -> Result<(), TrainError> {
    let aside = previous(last);
    if aside.is_dir() && !last.exists() {
        fs::rename(&aside, last).map_err(|e| file(last, &e))?;
    }
    Ok(())
}

/// Puts folder `new` in the place of `old`.
pub(super) fn swap(new: &Path, old: &Path) -> Result<(), TrainError> {
    let aside = previous(old);
    let _ = fs::remove_dir_all(&aside);
    if old.exists() {
        fs::rename(old, &aside).map_err(|e| file(old, &e))?;
    }
    fs::rename(new, old).map_err(|e| file(old, &e))?;
    let _ = fs::remove_dir_all(&aside);
    Ok(())
}
