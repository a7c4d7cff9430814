use std::time::{Duration, UNIX_EPOCH};

use super::TrustError;
use super::metadata::Role;
use serde::{Deserialize, Serialize};

/// How far a clock may be set back by those who keep it right.
const CLOCK_SLACK_MS: u64 = 10 * 60 * 1000;

/// How old nothing may be that a device believes: the versions of what it saw last. Kept beside the metadata, and again
/// in the device's own database, so that an old repository is refused even after the metadata on the disk is lost.
/// They never go down, except where a newer root lets versions begin anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Floors {
    pub root: u64,
    pub timestamp: u64,
    pub snapshot: u64,
    pub targets: u64,
    /// Of releases.
    pub counter: u64,
    /// When that was, by this device's clock, milliseconds since 1970.
    pub time_ms: u64,
    /// Stands for the keys of `timestamp.json` and `snapshot.json` in that root; 0 where it is not known.
    #[serde(default)]
    pub online_keys: u64,
}

impl Floors {
    /// # Errors
    /// If the clock was set back since these floors were noted: nothing can be said about what has expired.
    pub(super) fn check_clock(&self, now_ms: u64) -> Result<(), TrustError> {
        if now_ms.saturating_add(CLOCK_SLACK_MS) >= self.time_ms {
            return Ok(());
        }
        Err(TrustError::TimeUntrusted { now: date(now_ms), seen: date(self.time_ms) })
    }

    /// What holds where floors were kept in two places, of which one may be behind.
    #[must_use]
    pub(super) fn with(self, other: &Self) -> Self {
        let (newer, older) = if self.root >= other.root { (self, *other) } else { (*other, self) };
        let mut both = newer;
        if newer.online_keys == older.online_keys {
            both.timestamp = both.timestamp.max(older.timestamp);
            both.snapshot = both.snapshot.max(older.snapshot);
            both.targets = both.targets.max(older.targets);
        }
        both.counter = both.counter.max(older.counter);
        both.time_ms = both.time_ms.max(older.time_ms);
        both
    }

    /// A root is in force. If it is newer and the keys of `timestamp.json` or `snapshot.json` are others, the versions of
    /// what they sign begin anew, as in the specification (5.3.11).
    pub(super) fn settle(&mut self, root: u64, online_keys: u64) {
        if root < self.root {
            return;
        }
        if root > self.root && online_keys != self.online_keys {
            (self.timestamp, self.snapshot, self.targets) = (0, 0, 0);
        }
        (self.root, self.online_keys) = (root, online_keys);
    }

    pub(super) fn raise(&mut self, role: Role, version: u64) {
        let floor = match role {
            Role::Root => &mut self.root,
            Role::Timestamp => &mut self.timestamp,
            Role::Snapshot => &mut self.snapshot,
            Role::Targets => &mut self.targets,
        };
        *floor = version.max(*floor);
    }
}

fn date(ms: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_millis(ms);
    jiff::Timestamp::try_from(time).map_or_else(|_| format!("{ms} ms"), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_begin_anew_under_a_newer_root_with_other_keys_alone() {
        let floors = Floors {
            root: 2,
            timestamp: 9,
            snapshot: 5,
            targets: 4,
            counter: 7,
            online_keys: 1,
            ..Floors::default()
        };
        let settled = |root, online_keys| {
            let mut floors = floors;
            floors.settle(root, online_keys);
            (floors.root, floors.timestamp, floors.snapshot, floors.targets, floors.counter)
        };
        assert_eq!(settled(1, 2), (2, 9, 5, 4, 7), "an older root says nothing");
        assert_eq!(settled(3, 1), (3, 9, 5, 4, 7));
        assert_eq!(settled(3, 2), (3, 0, 0, 0, 7));
    }

    #[test]
    fn of_two_places_the_higher_floors_hold_and_those_of_the_newer_root() {
        let here =
            Floors { root: 2, timestamp: 9, counter: 1, online_keys: 1, ..Floors::default() };
        let behind = Floors { timestamp: 12, counter: 3, time_ms: 5, ..here };
        let both = Floors { timestamp: 12, counter: 3, time_ms: 5, ..here };
        assert_eq!((here.with(&behind), behind.with(&here)), (both, both));
        let rotated = Floors { root: 3, timestamp: 1, online_keys: 2, ..here };
        assert_eq!((here.with(&rotated), rotated.with(&here)), (rotated, rotated));
    }

    #[test]
    fn a_clock_set_back_is_told_from_a_forgery() {
        let floors = Floors { time_ms: 1_700_000_000_000, ..Floors::default() };
        assert!(floors.check_clock(1_700_000_000_000 - CLOCK_SLACK_MS).is_ok());
        let error = floors.check_clock(1_600_000_000_000).unwrap_err();
        assert!(error.to_string().contains("2020-09-13"), "{error}");
    }
}
