use std::collections::HashMap;
use std::fs;
use std::num::NonZeroU64;
use std::path::Path;

use tough::schema::{RoleKeys, RoleType, Root, Signed, Targets};

use super::keys::key_id;
use super::publish::remove_pending;
use super::{
    Key, Keyring, Repository, RepositoryError, SPEC_VERSION, State, Validity, after, complete,
    expiry, write_json,
};
use crate::durable::{self, DurableError, hex};

/// Keys of a new repository's roles, and how many of each it takes.
#[derive(Debug)]
pub struct Roles {
    pub root: (Vec<Key>, u64),
    pub targets: (Vec<Key>, u64),
    pub snapshot: Key,
    pub timestamp: Key,
}

/// What is changed about a role.
#[derive(Debug)]
pub struct Change {
    pub role: RoleType,
    /// Key ids or their beginnings.
    pub remove: Vec<String>,
    pub add: Vec<Key>,
    pub threshold: Option<u64>,
}

impl Repository {
    /// A new repository without releases.
    ///
    /// # Errors
    /// If there is something in the folder, or a role lacks keys.
    pub fn init(folder: &Path, roles: Roles, validity: Validity) -> Result<Self, RepositoryError> {
        durable::create_directory(folder)?;
        let mut there = fs::read_dir(folder).map_err(DurableError::of("list", folder))?;
        if there.next().is_some() {
            return Err(RepositoryError::Exists { path: folder.to_owned() });
        }
        let Roles { root: (root_keys, root_of), targets: (keys, of), snapshot, timestamp } = roles;
        let mut root = Root {
            spec_version: SPEC_VERSION.to_owned(),
            consistent_snapshot: true,
            version: NonZeroU64::MIN,
            expires: expiry(validity.root),
            keys: HashMap::new(),
            roles: HashMap::new(),
            _extra: HashMap::new(),
        };
        let mut ring = Keyring::default();
        let of_role = [
            (RoleType::Root, root_keys, root_of),
            (RoleType::Targets, keys, of),
            (RoleType::Snapshot, vec![snapshot], 1),
            (RoleType::Timestamp, vec![timestamp], 1),
        ];
        for (role, keys, threshold) in of_role {
            let keyids = keys.iter().map(|key| key_id(&key.public()).into()).collect();
            let threshold = threshold_of(role, threshold, keys.len())?;
            root.roles.insert(role, RoleKeys { keyids, threshold, _extra: HashMap::new() });
            for key in keys {
                root.keys.insert(key_id(&key.public()).into(), key.public());
                ring.add(key);
            }
        }
        let root = ring.sign(root.clone(), &[&root])?;
        complete(&root.signed, &root)?;
        for name in ["metadata", "targets"] {
            durable::create_directory(&folder.join(name))?;
        }
        let repository = Self { folder: folder.to_owned(), root };
        let targets = ring.sign(Self::no_targets(validity), &[&repository.root.signed])?;
        repository.put_in_force(&repository.root, &targets, None, &ring, validity)?;
        Ok(repository)
    }

    /// The next root, with `change`, signed by keys of the one before and of its own; what the new root no longer
    /// covers is signed anew with `keys`.
    ///
    /// # Errors
    /// If the change makes no sense. What lacks signatures waits.
    pub fn rotate(
        &mut self,
        change: Change,
        keys: &mut Keyring,
        validity: Validity,
    ) -> Result<State, RepositoryError> {
        self.refuse_pending()?;
        let Change { role, remove, add, threshold } = change;
        let mut root = Root {
            version: after(Some(self.root.signed.version)),
            expires: expiry(validity.root),
            ..self.root.signed.clone()
        };
        let wrong = |text: String| Err(RepositoryError::Change(text));
        let Some(of_role) = root.roles.get_mut(&role) else {
            return wrong(format!("there is no role {role}"));
        };
        for id in remove {
            let before = of_role.keyids.len();
            of_role.keyids.retain(|known| !hex(known).starts_with(&id));
            match before - of_role.keyids.len() {
                1 => {}
                0 => return wrong(format!("{role} has no key {id}")),
                _ => return wrong(format!("{id} begins several keys of {role}; give more of it")),
            }
        }
        for key in add {
            let id = key_id(&key.public());
            if !of_role.keyids.iter().any(|known| **known == *id) {
                of_role.keyids.push(id.clone().into());
            }
            root.keys.insert(id.into(), key.public());
            keys.add(key);
        }
        let threshold = threshold.unwrap_or(of_role.threshold.get());
        of_role.threshold = threshold_of(role, threshold, of_role.keyids.len())?;
        let used: Vec<_> = root.roles.values().flat_map(|role| role.keyids.clone()).collect();
        root.keys.retain(|id, _| used.contains(id));
        let root = keys.sign(root.clone(), &[&self.root.signed, &root])?;
        self.settle_root(root, keys, validity)
    }

    /// Puts a root in force, and with it everything that it covers.
    pub(super) fn settle_root(
        &mut self,
        root: Signed<Root>,
        keys: &Keyring,
        validity: Validity,
    ) -> Result<State, RepositoryError> {
        let path = self.pending(RoleType::Root);
        match self.put_root_in_force(&root, keys, validity) {
            Ok(()) => {
                self.root = root;
                remove_pending(&path).map(|()| State::InForce)
            }
            Err(RepositoryError::Signatures { role, needed, have }) => {
                durable::create_directory(&self.folder.join("pending"))?;
                write_json(&path, &root)?;
                Ok(State::Pending { role, have, needed })
            }
            Err(other) => Err(other),
        }
    }

    fn put_root_in_force(
        &self,
        root: &Signed<Root>,
        keys: &Keyring,
        validity: Validity,
    ) -> Result<(), RepositoryError> {
        complete(&self.root.signed, root)?;
        complete(&root.signed, root)?;
        let present = self.present()?;
        let mut targets: Signed<Targets> = present.targets.clone();
        if complete(&root.signed, &targets).is_err() {
            let version = after(Some(targets.signed.version));
            let expires = expiry(validity.targets);
            targets = keys.sign(Targets { version, expires, ..targets.signed }, &[&root.signed])?;
        }
        self.put_in_force(root, &targets, Some(&present), keys, validity)
    }
}

fn threshold_of(
    role: RoleType,
    threshold: u64,
    keys: usize,
) -> Result<NonZeroU64, RepositoryError> {
    NonZeroU64::new(threshold).filter(|needed| needed.get() <= keys as u64).ok_or_else(|| {
        RepositoryError::Change(format!(
            "{role} has {keys} keys; it cannot take {threshold} of them"
        ))
    })
}
