use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tough::Repository;

use super::TrustError;

/// How far a clock may be set back by those who keep it right.
const CLOCK_SLACK_MS: u64 = 10 * 60 * 1000;

/// How old nothing may be that a device believes: the versions of what it saw last. Kept by the device's own database, so
/// that an old repository is refused even after the metadata on the disk is lost. They never go down.
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
}

impl Floors {
    pub(super) fn of(repository: &Repository, now_ms: u64) -> Self {
        Self {
            root: repository.root().signed.version.get(),
            timestamp: repository.timestamp().signed.version.get(),
            snapshot: repository.snapshot().signed.version.get(),
            targets: repository.targets().signed.version.get(),
            counter: 0,
            time_ms: now_ms,
        }
    }

    /// # Errors
    /// If the clock was set back since these floors were noted: nothing can be said about what has expired.
    pub(super) fn check_clock(&self, now_ms: u64) -> Result<(), TrustError> {
        if now_ms.saturating_add(CLOCK_SLACK_MS) >= self.time_ms {
            return Ok(());
        }
        Err(TrustError::TimeUntrusted { now: date(now_ms), seen: date(self.time_ms) })
    }

    /// A newer root may have taken keys back because their versions were driven up; then those begin anew, as in the
    /// specification (5.3.11).
    ///
    /// # Errors
    /// If something is older than `floors`.
    pub(super) fn check_against(&self, floors: &Self) -> Result<(), TrustError> {
        let roots = ("root.json", self.root, floors.root);
        let others = [
            ("timestamp.json", self.timestamp, floors.timestamp),
            ("snapshot.json", self.snapshot, floors.snapshot),
            ("targets.json", self.targets, floors.targets),
        ];
        let begins_anew = self.root > floors.root;
        let held = std::iter::once(roots).chain(others.into_iter().filter(|_| !begins_anew));
        for (what, found, floor) in held {
            if found < floor {
                return Err(TrustError::Rollback { what, found, floor });
            }
        }
        Ok(())
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
    fn nothing_goes_back_but_what_a_newer_root_lets_begin_anew() {
        let floors = Floors { root: 2, timestamp: 9, snapshot: 5, targets: 4, ..Floors::default() };
        assert!(floors.check_against(&floors).is_ok());
        for older in [
            Floors { root: 1, ..floors },
            Floors { timestamp: 8, ..floors },
            Floors { snapshot: 4, ..floors },
            Floors { targets: 3, ..floors },
        ] {
            assert!(matches!(older.check_against(&floors), Err(TrustError::Rollback { .. })));
        }
        let anew = Floors { root: 3, timestamp: 1, snapshot: 1, targets: 1, ..floors };
        assert!(anew.check_against(&floors).is_ok());
    }

    #[test]
    fn a_clock_set_back_is_told_from_a_forgery() {
        let floors = Floors { time_ms: 1_700_000_000_000, ..Floors::default() };
        assert!(floors.check_clock(1_700_000_000_000 - CLOCK_SLACK_MS).is_ok());
        let error = floors.check_clock(1_600_000_000_000).unwrap_err();
        assert!(error.to_string().contains("2020-09-13"), "{error}");
    }
}
