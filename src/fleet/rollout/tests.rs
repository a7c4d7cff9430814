//! The ledger against every word that devices may say, in any order.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;
use crate::durable::hex;
use crate::fleet::{Probation, Release, Rollout, SCHEMA, Wave};

const START: u64 = 1_772_352_000_000;
const MINUTE: u64 = 60_000;

fn digest(counter: u64) -> String {
    hex(&Sha256::digest(counter.to_string()))
}

fn named(counter: u64) -> Named {
    Named { counter, digest: digest(counter) }
}

fn release(counter: u64, threshold: f64) -> Release {
    Release {
        schema: SCHEMA,
        counter,
        name: format!("r{counter}"),
        cdal: semver::VersionReq::STAR,
        hardware: vec!["cpu".into()],
        groups: vec!["lab".into(), "ward".into()],
        configuration: None,
        bundles: BTreeMap::new(),
        rollout: Rollout {
            start_ms: START,
            canary: vec!["lab".into()],
            waves: vec![Wave {
                up_to: 1.0,
                after: Duration::from_hours(1),
                duration: Duration::from_hours(1),
            }],
            failure_threshold: threshold,
            silence: Duration::from_mins(30),
        },
        probation: Probation {
            healthy: Duration::from_mins(5),
            jobs: 1,
            failures: 0,
            slowdown: 2.0,
            boots: 3,
        },
    }
}

fn says(device: &str, phase: Phase) -> Report {
    Report {
        device: device.into(),
        group: "ward".into(),
        hardware: "cpu".into(),
        cdal: "0.1.0".into(),
        running: None,
        target: Some(named(1)),
        phase,
        waits_for: None,
        failed: None,
        counters: BTreeMap::new(),
        audit: Proof::default(),
    }
}

fn committed(device: &str) -> Report {
    Report { running: Some(named(1)), target: None, ..says(device, Phase::Idle) }
}

fn rolled_back(device: &str, reason: &str) -> Report {
    let failed = Some(Failure { release: named(1), reason: reason.into() });
    Report { failed, target: None, ..says(device, Phase::Idle) }
}

fn ledger(threshold: f64) -> Ledger {
    let mut ledger = Ledger::new(false);
    ledger.offer(release(1, threshold), &digest(1)).unwrap();
    ledger
}

fn class(ledger: &Ledger, device: &str, now: u64) -> Class {
    let account = ledger.account(&digest(1), now).unwrap();
    account.table.iter().find(|line| line.device == device).unwrap().class
}

#[test]
fn a_device_goes_through_the_classes_and_counts_once() {
    let mut ledger = ledger(1.0);
    let mut now = START + 200 * MINUTE;
    for (report, expected) in [
        (says("a", Phase::WaitingWave), Class::Waiting),
        (says("a", Phase::Downloading), Class::UnderWay),
        (says("a", Phase::WaitSafePoint), Class::UnderWay),
        (says("a", Phase::Trial), Class::OnTrial),
        (rolled_back("a", "the golden case differs"), Class::RolledBack),
        (says("a", Phase::Downloading), Class::UnderWay),
        (committed("a"), Class::Committed),
        (Report { running: Some(named(2)), ..committed("a") }, Class::Committed),
    ] {
        now += MINUTE;
        ledger.hear(report, now);
        assert_eq!(class(&ledger, "a", now), expected);
    }
    let never = Report { running: Some(named(2)), ..committed("b") };
    ledger.hear(never, now);
    assert_eq!(class(&ledger, "b", now), Class::Overtaken);
    let other = Report { hardware: "gpu".into(), ..says("c", Phase::Idle) };
    ledger.hear(other, now);
    assert_eq!(class(&ledger, "c", now), Class::NotConcerned);
    ledger.hear(says("d", Phase::Trial), now);
    ledger.hear(Report { target: Some(named(2)), ..says("d", Phase::Verified) }, now);
    assert_eq!(class(&ledger, "d", now), Class::Overtaken);
    let account = ledger.account(&digest(1), now).unwrap();
    assert_eq!(account.classes[&Class::Committed], 1);
    assert_eq!(account.stages.iter().map(|stage| stage.devices).sum::<usize>(), 3);
}

#[test]
fn a_device_that_began_and_fell_silent_is_no_longer_under_way() {
    let mut ledger = ledger(1.0);
    let began = START + 130 * MINUTE;
    ledger.hear(says("a", Phase::Downloading), began);
    ledger.hear(says("w", Phase::WaitingWave), began);
    assert_eq!(class(&ledger, "a", began + 30 * MINUTE - 1), Class::UnderWay);
    assert_eq!(class(&ledger, "a", began + 30 * MINUTE), Class::Silent);
    assert_eq!(class(&ledger, "w", began + 30 * MINUTE), Class::Waiting, "it never began");
    // One that is heard, but says no more of it, is no better.
    ledger.hear(Report { target: None, ..says("a", Phase::Idle) }, began + 31 * MINUTE);
    assert_eq!(class(&ledger, "a", began + 31 * MINUTE), Class::Silent);
    ledger.hear(says("a", Phase::Staged), began + 32 * MINUTE);
    assert_eq!(class(&ledger, "a", began + 32 * MINUTE), Class::UnderWay);
}

#[test]
fn more_failures_than_the_threshold_pause_and_who_resumes_has_seen_them() {
    let mut ledger = ledger(0.25);
    let now = START + 130 * MINUTE;
    for device in ["a", "b", "c", "d"] {
        ledger.hear(says(device, Phase::Downloading), now);
    }
    let may = |ledger: &Ledger, device: &str| ledger.may_proceed(device);
    ledger.hear(rolled_back("a", "x"), now + 1);
    assert_eq!(may(&ledger, "b"), Ok(()), "a quarter is not more than a quarter");
    let records = ledger.hear(rolled_back("b", "x"), now + 2);
    assert!(records.iter().any(|record| matches!(record, Record::Rollout { .. })));
    let pause = Pause { since_ms: now + 2, cause: Cause::Failures { failed: 2, began: 4 } };
    assert_eq!(may(&ledger, "c"), Err(Hold::Paused(pause)));
    ledger.resume(&digest(1), now + 3).unwrap();
    ledger.hear(rolled_back("b", "x"), now + 4);
    assert_eq!(may(&ledger, "c"), Ok(()), "the same failures again");
    ledger.hear(rolled_back("c", "x"), now + 5);
    assert!(may(&ledger, "d").is_err(), "one of the two others");
}

#[test]
fn silence_on_the_way_counts_as_failure() {
    let mut ledger = ledger(0.25);
    let now = START + 130 * MINUTE;
    ledger.hear(says("a", Phase::Trial), now);
    ledger.hear(says("b", Phase::Trial), now);
    assert!(ledger.watch(now + 29 * MINUTE).is_empty());
    ledger.hear(committed("b"), now + 29 * MINUTE);
    assert_eq!(ledger.watch(now + 30 * MINUTE).len(), 1);
    ledger.hear(says("c", Phase::WaitingWave), now + 31 * MINUTE);
    let words = ledger.may_proceed("c").unwrap_err().to_string();
    assert!(words.ends_with("1 of the 2 that began have failed"), "{words}");
}

#[test]
fn a_person_pauses_and_resumes_and_opens_the_gate_after_the_canary_groups() {
    let mut ledger = Ledger::new(true);
    ledger.offer(release(1, 1.0), &digest(1)).unwrap();
    let now = START;
    ledger.hear(says("w", Phase::WaitingWave), now);
    ledger.hear(Report { group: "lab".into(), ..says("l", Phase::WaitingWave) }, now);
    assert_eq!(ledger.may_proceed("w"), Err(Hold::Gate));
    assert_eq!(ledger.may_proceed("l"), Ok(()));
    ledger.pause(&digest(1), "ann", "the link is slow", now).unwrap();
    let words = ledger.may_proceed("l").unwrap_err().to_string();
    assert_eq!(words, "paused by ann at 2026-03-01 08:00:00 UTC: the link is slow");
    ledger.resume(&digest(1), now).unwrap();
    assert_eq!(ledger.may_proceed("l"), Ok(()));
    assert_eq!(ledger.may_proceed("w"), Ok(()));
    ledger.hear(Report { target: Some(named(9)), ..says("w", Phase::Verified) }, now);
    assert_eq!(ledger.may_proceed("w"), Err(Hold::Unknown));
    assert!(ledger.pause(&digest(9), "ann", "", now).is_none());
}

#[test]
fn who_is_heard_of_after_its_turn_is_late_and_takes_part() {
    let mut ledger = ledger(1.0);
    ledger.hear(says("early", Phase::WaitingWave), START);
    let now = START + 300 * MINUTE;
    ledger.hear(says("early", Phase::Downloading), now);
    ledger.hear(says("late", Phase::Downloading), now);
    let account = ledger.account(&digest(1), now).unwrap();
    let late: Vec<_> = account.table.iter().filter(|line| line.late).collect();
    assert_eq!((account.late, late[0].device.as_str()), (1, "late"));
    assert_eq!(account.classes[&Class::UnderWay], 2);
}

/// Lines as `telemetry::audit` writes them.
fn trail(lines: u64, word: &str) -> Vec<String> {
    let mut previous = String::new();
    let line = |seq| {
        let text = format!("{{\"seq\":{seq},\"event\":\"{word}\",\"previous\":\"{previous}\"");
        previous = hex(&Sha256::digest(&text));
        format!("{text},\"seal\":\"{previous}\"}}")
    };
    (1..=lines).map(line).collect()
}

fn seal(line: &str) -> String {
    line[line.len() - 66..line.len() - 2].to_owned()
}

#[test]
fn a_trail_that_does_not_extend_the_one_before_raises_an_alarm() {
    let honest = trail(9, "delivered");
    let other = trail(9, "deleted");
    let proof = |lines: &[String], from: usize, to: usize| Proof {
        seq: to as u64,
        seal: to.checked_sub(1).map_or(String::new(), |last| seal(&lines[last])),
        lines: lines[from..to].to_vec(),
    };
    let alarms = |steps: &[Proof]| {
        let mut ledger = self::ledger(1.0);
        for (step, proof) in steps.iter().enumerate() {
            let report = Report { audit: proof.clone(), ..says("a", Phase::Idle) };
            ledger.hear(report, START + step as u64);
        }
        ledger.alarms().map(|alarm| alarm.what.clone()).collect::<Vec<_>>()
    };
    let first = proof(&honest, 5, 5);
    assert!(alarms(&[first.clone(), proof(&honest, 5, 5), proof(&honest, 5, 9)]).is_empty());
    assert!(alarms(&[proof(&honest, 0, 0), proof(&honest, 0, 9)]).is_empty(), "from nothing");
    let again = [first.clone(), proof(&honest, 5, 8), proof(&honest, 5, 9)];
    assert!(alarms(&again).is_empty(), "an answer was lost, lines come twice");
    let bit_by_bit = Proof { lines: honest[5..7].to_vec(), ..proof(&honest, 5, 9) };
    assert!(alarms(&[first.clone(), bit_by_bit, proof(&honest, 7, 9)]).is_empty());
    for (next, words) in [
        (proof(&honest, 4, 4), "ends at line 4, it had 5: it was cut"),
        (proof(&other, 5, 5), "line 5 of the audit trail is another one than before"),
        (proof(&other, 5, 7), "line 6 of the audit trail does not follow the one before it"),
        (
            Proof { seal: seal(&other[6]), ..proof(&honest, 5, 7) },
            "line 7 of the audit trail is another",
        ),
    ] {
        let told = alarms(&[first.clone(), next.clone(), next]);
        assert!(told[0].contains(words), "{told:?}");
        assert_eq!(told.len(), 1, "the same break is told once");
    }
    let mut edited = proof(&honest, 5, 7);
    edited.lines[0] = edited.lines[0].replace("delivered", "deliverer");
    assert!(alarms(&[first.clone(), edited])[0].contains("line 6 of the audit trail was changed"));
    let mut ledger = self::ledger(1.0);
    let hidden = Proof { lines: vec![], ..proof(&honest, 5, 7) };
    for (minutes, proof) in [(0, &first), (1, &hidden), (60, &hidden), (61, &hidden), (62, &hidden)]
    {
        let report = Report { audit: proof.clone(), ..says("a", Phase::Idle) };
        ledger.hear(report, START + minutes * MINUTE);
        assert_eq!(ledger.alarms().count(), usize::from(minutes > 60), "{minutes}");
    }
    let words = &ledger.alarms().next().unwrap().what;
    assert!(words.ends_with("end at line 7, but nothing after line 5 is shown"), "{words}");
}

fn any_report() -> impl Strategy<Value = Report> {
    let release = || prop::option::of((1_u64..4).prop_map(named));
    let phases = prop::sample::select(vec![
        Phase::Idle,
        Phase::WaitingWave,
        Phase::Downloading,
        Phase::Staged,
        Phase::Trial,
        Phase::RolledBack,
        Phase::SafeMode,
    ]);
    let group = prop::sample::select(vec!["lab", "ward", "elsewhere"]);
    (0_u8..8, group, release(), release(), release(), phases).prop_map(
        |(id, group, running, target, failed, phase)| Report {
            group: group.into(),
            running,
            target,
            failed: failed.map(|release| Failure { release, reason: "r".into() }),
            ..says(&format!("device-{id}"), phase)
        },
    )
}

proptest! {
    #[test]
    fn accounts_add_up_and_a_restored_ledger_is_the_same(
        steps in prop::collection::vec((any_report(), 0_u64..40 * MINUTE, 0_u8..12), 1..60)
    ) {
        let mut ledger = Ledger::new(false);
        let mut kept: Vec<Record> = Vec::new();
        for counter in 1..4 {
            kept.extend(ledger.offer(release(counter, 0.3), &digest(counter)).unwrap());
        }
        let mut now = START;
        for (report, wait, command) in steps {
            now += wait;
            kept.extend(ledger.hear(report, now));
            kept.extend(match command {
                0 => ledger.resume(&digest(1), now).unwrap(),
                1 => vec![ledger.pause(&digest(2), "ann", "", now).unwrap()],
                _ => ledger.watch(now),
            });
            for counter in 1..4 {
                let account = ledger.account(&digest(counter), now).unwrap();
                prop_assert_eq!(account.classes.values().sum::<usize>(), account.devices);
                prop_assert_eq!(account.devices, ledger.devices().len());
                let meant: usize = account.stages.iter().map(|stage| stage.devices).sum();
                prop_assert_eq!(meant + account.classes[&Class::NotConcerned], account.devices);
            }
            let restored = Ledger::restore(false, kept.clone()).unwrap();
            for counter in 1..4 {
                let (a, b) = (restored.account(&digest(counter), now), ledger.account(&digest(counter), now));
                prop_assert_eq!(a, b);
            }
        }
    }
}
