use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;

use super::{Config, Outcome, Route, backoff, dicom, folder, serial, stow, webhook};
use crate::codec::dimse::status;
use crate::domain::Fault;
use crate::durable::{self, failpoint};
use crate::spool::{Delivery, Next, Queue, SpoolError, Verdict};
use crate::telemetry::{Stage, audit, metrics};

/// How the deliveries are worked off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Serve,
    /// Try what is pending once more, then end.
    Drain,
    /// End after the attempt under way.
    Stop,
}

/// One destination and its pending deliveries.
pub struct Destination {
    config: Config,
    route: Arc<Route>,
    /// To a DICOM destination; carries one object after the other.
    link: dicom::Link,
    /// It was asked for its commitment, and may answer on the same association.
    asked: bool,
    queue: Arc<dyn Queue>,
}

/// How long an association stays open for a report on what was just asked. Most destinations report on one of their
/// own, some at once on this.
const REPORT_PATIENCE: Duration = Duration::from_secs(2);

/// Pause after an error of the spool itself, such as a full disk.
pub(super) const SPOOL_PAUSE: Duration = Duration::from_secs(1);

impl Destination {
    /// # Errors
    /// What is wrong with the configuration.
    pub fn new(config: Config, queue: Arc<dyn Queue>) -> Result<Self, Vec<Fault>> {
        let route = Arc::new(config.route()?);
        metrics().destination(&config.name);
        Ok(Self { config, route, link: dicom::Link::default(), asked: false, queue })
    }

    /// Works until the mode is `Stop`, or `Drain` and nothing more can be sent. `wake` tells that there are new deliveries.
    pub async fn run(mut self, wake: Arc<Notify>, mut mode: watch::Receiver<Mode>) {
        loop {
            let now = *mode.borrow_and_update();
            let worked = self.work_off(&mode).await;
            let wait = worked.unwrap_or_else(|error| {
                if !error.is_outage() {
                    tracing::error!(destination = self.config.name, %error, "the spool refuses");
                }
                Some(SPOOL_PAUSE)
            });
            if now == Mode::Serve && self.asked {
                tokio::select! {
                    () = tokio::time::sleep(REPORT_PATIENCE) => {}
                    // Whatever it says is in the spool now.
                    () = self.link.report(&self.queue) => wake.notify_one(),
                    () = wake.notified() => wake.notify_one(),
                    changed = mode.changed() => match changed {
                        Ok(()) => wake.notify_one(),
                        Err(_) => return,
                    },
                }
                self.asked = false;
            }
            self.link.release().await;
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

    /// Sends, in order, what is due. Returns in how long something will be.
    async fn work_off(
        &mut self,
        mode: &watch::Receiver<Mode>,
    ) -> Result<Option<Duration>, SpoolError> {
        if *mode.borrow() == Mode::Drain {
            let (queue, name) = (self.queue.clone(), self.config.name.clone());
            blocking(move || queue.hurry(&name)).await?;
        }
        while *mode.borrow() != Mode::Stop {
            self.hear_verdicts().await?;
            let (queue, name) = (self.queue.clone(), self.config.name.clone());
            let wait = match blocking(move || queue.next_delivery(&name)).await? {
                Next::Due(delivery) => {
                    self.attempt(&delivery).await?;
                    continue;
                }
                Next::After(wait) => Some(wait),
                Next::Nothing => None,
            };
            if self.inquire().await? {
                continue;
            }
            let (queue, name) = (self.queue.clone(), self.config.name.clone());
            let silence = blocking(move || queue.next_silence(&name)).await?;
            return Ok(wait.into_iter().chain(silence).min());
        }
        Ok(None)
    }

    /// Asks the destination to commit to what it took. Returns whether there was anything to ask about.
    async fn inquire(&mut self) -> Result<bool, SpoolError> {
        let Route::Dicom(config) = &*self.route else { return Ok(false) };
        // What was taken before the section was removed is asked about all the same.
        let within = config.commitment.unwrap_or_default().within;
        let (queue, name) = (self.queue.clone(), self.config.name.clone());
        let Some(inquiry) = blocking(move || queue.inquire(&name, within)).await? else {
            return Ok(false);
        };
        match self.link.inquire(config, &inquiry).await {
            Ok(()) => self.asked = true,
            Err(outcome) => {
                for delivery in inquiry.deliveries {
                    self.conclude(delivery, outcome.clone()).await?;
                }
                self.give_up().await?;
            }
        }
        Ok(true)
    }

    /// Records what the destination has said, or not said, about what it took.
    async fn hear_verdicts(&mut self) -> Result<(), SpoolError> {
        let (queue, name) = (self.queue.clone(), self.config.name.clone());
        let verdicts = blocking(move || queue.verdicts(&name)).await?;
        let refused = verdicts.iter().any(|(_, verdict)| *verdict != Verdict::Safe);
        for (delivery, verdict) in verdicts {
            let outcome = judge(verdict);
            metrics().committed(&self.config.name, outcome.kind(), delivery.bytes);
            self.conclude(delivery, outcome).await?;
        }
        if refused { self.give_up().await } else { Ok(()) }
    }

    /// Tells and records what came of a delivery that its destination had taken.
    async fn conclude(&self, delivery: Delivery, outcome: Outcome) -> Result<(), SpoolError> {
        // The attempt that is judged is counted already.
        let before = delivery.attempts.saturating_sub(1);
        self.tell(&delivery, &outcome, delivery.attempts, None);
        let Config { retry_first, retry_max, .. } = self.config;
        self.record(delivery, outcome, backoff::delay(before, retry_first, retry_max)).await
    }

    /// Sends once and records what came of it.
    async fn attempt(&mut self, delivery: &Delivery) -> Result<(), SpoolError> {
        let started = Instant::now();
        let outcome = self.send(delivery).await;
        let elapsed = started.elapsed();
        let failed = matches!(outcome, Outcome::Later(_) | Outcome::Unreachable(_));
        metrics().delivery(&self.config.name, outcome.kind(), elapsed, delivery.bytes);
        let send_ms = elapsed.as_millis() as u64;
        self.tell(delivery, &outcome, delivery.attempts + 1, Some(send_ms));
        let Config { retry_first, retry_max, .. } = self.config;
        let retry = backoff::delay(delivery.attempts, retry_first, retry_max);
        self.record(delivery.clone(), outcome, retry).await?;
        if failed { self.give_up().await } else { Ok(()) }
    }

    /// Into log and audit trail.
    fn tell(&self, delivery: &Delivery, outcome: &Outcome, attempt: u32, send_ms: Option<u64>) {
        let (job, destination) = (&delivery.job, self.config.name.as_str());
        match outcome {
            Outcome::Taken => {
                tracing::debug!(%job, destination, attempt, send_ms, "taken; to be committed to");
            }
            Outcome::Sent => {
                audit::record(
                    "delivered",
                    json!({ "job": job.as_str(), "destination": destination, "sha256": delivery.sha256 }),
                );
                tracing::info!(%job, destination, attempt, send_ms, "delivered");
            }
            Outcome::Later(reason) => {
                tracing::warn!(%job, destination, attempt, reason, "not taken now; will try again");
            }
            Outcome::Unreachable(reason) => {
                tracing::warn!(%job, destination, attempt, reason, "not delivered; will try again");
            }
            Outcome::Never(reason) => {
                audit::record(
                    "refused",
                    json!({ "job": job.as_str(), "destination": destination, "reason": reason }),
                );
                tracing::error!(
                    %job, destination, attempt, reason, "refused for good; kept as a dead letter"
                );
            }
        }
    }

    /// Makes dead letters of what has been pending for too long.
    async fn give_up(&self) -> Result<(), SpoolError> {
        let (queue, name) = (self.queue.clone(), self.config.name.clone());
        let age = self.config.give_up_after;
        let dead = blocking(move || queue.bury_older(&name, age)).await?;
        if dead > 0 {
            let destination = self.config.name.as_str();
            tracing::error!(destination, dead, "pending for too long; kept as dead letters");
        }
        Ok(())
    }

    async fn record(
        &self,
        delivery: Delivery,
        outcome: Outcome,
        retry: Duration,
    ) -> Result<(), SpoolError> {
        let (queue, delivery_job) = (self.queue.clone(), delivery.job.clone());
        let record = move || -> Result<(), SpoolError> {
            failpoint::reach("delivery.confirmed");
            let account = match outcome {
                Outcome::Sent => queue.sent(&delivery)?,
                Outcome::Taken => {
                    queue.taken(&delivery)?;
                    None
                }
                Outcome::Never(reason) => queue.bury(&delivery, &reason)?,
                Outcome::Later(reason) | Outcome::Unreachable(reason) => {
                    queue.postpone(&delivery, &reason, retry)?;
                    None
                }
            };
            if let Some(account) = account {
                metrics().stage(Stage::Deliver, Duration::from_millis(account.deliver_ms));
                tracing::info!(
                    job = %delivery.job,
                    queue_ms = account.queue_ms,
                    compute_ms = account.compute_ms,
                    deliver_ms = account.deliver_ms,
                    sent = account.sent,
                    dead = account.dead,
                    "job complete"
                );
            }
            Ok(())
        };
        let (job, destination) = (delivery_job, self.config.name.as_str());
        match blocking(record).await {
            Err(error) if error.is_overtaken() => {
                tracing::warn!(%job, destination, "sent by another device too, or given up meanwhile");
                Ok(())
            }
            done => done,
        }
    }

    async fn send(&mut self, delivery: &Delivery) -> Outcome {
        let (path, sha256) = (delivery.path.clone(), delivery.sha256.clone());
        let read = move || match std::fs::read(&path) {
            Ok(bytes) if durable::hex(&Sha256::digest(&bytes)) == sha256 => Ok(bytes),
            Ok(_) => Err(Outcome::Never("the payload is damaged on the disk".to_owned())),
            Err(error) => Err(Outcome::Later(format!("read the payload: {error}"))),
        };
        let bytes = match blocking(read).await {
            Ok(bytes) => bytes,
            Err(outcome) => return outcome,
        };
        let (route, delivery) = (self.route.clone(), delivery.clone());
        match &*self.route {
            Route::Dicom(config) => self.link.send(config, &delivery, &bytes).await,
            Route::Stow(config) => stow::send(config, &delivery, &bytes).await,
            Route::Webhook(config) => webhook::send(config, &delivery).await,
            Route::Serial(_) | Route::Folder(_) => {
                let send = move || match &*route {
                    Route::Serial(config) => serial::send(config, &delivery, &bytes),
                    Route::Folder(config) => folder::send(config, &delivery, &bytes),
                    _ => unreachable!("sent above"),
                };
                blocking(send).await
            }
        }
    }
}

/// What a destination's word on an object that it took means for the delivery (PS3.3 section C.14.1.1).
fn judge(verdict: Verdict) -> Outcome {
    match verdict {
        Verdict::Safe => Outcome::Sent,
        Verdict::Silence => Outcome::Later("not committed to in time".to_owned()),
        Verdict::Failed(
            reason @ (status::CLASS_INSTANCE_CONFLICT | status::SOP_CLASS_NOT_SUPPORTED),
        ) => Outcome::Never(format!("commitment refused: {reason:04X}")),
        Verdict::Failed(reason) => Outcome::Later(format!("commitment failed: {reason:04X}")),
    }
}

/// Runs `work` where it may block. A panic in it goes on here.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await, // the runtime is shutting down
        },
    }
}
