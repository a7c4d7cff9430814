//! Tells senders which of their objects are safe here: N-EVENT-REPORT of storage commitment (PS3.4 section J.3.3), on
//! an association of its own, until the sender acknowledges it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dicom_dictionary_std::uids;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Notify, watch};

use super::association::Association;
use super::config::{AE_TITLE_RULE, is_ae_title, is_host_and_port, pace_faults};
use super::worker::{SPOOL_PAUSE, blocking};
use super::{DicomConfig, Mode, Outcome, backoff};
use crate::codec::commitment::{PUSH_MODEL, Report};
use crate::codec::dimse::{Command, status};
use crate::codec::pdu::Role;
use crate::domain::{Fault, SopReference, duration};
use crate::spool::{Commitment, Held, Next, Spool, SpoolError};
use crate::telemetry::audit;
use crate::tls;

/// Section `[commitment]`: senders that may ask whether their objects are safe here, so that they need not keep them
/// (storage commitment, PS3.4 annex J). What is safe stays as long as `[spool]` says: until every destination has the
/// result, and then for `retain_for` while there is room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReportConfig {
    pub requester: Vec<Requester>,
    /// Longest wait for a sender's word.
    #[serde(with = "duration")]
    #[schemars(with = "duration::Text")]
    pub timeout: Duration,
    /// Wait after the first failure; it doubles up to `retry_max`.
    #[serde(with = "duration")]
    #[schemars(with = "duration::Text")]
    pub retry_first: Duration,
    #[serde(with = "duration")]
    #[schemars(with = "duration::Text")]
    pub retry_max: Duration,
    /// A report that could not be made for so long is given up; the sender may ask again.
    #[serde(with = "duration")]
    #[schemars(with = "duration::Text")]
    pub give_up_after: Duration,
}

/// One `[[commitment.requester]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Requester {
    /// AE title that it asks with and is told under.
    pub ae_title: String,
    /// Host and port where it listens, such as `10.0.0.5:104`.
    pub address: String,
    /// With it, TLS is spoken (PS3.15 annex B).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<tls::Client>,
}

impl Default for ReportConfig {
    fn default() -> Self {
        Self {
            requester: Vec::new(),
            timeout: Duration::from_secs(30),
            retry_first: Duration::from_secs(1),
            retry_max: Duration::from_mins(1),
            give_up_after: Duration::from_hours(7 * 24),
        }
    }
}

impl ReportConfig {
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut seen = BTreeSet::new();
        for (index, Requester { ae_title, address, tls }) in self.requester.iter().enumerate() {
            let mut fault = |key: &str, problem: &str| {
                faults.push(Fault::new(format!("requester[{index}].{key}"), problem));
            };
            if !is_ae_title(ae_title) {
                fault("ae_title", AE_TITLE_RULE);
            } else if !seen.insert(ae_title.trim()) {
                fault("ae_title", "is used twice; who asks has one address");
            }
            if !is_host_and_port(address) {
                fault("address", "is not a host and a port, such as \"10.0.0.5:104\"");
            }
            for below in tls.iter().flat_map(tls::Client::faults) {
                fault(&format!("tls.{}", below.key), &below.problem);
            }
        }
        let pace = [self.retry_first, self.retry_max, self.give_up_after];
        faults.extend(pace_faults(self.timeout, pace));
        faults
    }

    /// One for each requester, each on its own; `ae_title` is this program's, `spool` holds what was asked.
    #[must_use]
    pub fn reporters(&self, ae_title: &str, spool: &Arc<Spool>, held: &Holdings) -> Vec<Reporter> {
        let reporter = |requester: &Requester| Reporter {
            peer: DicomConfig {
                address: requester.address.clone(),
                ae_title: requester.ae_title.trim().to_owned(),
                calling_ae_title: ae_title.to_owned(),
                tls: requester.tls.clone(),
                timeout: self.timeout,
                commitment: None,
            },
            pace: [self.retry_first, self.retry_max, self.give_up_after],
            spool: Arc::clone(spool),
            held: Arc::clone(held),
        };
        self.requester.iter().map(reporter).collect()
    }
}

/// What of these objects is safe here, in their order. Blocks on the disk.
pub type Holdings = Arc<dyn Fn(&[SopReference]) -> Result<Vec<Held>, SpoolError> + Send + Sync>;

/// Answers one sender's requests.
pub struct Reporter {
    peer: DicomConfig,
    /// First and longest wait before the next attempt, and when to give up.
    pace: [Duration; 3],
    /// Keeps the requests.
    spool: Arc<Spool>,
    held: Holdings,
}

impl Reporter {
    /// Works until the mode is `Stop`, or `Drain` and nothing more can be told. `wake` says that there is a request.
    pub async fn run(self, wake: Arc<Notify>, mut mode: watch::Receiver<Mode>) {
        loop {
            let now = *mode.borrow_and_update();
            let wait = self.work_off(&mode).await.unwrap_or_else(|error| {
                tracing::error!(requester = self.peer.ae_title, %error, "the spool refuses");
                Some(SPOOL_PAUSE)
            });
            if now != Mode::Serve {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(wait.unwrap_or(Duration::from_hours(1))) => {}
                () = wake.notified() => {}
                changed = mode.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Tells what is due. Returns in how long something will be.
    async fn work_off(&self, mode: &watch::Receiver<Mode>) -> Result<Option<Duration>, SpoolError> {
        let of_spool = || (Arc::clone(&self.spool), self.peer.ae_title.clone());
        if *mode.borrow() == Mode::Drain {
            let (spool, requester) = of_spool();
            blocking(move || spool.hurry_commitments(&requester)).await?;
        }
        while *mode.borrow() != Mode::Stop {
            let (spool, requester) = of_spool();
            match blocking(move || spool.next_commitment(&requester)).await? {
                Next::Due(commitment) => self.attempt(*commitment).await?,
                Next::After(wait) => return Ok(Some(wait)),
                Next::Nothing => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Tells once what is safe now, and records what came of it.
    async fn attempt(&self, commitment: Commitment) -> Result<(), SpoolError> {
        let requester = self.peer.ae_title.as_str();
        let attempt = commitment.attempts + 1;
        let (held, asked) = (Arc::clone(&self.held), commitment.objects.clone());
        let held = blocking(move || held(&asked)).await?;
        let report = report(&commitment, &held);
        let (safe, failed) = (report.safe.len(), report.failed.len());
        let told = self.tell(&report).await;
        let [first, max, give_up_after] = self.pace;
        let retry = backoff::delay(commitment.attempts, first, max);
        let spool = Arc::clone(&self.spool);
        match told {
            Ok(()) => {
                blocking(move || spool.commitment_told(&commitment)).await?;
                audit::record(
                    "committed",
                    json!({ "requester": requester, "safe": safe, "failed": failed }),
                );
                tracing::info!(requester, attempt, safe, failed, "storage commitment reported");
            }
            Err(outcome) => {
                let reason = outcome.reason();
                tracing::warn!(
                    requester,
                    attempt,
                    reason,
                    "commitment not reported; will try again"
                );
                let postpone = move || spool.postpone_commitment(&commitment, retry, give_up_after);
                if blocking(postpone).await? {
                    tracing::error!(requester, "commitment not reported for too long; given up");
                }
            }
        }
        Ok(())
    }

    async fn tell(&self, report: &Report) -> Result<(), Outcome> {
        let class = PUSH_MODEL.sop_class_uid.as_str();
        let syntaxes = [uids::EXPLICIT_VR_LITTLE_ENDIAN, uids::IMPLICIT_VR_LITTLE_ENDIAN];
        let contexts = vec![(class.to_owned(), syntaxes.map(str::to_owned).to_vec())];
        // Who opens an association is its SCU, if it does not say otherwise.
        let roles = vec![Role { sop_class: class.to_owned(), scu: false, scp: true }];
        let mut association = Association::establish(&self.peer, contexts, roles).await?;
        let told = match association.context_of(class) {
            Some((context, syntax)) => {
                let data = report.encode(&syntax).map_err(|e| Outcome::Later(e.to_string()))?;
                let event_type = report.event_type();
                let source = PUSH_MODEL.clone();
                let request =
                    |message_id| Command::EventReportRequest { message_id, source, event_type };
                association.ask(context, request, Some(&data), self.peer.timeout).await
            }
            None => return Err(Outcome::Later(super::association::NO_CONTEXT.to_owned())),
        };
        association.release().await;
        match told {
            Ok(status::SUCCESS) => Ok(()),
            Ok(code) => Err(Outcome::Later(format!("N-EVENT-REPORT status {code:04X}"))),
            Err(failure) => Err(failure.into()),
        }
    }
}

/// What of a request is safe, and why the rest is not (PS3.3 section C.14.1.1).
fn report(commitment: &Commitment, held: &[Held]) -> Report {
    let transaction = commitment.transaction.clone();
    let mut report = Report { transaction, safe: Vec::new(), failed: Vec::new() };
    for (object, held) in commitment.objects.iter().cloned().zip(held) {
        match held {
            Held::Safe => report.safe.push(object),
            Held::Unknown => report.failed.push((object, status::NO_SUCH_OBJECT_INSTANCE)),
            Held::OtherClass => report.failed.push((object, status::CLASS_INSTANCE_CONFLICT)),
            Held::Contradicted | Held::Broken => {
                report.failed.push((object, status::PROCESSING_FAILURE));
            }
        }
    }
    report
}
