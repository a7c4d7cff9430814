use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::CollectError;
use crate::durable::hex;
use crate::fleet::Release;

/// Of one manifest, bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Manifests that are read.
const MAX_FILES: usize = 10_000;

/// The manifests in `folder` with their digests. The collector installs nothing, so it takes its operator's files at
/// their word; a device follows a manifest only when the signature is right, and names it by the digest.
pub(super) fn read(folder: &Path) -> Result<Vec<(String, Release)>, CollectError> {
    let wrong = |problem: String| CollectError::Releases { path: folder.to_owned(), problem };
    let entries = std::fs::read_dir(folder).map_err(|error| wrong(error.to_string()))?;
    let mut releases = Vec::new();
    // In a repository's folder of targets the models' files lie beside them.
    let paths = entries.flatten().map(|entry| entry.path());
    let manifests = paths.filter(|path| path.extension().is_some_and(|end| end == "json"));
    for path in manifests.take(MAX_FILES) {
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes));
        let parsed = read
            .map_err(|error| error.to_string())
            .and_then(|_| serde_json::from_slice(&bytes).map_err(|error| error.to_string()));
        match parsed {
            Ok(release) => releases.push((hex(&Sha256::digest(&bytes)), release)),
            // One that is being written, or none of ours, must not keep the others away.
            Err(error) => tracing::warn!(path = %path.display(), %error, "no release"),
        }
    }
    Ok(releases)
}
