//! TensorRT's engines on the disk: a folder for each model, runtime and device, and the mark that it is whole.
//!
//! TensorRT itself writes the engines and finds them again; a build that was cut off may leave some of them, or half of
//! one. The mark is written last and names every file with its SHA-256. A folder without it, or that differs from it, is
//! emptied and built again.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{Graphs, Options, Provider, Runtime};
use crate::{
    durable::{self, DurableError, hex},
    telemetry::machine::Machine,
};

const MARK: &str = "complete.json";

/// The folder of one model's engines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engines {
    folder: PathBuf,
}

impl Engines {
    /// `None` where nothing is kept: other providers, or no folder to keep it in.
    #[must_use]
    pub fn of(runtime: &Runtime, graphs: &Graphs, options: &Options) -> Option<Self> {
        let cache = runtime.cache.as_deref()?;
        let digests =
            [&graphs.condition, &graphs.denoiser].map(|graph| Sha256::digest(graph).into());
        (options.provider == Provider::TensorRt)
            .then(|| Self::at(cache, &digests, runtime.build, &device(options.device)))
    }

    fn at(cache: &Path, graphs: &[[u8; 32]; 2], build: &str, device: &str) -> Self {
        let mut hash = Sha256::new();
        let program = env!("CARGO_PKG_VERSION");
        for part in
            [&graphs[0], &graphs[1], build.as_bytes(), device.as_bytes(), program.as_bytes()]
        {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self { folder: cache.join("tensorrt").join(hex(&hash.finalize())) }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What TensorRT learned of kernels' times on this device; all models share it.
    pub(super) fn timings(&self) -> &Path {
        self.folder.parent().expect("engines lie in a folder of the cache")
    }

    /// Whether all engines are there as they were built.
    #[must_use]
    pub fn are_whole(&self) -> bool {
        let mark = fs::read(self.folder.join(MARK)).ok();
        let listed = mark.and_then(|text| serde_json::from_slice::<BTreeMap<_, _>>(&text).ok());
        listed.is_some_and(|listed| {
            !listed.is_empty() && self.files().is_ok_and(|found| found == listed)
        })
    }

    /// Makes the folder, without what a build that was cut off left in it.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn clear(&self) -> Result<(), DurableError> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(DurableError::of("empty the folder", &self.folder)(error));
            }
            _ => {}
        }
        fs::create_dir_all(&self.folder).map_err(DurableError::of("make the folder", &self.folder))
    }

    /// Marks what was built as whole.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn seal(&self) -> Result<(), DurableError> {
        let files = self.files().map_err(DurableError::of("read", &self.folder))?;
        for name in files.keys() {
            let path = self.folder.join(name);
            let synced = fs::File::open(&path).and_then(|file| file.sync_all());
            synced.map_err(DurableError::of("sync", path))?;
        }
        let mark = serde_json::to_vec(&files).expect("names and digests serialise");
        durable::write_whole(&self.folder.join(MARK), &mark)
    }

    /// Each file but the mark with its SHA-256.
    fn files(&self) -> std::io::Result<BTreeMap<String, String>> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != MARK {
                files.insert(name, hex(&Sha256::digest(fs::read(entry.path())?)));
            }
        }
        Ok(files)
    }
}

/// What an engine is bound to: the GPU's model, its driver or board release, the processor's kind.
fn device(ordinal: i32) -> String {
    let machine = Machine::read();
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let gpu = usize::try_from(ordinal).ok().and_then(|ordinal| machine.gpus.get(ordinal).cloned());
    [
        gpu.unwrap_or_else(|| machine.processor.clone()),
        ordinal.to_string(),
        read("/proc/driver/nvidia/version"),
        read("/etc/nv_tegra_release"),
        std::env::consts::ARCH.to_owned(),
    ]
    .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_count_as_built_only_whole_and_unchanged() {
        let cache = tempfile::tempdir().unwrap();
        let of = |build, device| Engines::at(cache.path(), &[[1; 32], [2; 32]], build, device);
        let engines = of("1.32", "orin");
        assert!(!engines.are_whole());
        engines.clear().unwrap();
        let engine = engines.folder().join("cdal_0.engine");
        fs::write(&engine, b"engine").unwrap();
        assert!(!engines.are_whole(), "a build that was cut off");
        engines.seal().unwrap();
        assert!(engines.are_whole());
        for other in [
            of("1.33", "orin"),
            of("1.32", "xavier"),
            Engines::at(cache.path(), &[[1; 32], [3; 32]], "1.32", "orin"),
        ] {
            assert!(!other.are_whole());
        }

        fs::write(&engine, b"engin").unwrap();
        assert!(!engines.are_whole(), "damage");
        engines.clear().unwrap();
        assert!(!engine.exists());
        engines.seal().unwrap();
        assert!(!engines.are_whole(), "nothing was built");
    }
}
