//! Cases of a folder, for training and held back; the faults of all of them are told at once.

use std::path::Path;

use ndarray::Array3;

use super::{Example, Held, TrainError};
use crate::{
    bundle::{BundleError, Manifest},
    domain::Volume,
    truth::{Dataset, Pair, Split},
};

/// The cases that `split` lists under `train`, and the first `validation_cases` under `val`, as `hold` makes them of
/// name, image and truth. Without a split, `validation_cases` of all, evenly spread over the order of their names, are held
/// back.
///
/// # Errors
/// All that keeps cases of the folder from being trained or validated on.
pub(super) fn read(
    manifest: &Manifest,
    folder: &Path,
    split: Option<&Path>,
    validation_cases: usize,
    hold: impl Fn(String, Volume, Array3<u8>) -> Result<Held, BundleError>,
) -> Result<(Vec<Example>, Vec<Held>), TrainError> {
    let mut cases = Cases { manifest, faults: Vec::new() };
    let (train, val) = match split {
        Some(split) => {
            let mut part = |name: &str, limit| cases.part(folder, split, name, limit);
            (part("train", usize::MAX), part("val", validation_cases))
        }
        None => divide(Dataset::open(folder, None, None)?.pairs, validation_cases)?,
    };
    let examples = cases.each(train, |_, volume, truth| Example::new(manifest, &volume, &truth));
    let held = cases.each(val, hold);
    if cases.faults.is_empty() {
        Ok((examples, held))
    } else {
        Err(TrainError::Cases(cases.faults))
    }
}

/// Cases to train on, and `count` to validate on.
fn divide(all: Vec<Pair>, count: usize) -> Result<(Vec<Pair>, Vec<Pair>), TrainError> {
    let total = all.len();
    if count >= total {
        return Err(TrainError::Config(format!(
            "data.validation_cases is {count}, and the folder holds {total} cases; leave at least one to train on"
        )));
    }
    // The n-th is held back where a multiple of the distance between two of them falls on it.
    let is_held = |at: usize| (at + 1) * count / total > at * count / total;
    let (val, train): (Vec<_>, Vec<_>) =
        all.into_iter().enumerate().partition(|(at, _)| is_held(*at));
    let pairs = |numbered: Vec<(usize, Pair)>| numbered.into_iter().map(|(_, pair)| pair).collect();
    Ok((pairs(train), pairs(val)))
}

struct Cases<'a> {
    manifest: &'a Manifest,
    faults: Vec<String>,
}

impl Cases<'_> {
    /// The first `limit` pairs of a part of the split.
    fn part(&mut self, folder: &Path, split: &Path, name: &str, limit: usize) -> Vec<Pair> {
        if limit == 0 {
            return Vec::new();
        }
        let split = Split { file: split.into(), name: name.into() };
        match Dataset::open(folder, Some(split), Some(limit)) {
            Ok(dataset) => dataset.pairs,
            Err(fault) => {
                self.faults.push(fault.to_string());
                Vec::new()
            }
        }
    }

    /// What `make` makes of name, image and truth of each pair.
    fn each<T>(
        &mut self,
        pairs: Vec<Pair>,
        make: impl Fn(String, Volume, Array3<u8>) -> Result<T, BundleError>,
    ) -> Vec<T> {
        let mut made = Vec::with_capacity(pairs.len());
        for pair in pairs {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_split_cases_are_held_back_evenly_and_one_is_left() {
        let pair = |n: usize| Pair {
            stem: n.to_string(),
            image: n.to_string().into(),
            label: n.to_string().into(),
        };
        let all: Vec<_> = (0..10).map(pair).collect();
        let (train, val) = divide(all.clone(), 2).unwrap();
        let stems = |pairs: &[Pair]| pairs.iter().map(|p| p.stem.clone()).collect::<Vec<_>>();
        assert_eq!(stems(&val), ["4", "9"]);
        assert_eq!(stems(&train), ["0", "1", "2", "3", "5", "6", "7", "8"]);
        for count in 0..10 {
            let (train, val) = divide(all.clone(), count).unwrap();
            assert_eq!((train.len(), val.len()), (10 - count, count));
        }
        assert!(divide(all, 10).unwrap_err().to_string().contains("at least one to train on"));
    }
}
