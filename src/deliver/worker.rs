use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;

use super::{Config, Outcome, Route, backoff, dicom, folder, serial, stow, webhook};
use crate::domain::Fault;
use crate::durable::{self, failpoint};
use crate::spool::{Delivery, Next, Spool, SpoolError};
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
    spool: Arc<Spool>,
}

/// Pause after an error of the spool itself, such as a full disk.
const SPOOL_PAUSE: Duration = Duration::from_secs(1);

impl Destination {
    /// # Errors
    /// What is wrong with the configuration.
    pub fn new(config: Config, spool: Arc<Spool>) -> Result<Self, Vec<Fault>> {
        let route = Arc::new(config.route()?);
        Ok(Self { config, route, link: dicom::Link::default(), spool })
    }

    /// Works until the mode is `Stop`, or `Drain` and nothing more can be sent. `wake` tells that there are new deliveries.
    pub async fn run(mut self, wake: Arc<Notify>, mut mode: watch::Receiver<Mode>) {
        loop {
            let now = *mode.borrow_and_update();
            let worked = self.work_off(&mode).await;
            let wait = worked.unwrap_or_else(|error| {
                tracing::error!(destination = self.config.name, %error, "the spool refuses");
                Some(SPOOL_PAUSE)
            });
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
            let (spool, name) = (self.spool.clone(), self.config.name.clone());
            blocking(move || spool.hurry(&name)).await?;
        }
        while *mode.borrow() != Mode::Stop {
            let (spool, name) = (self.spool.clone(), self.config.name.clone());
            match blocking(move || spool.next_delivery(&name)).await? {
                Next::Due(delivery) => self.attempt(&delivery).await?,
                Next::After(wait) => return Ok(Some(wait)),
                Next::Nothing => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Sends once and records what came of it.
    async fn attempt(&mut self, delivery: &Delivery) -> Result<(), SpoolError> {
        let started = Instant::now();
        let outcome = self.send(delivery).await;
        let (job, destination) = (&delivery.job, self.config.name.as_str());
        let attempt = delivery.attempts + 1;
        let elapsed = started.elapsed();
        let send_ms = elapsed.as_millis() as u64;
        let failed = matches!(outcome, Outcome::Later(_) | Outcome::Unreachable(_));
        metrics().delivery(destination, outcome.kind(), elapsed, delivery.bytes);
        match &outcome {
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
        let Config { retry_first, retry_max, .. } = self.config;
        let retry = backoff::delay(delivery.attempts, retry_first, retry_max);
        self.record(delivery.clone(), outcome, retry).await?;
        if failed { self.give_up().await } else { Ok(()) }
    }

    /// Makes dead letters of what has been pending for too long.
    async fn give_up(&self) -> Result<(), SpoolError> {
        let (spool, name) = (self.spool.clone(), self.config.name.clone());
        let age = self.config.give_up_after;
        let dead = blocking(move || spool.bury_older(&name, age)).await?;
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
        let spool = self.spool.clone();
        let record = move || {
            failpoint::reach("delivery.confirmed");
            let account = match outcome {
                Outcome::Sent => spool.sent(&delivery)?,
                Outcome::Never(reason) => spool.bury(&delivery, &reason)?,
                Outcome::Later(reason) | Outcome::Unreachable(reason) => {
                    spool.postpone(&delivery, &reason, retry)?;
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
        blocking(record).await
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

/// Runs `work` where it may block. A panic in it goes on here.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await, // the runtime is shutting down
        },
    }
}
