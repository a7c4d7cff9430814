//! A rollout over 500 devices on a virtual clock: the agent's own state machine in each, the collector's own ledger.
//!
//! Everything is drawn from a seed; nothing waits for a real clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cdal::durable::hex;
use cdal::fleet::agent::{Candidate, Content, Duty, Event, Machine, Standing, Timing, Verdict};
use cdal::fleet::rollout::{Account, Class, Ledger, Named, Phase, Plan, Proof, Report, Stage};
use cdal::fleet::{Probation, Release, Rollout, SCHEMA, Wave};
use sha2::{Digest, Sha256};

const DEVICES: usize = 500;
const CANARIES: usize = 25;
const LATE: usize = 10;
const DEAD: usize = 6;
const AWAY: usize = 4;

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
/// Devices look at the clock, act and report this often.
const STEP: u64 = 2 * MINUTE;
const START: u64 = 1_772_352_000_000; // 2026-03-01 08:00:00 UTC
const SILENCE: u64 = HOUR;
/// After the last wave and the last trial.
const END: u64 = START + 36 * HOUR;
/// All waves have passed when the first of the late ones comes.
const LATE_JOIN: u64 = START + 26 * HOUR;

fn release() -> Release {
    let wave = |up_to, after, hours| Wave {
        up_to,
        after: Duration::from_hours(after),
        duration: Duration::from_hours(hours),
    };
    Release {
        schema: SCHEMA,
        counter: 7,
        name: "spring".into(),
        cdal: semver::VersionReq::STAR,
        hardware: vec!["x86-64-cpu".into()],
        groups: vec!["lab".into(), "ward".into()],
        configuration: None,
        bundles: BTreeMap::new(),
        rollout: Rollout {
            start_ms: START,
            canary: vec!["lab".into()],
            waves: vec![wave(0.1, 4, 2), wave(0.5, 8, 4), wave(1.0, 16, 8)],
            failure_threshold: 0.1,
            silence: Duration::from_millis(SILENCE),
        },
        probation: Probation {
            healthy: Duration::from_mins(20),
            jobs: 3,
            failures: 1,
            slowdown: 2.0,
            boots: 3,
        },
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

/// `count` different numbers below `all`.
fn draw(random: &mut Random, all: usize, count: usize) -> BTreeSet<usize> {
    let mut drawn = BTreeSet::new();
    while drawn.len() < count {
        drawn.insert((random.next() % all as u64) as usize);
    }
    drawn
}

/// What the release does to a device.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fate {
    Good,
    /// Found out before it runs.
    Unsound,
    FailsJobs,
    EndsTheProcess,
    /// Loses its power for good when it has come to this phase.
    Dies(Phase),
    /// Loses the line for so long.
    Away(u64),
}

struct Device {
    id: String,
    group: &'static str,
    joins_ms: u64,
    start_ms: u64,
    fate: Fate,
    machine: Machine,
    random: Random,
    /// Steps until what it does is done.
    busy: u64,
    silent_until: u64,
    was_away: bool,
    /// When the machine left its wave.
    began_ms: Option<u64>,
    said_ms: u64,
}

impl Device {
    fn is_there(&self, now: u64) -> bool {
        now >= self.joins_ms && now >= self.silent_until
    }

    fn live(&mut self, release: &Release, digest: &str, now: u64) {
        let Self { machine, random, fate, .. } = self;
        match machine.duty(now) {
            Duty::Rest => {
                machine.apply(Event::Asked(Standing::Fine), now);
                // Refused after a failure, and known once it runs: as with every further look into the repository.
                let _ = machine.offer(Candidate::new(release, digest));
            }
            Duty::Place(_) => {
                let start_ms = self.start_ms;
                machine.apply(Event::Placed { start_ms }, now);
                machine.apply(Event::Clock, now);
            }
            Duty::Wait { .. } => drop(machine.apply(Event::Clock, now)),
            Duty::Download(_) => {
                self.busy += 1;
                if self.busy > 5 && random.chance(5) {
                    let reason = "the line broke".to_owned();
                    machine.apply(Event::DownloadFailed { reason }, now);
                } else if self.busy > 5 + random.next() % 10 {
                    self.busy = 0;
                    machine.apply(Event::Downloaded, now);
                }
            }
            Duty::Validate(_) => {
                let timing = Timing { candidate_ms: 90.0, last_good_ms: Some(80.0) };
                let verdict = match fate {
                    Fate::Unsound => Verdict::Deterministic("the golden case differs".to_owned()),
                    _ => Verdict::Sound(timing),
                };
                machine.apply(Event::Validation(verdict), now);
            }
            Duty::Swap(_) => {
                if random.chance(30) {
                    machine.apply(Event::SafePoint, now);
                    machine.apply(Event::Boot, now);
                } else {
                    machine.apply(Event::Clock, now);
                }
            }
            Duty::Watch(_) => {
                let event = match fate {
                    Fate::FailsJobs => Event::JobFailed { reason: "not a number".to_owned() },
                    Fate::EndsTheProcess => Event::Boot,
                    _ if random.chance(50) => Event::JobDone,
                    _ => Event::Golden(Ok(Duration::from_millis(90))),
                };
                machine.apply(event, now);
                machine.apply(Event::Healthy(Duration::from_millis(STEP)), now);
            }
        }
        let phase = machine.phase();
        let has_begun = phase.is_under_way() || phase == Phase::RolledBack;
        if has_begun && self.began_ms.is_none() {
            self.began_ms = Some(now);
        }
        match *fate {
            Fate::Dies(at) if phase == at => self.silent_until = u64::MAX,
            Fate::Away(time) if phase == Phase::Trial && !self.was_away => {
                (self.silent_until, self.was_away) = (now + time, true);
            }
            _ => {}
        }
    }

    fn report(&self, now: u64) -> Report {
        Report {
            device: self.id.clone(),
            group: self.group.into(),
            hardware: "x86-64-cpu".into(),
            cdal: "0.1.0".into(),
            running: self.machine.last_good().named().cloned(),
            target: self.machine.candidate().map(|candidate| candidate.named.clone()),
            phase: self.machine.phase(),
            waits_for: self.machine.waits_for(now),
            failed: self.machine.failure(),
            counters: BTreeMap::new(),
            audit: Proof::default(),
        }
    }

    /// The class it must be in, by its machine alone.
    fn class(&self, now: u64) -> Class {
        let quiet = now - self.said_ms >= SILENCE;
        match self.machine.phase() {
            _ if *self.machine.last_good() != Content::Own => Class::Committed,
            Phase::RolledBack => Class::RolledBack,
            phase if phase.is_under_way() && quiet => Class::Silent,
            Phase::Trial => Class::OnTrial,
            phase if phase.is_under_way() => Class::UnderWay,
            _ => Class::Waiting,
        }
    }
}

struct Fleet {
    release: Release,
    named: Named,
    plan: Plan,
    ledger: Ledger,
    devices: Vec<Device>,
}

impl Fleet {
    fn new(seed: u64, failing_percent: usize) -> Self {
        let release = release();
        let digest = hex(&Sha256::digest(serde_json::to_vec(&release).unwrap()));
        let plan = Plan::new(release.rollout.clone(), digest.as_str()).unwrap();
        let mut ledger = Ledger::new(false);
        ledger.offer(release.clone(), &digest).unwrap();
        let mut random = Random(seed);
        let doomed =
            draw(&mut random, DEVICES - LATE - DEAD - AWAY, DEVICES * failing_percent / 100);
        let devices = (0..DEVICES).map(|number| {
            let id = format!("device-{number:03}");
            let group = if number < CANARIES { "lab" } else { "ward" };
            // Special fates from the end, so that they are no canaries.
            let fate = match DEVICES - 1 - number {
                at if (LATE..LATE + DEAD).contains(&at) && at % 2 == 0 => Fate::Dies(Phase::Trial),
                at if (LATE..LATE + DEAD).contains(&at) => Fate::Dies(Phase::Downloading),
                at if (LATE + DEAD..LATE + DEAD + AWAY).contains(&at) => Fate::Away(3 * HOUR),
                _ if !doomed.contains(&number) => Fate::Good,
                _ => [Fate::Unsound, Fate::FailsJobs, Fate::EndsTheProcess]
                    [(random.next() % 3) as usize],
            };
            let late = number.checked_sub(DEVICES - LATE);
            let joins_ms = late.map_or(0, |nth| LATE_JOIN + nth as u64 * 20 * MINUTE);
            let start_ms = plan.place(&id, group).start_ms;
            let (machine, random) = (Machine::default(), Random(random.next()));
            Device {
                id,
                group,
                joins_ms,
                start_ms,
                fate,
                machine,
                random,
                busy: 0,
                silent_until: 0,
                was_away: false,
                began_ms: None,
                said_ms: 0,
            }
        });
        let devices = devices.collect();
        let named = Named { counter: release.counter, digest };
        Self { release, named, plan, ledger, devices }
    }

    /// Lets every device act and report once, and holds the account against the devices.
    fn step(&mut self, now: u64) -> Account {
        self.ledger.watch(now);
        for device in &mut self.devices {
            if !device.is_there(now) {
                continue;
            }
            device.live(&self.release, &self.named.digest, now);
            self.ledger.hear(device.report(now), now);
            device.said_ms = now;
            let held = self.ledger.may_proceed(&device.id).err().map(|hold| hold.to_string());
            device.machine.apply(Event::Hold(held), now);
        }
        let account = self.ledger.account(&self.named.digest, now).unwrap();
        self.check(&account, now);
        account
    }

    fn check(&self, account: &Account, now: u64) {
        let known: Vec<_> = self.devices.iter().filter(|device| device.said_ms > 0).collect();
        assert_eq!(account.devices, known.len());
        assert_eq!(account.classes.values().sum::<usize>(), account.devices, "it adds up");
        for (line, device) in account.table.iter().zip(&known) {
            assert_eq!(line.device, device.id);
            assert_eq!(
                line.class,
                device.class(now),
                "{} at {now}: {:?}",
                device.id,
                device.machine
            );
        }
        let stages = |of: fn(&cdal::fleet::rollout::StageAccount) -> usize| {
            account.stages.iter().map(of).sum::<usize>()
        };
        let begun = known.iter().filter(|device| device.began_ms.is_some()).count();
        assert_eq!(stages(|stage| stage.devices), known.len());
        assert_eq!(stages(|stage| stage.begun), begun);
        assert_eq!(stages(|stage| stage.committed), account.classes[&Class::Committed]);
        for device in known {
            assert!(device.began_ms.is_none_or(|began| began >= device.start_ms), "{}", device.id);
        }
    }

    /// By how many devices the fleet is off the plan: begun, against those that are there and whose turn has come.
    fn off_plan(&self, now: u64, stage: impl Fn(&Device) -> bool) -> usize {
        let there = || self.devices.iter().filter(|device| device.joins_ms <= now && stage(device));
        let due = there().filter(|device| device.start_ms <= now).count();
        let begun = there().filter(|device| device.began_ms.is_some()).count();
        due.abs_diff(begun)
    }
}

#[test]
fn a_rollout_over_500_devices_follows_its_plan_and_ends() {
    const ONE_PERCENT: usize = DEVICES / 100;
    let mut fleet = Fleet::new(20_260_301, 5);
    let failing = DEVICES * 5 / 100;
    let mut now = START - HOUR;
    let mut was_silent = false;
    let mut account = fleet.step(now);
    while now < END {
        now += STEP;
        account = fleet.step(now);
        assert_eq!(account.paused, None, "at {now}");
        let off = fleet.off_plan(now, |_| true);
        assert!(off <= ONE_PERCENT, "{off} devices off the plan at {now}");
        for wave in 0..3 {
            let in_wave = |device: &Device| {
                fleet.plan.place(&device.id, device.group).stage == Stage::Wave(wave)
            };
            let off = fleet.off_plan(now, in_wave);
            assert!(off <= ONE_PERCENT, "{off} devices of wave {} off the plan at {now}", wave + 1);
        }
        // The plan itself gives each wave its share: within what 465 draws of a slot differ by.
        let wards = || fleet.devices.iter().filter(|device| device.group == "ward");
        let due = wards().filter(|device| device.start_ms <= now).count() as f64;
        let share = due / wards().count() as f64;
        assert!((share - fleet.plan.due(now)).abs() < 0.06, "{share} at {now}");
        was_silent |= account.classes[&Class::Silent] > DEAD;
    }
    assert!(was_silent, "those that lost the line were silent for a while");
    let count = |class: Class| account.classes[&class];
    assert_eq!(count(Class::RolledBack), failing);
    assert_eq!(count(Class::Silent), DEAD);
    assert_eq!(count(Class::Committed), DEVICES - failing - DEAD);
    assert_eq!(account.late, LATE);
    for line in account.table.iter().filter(|line| line.late) {
        let device = fleet.devices.iter().find(|device| device.id == line.device).unwrap();
        assert!(device.began_ms.unwrap() <= device.joins_ms + 3 * STEP, "it began at once");
    }
    let reasons = account.table.iter().filter(|line| line.class == Class::RolledBack);
    assert!(reasons.clone().all(|line| line.words.is_some()));
    for words in ["the golden case differs", "not a number", "the process ended 3 times on trial"] {
        let mut told = reasons.clone().flat_map(|line| &line.words);
        assert!(told.any(|told| told.contains(words)), "{words}");
    }
}

#[test]
fn a_release_that_fails_too_often_is_paused_and_goes_on_only_when_a_person_says_so() {
    let mut fleet = Fleet::new(20_260_302, 30);
    let begun = |fleet: &Fleet| fleet.devices.iter().filter(|d| d.began_ms.is_some()).count();
    let mut now = START - HOUR;
    let paused_at = loop {
        now += STEP;
        if fleet.step(now).paused.is_some() {
            break now;
        }
    };
    assert!(paused_at < START + 4 * HOUR, "the canary groups were enough to see it");
    let account = fleet.step(now);
    assert!(account.paused.unwrap().ends_with("of the 25 that began have failed"));
    assert_eq!(begun(&fleet), CANARIES);
    // Nobody begins for hours, however many turns come; who is on trial comes to an end.
    while now < paused_at + 12 * HOUR {
        now += STEP;
        fleet.step(now);
        assert_eq!(begun(&fleet), CANARIES);
    }
    let account = fleet.step(now);
    assert_eq!(account.classes[&Class::OnTrial], 0);
    let due: usize = account.stages.iter().map(|stage| stage.due).sum();
    assert!(due > 2 * CANARIES, "{due} would have begun");
    let waiting =
        account.table.iter().find(|line| line.class == Class::Waiting && line.start_ms < Some(now));
    let words = waiting.unwrap().words.clone().unwrap();
    assert!(
        words.starts_with("paused at 2026-03-01 "),
        "the device says what it waits for: {words}"
    );

    fleet.ledger.resume(&fleet.named.digest, now).unwrap();
    let mut resumed = 1;
    while now < END + 24 * HOUR {
        now += STEP;
        if fleet.step(now).paused.is_some() {
            fleet.ledger.resume(&fleet.named.digest, now).unwrap();
            resumed += 1;
        }
    }
    assert!(resumed > 2, "what fails afterwards pauses it again: {resumed}");
    let account = fleet.step(now);
    let ended =
        [Class::Committed, Class::RolledBack, Class::Silent].map(|class| account.classes[&class]);
    assert_eq!(ended.iter().sum::<usize>(), DEVICES, "{:?}", account.classes);
    assert_eq!(ended[2], DEAD);
    assert!(ended[1] > 100, "{} of {DEVICES} rolled back", ended[1]);
}
