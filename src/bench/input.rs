use std::path::{Path, PathBuf};

use ndarray::{Array4, Axis, s};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{BenchError, report};
use crate::bundle::{InputKind, Manifest};
use crate::codec::{self, Case, dicom};
use crate::domain::Volume;
use crate::durable::{hex, write_whole};
use crate::phantom::phantom;

/// Seed of the case that is made where none is given.
const SEED: u64 = 1;
/// Rows and columns of the picture for a model that takes single images.
const PICTURE: usize = 256;

/// The cases that are measured, in turn: one for each path.
#[derive(Debug)]
pub struct Inputs {
    pub paths: Vec<PathBuf>,
    pub facts: report::Input,
    /// Holds what was made.
    _made: Option<TempDir>,
}

impl Inputs {
    /// Each of `paths` must hold one case.
    ///
    /// # Errors
    /// If one holds none or several, or cannot be read.
    pub fn open(paths: &[PathBuf]) -> Result<Self, BenchError> {
        let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        Self::new(paths.to_owned(), names.join(", "), None)
    }

    /// A phantom as a DICOM series, or a slice of it enlarged to 256 x 256 where the model takes single images.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn made_for(manifest: &Manifest) -> Result<Self, BenchError> {
        let mut volume = phantom(SEED).volume;
        let mut name = format!("phantom of seed {SEED}");
        if manifest.input.kind == InputKind::Image {
            volume = picture(&volume);
            name = format!("slice of the {name}, {PICTURE} x {PICTURE}");
        }
        let scratch = tempfile::tempdir().map_err(BenchError::Scratch)?;
        for (number, file) in dicom::encode_mr_series(&volume, SEED)?.iter().enumerate() {
            write_whole(&scratch.path().join(format!("{:03}.dcm", number + 1)), file)?;
        }
        Self::new(vec![scratch.path().to_owned()], name, Some(scratch))
    }

    fn new(paths: Vec<PathBuf>, name: String, made: Option<TempDir>) -> Result<Self, BenchError> {
        let mut hash = Sha256::new();
        let mut shapes = Vec::with_capacity(paths.len());
        for path in &paths {
            let [_, slices, rows, columns] = *one_case(path)?.volume.samples.shape() else {
                unreachable!("a volume has four axes")
            };
            shapes.push([slices, rows, columns]);
            for file in files(path)? {
                let bytes = std::fs::read(&file).map_err(BenchError::Scratch)?;
                hash.update((bytes.len() as u64).to_le_bytes());
                hash.update(bytes);
            }
        }
        let facts = report::Input { name, sha256: hex(&hash.finalize()), shapes };
        Ok(Self { paths, facts, _made: made })
    }

    /// Path of the case that query `number` asks for.
    #[must_use]
    pub fn of(&self, number: usize) -> &Path {
        &self.paths[number % self.paths.len()]
    }
}

/// # Errors
/// If `path` holds none or several, or cannot be read.
pub(super) fn one_case(path: &Path) -> Result<Case, BenchError> {
    let mut cases = codec::read(path)?;
    if let (Some(case), true) = (cases.pop(), cases.is_empty()) {
        return Ok(case);
    }
    Err(BenchError::SeveralCases { path: path.to_owned() })
}

/// The file, or the files of the folder by name.
pub(super) fn files(path: &Path) -> Result<Vec<PathBuf>, BenchError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(BenchError::Scratch)?;
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    Ok(files)
}

/// The middle slice, every pixel repeated.
fn picture(volume: &Volume) -> Volume {
    let slice = volume.samples.slice(s![0..1, volume.samples.len_of(Axis(1)) / 2, .., ..]);
    let (rows, columns) = (slice.len_of(Axis(1)), slice.len_of(Axis(2)));
    let samples = Array4::from_shape_fn((1, 1, PICTURE, PICTURE), |(_, _, y, x)| {
        slice[[0, y * rows / PICTURE, x * columns / PICTURE]]
    });
    Volume { samples, ..volume.clone() }
}
