use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{BundleError, FileDigest, Manifest, Variant};

/// A bundle whose files are the ones its manifest names, byte for byte.
#[derive(Debug, Clone)]
pub struct Bundle {
    pub manifest: Manifest,
    pub folder: PathBuf,
    /// SHA-256 of `bundle.toml`, which holds the digests of all else: the identity of the model.
    pub digest: String,
    /// Bytes of `condition.onnx` and `denoiser.onnx`.
    pub condition: Vec<u8>,
    pub denoiser: Vec<u8>,
    /// Bytes of the golden case.
    pub golden: Vec<u8>,
}

impl Bundle {
    /// Reads a bundle folder whole and checks every digest; the bytes that were checked are the ones used.
    ///
    /// # Errors
    /// If a file is missing or differs from its digest, or the manifest is not sound.
    pub fn open(folder: &Path) -> Result<Self, BundleError> {
        let path = folder.join("bundle.toml");
        let text = std::fs::read_to_string(&path)
            .map_err(|e| BundleError::Unreadable { path: path.clone(), reason: e.to_string() })?;
        let manifest = Manifest::parse(&text, &path)?;
        let missing = |what: &str| BundleError::Manifest {
            path: path.clone(),
            reason: format!("{what} is missing; this is a recipe, not a finished bundle"),
        };
        let files = manifest.graphs.as_ref().ok_or_else(|| missing("graphs"))?;
        let golden = manifest.golden.as_ref().ok_or_else(|| missing("golden"))?;
        let condition = read_checked(folder, &files.condition)?;
        let denoiser = read_checked(folder, &files.denoiser)?;
        let golden = read_checked(
            folder,
            &FileDigest { file: golden.file.clone(), sha256: golden.sha256.clone() },
        )?;
        Ok(Self {
            digest: hex(&Sha256::digest(text.as_bytes())),
            folder: folder.into(),
            manifest,
            condition,
            denoiser,
            golden,
        })
    }
}

impl Bundle {
    /// The graph of a variant, if its digest is right.
    ///
    /// # Errors
    /// If the file is missing or another one.
    pub fn variant(&self, variant: &Variant) -> Result<Vec<u8>, BundleError> {
        read_checked(&self.folder, &variant.denoiser)
    }
}

fn read_checked(folder: &Path, file: &FileDigest) -> Result<Vec<u8>, BundleError> {
    let inside = Path::new(&file.file).components().all(|c| matches!(c, Component::Normal(_)));
    let path = folder.join(&file.file);
    if !inside {
        return Err(BundleError::Manifest {
            path: folder.join("bundle.toml"),
            reason: format!("file {:?} lies outside the bundle", file.file),
        });
    }
    let bytes = std::fs::read(&path)
        .map_err(|e| BundleError::Unreadable { path: path.clone(), reason: e.to_string() })?;
    let found = hex(&Sha256::digest(&bytes));
    if found == file.sha256 {
        Ok(bytes)
    } else {
        Err(BundleError::Digest { path, found, expected: file.sha256.clone() })
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
