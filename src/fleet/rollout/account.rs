use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ledger::{Course, Device, Entry, Ledger, Progress};
use super::{Stage, Unmet};

/// Where one device stands in one rollout. Every device that is known is in exactly one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Meant for it, not begun.
    Waiting,
    UnderWay,
    OnTrial,
    Committed,
    RolledBack,
    /// Began and was not heard of for the rollout's `silence`.
    Silent,
    /// Went on to a newer release without ending this one.
    Overtaken,
    /// Of other hardware or another group.
    NotConcerned,
}

impl Class {
    pub const ALL: [Self; 8] = [
        Self::Waiting,
        Self::UnderWay,
        Self::OnTrial,
        Self::Committed,
        Self::RolledBack,
        Self::Silent,
        Self::Overtaken,
        Self::NotConcerned,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::UnderWay => "under_way",
            Self::OnTrial => "on_trial",
            Self::Committed => "committed",
            Self::RolledBack => "rolled_back",
            Self::Silent => "silent",
            Self::Overtaken => "overtaken",
            Self::NotConcerned => "not_concerned",
        }
    }
}

/// A rollout at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    pub name: String,
    pub counter: u64,
    pub digest: String,
    /// Every device that is known; the classes add up to it.
    pub devices: usize,
    pub classes: BTreeMap<Class, usize>,
    /// Of those that began: heard of for the first time when their turn had passed.
    pub late: usize,
    /// The canary groups first, then the waves in order. Together they hold the devices that it is meant for.
    pub stages: Vec<StageAccount>,
    /// Why it does not go on, in words.
    pub paused: Option<String>,
    /// Devices outside the canary groups wait for a person.
    pub gated: bool,
    pub failure_threshold: f64,
    pub table: Vec<Line>,
}

/// The devices of one wave, or of the canary groups.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageAccount {
    /// `canary`, `wave 1`, …
    pub name: String,
    pub opens_ms: u64,
    pub ends_ms: u64,
    pub devices: usize,
    /// Whose turn has come.
    pub due: usize,
    /// Committed, under way, failed or silent.
    pub begun: usize,
    pub committed: usize,
    pub failed: usize,
    pub silent: usize,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    pub device: String,
    pub group: String,
    pub hardware: String,
    pub cdal: String,
    pub class: Class,
    pub phase: super::Phase,
    /// Counter of the release that it runs.
    pub running: Option<u64>,
    pub stage: Option<String>,
    pub start_ms: Option<u64>,
    pub heard_ms: u64,
    pub late: bool,
    /// Why it failed or what it waits for.
    pub words: Option<String>,
    /// Its audit trail was found broken at this time.
    pub alarm_ms: Option<u64>,
}

impl Ledger {
    /// `None` if there is no such release.
    #[must_use]
    pub fn account(&self, digest: &str, now_ms: u64) -> Option<Account> {
        let course = self.courses.get(digest)?;
        let lines = self.devices.iter().map(|(id, device)| course.line(id, device, now_ms));
        let table: Vec<Line> = lines.collect();
        let mut classes: BTreeMap<Class, usize> =
            Class::ALL.iter().map(|&class| (class, 0)).collect();
        for line in &table {
            *classes.entry(line.class).or_default() += 1;
        }
        let mut late = 0;
        let mut stages = course.stages();
        for line in &table {
            let Some(stage) =
                stages.iter_mut().find(|stage| Some(&stage.name) == line.stage.as_ref())
            else {
                continue;
            };
            let is = |class: Class| usize::from(line.class == class);
            stage.devices += 1;
            stage.due += usize::from(line.start_ms.is_some_and(|start| start <= now_ms));
            stage.begun += usize::from(!matches!(line.class, Class::Waiting | Class::Overtaken));
            stage.committed += is(Class::Committed);
            stage.failed += is(Class::RolledBack);
            stage.silent += is(Class::Silent);
            late += usize::from(line.late);
        }
        Some(Account {
            name: course.release.name.clone(),
            counter: course.release.counter,
            digest: digest.to_owned(),
            devices: table.len(),
            classes,
            late,
            stages,
            paused: course.halt.paused.as_ref().map(ToString::to_string),
            gated: !course.halt.gate_open,
            failure_threshold: course.release.rollout.failure_threshold,
            table,
        })
    }
}

impl Course {
    fn stages(&self) -> Vec<StageAccount> {
        let empty = |name, (opens_ms, ends_ms)| StageAccount {
            name,
            opens_ms,
            ends_ms,
            devices: 0,
            due: 0,
            begun: 0,
            committed: 0,
            failed: 0,
            silent: 0,
        };
        let start = self.plan.rollout().start_ms;
        let canary = (!self.plan.rollout().canary.is_empty())
            .then(|| empty(name_of(Stage::Canary), (start, start)));
        let waves = (0..self.plan.rollout().waves.len())
            .map(|wave| empty(name_of(Stage::Wave(wave)), self.plan.window_ms(wave)));
        canary.into_iter().chain(waves).collect()
    }

    fn line(&self, id: &str, device: &Device, now_ms: u64) -> Line {
        let report = &device.report;
        let entry = self.entries.get(id);
        let class = self.class(device, entry, now_ms);
        let place = (class != Class::NotConcerned).then(|| self.plan.place(id, &report.group));
        let unmet = || place.as_ref()?.unmet(now_ms).as_ref().map(Unmet::to_string);
        let words = match (class, entry.map(|entry| &entry.progress)) {
            (Class::RolledBack, Some(Progress::RolledBack { reason })) => Some(reason.clone()),
            (Class::Waiting, _) => report.waits_for.clone().or_else(unmet),
            (Class::UnderWay | Class::OnTrial, _) => report.waits_for.clone(),
            _ => None,
        };
        Line {
            device: id.to_owned(),
            group: report.group.clone(),
            hardware: report.hardware.clone(),
            cdal: report.cdal.clone(),
            class,
            phase: report.phase,
            running: report.running.as_ref().map(|release| release.counter),
            stage: place.as_ref().map(|place| name_of(place.stage)),
            start_ms: place.map(|place| place.start_ms),
            heard_ms: device.heard_ms,
            late: entry.is_some_and(|entry| entry.late),
            words,
            alarm_ms: device.trail.alarm_ms,
        }
    }

    fn class(&self, device: &Device, entry: Option<&Entry>, now_ms: u64) -> Class {
        let report = &device.report;
        if let Some(entry) = entry {
            return match entry.progress {
                Progress::Committed => Class::Committed,
                Progress::RolledBack { .. } => Class::RolledBack,
                Progress::Overtaken => Class::Overtaken,
                _ if entry.is_silent(now_ms, self.plan.silence_ms()) => Class::Silent,
                Progress::UnderWay => Class::UnderWay,
                Progress::OnTrial => Class::OnTrial,
            };
        }
        let is_meant = self.release.hardware.contains(&report.hardware)
            && self.release.groups.contains(&report.group);
        if !is_meant {
            Class::NotConcerned
        } else if report.running.as_ref().is_some_and(|r| r.counter > self.release.counter) {
            Class::Overtaken
        } else {
            Class::Waiting
        }
    }
}

fn name_of(stage: Stage) -> String {
    match stage {
        Stage::Canary => "canary".to_owned(),
        Stage::Wave(number) => format!("wave {}", number + 1),
    }
}
