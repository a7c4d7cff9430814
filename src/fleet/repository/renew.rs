use tough::schema::{RoleType, Root, Targets};

use super::{Keyring, Repository, RepositoryError, State, Validity, after, complete, expiry};

/// What was given a new date.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Renewed {
    pub root: bool,
    pub targets: bool,
    /// Of what is in force now, the first to expire, and when.
    pub first_to_expire: (String, String),
}

impl Repository {
    /// Signs snapshot and timestamp anew, and root and targets as far as `keys` reach. Content stays as it is.
    ///
    /// # Errors
    /// If the keys of snapshot or timestamp are not at hand.
    pub fn refresh(
        &mut self,
        keys: &mut Keyring,
        validity: Validity,
    ) -> Result<Renewed, RepositoryError> {
        self.refuse_pending()?;
        let mut renewed = Renewed {
            root: false,
            targets: false,
            first_to_expire: (String::new(), String::new()),
        };
        let now = &self.root.signed;
        let (version, expires) = (after(Some(now.version)), expiry(validity.root));
        let root = keys.sign(Root { version, expires, ..now.clone() }, &[now])?;
        if complete(now, &root).is_ok() {
            renewed.root = self.settle_root(root, keys, validity)? == State::InForce;
        }
        let present = self.present()?;
        let now = present.targets.signed.clone();
        let (version, expires) = (after(Some(now.version)), expiry(validity.targets));
        let fresh = keys.sign(Targets { version, expires, ..now }, &[&self.root.signed])?;
        renewed.targets = complete(&self.root.signed, &fresh).is_ok();
        let targets = if renewed.targets { &fresh } else { &present.targets };
        self.put_in_force(&self.root, targets, Some(&present), keys, validity)?;
        let present = self.present()?;
        let dates = [
            (RoleType::Root, self.root.signed.expires),
            (RoleType::Targets, present.targets.signed.expires),
            (RoleType::Snapshot, present.snapshot.signed.expires),
            (RoleType::Timestamp, present.timestamp.signed.expires),
        ];
        let first = dates.into_iter().min_by_key(|(_, date)| *date).expect("there are four");
        renewed.first_to_expire = (first.0.to_string(), first.1.to_string());
        Ok(renewed)
    }
}
