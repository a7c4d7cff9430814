use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::Ed25519KeyPair;
use tough::schema::key::Key as PublicKey;
use tough::schema::{Role, Root, Signature, Signed};
use tough::sign::{Sign, parse_keypair};

use super::RepositoryError;
use crate::durable::{self, hex};

/// Ends the name of a key's file.
const SUFFIX: &str = "key";

/// A private key from its file (PKCS #8: Ed25519, ECDSA on P-256 or RSA).
pub struct Key {
    path: PathBuf,
    pair: Box<dyn Sign>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Key {
    /// A new Ed25519 key in a new file that its owner alone can read.
    ///
    /// # Errors
    /// If the file is there, or the disk refuses.
    pub fn generate(path: &Path) -> Result<Self, RepositoryError> {
        let problem = |problem: String| RepositoryError::Key { path: path.to_owned(), problem };
        let pair = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| problem("the system gives no random numbers".to_owned()))?;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(path).map_err(|error| problem(error.to_string()))?;
        let written = file.write_all(pair.as_ref()).and_then(|()| file.sync_all());
        written.map_err(|error| problem(error.to_string()))?;
        durable::sync_directory(path.parent().unwrap_or(Path::new(".")))?;
        Self::read(path)
    }

    /// # Errors
    /// If it is no key, or others may read it.
    pub fn read(path: &Path) -> Result<Self, RepositoryError> {
        let problem = |problem: String| RepositoryError::Key { path: path.to_owned(), problem };
        let meta = fs::metadata(path).map_err(|error| problem(error.to_string()))?;
        if meta.permissions().mode() & 0o077 != 0 {
            let remedy = "others may read it; chmod 600, and change the key if they could";
            return Err(problem(remedy.to_owned()));
        }
        let bytes = fs::read(path).map_err(|error| problem(error.to_string()))?;
        let pair = parse_keypair(&bytes)
            .map_err(|_| problem("is no private key in PKCS #8".to_owned()))?;
        Ok(Self { path: path.to_owned(), pair: Box::new(pair) })
    }

    pub(super) fn public(&self) -> PublicKey {
        self.pair.tuf_key()
    }

    /// The hash that metadata names it by, hexadecimal.
    #[must_use]
    pub fn id(&self) -> String {
        hex(&key_id(&self.public()))
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

pub(super) fn key_id(key: &PublicKey) -> Vec<u8> {
    key.key_id().expect("a key's canonical form can be written").into_vec()
}

/// Keys that are at hand.
#[derive(Debug, Default)]
pub struct Keyring(BTreeMap<String, Key>);

impl Keyring {
    /// Files of keys, and folders of files that end in `.key`.
    ///
    /// # Errors
    /// If one of them is none.
    pub fn read(paths: &[PathBuf]) -> Result<Self, RepositoryError> {
        let mut keys = Self::default();
        for path in paths {
            if !path.is_dir() {
                keys.add(Key::read(path)?);
                continue;
            }
            let folder = fs::read_dir(path).map_err(|error| RepositoryError::Key {
                path: path.clone(),
                problem: error.to_string(),
            })?;
            let files = folder.flatten().map(|file| file.path());
            for file in files.filter(|file| file.extension().is_some_and(|e| e == SUFFIX)) {
                keys.add(Key::read(&file)?);
            }
        }
        Ok(keys)
    }

    pub fn add(&mut self, key: Key) {
        self.0.insert(key.id(), key);
    }

    /// `role` with the signatures of all keys at hand that one of `roots` names for it.
    pub(super) fn sign<T: Role>(
        &self,
        role: T,
        roots: &[&Root],
    ) -> Result<Signed<T>, RepositoryError> {
        let mut signed = Signed { signed: role, signatures: Vec::new() };
        self.add_signatures(&mut signed, roots)?;
        Ok(signed)
    }

    /// Adds the signatures that are missing. Returns how many were added.
    pub(super) fn add_signatures<T: Role>(
        &self,
        signed: &mut Signed<T>,
        roots: &[&Root],
    ) -> Result<usize, RepositoryError> {
        let text = signed.signed.canonical_form().expect("metadata is plain data");
        let mut added = 0;
        for key in self.0.values() {
            let id = key_id(&key.public());
            let of_role = roots.iter().filter_map(|root| root.roles.get(&T::TYPE));
            let is_named = of_role.flat_map(|keys| &keys.keyids).any(|known| **known == *id);
            let has_signed = signed.signatures.iter().any(|other| *other.keyid == *id);
            if !is_named || has_signed {
                continue;
            }
            let sig = block_on(key.pair.sign(&text, &SystemRandom::new()));
            let sig = sig.map_err(|error| RepositoryError::Key {
                path: key.path.clone(),
                problem: error.to_string(),
            })?;
            signed.signatures.push(Signature { keyid: id.into(), sig: sig.into() });
            added += 1;
        }
        Ok(added)
    }
}

/// Signing with a key in memory waits for nothing.
fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime without threads and drivers can be made").block_on(future)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root-1.key");
        let key = Key::generate(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Key::read(&path).unwrap().id(), key.id());
        assert!(Key::generate(&path).is_err(), "a key is never written over");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Key::read(&path).unwrap_err().to_string().contains("chmod 600"));
        fs::write(folder.path().join("no.key"), "no key").unwrap();
        assert!(Keyring::read(&[folder.path().to_owned()]).is_err());
    }
}
