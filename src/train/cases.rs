//! Cases of a folder, for training and held back; the faults of all of them are told at once.

use std::path::Path;

use ndarray::Array3;

use super::{Example, Held, TrainError};
use crate::{
    bundle::{BundleError, Manifest},
    domain::Volume,
    truth::{Dataset, Split},
};

/// The cases that `split` lists under `train`, and the first `validation_cases` under `val`, as `hold` makes them of
/// name, image and truth.
///
/// # Errors
/// All that keeps cases of the folder from being trained or validated on.
pub(super) fn read(
    manifest: &Manifest,
    folder: &Path,
    split: &Path,
    validation_cases: usize,
    hold: impl Fn(String, Volume, Array3<u8>) -> Result<Held, BundleError>,
) -> Result<(Vec<Example>, Vec<Held>), TrainError> {
    let mut cases = Cases { manifest, folder, split, faults: Vec::new() };
    let examples =
        cases.part("train", usize::MAX, |_, volume, truth| Example::new(manifest, &volume, &truth));
    let held = cases.part("val", validation_cases, hold);
    if cases.faults.is_empty() {
        Ok((examples, held))
    } else {
        Err(TrainError::Cases(cases.faults))
    }
}

struct Cases<'a> {
    manifest: &'a Manifest,
    folder: &'a Path,
    split: &'a Path,
    faults: Vec<String>,
}

impl Cases<'_> {
    /// The first `limit` cases of a part of the split, as `make` makes them of name, image and truth.
    fn part<T>(
        &mut self,
        name: &str,
        limit: usize,
        make: impl Fn(String, Volume, Array3<u8>) -> Result<T, BundleError>,
    ) -> Vec<T> {
        if limit == 0 {
            return Vec::new();
        }
        let split = Split { file: self.split.into(), name: name.into() };
        let dataset = match Dataset::open(self.folder, Some(split), Some(limit)) {
            Ok(dataset) => dataset,
            Err(fault) => {
                self.faults.push(fault.to_string());
                return Vec::new();
            }
        };
        let mut made = Vec::with_capacity(dataset.pairs.len());
        for pair in dataset.pairs {
            let case = pair.read(&self.manifest.labels).map_err(|fault| fault.to_string());
            let case = case.and_then(|(volume, truth)| {
                make(pair.stem.clone(), volume, truth)
                    .map_err(|fault| format!("{}: {fault}", pair.stem))
            });
            match case {
                Ok(case) => made.push(case),
                Err(fault) => self.faults.push(fault),
            }
        }
        made
    }
}
