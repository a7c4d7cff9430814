//! What a collector keeps, in both of its stores: the same tests for the embedded one and for PostgreSQL.

use std::collections::BTreeMap;

use cdal::fleet::collect::{Postgres, Sqlite, Store, StoreError};
use cdal::fleet::rollout::{Alarm, Class, Failure, Ledger, Named, Phase, Proof, Record, Report};
use tokio::runtime::Runtime;

use crate::fleet_collect::release;
use crate::support::postgres::Cluster;
use crate::support::wait_for;

const DIGEST: &str = "0000000000000000000000000000000000000000000000000000000000000007";
const NOW: u64 = 1_772_352_000_000;

fn says(device: &str, phase: Phase) -> Report {
    Report {
        device: device.into(),
        group: "ward".into(),
        hardware: "x86-64-cpu".into(),
        cdal: "0.1.0".into(),
        running: None,
        target: Some(named()),
        phase,
        waits_for: Some("ein sicherer Punkt, „jetzt“ ' \" \\ $1 ?1".into()),
        failed: None,
        counters: BTreeMap::from([("jobs_done".into(), u64::from(u32::MAX))]),
        audit: Proof::default(),
    }
}

fn named() -> Named {
    Named { counter: 7, digest: DIGEST.into() }
}

/// Everything that a ledger gives, kept and read again.
fn suite(mut open: impl FnMut() -> Result<Box<dyn Store>, StoreError>) {
    let mut store = open().unwrap();
    assert_eq!(store.load().unwrap(), []);
    let mut ledger = Ledger::new(true);
    let offered = ledger.offer(release(7), DIGEST).unwrap();
    store.save(offered.as_slice()).unwrap();
    let step = |store: &mut Box<dyn Store>, records: Vec<Record>, ledger: &Ledger| {
        store.save(&records).unwrap();
        let restored = Ledger::restore(true, store.load().unwrap()).unwrap();
        let of = |ledger: &Ledger| ledger.account(DIGEST, NOW + 60_000).unwrap();
        assert_eq!(of(&restored), of(ledger));
        assert_eq!(restored.devices(), ledger.devices());
        assert!(restored.alarms().eq(ledger.alarms()));
    };
    let failed = Failure { release: named(), reason: "x".into() };
    let cut = Proof { seq: 3, seal: DIGEST.into(), lines: vec![] };
    for report in [
        says("a", Phase::WaitingWave),
        Report { audit: cut, ..says("b", Phase::Downloading) },
        says("b", Phase::Trial),
        Report { failed: Some(failed), target: None, ..says("c", Phase::RolledBack) },
        Report { running: Some(named()), ..says("a", Phase::Idle) },
    ] {
        let records = ledger.hear(report, NOW);
        step(&mut store, records, &ledger);
    }
    assert_eq!(ledger.alarms().count(), 1, "b's trail was cut");
    let records = ledger.pause(DIGEST, "ann", "tea", NOW).into_iter().collect();
    step(&mut store, records, &ledger);
    let records = ledger.resume(DIGEST, NOW).unwrap();
    step(&mut store, records, &ledger);
    let records = ledger.forget("c").into_iter().collect();
    step(&mut store, records, &ledger);
    let account = ledger.account(DIGEST, NOW).unwrap();
    assert_eq!((account.devices, account.classes[&Class::RolledBack]), (2, 0));

    assert!(open().is_err(), "one collector at a time");
    drop(store);
    let mut store = wait_for("the store to be free", || open().ok());
    step(&mut store, vec![], &ledger);

    // The oldest alarms make room.
    let alarm = |n: u64| Alarm { time_ms: n, device: "b".into(), what: n.to_string() };
    store.save(&(0..1005).map(|n| Record::Alarm(alarm(n))).collect::<Vec<_>>()).unwrap();
    let kept = store.load().unwrap();
    let alarms: Vec<_> = kept
        .iter()
        .filter_map(|record| match record {
            Record::Alarm(alarm) => Some(alarm.time_ms),
            _ => None,
        })
        .collect();
    assert_eq!(alarms, (5..1005).collect::<Vec<_>>());
}

#[test]
fn the_embedded_store_keeps_a_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fleet.db");
    suite(|| Ok(Box::new(Sqlite::open(&path)?)));
    let other = rusqlite::Connection::open(&path).unwrap();
    other.pragma_update(None, "user_version", 99).unwrap();
    let error = Sqlite::open(&path).err().unwrap().to_string();
    assert!(error.contains("schema 99, but this version knows 1"), "{error}");
}

#[test]
fn postgresql_keeps_a_ledger_the_same_way_and_is_found_again_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    let mut server = Cluster::make(folder.path());
    let open = || -> Result<Box<dyn Store>, StoreError> {
        Ok(Box::new(Postgres::open(&server.url, runtime.handle().clone())?))
    };
    suite(open);

    let mut store = wait_for("the lock to be free", || open().ok());
    let before = store.load().unwrap();
    server.crash();
    let alarm = Alarm { time_ms: 1, device: "b".into(), what: "after the crash".into() };
    let records = [Record::Alarm(alarm)];
    // What the lost connection refuses, a new one takes.
    wait_for("the server to be back", || store.save(&records).ok());
    let after = store.load().unwrap();
    assert_eq!(after.last(), records.last());
    assert_eq!(after.len(), before.len(), "one alarm more, the oldest less");
}
