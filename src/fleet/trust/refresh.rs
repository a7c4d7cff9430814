//! The detailed client workflow of TUF 1.0 (section 5), without delegations.
//!
//! Invariants:
//! 1. A file is kept, and the floors raised, as soon as it is verified (5.3.8, 5.4.5, 5.5.7, 5.6.6). A failure further
//!    on takes nothing of that back: keys that a new root revoked stay revoked.
//! 2. No file is older than one that was kept, nor than the floors.
//! 3. Only what has not expired is used; an intermediate root may have (5.3.10).
//!
//! Called by `Trust` and `Client`.

use std::collections::BTreeMap;

use url::Url;

use super::floors::Floors;
use super::metadata::{Content, File, MetaFile, Role, Root, Snapshot, Target, Targets, Timestamp};
use super::source::SourceError;
use super::store::Store;
use super::{LIMITS, TrustError};

/// Gets a file of metadata, at most so many bytes.
pub(super) type Fetch<'a> = dyn Fn(&str, u64) -> Result<Vec<u8>, SourceError> + 'a;

/// One look at a repository.
pub(super) struct Refresh<'a> {
    pub store: &'a Store,
    pub fetch: &'a Fetch<'a>,
    /// Raised with every file that is verified.
    pub floors: Floors,
    pub now: jiff::Timestamp,
}

/// What the repository holds now.
pub(super) struct Refreshed {
    pub consistent_snapshot: bool,
    pub targets: BTreeMap<String, Target>,
}

impl Refreshed {
    /// Where the file of a target lies: consistent snapshots put a hash before its name (section 6.2).
    ///
    /// # Errors
    /// In words, if no hash of a kind that is known is listed.
    pub fn place(&self, folder: &Url, name: &str, target: &Target) -> Result<Url, String> {
        let hash = target.hash().ok_or("has neither a sha256 nor a sha512 listed")?;
        let (path, file) = name.rsplit_once('/').map_or((None, name), |(p, f)| (Some(p), f));
        let file = if self.consistent_snapshot { format!("{hash}.{file}") } else { file.into() };
        let mut url = folder.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path.into_iter().flat_map(|path| path.split('/')));
            segments.push(&file);
        }
        Ok(url)
    }
}

impl Refresh<'_> {
    /// `handed`: the root that the device was given, its own signatures verified.
    pub fn run(&mut self, handed: File<Root>) -> Result<Refreshed, TrustError> {
        let root = self.root(handed)?;
        let timestamp = self.timestamp(&root)?;
        let snapshot = self.snapshot(&root, &timestamp)?;
        let targets = self.targets(&root, &snapshot)?;
        let consistent_snapshot = root.content.consistent_snapshot;
        Ok(Refreshed { consistent_snapshot, targets: targets.content.targets })
    }

    /// From the newest root that is known to the newest that there is (5.3).
    fn root(&mut self, handed: File<Root>) -> Result<File<Root>, TrustError> {
        let mut root = handed;
        let kept = self.store.read::<Root>().filter(|kept| kept.content.verify(kept).is_ok());
        if let Some(kept) = kept.filter(|kept| kept.version > root.version) {
            root = kept;
        }
        self.settle(&root)?;
        let first = root.version;
        loop {
            if root.version - first >= LIMITS.new_roots {
                let many = LIMITS.new_roots;
                let words = format!("more than {many} new roots; the next look goes on from there");
                return Err(TrustError::Unreachable(words));
            }
            let name = format!("{}.root.json", root.version + 1);
            let bytes = match (self.fetch)(&name, LIMITS.root) {
                Ok(bytes) => bytes,
                // A store of objects whose folders may not be listed, such as S3, denies what it does not have.
                Err(SourceError::Missing(_) | SourceError::Denied(_)) => break,
                Err(error) => return Err(TrustError::Unreachable(error.to_string())),
            };
            let next = File::<Root>::read(&bytes).map_err(TrustError::Forged)?;
            if next.version != root.version + 1 {
                let problem = format!("{name} holds version {} of root.json", next.version);
                return Err(TrustError::Forged(problem));
            }
            for judge in [&root.content, &next.content] {
                let verified = judge.verify(&next);
                verified.map_err(|why| TrustError::Forged(format!("{name}: {why}")))?;
            }
            root = next;
            self.store.keep(&root)?;
            self.settle(&root)?;
        }
        if root.version < self.floors.root {
            return Err(rollback(Role::Root, root.version, self.floors.root));
        }
        self.check_expiry(&root)?;
        Ok(root)
    }

    /// Raises the floors to a root, or to one that was kept before a power cut kept the floors from it. Where the keys
    /// of `timestamp.json` or `snapshot.json` were changed, their versions begin anew: whoever had the old keys may have
    /// driven them up (5.3.11). Files that were kept count no more if their signatures do not: `kept`.
    fn settle(&mut self, root: &File<Root>) -> Result<(), TrustError> {
        let before = self.floors;
        self.floors.settle(root.version, root.content.online_keys());
        if self.floors == before {
            return Ok(());
        }
        Ok(self.store.keep_floors(&self.floors)?)
    }

    fn timestamp(&mut self, root: &File<Root>) -> Result<File<Timestamp>, TrustError> {
        let bytes = self.get("timestamp.json", LIMITS.timestamp)?;
        let mut new = verified::<Timestamp>(root, &bytes)?;
        if let Some(kept) = self.kept::<Timestamp>(root) {
            check_age(Role::Timestamp, new.version, kept.version)?;
            if new.version == kept.version {
                // Whatever it says: one version has one content, the one that was seen first (5.4.3).
                new = kept;
            } else {
                let [new, kept] = [&new, &kept].map(|file| file.content.snapshot.version);
                check_age(Role::Snapshot, new, kept)?;
            }
        }
        check_age(Role::Timestamp, new.version, self.floors.timestamp)?;
        check_age(Role::Snapshot, new.content.snapshot.version, self.floors.snapshot)?;
        self.believe(&new)?;
        Ok(new)
    }

    fn snapshot(
        &mut self,
        root: &File<Root>,
        timestamp: &File<Timestamp>,
    ) -> Result<File<Snapshot>, TrustError> {
        let meta = &timestamp.content.snapshot;
        let kept = self.kept::<Snapshot>(root);
        let new = match &kept {
            Some(kept) if is_named(kept, meta) => kept.clone(),
            _ => self.named::<Snapshot>(root, meta, LIMITS.snapshot)?,
        };
        if let Some(kept) = &kept {
            check_age(Role::Snapshot, new.version, kept.version)?;
            // 5.5.5: what was listed stays listed, and none of it becomes older.
            for (name, before) in &kept.content.all {
                let now = new.content.all.get(name).map(|meta| meta.version);
                if now.is_none_or(|now| now < before.version) {
                    let now = now.map_or("nothing".to_owned(), |now| format!("version {now}"));
                    let problem = format!("version {} of {name} by {now}", before.version);
                    return Err(TrustError::Forged(format!("snapshot.json replaces {problem}")));
                }
            }
        }
        check_age(Role::Snapshot, new.version, self.floors.snapshot)?;
        check_age(Role::Targets, new.content.targets.version, self.floors.targets)?;
        self.believe(&new)?;
        Ok(new)
    }

    fn targets(
        &mut self,
        root: &File<Root>,
        snapshot: &File<Snapshot>,
    ) -> Result<File<Targets>, TrustError> {
        let meta = &snapshot.content.targets;
        let new = match self.kept::<Targets>(root) {
            Some(kept) if is_named(&kept, meta) => kept,
            _ => self.named::<Targets>(root, meta, LIMITS.targets)?,
        };
        self.believe(&new)?;
        Ok(new)
    }

    /// What was kept, if the keys of today's root still vouch for it. It may have expired.
    fn kept<T: Content>(&self, root: &File<Root>) -> Option<File<T>> {
        self.store.read::<T>().filter(|kept| root.content.verify(kept).is_ok())
    }

    /// Fetches the file that another one names, and holds it against what is said of it.
    fn named<T: Content>(
        &self,
        root: &File<Root>,
        meta: &MetaFile,
        limit: u64,
    ) -> Result<File<T>, TrustError> {
        let file = T::ROLE.file();
        let name = if root.content.consistent_snapshot {
            format!("{}.{file}", meta.version)
        } else {
            file.to_owned()
        };
        let bytes = self.get(&name, meta.length.unwrap_or(limit).min(limit))?;
        meta.check(&bytes).map_err(|why| TrustError::Forged(format!("{name} {why}")))?;
        let found = verified::<T>(root, &bytes)?;
        if found.version != meta.version {
            let (found, named) = (found.version, meta.version);
            let problem = format!("{name} is version {found}; version {named} is named");
            return Err(TrustError::Forged(problem));
        }
        Ok(found)
    }

    fn get(&self, name: &str, limit: u64) -> Result<Vec<u8>, TrustError> {
        (self.fetch)(name, limit).map_err(|error| TrustError::Unreachable(error.to_string()))
    }

    /// The last check, and the file is in force.
    fn believe<T: Content>(&mut self, file: &File<T>) -> Result<(), TrustError> {
        self.check_expiry(file)?;
        let is_kept = self.store.read::<T>().is_some_and(|kept| kept.bytes == file.bytes);
        if !is_kept {
            self.store.keep(file)?;
        }
        let before = self.floors;
        self.floors.raise(T::ROLE, file.version);
        if self.floors != before {
            self.store.keep_floors(&self.floors)?;
        }
        Ok(())
    }

    fn check_expiry<T: Content>(&self, file: &File<T>) -> Result<(), TrustError> {
        if file.expires <= self.now {
            return Err(TrustError::Expired { role: T::ROLE.file().to_owned() });
        }
        Ok(())
    }
}

fn verified<T: Content>(root: &File<Root>, bytes: &[u8]) -> Result<File<T>, TrustError> {
    let file = File::<T>::read(bytes).map_err(TrustError::Forged)?;
    root.content.verify(&file).map_err(TrustError::Forged)?;
    Ok(file)
}

fn is_named<T>(file: &File<T>, meta: &MetaFile) -> bool {
    file.version == meta.version && meta.check(&file.bytes).is_ok()
}

fn check_age(role: Role, found: u64, floor: u64) -> Result<(), TrustError> {
    if found < floor { Err(rollback(role, found, floor)) } else { Ok(()) }
}

fn rollback(role: Role, found: u64, floor: u64) -> TrustError {
    TrustError::Rollback { what: role.file(), found, floor }
}
