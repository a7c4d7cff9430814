//! What one release says; a device and a publisher read it alike.

use std::collections::BTreeMap;
use std::time::Duration;

use semver::VersionReq;
use serde::{Deserialize, Serialize};

use crate::domain::{Fault, duration};
use crate::durable::is_file_name;

/// The only schema there is.
pub const SCHEMA: u32 = 1;

/// A release: one signed manifest that binds configuration, models and the way they are rolled out, so that no part of
/// one release is ever run with a part of another. It is the TUF target `release-<counter>.json`; everything it names is
/// a target `blob-<sha256>`, so that what a device has already is not sent again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    pub schema: u32,
    /// Grows with every release, a return to older content included. A device never goes back below the highest it saw.
    pub counter: u64,
    /// For people: letters, digits, `.`, `-` and `_`.
    pub name: String,
    /// Versions of this program that can run it.
    pub cdal: VersionReq,
    /// Hardware classes that may run it, such as `jetson-orin` or `x86-64-cpu`; a device states its own.
    pub hardware: Vec<String>,
    /// Groups of devices that it is for, the canary groups included.
    pub groups: Vec<String>,
    /// Laid over the device's own configuration files; without it they stand alone.
    pub configuration: Option<Blob>,
    /// Model bundles by the name under which the configuration may refer to them.
    pub bundles: BTreeMap<String, BundleRef>,
    pub rollout: Rollout,
    pub probation: Probation,
}

impl Release {
    /// Everything that is wrong with it, so that its names lead out of no folder and its parts belong together.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        const NAME: &str = "is not a name: letters, digits, `.`, `-` and `_`";
        let mut faults = Vec::new();
        let mut check = |holds: bool, key: &str, problem: &str| {
            if !holds {
                faults.push(Fault::new(key, problem));
            }
        };
        check(self.schema == SCHEMA, "schema", "is not one that this program knows; it knows 1");
        check(self.counter > 0, "counter", "must be at least 1");
        check(is_file_name(&self.name), "name", NAME);
        for (key, names) in [("hardware", &self.hardware), ("groups", &self.groups)] {
            check(!names.is_empty(), key, "names none, so that no device would take it");
            check(names.iter().all(|name| is_file_name(name)), key, NAME);
        }
        let known = |group: &String| self.groups.contains(group);
        let canary = "names a group that `groups` does not";
        check(self.rollout.canary.iter().all(known), "rollout.canary", canary);
        let ends: Vec<f64> = self.rollout.waves.iter().map(|wave| wave.up_to).collect();
        let rises = ends.is_sorted_by(|a, b| a < b) && ends.first().is_none_or(|end| *end > 0.0);
        let whole = ends.last().is_some_and(|end| *end == 1.0);
        check(rises && whole, "rollout.waves", "must rise from above 0 to 1 in up_to");
        let share = 0.0..=1.0;
        let threshold = share.contains(&self.rollout.failure_threshold);
        check(threshold, "rollout.failure_threshold", "must be 0 to 1");
        check(self.probation.boots > 0, "probation.boots", "must be at least 1");
        check(self.probation.slowdown >= 1.0, "probation.slowdown", "must be at least 1");
        check(self.blobs().all(Blob::is_hash), "bundles", "names a blob by no SHA-256");
        for (name, bundle) in &self.bundles {
            let key = format!("bundles.{name}");
            check(is_file_name(name), &key, NAME);
            let files = bundle.files.keys().all(|file| is_file_name(file));
            check(files, &key, "has a file whose name would lead out of its folder");
            let manifest = bundle.files.get("bundle.toml").map(|blob| &blob.sha256);
            let is_its_own = manifest == Some(&bundle.digest);
            check(is_its_own, &key, "has a digest that is not that of its bundle.toml");
        }
        faults
    }

    /// Everything it names.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        let bundled = self.bundles.values().flat_map(|bundle| bundle.files.values());
        self.configuration.iter().chain(bundled)
    }
}

/// Content by its hash.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// Hexadecimal.
    pub sha256: String,
    /// Bytes.
    pub length: u64,
}

impl Blob {
    fn is_hash(&self) -> bool {
        let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        self.sha256.len() == 64 && self.sha256.bytes().all(is_digit)
    }

    /// Its name as a TUF target.
    #[must_use]
    pub fn target(&self) -> String {
        format!("blob-{}", self.sha256)
    }

    /// Its file in the repository's folder of targets: consistent snapshots put the hash before the name.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}.{}", self.sha256, self.target())
    }
}

/// A model bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleRef {
    /// SHA-256 of its `bundle.toml`: the identity of the model (`Bundle::digest`).
    pub digest: String,
    /// Files by their name in the folder.
    pub files: BTreeMap<String, Blob>,
}

/// Who takes a release when: the canary groups from `start` on, then every other device in the wave that holds its slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Milliseconds since 1970.
    pub start_ms: u64,
    /// Groups that go first, all at `start_ms`.
    pub canary: Vec<String>,
    /// In order; each takes the slots from the end of the one before it up to its own.
    pub waves: Vec<Wave>,
    /// The rollout pauses once more than this share of the devices that began has failed.
    pub failure_threshold: f64,
    /// A device that began and is not heard of for so long no longer counts as under way.
    #[serde(with = "duration")]
    pub silence: Duration,
}

/// Slots in [end of the wave before, `up_to`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wave {
    /// In (0, 1]; the last wave's is 1.
    pub up_to: f64,
    /// From the start of the rollout to the start of the wave.
    #[serde(with = "duration")]
    pub after: Duration,
    /// Over which its devices spread evenly by slot.
    #[serde(with = "duration")]
    pub duration: Duration,
}

/// What a device has to show on trial before the release is its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probation {
    /// Time in good health, whatever the clock on the wall says.
    #[serde(with = "duration")]
    pub healthy: Duration,
    /// Jobs done; the golden case runs in their place where nothing comes in.
    pub jobs: u64,
    /// Jobs that may fail on trial.
    pub failures: u64,
    /// The golden case may take so many times what the last good release takes.
    pub slowdown: f64,
    /// Starts of the process on trial before the device goes back.
    pub boots: u32,
}
