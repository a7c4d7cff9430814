//! The machine under any order of events.

use std::time::Duration;

use proptest::prelude::*;

use super::{
    Candidate, Content, Duty, Event, Load, Machine, Note, Refusal, Stage, Standing, Timing, Verdict,
};
use crate::fleet::Probation;
use crate::fleet::rollout::{Named, Phase};

const TIMING: Timing = Timing { candidate_ms: 10.0, last_good_ms: Some(9.0) };

fn candidate(counter: u64) -> Candidate {
    let probation = Probation {
        healthy: Duration::from_secs(10),
        jobs: 2,
        failures: 1,
        slowdown: 2.0,
        boots: 3,
    };
    Candidate { named: Named { counter, digest: format!("d{counter}") }, probation }
}

fn release(counter: u64) -> Content {
    Content::Release(candidate(counter).named)
}

fn on_trial(machine: &mut Machine, counter: u64) {
    machine.offer(candidate(counter)).unwrap();
    on_trial_of(machine, counter);
}

/// Leads a release that was taken up to its trial.
fn on_trial_of(machine: &mut Machine, counter: u64) {
    for event in [
        Event::Asked(Standing::Fine),
        Event::Placed { start_ms: 100 },
        Event::Clock,
        Event::Downloaded,
        Event::Validation(Verdict::Sound(TIMING)),
        Event::Clock,
        Event::SafePoint,
    ] {
        machine.apply(event, 100);
    }
    assert_eq!(machine.trial().unwrap().candidate.named.counter, counter);
}

#[test]
fn a_release_is_committed_after_uptime_and_jobs() {
    let mut machine = Machine::default();
    on_trial(&mut machine, 7);
    assert_eq!(machine.load(), Load::Run(release(7)));
    assert_eq!(machine.apply(Event::Boot, 0), None);
    assert_eq!(machine.apply(Event::JobDone, 0), None);
    assert_eq!(machine.apply(Event::Healthy(Duration::from_mins(1)), 0), None);
    assert_eq!(machine.waits_for(0).unwrap(), "probation: 1 of 2 jobs or golden runs");
    let note = machine.apply(Event::Golden(Ok(Duration::from_millis(10))), 0);
    assert_eq!(note, Some(Note::Committed { release: candidate(7).named, before: Content::Own }));
    assert_eq!((machine.last_good(), machine.phase()), (&release(7), Phase::Idle));
}

#[test]
fn what_goes_wrong_on_trial_leads_back_and_never_again() {
    let ways: [(Vec<Event>, &str); 6] = [
        (vec![Event::Boot, Event::Boot, Event::Boot, Event::Boot], "ended 3 times"),
        (vec![Event::JobFailed { reason: "x".into() }; 2], "2 jobs failed on trial, 1 may"),
        (vec![Event::Golden(Err("differs".into()))], "differs"),
        (vec![Event::Golden(Ok(Duration::from_millis(19)))], "takes 19.0 ms"),
        (vec![Event::Broken { reason: "not a number".into() }], "not a number"),
        (
            vec![Event::LoadFailed { content: release(7), reason: "no graph".into() }],
            "cannot be loaded: no graph",
        ),
    ];
    for (events, words) in ways {
        let mut machine = Machine::default();
        on_trial(&mut machine, 7);
        let notes: Vec<_> = events.into_iter().map(|event| machine.apply(event, 5)).collect();
        assert!(
            matches!(notes.last().unwrap(), Some(Note::GivenUp { swapped: true, .. })),
            "{words}"
        );
        assert!(machine.failure().unwrap().reason.contains(words), "{words}: {machine:?}");
        assert_eq!(machine.load(), Load::Run(Content::Own));
        assert_eq!(machine.floor(), Some(&candidate(7).named), "a way back lowers no floor");
        assert!(matches!(machine.offer(candidate(7)), Err(Refusal::Quarantined { .. })));
        assert!(matches!(machine.offer(candidate(6)), Err(Refusal::BelowFloor { .. })));
        let mut other = candidate(7);
        other.named.digest = "other".into();
        assert!(matches!(machine.offer(other), Err(Refusal::OtherContent { counter: 7 })));
        assert!(machine.offer(candidate(8)).unwrap().is_some());
    }
}

#[test]
fn nothing_is_begun_while_the_repository_or_the_collector_says_no() {
    let mut machine = Machine::default();
    machine.offer(candidate(7)).unwrap();
    machine.apply(Event::Placed { start_ms: 0 }, 1);
    for (event, words) in [
        (Event::Clock, "has not been asked"),
        (Event::Asked(Standing::TimeUntrusted("it went back".into())), "clock cannot be trusted"),
        (Event::Asked(Standing::Refused("expired".into())), "expired"),
        (Event::Hold(Some("paused by ann".into())), "expired"),
    ] {
        machine.apply(event, 1);
        machine.apply(Event::Clock, 1);
        assert_eq!(machine.phase(), Phase::WaitingWave);
        assert!(machine.waits_for(1).unwrap().contains(words), "{words}");
    }
    machine.apply(Event::Asked(Standing::Fine), 1);
    machine.apply(Event::Clock, 1);
    assert_eq!(machine.waits_for(1).unwrap(), "paused by ann");
    machine.apply(Event::Hold(None), 1);
    machine.apply(Event::Clock, 1);
    assert_eq!(machine.duty(1), Duty::Download(candidate(7).named));
    machine.apply(Event::DownloadFailed { reason: "cut".into() }, 1000);
    assert_eq!(machine.duty(1000), Duty::Wait { until_ms: Some(11_000) });
    machine.apply(Event::Downloaded, 1000);
    machine.apply(Event::Validation(Verdict::Sound(TIMING)), 1000);
    machine.apply(Event::Clock, 1000);
    machine.apply(Event::Hold(Some("too many failed".into())), 1000);
    machine.apply(Event::SafePoint, 1000);
    machine.apply(Event::Clock, 1000);
    assert_eq!(machine.phase(), Phase::Validated, "held at the last moment");
}

#[test]
fn a_last_good_content_that_does_not_load_leaves_the_way_open() {
    let mut machine = Machine::default();
    let failed = Event::LoadFailed { content: Content::Own, reason: "no bundle".into() };
    assert!(matches!(machine.apply(failed.clone(), 0), Some(Note::SafeMode { .. })));
    assert_eq!((machine.phase(), machine.apply(failed, 0)), (Phase::SafeMode, None));
    assert_eq!(machine.load(), Load::SafeMode { reason: "no bundle".into() });
    on_trial(&mut machine, 7);
    machine.apply(Event::Broken { reason: "x".into() }, 0);
    assert!(matches!(machine.load(), Load::SafeMode { .. }));
    machine.apply(Event::Boot, 0);
    assert_eq!(machine.load(), Load::Run(Content::Own), "a start tries again");
}

#[test]
fn only_time_outs_in_a_row_condemn_a_release() {
    let mut machine = Machine::default();
    machine.offer(candidate(7)).unwrap();
    for event in [
        Event::Asked(Standing::Fine),
        Event::Placed { start_ms: 0 },
        Event::Clock,
        Event::Downloaded,
    ] {
        machine.apply(event, 1);
    }
    let late = || Event::Validation(Verdict::TimedOut("no result within 60 s".into()));
    let busy = || Event::Validation(Verdict::Transient("no memory".into()));
    for event in [busy(), busy(), late(), late(), busy(), late(), late()] {
        assert_eq!(machine.apply(event, 1), None);
        assert_eq!(machine.phase(), Phase::Staged);
    }
    let note = machine.apply(late(), 1);
    assert!(matches!(note, Some(Note::GivenUp { swapped: false, .. })), "{note:?}");
    assert_eq!(machine.failure().unwrap().reason, "no result within 60 s, 3 times in a row");
}

#[test]
fn back_from_a_bad_newest_release_a_new_device_takes_an_older_one_and_never_goes_below_what_runs() {
    let mut machine = Machine::default();
    on_trial(&mut machine, 7);
    assert!(matches!(machine.offer_instead(candidate(6)), Err(Refusal::BelowFloor { .. })));
    machine.apply(Event::Broken { reason: "not a number".into() }, 5);
    assert!(machine.offer_instead(candidate(6)).unwrap().is_some());
    assert_eq!(machine.floor(), Some(&candidate(7).named), "the floor stays");
    let failure = machine.failure().unwrap();
    assert_eq!((failure.release.counter, failure.reason.as_str()), (7, "not a number"));
    assert_eq!(machine.offer_instead(candidate(6)), Ok(None), "it is under way");
    on_trial_of(&mut machine, 6);
    machine.apply(Event::JobDone, 0);
    machine.apply(Event::JobDone, 0);
    machine.apply(Event::Healthy(Duration::from_mins(1)), 0);
    assert_eq!(machine.last_good(), &release(6));
    for older in [5, 6] {
        let refused = machine.offer_instead(candidate(older));
        assert!(matches!(refused, Err(Refusal::BelowFloor { .. })), "{older}");
    }
    assert!(machine.offer(candidate(8)).unwrap().is_some());
}

/// An event or an offer.
#[derive(Debug, Clone)]
enum Act {
    Offer(u64, &'static str),
    OfferInstead(u64),
    Event(Event),
    /// Everything but what was kept is lost.
    PowerCut,
}

fn any_act() -> impl Strategy<Value = Act> {
    let reason = || "r".to_owned();
    let content = (0_u64..5).prop_map(|n| if n == 0 { Content::Own } else { release(n) });
    let event = prop_oneof![
        Just(Event::Asked(Standing::Fine)),
        Just(Event::Asked(Standing::Unreachable(reason()))),
        Just(Event::Asked(Standing::TimeUntrusted(reason()))),
        Just(Event::Hold(None)),
        Just(Event::Hold(Some(reason()))),
        (0_u64..50).prop_map(|start_ms| Event::Placed { start_ms }),
        Just(Event::Clock),
        Just(Event::Downloaded),
        Just(Event::DownloadFailed { reason: reason() }),
        Just(Event::Validation(Verdict::Sound(TIMING))),
        Just(Event::Validation(Verdict::Deterministic(reason()))),
        Just(Event::Validation(Verdict::Transient(reason()))),
        Just(Event::Validation(Verdict::TimedOut(reason()))),
        Just(Event::SafePoint),
        Just(Event::Boot),
        content.clone().prop_map(Event::Loaded),
        content.prop_map(|content| Event::LoadFailed { content, reason: "r".to_owned() }),
        (0_u64..8).prop_map(|s| Event::Healthy(Duration::from_secs(s))),
        Just(Event::JobDone),
        Just(Event::JobFailed { reason: reason() }),
        (1_u64..30).prop_map(|ms| Event::Golden(Ok(Duration::from_millis(ms)))),
        Just(Event::Broken { reason: reason() }),
    ];
    let offer = (1_u64..5, prop::sample::select(vec!["", "forged"]));
    prop_oneof![
        1 => (1_u64..5).prop_map(Act::OfferInstead),
        2 => offer.prop_map(|(counter, mark)| Act::Offer(counter, mark)),
        12 => event.prop_map(Act::Event),
        1 => Just(Act::PowerCut),
        // The way forward, or few would ever come to a trial.
        6 => prop::sample::select(vec![
            Event::Asked(Standing::Fine), Event::Hold(None), Event::Clock, Event::Downloaded,
            Event::Validation(Verdict::Sound(TIMING)), Event::SafePoint,
        ]).prop_map(Act::Event),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn only_a_or_b_is_ever_loaded(acts in prop::collection::vec(any_act(), 1..120)) {
        let mut machine = Machine::default();
        let (mut downloaded, mut validated) = (Vec::new(), Vec::new());
        for (now, act) in acts.into_iter().enumerate() {
            let before = machine.clone();
            match act {
                Act::Offer(counter, mark) => {
                    let mut offered = candidate(counter);
                    offered.named.digest += mark;
                    let known = before.quarantine().contains_key(&offered.named.digest);
                    let taken = machine.offer(offered);
                    prop_assert!(!(known && taken.is_ok()), "out of quarantine");
                    if taken.is_err() {
                        prop_assert_eq!(&machine, &before, "a refusal changes nothing");
                    }
                }
                Act::OfferInstead(counter) => {
                    let offered = candidate(counter);
                    let known = before.quarantine().contains_key(&offered.named.digest);
                    let runs = before.last_good().named().map_or(0, |named| named.counter);
                    let taken = machine.offer_instead(offered);
                    prop_assert!(!(known && taken.is_ok()), "out of quarantine");
                    prop_assert!(!matches!(taken, Ok(Some(_))) || counter > runs, "below what runs");
                }
                Act::Event(event) => {
                    machine.apply(event, now as u64);
                }
                Act::PowerCut => {
                    let kept = serde_json::to_string(&machine).unwrap();
                    machine = serde_json::from_str(&kept).unwrap();
                    prop_assert_eq!(&machine, &before);
                }
            }
            match (before.stage(), machine.stage()) {
                (Stage::Downloading { candidate, .. }, Stage::Staged { .. }) => downloaded.push(candidate.named.clone()),
                (Stage::Staged { candidate, .. }, Stage::Validated(_)) => validated.push(candidate.named.clone()),
                _ => {}
            }
            // A or B: what was committed, or what is on trial and went through both gates.
            if let Load::Run(Content::Release(named)) = machine.load() {
                prop_assert!(downloaded.contains(&named) && validated.contains(&named));
                prop_assert!(!machine.quarantine().contains_key(&named.digest));
                let is_candidate = machine.trial().is_some_and(|trial| trial.candidate.named == named);
                prop_assert!(is_candidate || machine.last_good() == &Content::Release(named));
            }
            if machine.last_good() != before.last_good() {
                prop_assert!(before.trial().is_some_and(|t| Some(&t.candidate.named) == machine.last_good().named()));
            }
            let floor = |machine: &Machine| machine.floor().map(|floor| floor.counter);
            prop_assert!(floor(&machine) >= floor(&before));
            for digest in before.quarantine().keys() {
                prop_assert!(machine.quarantine().contains_key(digest));
            }
            if let Some(candidate) = machine.candidate() {
                prop_assert!(!machine.quarantine().contains_key(&candidate.named.digest));
            }
        }
        // However it stands, starts alone lead off the trial.
        let boots = machine.trial().map_or(0, |trial| trial.boots_left);
        for _ in 0..=boots {
            machine.apply(Event::Boot, 0);
        }
        prop_assert!(machine.trial().is_none());
    }
}
