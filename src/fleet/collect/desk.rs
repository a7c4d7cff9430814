use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::store::{Store, StoreError};
use super::{AfterCanary, Answer, CollectError, Config, Fleet, Headline, releases};
use crate::fleet::rollout::{Ledger, Record, Report};

/// The folder of releases is not read more often, whatever devices ask for.
const RESCAN: Duration = Duration::from_secs(2);

/// Of the alarms, so many are shown.
const SHOWN_ALARMS: usize = 50;

/// The ledger with its store: what is changed here is kept before anyone hears of it. Every call may wait for the disk.
pub(super) struct Desk {
    ledger: Ledger,
    store: Box<dyn Store>,
    folder: PathBuf,
    scanned: Option<Instant>,
    heard: HashMap<String, Instant>,
    max_devices: usize,
    min_interval: Duration,
}

/// Why a report was not taken.
#[derive(Debug)]
pub(super) enum Refusal {
    TooSoon(Duration),
    Full(usize),
    Store(StoreError),
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Desk {
    pub(super) fn open(config: &Config, mut store: Box<dyn Store>) -> Result<Self, CollectError> {
        let is_gated = config.after_canary == AfterCanary::Wait;
        let mut desk = Self {
            ledger: Ledger::restore(is_gated, store.load()?)?,
            store,
            folder: config.releases.clone(),
            scanned: None,
            heard: HashMap::new(),
            max_devices: config.max_devices,
            min_interval: config.min_interval,
        };
        desk.scan()?;
        Ok(desk)
    }

    pub(super) fn hear(&mut self, report: Report) -> Result<Answer, Refusal> {
        let id = report.device.clone();
        let is_known = self.ledger.devices().contains_key(&id);
        if !is_known && self.ledger.devices().len() >= self.max_devices {
            return Err(Refusal::Full(self.max_devices));
        }
        if let Some(wait) = self
            .heard
            .get(&id)
            .and_then(|heard| self.min_interval.checked_sub(heard.elapsed()))
            .filter(|wait| !wait.is_zero())
        {
            return Err(Refusal::TooSoon(wait));
        }
        self.heard.insert(id.clone(), Instant::now());
        if report.target.as_ref().is_some_and(|target| !self.ledger.knows_release(&target.digest)) {
            self.rescan();
        }
        let records = self.ledger.hear(report, now_ms());
        for record in &records {
            if let Record::Alarm(alarm) = record {
                tracing::error!(device = alarm.device, "{}", alarm.what);
            }
        }
        self.keep(&records)?;
        let held = self.ledger.may_proceed(&id).err();
        Ok(Answer {
            go: held.is_none(),
            reason: held.map(|hold| hold.to_string()),
            audit_seq: self.ledger.devices()[&id].trail.seq,
        })
    }

    /// What time alone brings about.
    pub(super) fn watch(&mut self) -> Result<(), StoreError> {
        self.rescan();
        let records = self.ledger.watch(now_ms());
        self.keep(&records)
    }

    /// `false` if there is no such release.
    pub(super) fn pause(
        &mut self,
        counter: u64,
        by: &str,
        words: &str,
    ) -> Result<bool, StoreError> {
        let Some(digest) = self.ledger.digest_of(counter) else { return Ok(false) };
        let record = self.ledger.pause(&digest, by, words, now_ms());
        tracing::warn!(counter, by, "rollout paused");
        self.keep(record.as_slice()).map(|()| true)
    }

    /// `false` if there is no such release.
    pub(super) fn resume(&mut self, counter: u64, by: &str) -> Result<bool, StoreError> {
        let Some(digest) = self.ledger.digest_of(counter) else { return Ok(false) };
        let records = self.ledger.resume(&digest, now_ms()).unwrap_or_default();
        tracing::warn!(counter, by, "rollout resumed");
        self.keep(&records).map(|()| true)
    }

    /// `None` if a release is asked for that is not there.
    pub(super) fn fleet(&self, counter: Option<u64>) -> Option<Fleet> {
        let now_ms = now_ms();
        let digest = match counter {
            Some(counter) => Some(self.ledger.digest_of(counter)?),
            None => self.ledger.current().map(str::to_owned),
        };
        let headline = |(counter, name, paused)| Headline { counter, name, paused };
        Some(Fleet {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            now_ms,
            releases: self.ledger.releases().into_iter().map(headline).collect(),
            account: digest.and_then(|digest| self.ledger.account(&digest, now_ms)),
            alarms: self.ledger.alarms().rev().take(SHOWN_ALARMS).cloned().collect(),
            devices: self.ledger.devices().len(),
        })
    }

    fn rescan(&mut self) {
        if self.scanned.is_none_or(|scanned| scanned.elapsed() >= RESCAN)
            && let Err(error) = self.scan()
        {
            tracing::error!(%error, "the folder of releases cannot be read");
        }
    }

    fn scan(&mut self) -> Result<(), CollectError> {
        self.scanned = Some(Instant::now());
        for (digest, release) in releases::read(&self.folder)? {
            let counter = release.counter;
            match self.ledger.offer(release, &digest) {
                Ok(None) => {}
                Ok(Some(record)) => {
                    tracing::info!(counter, digest, "a new release");
                    self.keep(&[record])?;
                }
                Err(error) => tracing::warn!(counter, %error, "a release is passed over"),
            }
        }
        Ok(())
    }

    fn keep(&mut self, records: &[Record]) -> Result<(), StoreError> {
        if records.is_empty() { Ok(()) } else { self.store.save(records) }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
