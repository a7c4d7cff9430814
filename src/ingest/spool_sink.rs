use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;

use super::dicom::{Completion, OnRelease};
use super::{Declined, Hold, Received, Refusal, Sink, identify};
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
    /// Jobs that got an object from an association that is still open.
    touched: Mutex<HashMap<u64, HashSet<JobId>>>,
    receiving: Arc<Receiving>,
    on_change: Arc<dyn Fn() + Send + Sync>,
    /// AE titles of those who may ask for storage commitment.
    requesters: Vec<String>,
    on_commitment: Box<dyn Fn() + Send + Sync>,
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
        let (touched, receiving) = Default::default();
        let (requesters, on_commitment) = (Vec::new(), Box::new(|| ()));
        let on_change = Arc::new(on_change);
        Self { spool, completion, touched, receiving, on_change, requesters, on_commitment }
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
        self.spool.complete_idle(idle, &busy)
    }

    fn touched(&self) -> std::sync::MutexGuard<'_, HashMap<u64, HashSet<JobId>>> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complete(&self, job: &JobId) -> Result<(), SpoolError> {
        if self.spool.complete(job)? {
            tracing::debug!(%job, "series complete");
        }
        Ok(())
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
            extension: "dcm",
        };
        let bytes = file.bytes;
        match self.spool.store(&arrival, file)? {
            Stored::Accepted { job, instances } => {
                tracing::debug!(%job, bytes, instances, "object stored");
                let expected = self.completion.borrow().instances;
                if expected.is_some_and(|expected| instances >= expected)
                    && let Err(error) = self.complete(&job)
                {
                    // The object is safe; the idle time will complete the series.
                    tracing::warn!(%job, %error, "series not marked complete");
                }
                let id = job.to_string();
                if self.touched().entry(received.association).or_default().insert(job) {
                    audit::record("accepted", json!({ "job": id, "from": "dicom" }));
                }
            }
            Stored::Duplicate => tracing::debug!(bytes, "object was here before"),
            Stored::Quarantined { job } => tracing::error!(
                %job,
                "an object came with a known SOP Instance UID and other content; both are kept and the \
                 job is quarantined until a person decides"
            ),
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

    fn association_ended(&self, association: u64, released: bool) {
        let jobs = self.touched().remove(&association).unwrap_or_default();
        if released && self.completion.borrow().on_release == OnRelease::Complete {
            for job in &jobs {
                if let Err(error) = self.complete(job) {
                    tracing::warn!(%job, %error, "series not marked complete");
                }
            }
            (self.on_change)();
        }
    }
}
