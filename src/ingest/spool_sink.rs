use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;

use super::dicom::{Completion, OnRelease};
use super::intake::resent;
use super::{Declined, Hold, Received, Refusal, Sink, Source, identify};
use crate::codec::commitment::{Report, Request};
use crate::domain::Uid;
use crate::durable::{Incoming, Synced};
use crate::spool::{Arrival, JobId, Spool, SpoolError, Stored};
use crate::telemetry::{Way, audit, metrics};

/// Puts objects into the spool and decides when a series is complete; the daemon asks for the idle ones when their
/// time comes.
pub struct SpoolSink {
    spool: Arc<Spool>,
    completion: watch::Receiver<Completion>,
    /// What associations that are still open have brought.
    open: Mutex<HashMap<u64, Open>>,
    /// Who brought the first object of each series that is not complete.
    senders: Mutex<HashMap<JobId, Source>>,
    receiving: Arc<Receiving>,
    on_change: Arc<dyn Fn() + Send + Sync>,
    /// AE titles of those who may ask for storage commitment.
    requesters: Vec<String>,
    on_commitment: Box<dyn Fn() + Send + Sync>,
}

/// An association.
struct Open {
    source: Source,
    /// Jobs that got an object.
    jobs: HashSet<JobId>,
    /// Jobs of which an object came that was here before.
    resent: HashSet<JobId>,
}

/// Series of which objects are on their way: how many.
type Receiving = Mutex<HashMap<Uid, usize>>;

/// One of them. Its end is a change: the idle time of the series begins.
struct OnItsWay {
    series: Uid,
    receiving: Arc<Receiving>,
    on_change: Arc<dyn Fn() + Send + Sync>,
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        let mut receiving = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = receiving.get_mut(&self.series) {
            *count -= 1;
            if *count == 0 {
                receiving.remove(&self.series);
            }
        }
        drop(receiving);
        (self.on_change)();
    }
}

impl SpoolSink {
    /// `on_change` is called after every stored object and completed series; it must not block.
    pub fn new(
        spool: Arc<Spool>,
        completion: watch::Receiver<Completion>,
        on_change: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let (open, senders, receiving) = Default::default();
        let (requesters, on_commitment) = (Vec::new(), Box::new(|| ()));
        let on_change = Arc::new(on_change);
        Self { spool, completion, open, senders, receiving, on_change, requesters, on_commitment }
    }

    /// Lets these AE titles ask for storage commitment. `on_commitment` is called whenever one asks or a destination
    /// reports; it must not block.
    #[must_use]
    pub fn with_commitment(
        self,
        requesters: Vec<String>,
        on_commitment: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self { requesters, on_commitment: Box::new(on_commitment), ..self }
    }

    /// Completes series of which nothing came for the idle time and nothing is on its way. Returns how many, and in
    /// how long the next one will be idle.
    ///
    /// # Errors
    /// If the spool refuses.
    pub fn complete_idle(&self) -> Result<(usize, Option<Duration>), SpoolError> {
        let receiving = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        let busy: Vec<Uid> = receiving.keys().cloned().collect();
        drop(receiving);
        let idle = self.completion.borrow().idle;
        let (ready, wait) = self.spool.complete_idle(idle, &busy)?;
        for job in &ready {
            self.announce(job);
        }
        Ok((ready.len(), wait))
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn senders(&self) -> MutexGuard<'_, HashMap<JobId, Source>> {
        self.senders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complete(&self, job: &JobId) -> Result<(), SpoolError> {
        if self.spool.complete(job)? {
            self.announce(job);
        }
        Ok(())
    }

    /// Into the log: a series has arrived, and from whom if that was since the start of the process.
    fn announce(&self, job: &JobId) {
        let objects = self.spool.job(job).ok().flatten().map(|report| report.objects);
        let source = self.senders().remove(job);
        let peer = source.as_ref().map(|source| tracing::field::display(source.address));
        let calling = source.as_ref().map(|source| tracing::field::display(&source.calling));
        tracing::info!(%job, objects, peer, calling, "series received");
    }

    /// Notes which job an association gave an object to, and whose object was here before.
    fn note(&self, association: u64, job: JobId, is_new: bool) {
        let mut open = self.open();
        let Some(Open { source, jobs, resent }) = open.get_mut(&association) else { return };
        if !is_new {
            resent.insert(job);
        } else if jobs.insert(job.clone()) {
            audit::record("accepted", json!({ "job": job.as_str(), "from": "dicom" }));
            self.senders().entry(job).or_insert_with(|| source.clone());
        }
    }

    /// A sender that sends a failed series again wants it computed.
    fn run_again(&self, job: &JobId, source: &Source) {
        let Source { address: peer, calling, .. } = source;
        match self.spool.resent(job) {
            Ok(true) => {
                tracing::info!(%job, %peer, %calling, "failed series sent again; it is tried again");
            }
            Ok(false) => tracing::debug!(%job, %peer, %calling, "series sent again; nothing new"),
            Err(error) => tracing::warn!(%job, %error, "failed series not tried again"),
        }
    }
}

impl Sink for SpoolSink {
    fn admits(&self) -> bool {
        self.spool
            .check_free_space()
            .inspect_err(|error| tracing::error!(%error, "associations are refused"))
            .is_ok()
    }

    fn begin(&self) -> Result<Incoming, Refusal> {
        self.spool.check_free_space()?;
        Ok(Incoming::create(&self.spool.incoming())?)
    }

    fn receiving(&self, series: &Uid) -> Option<Hold> {
        let (receiving, on_change) = (self.receiving.clone(), self.on_change.clone());
        let mut counts = receiving.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(series.clone()).or_default() += 1;
        drop(counts);
        Some(Box::new(OnItsWay { series: series.clone(), receiving, on_change }))
    }

    fn store(&self, received: &Received, file: Synced) -> Result<(), Refusal> {
        let arrival = Arrival {
            series_instance_uid: identify::series_of(received, file.path())?,
            sop_instance_uid: received.sop_instance_uid.clone(),
            sop_class_uid: Some(received.sop_class_uid.clone()),
            association: received.association,
            extension: "dcm".to_owned(),
        };
        let bytes = file.bytes;
        match self.spool.store(&arrival, file)? {
            Stored::Accepted { job, instances } => {
                tracing::debug!(%job, bytes, instances, "object stored");
                self.note(received.association, job.clone(), true);
                let expected = self.completion.borrow().instances;
                if expected.is_some_and(|expected| instances >= expected)
                    && let Err(error) = self.complete(&job)
                {
                    // The object is safe; the idle time will complete the series.
                    tracing::warn!(%job, %error, "series not marked complete");
                }
            }
            Stored::Duplicate => {
                tracing::debug!(bytes, "object was here before");
                if let Ok(Some(job)) = self.spool.job_of(&received.sop_instance_uid) {
                    self.note(received.association, job, false);
                }
            }
            Stored::Resent { job } => resent(&job, "dicom"),
            Stored::Quarantined { job } => {
                tracing::error!(
                    %job,
                    "an object came with a known SOP Instance UID and other content; both are kept and the \
                     job is quarantined until a person decides"
                );
                self.senders().remove(&job);
            }
        }
        metrics().object(Way::Dicom);
        (self.on_change)();
        Ok(())
    }

    fn ask_commitment(&self, requester: &str, request: &Request) -> Result<(), Declined> {
        if !self.requesters.iter().any(|known| known == requester) {
            return Err(Declined::UnknownRequester);
        }
        let objects = request.objects.len();
        self.spool.ask_commitment(requester, &request.transaction, &request.objects)?;
        tracing::debug!(requester, objects, "asked for storage commitment");
        (self.on_commitment)();
        Ok(())
    }

    fn report_commitment(&self, report: &Report) -> Result<(), Declined> {
        let Report { transaction, safe, failed } = report;
        let news = self.spool.report_custody(transaction, safe, failed)?;
        if news == 0 {
            tracing::debug!("a report of storage commitment nobody waits for");
        }
        (self.on_commitment)();
        Ok(())
    }

    fn association_began(&self, source: &Source) {
        let (jobs, resent) = Default::default();
        self.open().insert(source.association, Open { source: source.clone(), jobs, resent });
    }

    fn association_ended(&self, association: u64, released: bool) {
        let Some(Open { source, jobs, mut resent }) = self.open().remove(&association) else {
            return;
        };
        if released && self.completion.borrow().on_release == OnRelease::Complete {
            for job in &jobs {
                if let Err(error) = self.complete(job) {
                    tracing::warn!(%job, %error, "series not marked complete");
                }
            }
            (self.on_change)();
        }
        resent.retain(|job| !jobs.contains(job));
        for job in &resent {
            self.run_again(job, &source);
        }
        if !resent.is_empty() {
            (self.on_change)();
        }
    }
}
