use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::{Repository, RepositoryError, read};
use crate::durable::{self, DurableError, hex};
use crate::fleet::{Blob, Release, trust};

/// What went onto a stick.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Packed {
    pub releases: u64,
    pub files: u64,
    pub bytes: u64,
}

impl Repository {
    /// A copy for a site without a network: all metadata and manifests, and the content of the releases from `from` on.
    /// What `out` holds already is not copied again; `timestamp.json`, which makes it a repository, is written last.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn pack(&self, out: &Path, from: u64) -> Result<Packed, RepositoryError> {
        let present = self.present()?;
        let mut packed = Packed { releases: 0, files: 0, bytes: 0 };
        let mut wanted = BTreeSet::new();
        for (name, target) in &present.targets.signed.targets {
            let Some(counter) = trust::counter_in(name.raw()) else { continue };
            let path = self.target(&hex(&target.hashes.sha256), name.raw());
            if counter >= from {
                let release: Release = read(&path)?;
                wanted.extend(release.blobs().map(Blob::file_name));
                packed.releases += 1;
            }
            wanted.insert(format!("{}.{}", hex(&target.hashes.sha256), name.raw()));
        }
        let listed = |folder: &Path| -> Result<Vec<_>, RepositoryError> {
            let entries = fs::read_dir(folder).map_err(DurableError::of("list", folder))?;
            Ok(entries.flatten().map(|file| file.file_name()).collect())
        };
        for folder in ["targets", "metadata"] {
            let (from, to) = (self.folder.join(folder), out.join(folder));
            durable::create_directory(&to)?;
            let mut names = listed(&from)?;
            names.sort_by_key(|name| name == "timestamp.json");
            for name in names {
                let is_wanted = folder == "metadata" || wanted.contains(&*name.to_string_lossy());
                let (source, target) = (from.join(&name), to.join(&name));
                // Under a hash or a version, the same name is the same content.
                if !is_wanted || (target.exists() && name != "timestamp.json") {
                    continue;
                }
                let bytes = fs::read(&source).map_err(DurableError::of("read", &source))?;
                durable::write_whole(&target, &bytes)?;
                packed.files += 1;
                packed.bytes += bytes.len() as u64;
            }
        }
        Ok(packed)
    }
}
