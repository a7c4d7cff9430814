//! The thread that owns the worker.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::watch;

use super::destinations::Destinations;
use super::{Health, JobError, Worker};
use crate::http::Gallery;
use crate::spool::{Claim, Retry, Spool, SpoolError};
use crate::telemetry::{JobOutcome, Stage, audit, metrics};

/// Pause after an error of the spool itself, such as a full disk.
const SPOOL_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Jobs<W> {
    pub(super) spool: Arc<Spool>,
    pub(super) worker: W,
    pub(super) destinations: Arc<Destinations>,
    pub(super) retry_delay: Duration,
    pub(super) health: watch::Sender<Health>,
    /// Where the last cases are shown, if anywhere.
    pub(super) gallery: Option<Arc<Gallery>>,
}

impl<W: Worker> Jobs<W> {
    /// Works until `wake` is closed. A message in `wake` says that there may be a ready job.
    pub(super) fn run(mut self, wake: &Receiver<()>) {
        loop {
            // Closed: claim nothing more. A job under way has ended by now.
            match wake.try_recv() {
                Ok(()) => continue,
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return,
            }
            let wait = match self.spool.claim() {
                Ok(Some(claim)) => {
                    self.work(&claim);
                    continue;
                }
                Ok(None) => self.spool.next_claim().ok().flatten(),
                Err(error) => {
                    tracing::error!(%error, "no job can be taken");
                    Some(SPOOL_PAUSE)
                }
            };
            let wait = wait.unwrap_or(Duration::from_hours(1)).max(Duration::from_millis(1));
            if matches!(wake.recv_timeout(wait), Err(RecvTimeoutError::Disconnected)) {
                return;
            }
        }
    }

    fn work(&mut self, claim: &Claim) {
        let (job, attempt) = (&claim.job, claim.attempt);
        let started = Instant::now();
        self.health.send_modify(|health| health.working_since = Some(started));
        let result = catch_unwind(AssertUnwindSafe(|| self.worker.process(&claim.files)));
        let compute = started.elapsed();
        metrics().stage(Stage::Queue, claim.queue);
        metrics().stage(Stage::Compute, compute);
        let result = result.unwrap_or_else(|_| {
            Err(JobError::Permanent("the worker panicked; this is a bug, please report it".into()))
        });
        let recorded = match result {
            Ok(products) => {
                let objects = claim.files.len();
                let (queue_ms, compute_ms) =
                    (claim.queue.as_millis() as u64, compute.as_millis() as u64);
                let summary =
                    products.iter().map(|p| p.summary.as_str()).collect::<Vec<_>>().join("; ");
                let destinations = self.destinations.taking(&products);
                self.spool.finish(job, &products, &destinations, compute).inspect(|()| {
                        tracing::info!(
                            %job, attempt, objects, queue_ms, compute_ms,
                            products = products.len(), summary, "job done"
                        );
    metrics().job(JobOutcome::Done);
                    audit::record(
                        "job_done",
                        json!({ "job": job.as_str(), "objects": objects, "products": products.len() }),
                    );
                    self.health.send_modify(|health| health.jobs_done += 1);
                        self.destinations.ring();
                    })
            }
            Err(error) => self.record_failure(claim, &error),
        };
        if let Err(error) = recorded {
            tracing::error!(%job, %error, "the job's end could not be recorded; it will run again");
            std::thread::sleep(SPOOL_PAUSE);
            let _ = self.spool.retry(job, "its end could not be recorded", SPOOL_PAUSE);
        }
        self.health.send_modify(|health| health.working_since = None);
        let drawing = self.worker.pictures(); // taken in any case: it holds the whole case
        if let (Some(gallery), Some(drawing)) = (&self.gallery, drawing) {
            gallery.draw(job.clone(), drawing);
        }
    }

    fn record_failure(&self, claim: &Claim, error: &JobError) -> Result<(), SpoolError> {
        let (job, attempt) = (&claim.job, claim.attempt);
        let retry = match error {
            JobError::Permanent(reason) => {
                self.spool.fail(job, reason)?;
                Retry::GivenUp
            }
            JobError::Transient(reason) => self.spool.retry(job, reason, self.retry_delay)?,
        };
        metrics().job(match retry {
            Retry::Scheduled => JobOutcome::Retried,
            Retry::GivenUp => JobOutcome::Failed,
        });
        match retry {
            Retry::Scheduled => tracing::warn!(%job, attempt, %error, "job failed; will try again"),
            Retry::GivenUp => {
                tracing::error!(%job, attempt, %error, "job failed; its objects are kept");
                audit::record(
                    "job_failed",
                    json!({ "job": job.as_str(), "reason": error.to_string() }),
                );
                self.health.send_modify(|health| health.jobs_failed += 1);
            }
        }
        Ok(())
    }
}
