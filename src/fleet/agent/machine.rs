use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::state::{
    Candidate, Content, Duty, Event, Load, Note, Quarantined, Refusal, Setback, Sound, Stage,
    Standing, Trial, Verdict,
};
use crate::fleet::Probation;
use crate::fleet::rollout::{Failure, Named, Phase, utc};

/// Consecutive time-outs after which the candidate, and not the machine, is at fault.
const MAX_TIMEOUTS: u32 = 3;

/// One device on its way from release to release. Pure: time comes in as a value, nothing is read or written, and what
/// is to be done follows from the state alone, so that a device that lost its power goes on from what it kept.
///
/// Two contents can be run, and no third: the last good one, and the candidate once it is on trial, to which no other
/// way leads than bytes complete, a validation passed and a safe point. A local way back never lowers the floor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    last_good: Content,
    stage: Stage,
    /// The newest release that was taken up: no other of its counter is ever taken up again, and one below it only where
    /// it was given up.
    floor: Option<Named>,
    /// By digest.
    quarantine: BTreeMap<String, Quarantined>,
    repository: Standing,
    /// Why the rollout must not go on here, as the collector said.
    hold: Option<String>,
    /// Why the last good content could not be loaded at the last try.
    broken: Option<String>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            last_good: Content::Own,
            stage: Stage::Idle,
            floor: None,
            quarantine: BTreeMap::new(),
            repository: Standing::default(),
            hold: None,
            broken: None,
        }
    }
}

impl Machine {
    #[must_use]
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    #[must_use]
    pub fn last_good(&self) -> &Content {
        &self.last_good
    }

    #[must_use]
    pub fn floor(&self) -> Option<&Named> {
        self.floor.as_ref()
    }

    #[must_use]
    pub fn quarantine(&self) -> &BTreeMap<String, Quarantined> {
        &self.quarantine
    }

    #[must_use]
    pub fn repository(&self) -> &Standing {
        &self.repository
    }

    #[must_use]
    pub fn candidate(&self) -> Option<&Candidate> {
        match &self.stage {
            Stage::Idle | Stage::RolledBack { .. } => None,
            Stage::Verified(candidate)
            | Stage::WaitingWave { candidate, .. }
            | Stage::Downloading { candidate, .. }
            | Stage::Staged { candidate, .. } => Some(candidate),
            Stage::Validated(sound) | Stage::WaitSafePoint(sound) => Some(&sound.candidate),
            Stage::Trial(trial) => Some(&trial.candidate),
        }
    }

    #[must_use]
    pub fn trial(&self) -> Option<&Trial> {
        match &self.stage {
            Stage::Trial(trial) => Some(trial),
            _ => None,
        }
    }

    /// The release that was given up last, until a newer one is taken up.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        if let Stage::RolledBack { failure } = &self.stage {
            return Some(failure.clone());
        }
        let release = self.floor.clone()?;
        let Quarantined { reason, .. } = self.quarantine.get(&release.digest)?;
        Some(Failure { release, reason: reason.clone() })
    }

    /// What may be loaded: the last good content, or the candidate on trial. A process that starts applies
    /// [`Event::Boot`] and keeps the state before it asks.
    #[must_use]
    pub fn load(&self) -> Load {
        match (&self.stage, &self.broken) {
            (Stage::Trial(trial), _) => Load::Run(Content::Release(trial.candidate.named.clone())),
            (_, Some(reason)) => Load::SafeMode { reason: reason.clone() },
            (_, None) => Load::Run(self.last_good.clone()),
        }
    }

    #[must_use]
    pub fn phase(&self) -> Phase {
        match &self.stage {
            Stage::Trial(_) => Phase::Trial,
            _ if self.broken.is_some() => Phase::SafeMode,
            Stage::Idle => Phase::Idle,
            Stage::Verified(_) => Phase::Verified,
            Stage::WaitingWave { .. } => Phase::WaitingWave,
            Stage::Downloading { .. } => Phase::Downloading,
            Stage::Staged { .. } => Phase::Staged,
            Stage::Validated(_) => Phase::Validated,
            Stage::WaitSafePoint(_) => Phase::WaitSafePoint,
            Stage::RolledBack { .. } => Phase::RolledBack,
        }
    }

    /// Takes up the newest release that is signed and meant for this device. The same one again changes nothing.
    ///
    /// # Errors
    /// If it may not be taken up; then nothing changes.
    pub fn offer(&mut self, candidate: Candidate) -> Result<Option<Note>, Refusal> {
        self.take_up(candidate, false)
    }

    /// Takes up an older release that is published still. Allowed only where the newest was given up here, and only above
    /// what runs: a device that was never on the last good release can come to it.
    ///
    /// # Errors
    /// If it may not be taken up; then nothing changes.
    pub fn offer_instead(&mut self, candidate: Candidate) -> Result<Option<Note>, Refusal> {
        let is_given_up = |floor: &Named| self.quarantine.contains_key(&floor.digest);
        let runs = self.last_good.named().map_or(0, |named| named.counter);
        let is_way_back =
            self.floor.as_ref().is_some_and(is_given_up) && candidate.named.counter > runs;
        self.take_up(candidate, is_way_back)
    }

    fn take_up(
        &mut self,
        candidate: Candidate,
        is_way_back: bool,
    ) -> Result<Option<Note>, Refusal> {
        let Named { counter, digest } = &candidate.named;
        if let Some(floor) = &self.floor {
            if *counter < floor.counter && !is_way_back {
                return Err(Refusal::BelowFloor { offered: *counter, floor: floor.counter });
            }
            if *counter == floor.counter && *digest != floor.digest {
                return Err(Refusal::OtherContent { counter: *counter });
            }
        }
        if let Some(Quarantined { reason, .. }) = self.quarantine.get(digest) {
            return Err(Refusal::Quarantined { counter: *counter, reason: reason.clone() });
        }
        let is_known = self.last_good.named() == Some(&candidate.named)
            || self.candidate().is_some_and(|known| known.named == candidate.named);
        if is_known {
            return Ok(None);
        }
        if let Stage::Trial(trial) = &self.stage {
            return Err(Refusal::OnTrial { on_trial: trial.candidate.named.counter });
        }
        let release = candidate.named.clone();
        if self.floor.as_ref().is_none_or(|floor| floor.counter < release.counter) {
            self.floor = Some(release.clone());
        }
        self.stage = Stage::Verified(candidate);
        Ok(Some(Note::Accepted { release }))
    }

    /// Takes what happened. An event that has no meaning where the machine stands, such as a late answer, changes
    /// nothing.
    pub fn apply(&mut self, event: Event, now_ms: u64) -> Option<Note> {
        match event {
            Event::Asked(standing) => self.repository = standing,
            Event::Hold(hold) => self.hold = hold,
            Event::Loaded(content) if content == self.last_good => self.broken = None,
            Event::LoadFailed { content, reason } => {
                return self.load_failed(content, reason, now_ms);
            }
            event => return self.advance(event, now_ms),
        }
        None
    }

    fn load_failed(&mut self, content: Content, reason: String, now_ms: u64) -> Option<Note> {
        if let Stage::Trial(trial) = &self.stage
            && content.named() == Some(&trial.candidate.named)
        {
            return self.give_up(format!("it cannot be loaded: {reason}"), now_ms);
        }
        if content != self.last_good || self.trial().is_some() {
            return None;
        }
        let is_new = self.broken.is_none();
        self.broken = Some(reason.clone());
        is_new.then_some(Note::SafeMode { reason })
    }

    fn advance(&mut self, event: Event, now_ms: u64) -> Option<Note> {
        let may_go_on = self.obstacle().is_none();
        match (&mut self.stage, event) {
            (Stage::Verified(candidate), Event::Placed { start_ms }) => {
                self.stage = Stage::WaitingWave { candidate: candidate.clone(), start_ms };
            }
            (Stage::WaitingWave { candidate, start_ms }, Event::Clock)
                if may_go_on && now_ms >= *start_ms =>
            {
                let (candidate, setback) = (candidate.clone(), Setback::default());
                self.stage = Stage::Downloading { candidate, setback };
            }
            (Stage::Downloading { candidate, .. }, Event::Downloaded) => {
                let (candidate, setback) = (candidate.clone(), Setback::default());
                self.stage = Stage::Staged { candidate, setback };
            }
            (Stage::Downloading { setback, .. }, Event::DownloadFailed { reason })
            | (Stage::Staged { setback, .. }, Event::Validation(Verdict::Transient(reason))) => {
                *setback = setback.after(reason, now_ms);
            }
            (Stage::Staged { setback, .. }, Event::Validation(Verdict::TimedOut(reason))) => {
                let timeouts = setback.timeouts + 1;
                if timeouts >= MAX_TIMEOUTS {
                    return self.give_up(format!("{reason}, {timeouts} times in a row"), now_ms);
                }
                *setback = Setback { timeouts, ..setback.after(reason, now_ms) };
            }
            (Stage::Staged { .. }, Event::Validation(Verdict::Deterministic(reason))) => {
                return self.give_up(reason, now_ms);
            }
            (Stage::Staged { candidate, .. }, Event::Validation(Verdict::Sound(timing))) => {
                let slowdown = candidate.probation.slowdown;
                if let Some(reason) = timing.too_slow(timing.candidate_ms, slowdown) {
                    return self.give_up(reason, now_ms);
                }
                self.stage = Stage::Validated(Sound { candidate: candidate.clone(), timing });
            }
            (Stage::Validated(sound), Event::Clock) if may_go_on => {
                self.stage = Stage::WaitSafePoint(sound.clone());
            }
            (Stage::WaitSafePoint(sound), Event::Clock) if !may_go_on => {
                self.stage = Stage::Validated(sound.clone());
            }
            (Stage::WaitSafePoint(sound), Event::SafePoint) if may_go_on => {
                let Sound { candidate, timing } = sound.clone();
                let (from, to) = (self.last_good.clone(), candidate.named.clone());
                self.stage = Stage::Trial(Trial {
                    boots_left: candidate.probation.boots,
                    candidate,
                    last_good: from.clone(),
                    healthy: Duration::ZERO,
                    jobs: 0,
                    failures: 0,
                    timing,
                });
                return Some(Note::Trial { from, to });
            }
            (Stage::Trial(_), event) => return self.on_trial(event, now_ms),
            // Whatever kept the last good content from loading may be gone.
            (_, Event::Boot) => self.broken = None,
            _ => {}
        }
        None
    }

    fn on_trial(&mut self, event: Event, now_ms: u64) -> Option<Note> {
        let Stage::Trial(trial) = &mut self.stage else { return None };
        let Probation { healthy, jobs, failures, slowdown, boots } = trial.candidate.probation;
        let fault = match event {
            Event::Boot if trial.boots_left == 0 => {
                Some(format!("the process ended {boots} times on trial"))
            }
            Event::Boot => {
                trial.boots_left -= 1;
                None
            }
            Event::Healthy(time) => {
                trial.healthy = trial.healthy.saturating_add(time);
                None
            }
            Event::JobDone => {
                trial.jobs = trial.jobs.saturating_add(1);
                None
            }
            Event::JobFailed { reason } => {
                trial.failures = trial.failures.saturating_add(1);
                let (many, few) = (trial.failures, failures);
                (many > few)
                    .then(|| format!("{many} jobs failed on trial, {few} may; the last: {reason}"))
            }
            Event::Golden(Ok(time)) => {
                trial.jobs = trial.jobs.saturating_add(1);
                trial.timing.too_slow(time.as_secs_f64() * 1e3, slowdown)
            }
            Event::Golden(Err(reason)) => Some(format!("the golden case on trial: {reason}")),
            Event::Broken { reason } => Some(reason),
            _ => None,
        };
        if let Some(reason) = fault {
            return self.give_up(reason, now_ms);
        }
        if trial.healthy < healthy || trial.jobs < jobs {
            return None;
        }
        let release = trial.candidate.named.clone();
        let before = std::mem::replace(&mut self.last_good, Content::Release(release.clone()));
        (self.stage, self.broken) = (Stage::Idle, None);
        Some(Note::Committed { release, before })
    }

    /// Back to the last good content; the candidate is never tried again.
    fn give_up(&mut self, reason: String, now_ms: u64) -> Option<Note> {
        let release = self.candidate()?.named.clone();
        let swapped = self.trial().is_some();
        let quarantined =
            Quarantined { counter: release.counter, reason: reason.clone(), since_ms: now_ms };
        self.quarantine.insert(release.digest.clone(), quarantined);
        let failure = Failure { release: release.clone(), reason: reason.clone() };
        self.stage = Stage::RolledBack { failure };
        Some(Note::GivenUp { release, to: self.last_good.clone(), reason, swapped })
    }

    /// What keeps the device from beginning with a release, or from running it.
    fn obstacle(&self) -> Option<String> {
        match &self.repository {
            Standing::Fine => self.hold.clone(),
            Standing::NotAsked => Some("the repository has not been asked yet".to_owned()),
            Standing::TimeUntrusted(reason) => {
                Some(format!("the clock cannot be trusted: {reason}"))
            }
            Standing::Refused(reason) => Some(reason.clone()),
            Standing::Unreachable(reason) => {
                Some(format!("the repository cannot be reached: {reason}"))
            }
        }
    }

    #[must_use]
    pub fn duty(&self, now_ms: u64) -> Duty {
        let unless = |setback: &Setback, duty: Duty| {
            let until_ms = Some(setback.until_ms);
            if now_ms < setback.until_ms { Duty::Wait { until_ms } } else { duty }
        };
        match &self.stage {
            Stage::Idle | Stage::RolledBack { .. } => Duty::Rest,
            Stage::Verified(candidate) => Duty::Place(candidate.named.clone()),
            Stage::WaitingWave { start_ms, .. } => Duty::Wait { until_ms: Some(*start_ms) },
            Stage::Downloading { candidate, setback } => {
                unless(setback, Duty::Download(candidate.named.clone()))
            }
            Stage::Staged { candidate, setback } => {
                unless(setback, Duty::Validate(candidate.named.clone()))
            }
            Stage::Validated(_) => Duty::Wait { until_ms: None },
            Stage::WaitSafePoint(sound) => Duty::Swap(sound.candidate.named.clone()),
            Stage::Trial(trial) => Duty::Watch(trial.candidate.named.clone()),
        }
    }

    /// Which criterion is unmet, in words; `None` where nothing is waited for.
    #[must_use]
    pub fn waits_for(&self, now_ms: u64) -> Option<String> {
        let after = |setback: &Setback, what: &str| match &setback.reason {
            Some(reason) if now_ms < setback.until_ms => {
                format!("{what} failed: {reason}; tries again at {}", utc(setback.until_ms))
            }
            _ => format!("{what} is under way"),
        };
        let words = match &self.stage {
            Stage::Trial(trial) => return Some(trial.waits_for()),
            Stage::Idle | Stage::RolledBack { .. } => return self.broken.clone(),
            Stage::Verified(_) => "its turn in the rollout is not computed yet".to_owned(),
            Stage::WaitingWave { start_ms, .. } => self
                .obstacle()
                .unwrap_or_else(|| format!("its turn in the rollout is at {}", utc(*start_ms))),
            Stage::Downloading { setback, .. } => after(setback, "the download"),
            Stage::Staged { setback, .. } => after(setback, "the validation"),
            Stage::Validated(_) => self.obstacle().unwrap_or_else(|| "a moment".to_owned()),
            Stage::WaitSafePoint(_) => {
                "a safe point: no job under way, or the update window".to_owned()
            }
        };
        Some(words)
    }
}
