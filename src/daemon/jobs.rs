//! The thread that owns the worker.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::watch;

use super::destinations::Destinations;
use super::{Health, JobError, Worker};
use crate::durable::failpoint;
use crate::http::Gallery;
use crate::spool::{Claim, Product, Queue, Retry, SpoolError};
use crate::telemetry::{JobOutcome, Stage, audit, metrics};

/// Pause after an error of the spool itself, such as a full disk.
const SPOOL_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Jobs<W> {
    pub(super) queue: Arc<dyn Queue>,
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
        while !self.worker.takes_jobs() {
            if wake.recv().is_err() {
                return;
            }
        }
        loop {
            // Closed: claim nothing more. A job under way has ended by now.
            match wake.try_recv() {
                Ok(()) => continue,
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return,
            }
            let wait = match self.queue.claim() {
                Ok(Some(claim)) => {
                    if self.work(&claim, wake).is_break() {
                        return;
                    }
                    continue;
                }
                Ok(None) => self.queue.next_claim().ok().flatten(),
                Err(error) => {
                    if !error.is_outage() {
                        tracing::error!(%error, "no job can be taken");
                    }
                    Some(SPOOL_PAUSE)
                }
            };
            let wait = wait.unwrap_or(Duration::from_hours(1)).max(Duration::from_millis(1));
            if matches!(wake.recv_timeout(wait), Err(RecvTimeoutError::Disconnected)) {
                return;
            }
        }
    }

    /// Computes, then records what came of it, however long the spool refuses: a full disk is no fault of the job.
    /// Breaks if it still refuses when the daemon stops; the job is then found running at the next start.
    fn work(&mut self, claim: &Claim, wake: &Receiver<()>) -> ControlFlow<()> {
        let started = Instant::now();
        self.health.send_modify(|health| health.working_since = Some(started));
        let result = catch_unwind(AssertUnwindSafe(|| self.worker.process(claim)));
        let compute = started.elapsed();
        metrics().stage(Stage::Queue, claim.queue);
        metrics().stage(Stage::Compute, compute);
        let result = result.unwrap_or_else(|_| {
            Err(JobError::Permanent("the worker panicked; this is a bug, please report it".into()))
        });
        failpoint::reach("job.computed");
        while let Err(error) = self.record(claim, &result, compute) {
            if error.is_overtaken() {
                tracing::warn!(job = %claim.job, "another device has done the job, or is doing it");
                break;
            }
            if !error.is_outage() {
                tracing::error!(job = %claim.job, %error, "the job's end cannot be recorded; will try again");
            }
            if matches!(wake.recv_timeout(SPOOL_PAUSE), Err(RecvTimeoutError::Disconnected)) {
                return ControlFlow::Break(());
            }
        }
        self.health.send_modify(|health| health.working_since = None);
        let drawing = self.worker.pictures(); // taken in any case: it holds the whole case
        if let (Some(gallery), Some(drawing)) = (&self.gallery, drawing) {
            gallery.draw(claim.job.clone(), drawing);
        }
        ControlFlow::Continue(())
    }

    fn record(
        &self,
        claim: &Claim,
        result: &Result<Vec<Product>, JobError>,
        compute: Duration,
    ) -> Result<(), SpoolError> {
        let (job, attempt) = (&claim.job, claim.attempt);
        match result {
            Ok(products) => {
                let objects = claim.files.len();
                let (queue_ms, compute_ms) =
                    (claim.queue.as_millis() as u64, compute.as_millis() as u64);
                let said = products.iter().map(|p| p.summary.as_str()).filter(|s| !s.is_empty());
                let summary = said.collect::<Vec<_>>().join("; ");
                let destinations = self.destinations.taking(products);
                self.queue.finish(claim, products, &destinations, compute).inspect(|()| {
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
            Err(error) => self.record_failure(claim, error),
        }
    }

    fn record_failure(&self, claim: &Claim, error: &JobError) -> Result<(), SpoolError> {
        let (job, attempt) = (&claim.job, claim.attempt);
        let retry = match error {
            JobError::Permanent(reason) | JobError::Model(reason) => {
                self.queue.fail(claim, reason)?;
                Retry::GivenUp
            }
            JobError::Transient(reason) => self.queue.retry(claim, reason, self.retry_delay)?,
        };
        metrics().job(match retry {
            Retry::Scheduled => JobOutcome::Retried,
            Retry::GivenUp | Retry::Superseded => JobOutcome::Failed,
        });
        match retry {
            Retry::Scheduled => tracing::warn!(%job, attempt, %error, "job failed; will try again"),
            Retry::Superseded => {
                tracing::warn!(%job, attempt, %error, "job failed; a later revision covers it");
            }
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
