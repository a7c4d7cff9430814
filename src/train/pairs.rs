//! Images and their label masks from a folder.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ndarray::Array3;
use serde::Deserialize;

use super::{TrainError, tools::file};
use crate::{bundle::Manifest, codec, domain::Volume};

#[derive(Deserialize)]
struct Split {
    train: Vec<String>,
    val: Vec<String>,
}

/// Stems to train on and to validate on.
pub(super) fn split(path: &Path) -> Result<(Vec<String>, Vec<String>), TrainError> {
    let text = fs::read(path).map_err(|e| file(path, &e))?;
    let split: Split = serde_json::from_slice(&text)
        .map_err(|e| TrainError::File { path: path.into(), reason: e.to_string() })?;
    if split.train.is_empty() {
        let reason = "names no case to train on".to_owned();
        return Err(TrainError::File { path: path.into(), reason });
    }
    Ok((split.train, split.val))
}

/// Image and label of one stem, on one grid.
pub(super) fn read(
    manifest: &Manifest,
    folder: &Path,
    stem: &str,
) -> Result<(Volume, Array3<u8>), TrainError> {
    let image = find(&folder.join("images"), stem)?;
    let label = find(&folder.join("labels"), stem)?;
    let mut cases = codec::read(&image)?;
    if cases.len() != 1 {
        let reason = format!("holds {} cases where one is expected", cases.len());
        return Err(TrainError::File { path: image, reason });
    }
    let volume = cases.remove(0).volume;
    let truth = codec::nifti::read_mask(&label)?;
    let (_, d, h, w) = volume.samples.dim();
    if truth.dim() != (d, h, w) {
        let reason =
            format!("is {:?}, its image {:?} (slices, rows, columns)", truth.dim(), (d, h, w));
        return Err(TrainError::File { path: label, reason });
    }
    let largest = manifest.labels.len();
    if let Some(value) = truth.iter().find(|&&value| usize::from(value) > largest) {
        let reason = format!("has label value {value}; the model knows 1 to {largest}");
        return Err(TrainError::File { path: label, reason });
    }
    Ok((volume, truth))
}

fn find(folder: &Path, stem: &str) -> Result<PathBuf, TrainError> {
    let names = [format!("{stem}.nii.gz"), format!("{stem}.nii"), stem.to_owned()];
    names.iter().map(|name| folder.join(name)).find(|path| path.exists()).ok_or_else(|| {
        let reason = format!("has no {}", names.join(" or "));
        TrainError::File { path: folder.into(), reason }
    })
}
