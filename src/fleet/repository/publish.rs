use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;

use tough::schema::{RoleType, Root, Signed, Target, Targets};

use super::{
    Keyring, Repository, RepositoryError, SPEC_VERSION, Validity, after, complete, expiry, hashes,
    in_force, name, read, write_json,
};
use crate::domain::Fault;
use crate::durable::{self, DurableError, hex};
use crate::fleet::{Blob, Release, trust};

/// A release that is to be published, and where its content lies now.
#[derive(Debug)]
pub struct Draft {
    /// A counter of 0 stands for the next.
    pub release: Release,
    pub blobs: BTreeMap<String, PathBuf>,
}

/// What became of something that takes signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Devices see it.
    InForce,
    /// It waits for the signatures that are lacking.
    Pending { role: String, have: usize, needed: u64 },
}

impl Repository {
    /// Stores the release's content and puts it in force, or lets it wait for signatures.
    ///
    /// # Errors
    /// If it is faulty or its counter does not grow. Devices see nothing of it then.
    pub fn publish(
        &self,
        draft: Draft,
        keys: &Keyring,
        validity: Validity,
    ) -> Result<(u64, State), RepositoryError> {
        self.refuse_pending()?;
        in_force(&self.root.signed)?;
        let present = self.present()?;
        let Draft { mut release, blobs } = draft;
        let counters = present.targets.signed.targets.keys();
        let newest = counters.filter_map(|name| trust::counter_in(name.raw())).max().unwrap_or(0);
        if release.counter == 0 {
            release.counter = newest + 1;
        }
        let counter = release.counter;
        if counter <= newest {
            return Err(RepositoryError::Counter { counter, newest });
        }
        if let Some(fault) = release.faults().into_iter().next() {
            return Err(RepositoryError::Fault { key: fault.key, problem: fault.problem });
        }
        let mut targets = Targets {
            version: after(Some(present.targets.signed.version)),
            expires: expiry(validity.targets),
            ..present.targets.signed.clone()
        };
        for blob in release.blobs() {
            self.keep(blob, &blobs)?;
            let sha256 = unhex(&blob.sha256).into();
            let hashes = tough::schema::Hashes { sha256, _extra: HashMap::new() };
            targets.targets.insert(name(blob.target()), target(blob.length, hashes));
        }
        let manifest = serde_json::to_vec_pretty(&release).expect("a release is plain data");
        let of_manifest = hashes(&manifest);
        let manifest_name = format!("release-{counter}.json");
        let path = self.target(&hex(&of_manifest.sha256), &manifest_name);
        durable::write_whole(&path, &manifest)?;
        let length = manifest.len() as u64;
        targets.targets.insert(name(manifest_name), target(length, of_manifest));
        let signed = keys.sign(targets, &[&self.root.signed])?;
        Ok((counter, self.settle(signed, keys, validity)?))
    }

    /// Everything that would keep a release of this name from being published here. `counter` 0 stands for the next.
    ///
    /// # Errors
    /// If something of the repository cannot be read.
    pub fn obstacles(&self, name: &str, counter: u64) -> Result<Vec<Fault>, RepositoryError> {
        let mut faults = Vec::new();
        let as_fault = |error: RepositoryError| Fault::new("repository", error.to_string());
        let held = [self.refuse_pending(), in_force(&self.root.signed)];
        faults.extend(held.into_iter().filter_map(Result::err).map(as_fault));
        let releases = self.summary()?.releases;
        let newest = releases.keys().last().copied().unwrap_or(0);
        if counter != 0 && counter <= newest {
            let problem = format!("is {counter}, and the newest in the repository is {newest}");
            faults.push(Fault::new("counter", format!("{problem}; it must grow")));
        }
        if let Some((other, _)) = releases.iter().find(|(_, known)| *known == name) {
            let problem =
                format!("{name:?} is the name of release {other} already; choose another");
            faults.push(Fault::new("name", problem));
        }
        Ok(faults)
    }

    /// Adds the signatures of `keys` to what waits, and puts it in force if that is enough.
    ///
    /// # Errors
    /// If nothing waits.
    pub fn add_signatures(
        &mut self,
        keys: &Keyring,
        validity: Validity,
    ) -> Result<State, RepositoryError> {
        if self.pending(RoleType::Root).exists() {
            let mut root: Signed<Root> = read(&self.pending(RoleType::Root))?;
            let new = root.signed.clone();
            keys.add_signatures(&mut root, &[&self.root.signed, &new])?;
            return self.settle_root(root, keys, validity);
        }
        let path = self.pending(RoleType::Targets);
        if !path.exists() {
            return Err(RepositoryError::NothingPending);
        }
        let mut targets: Signed<Targets> = read(&path)?;
        keys.add_signatures(&mut targets, &[&self.root.signed])?;
        self.settle(targets, keys, validity)
    }

    /// Puts targets in force if they are signed well enough and the keys for the rest are there; otherwise they wait.
    pub(super) fn settle(
        &self,
        targets: Signed<Targets>,
        keys: &Keyring,
        validity: Validity,
    ) -> Result<State, RepositoryError> {
        let path = self.pending(RoleType::Targets);
        let present = self.present()?;
        let in_force = complete(&self.root.signed, &targets)
            .and_then(|()| self.put_in_force(&self.root, &targets, Some(&present), keys, validity));
        match in_force {
            Ok(()) => remove_pending(&path).map(|()| State::InForce),
            Err(RepositoryError::Signatures { role, needed, have }) => {
                durable::create_directory(&self.folder.join("pending"))?;
                write_json(&path, &targets)?;
                Ok(State::Pending { role, have, needed })
            }
            Err(other) => Err(other),
        }
    }

    pub(super) fn refuse_pending(&self) -> Result<(), RepositoryError> {
        for (role, what) in [(RoleType::Root, "a root"), (RoleType::Targets, "a release")] {
            if self.pending(role).exists() {
                return Err(RepositoryError::Pending { what });
            }
        }
        Ok(())
    }

    /// Stores a blob under its hash, unless it is there.
    fn keep(&self, blob: &Blob, files: &BTreeMap<String, PathBuf>) -> Result<(), RepositoryError> {
        let path = self.target(&blob.sha256, &blob.target());
        if path.exists() {
            return Ok(());
        }
        let source = files.get(&blob.sha256).ok_or_else(|| RepositoryError::Fault {
            key: "bundles".to_owned(),
            problem: format!("names {}, which is not at hand", blob.sha256),
        })?;
        let bytes = fs::read(source).map_err(DurableError::of("read", source))?;
        if hex(&hashes(&bytes).sha256) != blob.sha256 {
            let (path, sha256) = (source.clone(), blob.sha256.clone());
            return Err(RepositoryError::Changed { path, sha256 });
        }
        Ok(durable::write_whole(&path, &bytes)?)
    }

    /// The first targets: none.
    pub(super) fn no_targets(validity: Validity) -> Targets {
        Targets {
            spec_version: SPEC_VERSION.to_owned(),
            version: after(None),
            expires: expiry(validity.targets),
            targets: HashMap::new(),
            delegations: None,
            _extra: HashMap::new(),
        }
    }
}

pub(super) fn remove_pending(path: &std::path::Path) -> Result<(), RepositoryError> {
    if path.exists() {
        fs::remove_file(path).map_err(DurableError::of("remove", path))?;
    }
    Ok(())
}

fn target(length: u64, hashes: tough::schema::Hashes) -> Target {
    Target { length, hashes, custom: HashMap::new(), _extra: HashMap::new() }
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap_or(0);
    (0..text.len() / 2).map(|at| digit(2 * at)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_reads_back() {
        assert_eq!(unhex(&hex(&[0, 1, 0xab, 0xff])), [0, 1, 0xab, 0xff]);
    }
}
