use std::collections::BTreeMap;

use tough::schema::RoleType;

use super::{Repository, RepositoryError, read};
use crate::durable::hex;
use crate::fleet::{Release, trust};

/// What a repository holds, for people.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    pub roles: Vec<RoleSummary>,
    /// Names by counter.
    pub releases: BTreeMap<u64, String>,
    /// What waits for signatures.
    pub pending: Option<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct RoleSummary {
    pub role: String,
    pub threshold: u64,
    /// Ids.
    pub keys: Vec<String>,
    pub expires: String,
}

impl Repository {
    /// # Errors
    /// If something of it cannot be read.
    pub fn summary(&self) -> Result<Summary, RepositoryError> {
        let present = self.present()?;
        let of_roles = [
            (RoleType::Root, self.root.signed.expires),
            (RoleType::Targets, present.targets.signed.expires),
            (RoleType::Snapshot, present.snapshot.signed.expires),
            (RoleType::Timestamp, present.timestamp.signed.expires),
        ];
        let role = |(role, expires): (RoleType, jiff::Timestamp)| {
            let keys = self.root.signed.roles.get(&role);
            RoleSummary {
                role: role.to_string(),
                threshold: keys.map_or(0, |keys| keys.threshold.get()),
                keys: keys.iter().flat_map(|keys| &keys.keyids).map(|id| hex(id)).collect(),
                expires: expires.to_string(),
            }
        };
        let mut releases = BTreeMap::new();
        for (name, target) in &present.targets.signed.targets {
            if let Some(counter) = trust::counter_in(name.raw()) {
                let manifest = self.target(&hex(&target.hashes.sha256), name.raw());
                releases.insert(counter, read::<Release>(&manifest)?.name);
            }
        }
        let pending = match self.refuse_pending() {
            Err(RepositoryError::Pending { what }) => Some(what),
            _ => None,
        };
        Ok(Summary { roles: of_roles.map(role).into(), releases, pending })
    }
}
