use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::halt::{Cause, Halt, Hold, Pause};
use super::trail::{self, Trail};
use super::{Named, Phase, Plan, PlanError, Report};
use crate::fleet::Release;

/// Alarms that are kept; older ones are in the collector's log.
const MAX_ALARMS: usize = 1000;

/// What is known of a fleet and its rollouts. Pure: time is handed in, and every change is handed out as [`Record`]s, of
/// which the same ledger can be made again.
///
/// A device belongs to every rollout of a release that is meant for it, whenever it is heard of first; what class it is
/// in follows from what it said last and how long ago, so that the classes of an account always add up to the devices.
#[derive(Debug, Default)]
pub struct Ledger {
    pub(super) devices: BTreeMap<String, Device>,
    /// By digest.
    pub(super) courses: BTreeMap<String, Course>,
    alarms: VecDeque<Alarm>,
    is_gated: bool,
}

/// One release on its way.
#[derive(Debug)]
pub(super) struct Course {
    pub(super) release: Release,
    pub(super) plan: Plan,
    pub(super) halt: Halt,
    /// Of devices that began.
    pub(super) entries: BTreeMap<String, Entry>,
}

/// What a device said last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    pub first_heard_ms: u64,
    pub heard_ms: u64,
    /// Without the lines of its trail.
    pub report: Report,
    pub trail: Trail,
}

/// One device that began with one release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub began_ms: u64,
    /// When it last said that it was about this release.
    pub heard_ms: u64,
    /// First heard of when its turn had passed already.
    pub late: bool,
    pub progress: Progress,
    /// Its failure was seen by the person who resumed the rollout: it does not pause it again.
    pub seen: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    UnderWay,
    OnTrial,
    Committed,
    RolledBack {
        reason: String,
    },
    /// Left unfinished for a newer release.
    Overtaken,
}

/// Something that a person has to look into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alarm {
    pub time_ms: u64,
    pub device: String,
    pub what: String,
}

/// One row of what is kept; a later one replaces the earlier one of the same key.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    Device {
        id: String,
        device: Device,
    },
    Rollout {
        digest: String,
        release: Release,
        halt: Halt,
    },
    Entry {
        digest: String,
        device: String,
        entry: Entry,
    },
    /// Added to those before.
    Alarm(Alarm),
}

impl Ledger {
    /// `is_gated`: a rollout waits for a person after the canary groups.
    #[must_use]
    pub fn new(is_gated: bool) -> Self {
        Self { is_gated, ..Self::default() }
    }

    /// The ledger that gave `records`.
    ///
    /// # Errors
    /// If a rollout cannot be followed.
    pub fn restore(is_gated: bool, records: Vec<Record>) -> Result<Self, PlanError> {
        let mut ledger = Self::new(is_gated);
        let mut entries = Vec::new();
        for record in records {
            match record {
                Record::Device { id, device } => drop(ledger.devices.insert(id, device)),
                Record::Rollout { digest, release, halt } => {
                    let plan = Plan::new(release.rollout.clone(), digest.as_str())?;
                    let course = Course { release, plan, halt, entries: BTreeMap::new() };
                    ledger.courses.insert(digest, course);
                }
                Record::Entry { digest, device, entry } => entries.push((digest, device, entry)),
                Record::Alarm(alarm) => ledger.remember(alarm),
            }
        }
        for (digest, device, entry) in entries {
            if let Some(course) = ledger.courses.get_mut(&digest) {
                course.entries.insert(device, entry);
            }
        }
        Ok(ledger)
    }

    /// Makes a release known. One that is known already stays as it is.
    ///
    /// # Errors
    /// If its rollout cannot be followed.
    pub fn offer(&mut self, release: Release, digest: &str) -> Result<Option<Record>, PlanError> {
        if self.courses.contains_key(digest) {
            return Ok(None);
        }
        let plan = Plan::new(release.rollout.clone(), digest)?;
        let halt = Halt { paused: None, gate_open: !self.is_gated };
        let course = Course { release, plan, halt, entries: BTreeMap::new() };
        let record = course.record(digest);
        self.courses.insert(digest.to_owned(), course);
        Ok(Some(record))
    }

    #[must_use]
    pub fn knows_release(&self, digest: &str) -> bool {
        self.courses.contains_key(digest)
    }

    /// Digest of the newest release.
    #[must_use]
    pub fn current(&self) -> Option<&str> {
        let newest = self.courses.iter().max_by_key(|(_, course)| course.release.counter);
        newest.map(|(digest, _)| digest.as_str())
    }

    #[must_use]
    pub fn digest_of(&self, counter: u64) -> Option<String> {
        let mut courses = self.courses.iter();
        courses
            .find(|(_, course)| course.release.counter == counter)
            .map(|(digest, _)| digest.clone())
    }

    /// Counter, name and whether it is paused, newest first.
    #[must_use]
    pub fn releases(&self) -> Vec<(u64, String, bool)> {
        let courses = self.courses.values();
        let mut releases: Vec<_> = courses
            .map(|c| (c.release.counter, c.release.name.clone(), c.halt.paused.is_some()))
            .collect();
        releases.sort_unstable_by(|a, b| b.cmp(a));
        releases
    }

    #[must_use]
    pub fn devices(&self) -> &BTreeMap<String, Device> {
        &self.devices
    }

    #[must_use]
    pub fn alarms(&self) -> impl DoubleEndedIterator<Item = &Alarm> {
        self.alarms.iter()
    }

    /// Takes a device's word. Whose word it is was settled by the caller.
    pub fn hear(&mut self, mut report: Report, now_ms: u64) -> Vec<Record> {
        let mut records = Vec::new();
        let before = self.devices.get(&report.device);
        let heard = trail::hear(before.map(|device| &device.trail), &report.audit, now_ms);
        report.audit.lines = Vec::new();
        let device = Device {
            first_heard_ms: before.map_or(now_ms, |device| device.first_heard_ms),
            heard_ms: now_ms,
            trail: heard.trail,
            report,
        };
        let id = device.report.device.clone();
        if let Some(what) = heard.alarm {
            let alarm = Alarm { time_ms: now_ms, device: id.clone(), what };
            self.remember(alarm.clone());
            records.push(Record::Alarm(alarm));
        }
        for (digest, course) in &mut self.courses {
            if let Some(entry) = course.hear(digest, &device, now_ms) {
                let digest = digest.clone();
                records.push(Record::Entry { digest, device: id.clone(), entry });
            }
        }
        self.devices.insert(id.clone(), device.clone());
        records.push(Record::Device { id, device });
        records.extend(self.watch(now_ms));
        records
    }

    /// Pauses what has failed too often by now. To be called now and then, as silence makes no sound.
    pub fn watch(&mut self, now_ms: u64) -> Vec<Record> {
        let mut records = Vec::new();
        for (digest, course) in &mut self.courses {
            let (failed, began) = course.failures(now_ms);
            let threshold = course.release.rollout.failure_threshold;
            if course.halt.paused.is_none() && failed as f64 > threshold * began as f64 {
                let cause = Cause::Failures { failed, began };
                course.halt.paused = Some(Pause { since_ms: now_ms, cause });
                records.push(course.record(digest));
            }
        }
        records
    }

    /// `None` if there is no such release.
    pub fn pause(&mut self, digest: &str, by: &str, words: &str, now_ms: u64) -> Option<Record> {
        let course = self.courses.get_mut(digest)?;
        let cause = Cause::Command { by: by.to_owned(), words: words.to_owned() };
        course.halt.paused = Some(Pause { since_ms: now_ms, cause });
        Some(course.record(digest))
    }

    /// Lets a rollout go on, also past the canary groups. Failures so far do not pause it again: whoever resumes has seen
    /// them. `None` if there is no such release.
    pub fn resume(&mut self, digest: &str, now_ms: u64) -> Option<Vec<Record>> {
        let course = self.courses.get_mut(digest)?;
        course.halt = Halt { paused: None, gate_open: true };
        let silence = course.plan.silence_ms();
        let mut records = vec![course.record(digest)];
        for (device, entry) in &mut course.entries {
            if entry.has_failed(now_ms, silence) && !entry.seen {
                entry.seen = true;
                records.push(Record::Entry {
                    digest: digest.to_owned(),
                    device: device.clone(),
                    entry: entry.clone(),
                });
            }
        }
        Some(records)
    }

    /// Whether a device may begin with the release it aims at, or go on to run it.
    ///
    /// # Errors
    /// Why it has to wait.
    pub fn may_proceed(&self, device: &str) -> Result<(), Hold> {
        let Some(device) = self.devices.get(device) else { return Ok(()) };
        let Some(target) = &device.report.target else { return Ok(()) };
        let course = self.courses.get(&target.digest).ok_or(Hold::Unknown)?;
        match &course.halt.paused {
            Some(pause) => Err(Hold::Paused(pause.clone())),
            None if course.halt.gate_open || course.plan.is_canary(&device.report.group) => Ok(()),
            None => Err(Hold::Gate),
        }
    }

    fn remember(&mut self, alarm: Alarm) {
        if self.alarms.len() == MAX_ALARMS {
            self.alarms.pop_front();
        }
        self.alarms.push_back(alarm);
    }
}

impl Course {
    fn record(&self, digest: &str) -> Record {
        let (release, halt) = (self.release.clone(), self.halt.clone());
        Record::Rollout { digest: digest.to_owned(), release, halt }
    }

    /// What the device's word means for this release; `None` if nothing.
    fn hear(&mut self, digest: &str, device: &Device, now_ms: u64) -> Option<Entry> {
        let report = &device.report;
        let before = self.entries.get(&report.device);
        let progress = self.progress(digest, report, before.is_some_and(Entry::is_open))?;
        let is_settled = |entry: &Entry| entry.progress == progress && !entry.is_open();
        if before.is_some_and(is_settled) {
            return None;
        }
        let place = self.plan.place(&report.device, &report.group);
        let entry = Entry {
            began_ms: before.map_or(now_ms, |entry| entry.began_ms),
            heard_ms: now_ms,
            late: before.map_or(device.first_heard_ms > place.start_ms, |entry| entry.late),
            progress,
            seen: false,
        };
        self.entries.insert(report.device.clone(), entry.clone());
        Some(entry)
    }

    fn progress(&self, digest: &str, report: &Report, is_open: bool) -> Option<Progress> {
        if report.running.as_ref().is_some_and(|release| release.digest == digest) {
            return Some(Progress::Committed);
        }
        if let Some(failed) = report.failed.as_ref().filter(|f| f.release.digest == digest) {
            return Some(Progress::RolledBack { reason: failed.reason.clone() });
        }
        if report.target.as_ref().is_some_and(|target| target.digest == digest) {
            return match report.phase {
                Phase::Trial => Some(Progress::OnTrial),
                phase => phase.is_under_way().then_some(Progress::UnderWay),
            };
        }
        let is_newer = |named: &Option<Named>| {
            named.as_ref().is_some_and(|named| named.counter > self.release.counter)
        };
        let left = is_open && (is_newer(&report.target) || is_newer(&report.running));
        left.then_some(Progress::Overtaken)
    }

    /// How many have failed of how many that began, without those that a person has seen.
    fn failures(&self, now_ms: u64) -> (usize, usize) {
        let silence = self.plan.silence_ms();
        let failed =
            self.entries.values().filter(|e| e.has_failed(now_ms, silence) && !e.seen).count();
        let seen =
            self.entries.values().filter(|e| e.has_failed(now_ms, silence) && e.seen).count();
        (failed, self.entries.len() - seen)
    }
}

impl Entry {
    /// Began and has said no more of it for too long.
    #[must_use]
    pub fn is_silent(&self, now_ms: u64, silence_ms: u64) -> bool {
        self.is_open() && now_ms.saturating_sub(self.heard_ms) >= silence_ms
    }

    fn is_open(&self) -> bool {
        matches!(self.progress, Progress::UnderWay | Progress::OnTrial)
    }

    /// A device that fell silent on the way counts: a release that kills devices leaves nobody to say so.
    #[must_use]
    pub fn has_failed(&self, now_ms: u64, silence_ms: u64) -> bool {
        matches!(self.progress, Progress::RolledBack { .. }) || self.is_silent(now_ms, silence_ms)
    }
}
