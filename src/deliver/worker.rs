use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;

use super::{Config, Outcome, Route, backoff, dicom, folder, serial, stow, webhook};
use crate::domain::Fault;
use crate::spool::{Delivery, Next, Spool, SpoolError, durable};
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
    spool: Arc<Spool>,
    /// Attempts in a row that did not reach the destination.
    outages: u32,
}

/// Pause after an error of the spool itself, such as a full disk.
const SPOOL_PAUSE: Duration = Duration::from_secs(1);

impl Destination {
    /// # Errors
    /// What is wrong with the configuration.
    pub fn new(config: Config, spool: Arc<Spool>) -> Result<Self, Vec<Fault>> {
        let route = Arc::new(config.route()?);
        Ok(Self { config, route, spool, outages: 0 })
    }

    /// Works until the mode is `Drain` and nothing more can be sent. `wake` tells that there are new deliveries.
    pub async fn run(mut self, wake: Arc<Notify>, mut mode: watch::Receiver<Mode>) {
        loop {
            let now = *mode.borrow_and_update();
            if now == Mode::Stop {
                return;
            }
            let draining = now == Mode::Drain;
            let wait = match self.next().await {
                Ok(Next::Due(delivery)) => {
                    let pause = self.attempt(&delivery).await;
                    match pause {
                        None => continue,
                        Some(_) if draining => return,
                        Some(pause) => {
                            // The whole destination is held back, new deliveries or not.
                            tokio::select! {
                                () = tokio::time::sleep(pause) => {}
                                changed = mode.changed() => if changed.is_err() { return },
                            }
                            continue;
                        }
                    }
                }
                Ok(Next::After(wait)) => Some(wait),
                Ok(Next::Nothing) => None,
                Err(error) => {
                    tracing::error!(destination = self.config.name, %error, "spool not readable");
                    Some(SPOOL_PAUSE)
                }
            };
            if draining {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(wait.unwrap_or(Duration::from_hours(1))) => {}
                () = wake.notified() => {}
                changed = mode.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn next(&self) -> Result<Next, SpoolError> {
        let (spool, name) = (self.spool.clone(), self.config.name.clone());
        blocking(move || spool.next_delivery(&name)).await
    }

    /// Sends once and records what came of it. Returns how long to hold the destination back.
    async fn attempt(&mut self, delivery: &Delivery) -> Option<Duration> {
        let started = Instant::now();
        let outcome = self.send(delivery).await;
        let (job, destination) = (&delivery.job, self.config.name.as_str());
        let attempt = delivery.attempts + 1;
        let elapsed = started.elapsed();
        let send_ms = elapsed.as_millis() as u64;
        metrics().delivery(destination, outcome.kind(), elapsed, delivery.bytes);
        let retry =
            backoff::delay(delivery.attempts, self.config.retry_first, self.config.retry_max);
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
        self.outages = match outcome {
            Outcome::Unreachable(_) => self.outages.saturating_add(1),
            _ => 0,
        };
        let recorded = self.record(delivery.clone(), outcome, retry).await;
        if let Err(error) = recorded {
            tracing::error!(destination = self.config.name, %error, "delivery not recorded");
            return Some(SPOOL_PAUSE);
        }
        let outages = self.outages.checked_sub(1)?;
        Some(backoff::delay(outages, self.config.retry_first, self.config.retry_max))
    }

    async fn record(
        &self,
        delivery: Delivery,
        outcome: Outcome,
        retry: Duration,
    ) -> Result<(), SpoolError> {
        let spool = self.spool.clone();
        let record = move || {
            let account = match outcome {
                Outcome::Sent => spool.sent(&delivery)?,
                Outcome::Never(reason) => spool.bury(&delivery, &reason)?,
                Outcome::Later(reason) => {
                    spool.postpone(&delivery, &reason, retry)?;
                    None
                }
                // Due again at once: the destination's own pause holds it, and the order stays.
                Outcome::Unreachable(reason) => {
                    spool.postpone(&delivery, &reason, Duration::ZERO)?;
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

    async fn send(&self, delivery: &Delivery) -> Outcome {
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
            Route::Dicom(config) => dicom::send(config, &delivery, &bytes).await,
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
