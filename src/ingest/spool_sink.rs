use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;
use tokio::sync::watch;

use super::dicom::{Completion, OnRelease};
use super::{Received, Refusal, Sink, identify};
use crate::spool::durable::{Incoming, Synced};
use crate::spool::{Arrival, JobId, Spool, SpoolError, Stored};
use crate::telemetry::{Way, audit, metrics};

/// Puts objects into the spool and decides when a series is complete, except for the idle time, which the daemon
/// watches.
pub struct SpoolSink {
    spool: Arc<Spool>,
    completion: watch::Receiver<Completion>,
    /// Jobs that got an object from an association that is still open.
    touched: Mutex<HashMap<u64, HashSet<JobId>>>,
    on_change: Box<dyn Fn() + Send + Sync>,
}

impl SpoolSink {
    /// `on_change` is called after every stored object and completed series; it must not block.
    pub fn new(
        spool: Arc<Spool>,
        completion: watch::Receiver<Completion>,
        on_change: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let touched = Mutex::default();
        Self { spool, completion, touched, on_change: Box::new(on_change) }
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

    fn store(&self, received: &Received, file: Synced) -> Result<(), Refusal> {
        let arrival = Arrival {
            series_instance_uid: identify::series_of(received, file.path())?,
            sop_instance_uid: received.sop_instance_uid.clone(),
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
