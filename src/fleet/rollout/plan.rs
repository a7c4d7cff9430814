use std::fmt;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::utc;
use crate::domain::Fault;
use crate::fleet::{Rollout, Wave};

/// A rollout that can be followed: its waves cover every slot, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    rollout: Rollout,
    digest: String,
}

/// When it is one device's turn. Whoever comes later than that begins at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// In [0, 1), even over devices and new with every release: no device is always among the first.
    pub slot: f64,
    pub stage: Stage,
    /// Milliseconds since 1970.
    pub start_ms: u64,
    opens_ms: u64,
    rollout_ms: u64,
    first_wave_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Canary,
    /// Index into the waves.
    Wave(usize),
}

/// Why a device may not begin yet. All times are milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmet {
    NotStarted { start_ms: u64 },
    CanaryOnly { until_ms: u64, wave: usize, own_ms: u64 },
    WaveClosed { wave: usize, opens_ms: u64, own_ms: u64 },
    NotItsTurn { wave: usize, own_ms: u64 },
}

/// What is wrong with a rollout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the rollout cannot be followed: {}", told(faults))]
pub struct PlanError {
    pub faults: Vec<Fault>,
}

fn told(faults: &[Fault]) -> String {
    let each: Vec<_> = faults.iter().map(|f| format!("{} {}", f.key, f.problem)).collect();
    each.join("; ")
}

impl Plan {
    /// `digest` is the SHA-256 of the release as it was signed, in hexadecimal.
    ///
    /// # Errors
    /// Every fault of the rollout.
    pub fn new(rollout: Rollout, digest: impl Into<String>) -> Result<Self, PlanError> {
        let faults = faults(&rollout);
        if faults.is_empty() {
            Ok(Self { rollout, digest: digest.into() })
        } else {
            Err(PlanError { faults })
        }
    }

    #[must_use]
    pub fn rollout(&self) -> &Rollout {
        &self.rollout
    }

    /// The one start of a device.
    #[must_use]
    pub fn place(&self, device: &str, group: &str) -> Place {
        let slot = slot(device, &self.digest);
        let rollout_ms = self.rollout.start_ms;
        let first_wave_ms = self.opens_ms(&self.rollout.waves[0]);
        let place = |stage, opens_ms, start_ms| Place {
            slot,
            stage,
            start_ms,
            opens_ms,
            rollout_ms,
            first_wave_ms,
        };
        if self.is_canary(group) {
            return place(Stage::Canary, rollout_ms, rollout_ms);
        }
        let waves = &self.rollout.waves;
        let number = waves.iter().position(|wave| slot < wave.up_to).unwrap_or(waves.len() - 1);
        let (from, to) = self.slots(number);
        let opens_ms = self.opens_ms(&waves[number]);
        let inside = millis(waves[number].duration) as f64 * (slot - from) / (to - from);
        place(Stage::Wave(number), opens_ms, opens_ms.saturating_add(inside as u64))
    }

    #[must_use]
    pub fn is_canary(&self, group: &str) -> bool {
        self.rollout.canary.iter().any(|canary| canary == group)
    }

    /// The share of the devices outside the canary groups whose turn has come by `now_ms`.
    #[must_use]
    pub fn due(&self, now_ms: u64) -> f64 {
        let share = |number: usize| {
            let wave = &self.rollout.waves[number];
            let (from, to) = self.slots(number);
            let Some(inside) = now_ms.checked_sub(self.opens_ms(wave)) else { return 0.0 };
            let all = millis(wave.duration);
            if inside >= all { to - from } else { (to - from) * inside as f64 / all as f64 }
        };
        (0..self.rollout.waves.len()).map(share).sum()
    }

    /// When a wave opens and when its last device has its turn.
    #[must_use]
    pub fn window_ms(&self, wave: usize) -> (u64, u64) {
        let wave = &self.rollout.waves[wave];
        let opens = self.opens_ms(wave);
        (opens, opens.saturating_add(millis(wave.duration)))
    }

    /// Slots in [from, to) of a wave.
    #[must_use]
    pub fn slots(&self, wave: usize) -> (f64, f64) {
        let waves = &self.rollout.waves;
        let from = wave.checked_sub(1).map_or(0.0, |before| waves[before].up_to);
        (from, waves[wave].up_to)
    }

    /// After which a device that began is silent.
    #[must_use]
    pub fn silence_ms(&self) -> u64 {
        millis(self.rollout.silence)
    }

    fn opens_ms(&self, wave: &Wave) -> u64 {
        self.rollout.start_ms.saturating_add(millis(wave.after))
    }
}

impl Place {
    /// What keeps the device waiting; `None` if it may begin.
    #[must_use]
    pub fn unmet(&self, now_ms: u64) -> Option<Unmet> {
        let Self { stage, start_ms: own_ms, opens_ms, rollout_ms, first_wave_ms, .. } = *self;
        if now_ms >= own_ms {
            return None;
        }
        Some(match stage {
            _ if now_ms < rollout_ms => Unmet::NotStarted { start_ms: rollout_ms },
            Stage::Canary => Unmet::NotStarted { start_ms: own_ms },
            Stage::Wave(wave) if now_ms < first_wave_ms => {
                Unmet::CanaryOnly { until_ms: first_wave_ms, wave, own_ms }
            }
            Stage::Wave(wave) if now_ms < opens_ms => Unmet::WaveClosed { wave, opens_ms, own_ms },
            Stage::Wave(wave) => Unmet::NotItsTurn { wave, own_ms },
        })
    }
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotStarted { start_ms } => write!(f, "the rollout starts at {}", utc(start_ms)),
            Self::CanaryOnly { until_ms, wave, own_ms } => write!(
                f,
                "canary group only until {}; this device in wave {} at {}",
                utc(until_ms),
                wave + 1,
                utc(own_ms)
            ),
            Self::WaveClosed { wave, opens_ms, own_ms } => write!(
                f,
                "wave {} opens at {}, this device at {}",
                wave + 1,
                utc(opens_ms),
                utc(own_ms)
            ),
            Self::NotItsTurn { wave, own_ms } => {
                write!(f, "wave {} is open, this device's turn is at {}", wave + 1, utc(own_ms))
            }
        }
    }
}

/// The first 53 bits of a hash, the most that a double holds exactly. The digest goes first: it is of fixed length, so
/// that no two pairs read alike.
fn slot(device: &str, digest: &str) -> f64 {
    let hash = Sha256::new().chain_update(digest).chain_update(device).finalize();
    let head = hash[..8].try_into().expect("SHA-256 has 32 bytes");
    (u64::from_be_bytes(head) >> 11) as f64 / (1_u64 << 53) as f64
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn faults(rollout: &Rollout) -> Vec<Fault> {
    let mut faults = Vec::new();
    let (mut up_to, mut after) = (0.0, Duration::ZERO);
    for (number, wave) in rollout.waves.iter().enumerate() {
        let key = |name: &str| format!("waves[{number}].{name}");
        if !(wave.up_to > up_to && wave.up_to <= 1.0) {
            let problem = format!("must be above {up_to} and at most 1");
            faults.push(Fault::new(key("up_to"), problem));
        }
        if wave.after < after {
            faults.push(Fault::new(key("after"), "must not be before the wave before it"));
        }
        (up_to, after) = (wave.up_to, wave.after);
    }
    if up_to != 1.0 {
        faults.push(Fault::new("waves", "must end with up_to = 1: every device has a wave"));
    }
    if !(0.0..=1.0).contains(&rollout.failure_threshold) {
        faults.push(Fault::new("failure_threshold", "must be from 0 to 1"));
    }
    if rollout.silence.is_zero() {
        faults.push(Fault::new("silence", "must be longer than 0ms"));
    }
    faults
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn rollout(waves: Vec<Wave>) -> Rollout {
        Rollout {
            start_ms: 1_772_352_000_000, // 2026-03-01 08:00:00 UTC
            canary: vec!["lab".to_owned()],
            waves,
            failure_threshold: 0.05,
            silence: HOUR,
        }
    }

    fn wave(up_to: f64, after: Duration, duration: Duration) -> Wave {
        Wave { up_to, after, duration }
    }

    fn two_waves() -> Plan {
        let waves = vec![wave(0.25, HOUR, HOUR), wave(1.0, 4 * HOUR, 2 * HOUR)];
        Plan::new(rollout(waves), "d1").unwrap()
    }

    /// A device whose slot lies between.
    fn device(plan: &Plan, from: f64, to: f64) -> String {
        let ids = (0..).map(|n| format!("device-{n}"));
        let is_there = |id: &String| (from..to).contains(&plan.place(id, "ward").slot);
        ids.into_iter().find(is_there).unwrap()
    }

    #[test]
    fn the_criterion_that_is_unmet_is_said() {
        let plan = two_waves();
        let id = device(&plan, 0.62, 0.63);
        let place = plan.place(&id, "ward");
        let told = |hours: f64| {
            let now = plan.rollout.start_ms.saturating_add_signed((hours * 3.6e6) as i64);
            place.unmet(now).map(|unmet| unmet.to_string())
        };
        let own = utc(place.start_ms);
        assert!(own.starts_with("2026-03-01 13:0") || own.starts_with("2026-03-01 12:5"), "{own}");
        for (hours, words) in [
            (-1.0, "the rollout starts at 2026-03-01 08:00:00 UTC".to_owned()),
            (
                0.5,
                format!(
                    "canary group only until 2026-03-01 09:00:00 UTC; this device in wave 2 at {own}"
                ),
            ),
            (3.0, format!("wave 2 opens at 2026-03-01 12:00:00 UTC, this device at {own}")),
            (4.5, format!("wave 2 is open, this device's turn is at {own}")),
        ] {
            assert_eq!(told(hours), Some(words));
        }
        assert_eq!(told(5.1), None);
        assert_eq!(told(500.0), None, "whoever comes late begins at once");
        let canary = plan.place(&id, "lab");
        assert_eq!((canary.stage, canary.start_ms), (Stage::Canary, plan.rollout.start_ms));
    }

    #[test]
    fn a_release_draws_new_slots() {
        let waves = vec![wave(1.0, HOUR, HOUR)];
        let of = |digest| Plan::new(rollout(waves.clone()), digest).unwrap().place("a", "").slot;
        assert_eq!(of("d1"), of("d1"));
        assert_ne!(of("d1"), of("d2"));
    }

    #[test]
    fn a_rollout_that_leaves_devices_out_is_refused() {
        let keys = |waves| match Plan::new(rollout(waves), "d") {
            Ok(_) => vec![],
            Err(error) => error.faults.into_iter().map(|fault| fault.key).collect(),
        };
        assert_eq!(keys(vec![]), ["waves"]);
        assert_eq!(keys(vec![wave(0.5, HOUR, HOUR)]), ["waves"]);
        assert_eq!(keys(vec![wave(f64::NAN, HOUR, HOUR)]), ["waves[0].up_to", "waves"]);
        let swapped = vec![wave(0.5, 2 * HOUR, HOUR), wave(0.5, HOUR, HOUR)];
        assert_eq!(keys(swapped), ["waves[1].up_to", "waves[1].after", "waves"]);
        let mut loose = rollout(vec![wave(1.0, HOUR, HOUR)]);
        (loose.failure_threshold, loose.silence) = (1.5, Duration::ZERO);
        let error = Plan::new(loose, "d").unwrap_err();
        assert!(error.to_string().contains("failure_threshold must be from 0 to 1; silence"));
    }

    fn any_plan() -> impl Strategy<Value = Plan> {
        let step = (1_u32..100, 0_u64..100_000_000, 0_u64..100_000_000);
        (prop::collection::vec(step, 1..6), "[0-9a-f]{8}").prop_map(|(steps, digest)| {
            let all: u32 = steps.iter().map(|step| step.0).sum();
            let (mut share, mut after) = (0, 0);
            let waves = steps.iter().map(|&(part, gap, duration)| {
                share += part;
                after += gap;
                let up_to = f64::from(share) / f64::from(all);
                wave(up_to, Duration::from_millis(after), Duration::from_millis(duration))
            });
            Plan::new(rollout(waves.collect()), digest).unwrap()
        })
    }

    proptest! {
        #[test]
        fn every_device_has_one_start_inside_the_wave_of_its_slot(plan in any_plan(), id in "[a-z0-9.-]{1,40}") {
            let place = plan.place(&id, "ward");
            prop_assert!((0.0..1.0).contains(&place.slot));
            let Stage::Wave(number) = place.stage else { panic!("no canary") };
            let (from, to) = plan.slots(number);
            prop_assert!(from <= place.slot && place.slot < to);
            let (opens, ends) = plan.window_ms(number);
            prop_assert!(opens <= place.start_ms && place.start_ms <= ends);
            prop_assert_eq!(place.unmet(place.start_ms), None);
            prop_assert!(place.start_ms == 0 || place.unmet(place.start_ms - 1).is_some());
            prop_assert_eq!(plan.place(&id, "ward"), place);
        }

        #[test]
        fn within_a_wave_a_later_slot_starts_no_earlier(plan in any_plan()) {
            let mut places: Vec<_> = (0..300).map(|n| plan.place(&n.to_string(), "")).collect();
            places.sort_by(|a, b| a.slot.total_cmp(&b.slot));
            for pair in places.windows(2) {
                prop_assert!(pair[0].stage <= pair[1].stage);
                if pair[0].stage == pair[1].stage {
                    prop_assert!(pair[0].start_ms <= pair[1].start_ms);
                }
            }
        }

        #[test]
        fn what_is_due_grows_from_none_to_all(plan in any_plan(), times in prop::collection::vec(0_u64..900_000_000, 2..20)) {
            let start = plan.rollout.start_ms;
            let mut times: Vec<_> = times.into_iter().map(|time| start + time).collect();
            times.sort_unstable();
            let due: Vec<_> = times.iter().map(|&time| plan.due(time)).collect();
            prop_assert!(due.windows(2).all(|pair| pair[0] <= pair[1] + 1e-12));
            prop_assert_eq!(plan.due(start - 1), 0.0);
            prop_assert!((plan.due(u64::MAX) - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn waves_hold_their_share_at_every_instant() {
        const DEVICES: usize = 10_000;
        let plan = two_waves();
        let starts: Vec<_> =
            (0..DEVICES).map(|n| plan.place(&format!("device-{n}"), "ward").start_ms).collect();
        for minutes in (0..=360).step_by(10) {
            let now = plan.rollout.start_ms + minutes * 60_000;
            let begun = starts.iter().filter(|&&start| start <= now).count() as f64;
            let share = begun / DEVICES as f64;
            assert!((share - plan.due(now)).abs() < 0.02, "{minutes} min: {share}");
        }
    }
}
