use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::jobs::Jobs;
use super::{DaemonError, Settings, Worker};
use crate::deliver::{Destination, Mode};
use crate::http::{self, Server};
use crate::ingest::{self, Intake, SpoolSink};
use crate::spool::{Recovery, Spool};

/// How the daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Health {
    pub phase: Phase,
    /// A job is being computed.
    pub working: bool,
    pub jobs_done: u64,
    pub jobs_failed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    #[default]
    Serving,
    /// Nothing new is taken; what is under way is finished.
    Draining,
}

/// How a stop went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    Completely,
    /// The deadline passed, or a destination could not be reached; the rest is in the spool.
    WithRest {
        jobs: u64,
        deliveries: u64,
    },
}

/// A running daemon. Dropped without `stop`, it goes on until the runtime ends.
pub struct Daemon {
    address: SocketAddr,
    http_address: Option<SocketAddr>,
    spool: Arc<Spool>,
    drain_deadline: Duration,
    health: watch::Sender<Health>,
    intake: CancellationToken,
    listener: JoinHandle<()>,
    http: JoinHandle<()>,
    completion: JoinHandle<()>,
    /// Dropped to end the worker's thread after its job.
    wake: SyncSender<()>,
    worker_ended: oneshot::Receiver<()>,
    mode: watch::Sender<Mode>,
    deliveries: TaskTracker,
}

impl Daemon {
    /// Opens the spool, listens, and starts to work. When this returns, peers can connect.
    ///
    /// # Errors
    /// If the spool, the address or a destination cannot be used.
    pub async fn start(settings: Settings, worker: impl Worker) -> Result<Self, DaemonError> {
        let Settings { daemon: config, spool, ingest, http, destinations } = settings;
        let names: Vec<String> = destinations.iter().map(|d| d.name.clone()).collect();
        let (spool, recovery) = Spool::open(spool)?;
        let spool = Arc::new(spool);
        report(&spool, recovery, &names)?;

        let address = ingest.dicom.listen.clone();
        let listen = |source| DaemonError::Listen { address: address.clone(), source };
        let listener = TcpListener::bind(&address).await.map_err(listen)?;
        let local = listener.local_addr().map_err(listen)?;

        let (mode, mode_seen) = watch::channel(Mode::Serve);
        let deliveries = TaskTracker::new();
        let mut bells = Vec::new();
        for config in destinations.clone() {
            let name = config.name.clone();
            let destination = Destination::new(config, spool.clone()).map_err(|faults| {
                let faults: Vec<_> =
                    faults.iter().map(|f| format!("{} {}", f.key, f.problem)).collect();
                DaemonError::Destination { name, faults: faults.join("; ") }
            })?;
            let bell = Arc::new(Notify::new());
            deliveries.spawn(destination.run(bell.clone(), mode_seen.clone()));
            bells.push(bell);
        }

        let health = watch::Sender::new(Health::default());
        let (wake, woken) = sync_channel(1);
        let (ended, worker_ended) = oneshot::channel();
        let jobs = Jobs {
            spool: spool.clone(),
            worker,
            destinations,
            retry_delay: config.retry_delay,
            health: health.clone(),
            on_finished: Box::new(move || bells.iter().for_each(|bell| bell.notify_one())),
        };
        std::thread::Builder::new()
            .name("worker".to_owned())
            .spawn(move || {
                jobs.run(&woken);
                let _ = ended.send(());
            })
            .map_err(DaemonError::Thread)?;

        let intake = CancellationToken::new();
        let changed = Arc::new(Notify::new());
        let idle = ingest.dicom.completion.idle;
        let completion =
            tokio::spawn(watch_idle(spool.clone(), idle, changed.clone(), wake.clone()));
        let (ring, bell) = (wake.clone(), changed.clone());
        let intake_of_files = Intake::new(spool.clone(), move || {
            bell.notify_one();
            let _ = ring.try_send(());
        });
        let context = http::Context { spool: spool.clone(), intake: intake_of_files };
        let server = Server::bind(http, context).await?;
        let http_address = server.as_ref().map(Server::address);
        let http = tokio::spawn({
            let intake = intake.clone();
            async move {
                if let Some(server) = server {
                    server.serve(intake).await;
                }
            }
        });
        let ring = wake.clone();
        let sink = SpoolSink::new(spool.clone(), ingest.dicom.completion.clone(), move || {
            changed.notify_one();
            let _ = ring.try_send(());
        });
        let listener = tokio::spawn(ingest::dicom::serve(
            listener,
            ingest.dicom,
            Arc::new(sink),
            intake.clone(),
        ));
        let http_shown = http_address.map(|address| address.to_string());
        tracing::info!(dicom = %local, http = http_shown, "ready");
        Ok(Self {
            address: local,
            http_address,
            spool,
            drain_deadline: config.drain_deadline,
            health,
            intake,
            listener,
            http,
            completion,
            wake,
            worker_ended,
            mode,
            deliveries,
        })
    }

    /// Where DICOM is taken in.
    #[must_use]
    pub fn dicom_address(&self) -> SocketAddr {
        self.address
    }

    /// Where HTTP is answered, if it is.
    #[must_use]
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Takes nothing more in, finishes the running job and what can be delivered, within the deadline.
    pub async fn stop(mut self) -> Drained {
        let deadline = Instant::now() + self.drain_deadline;
        let deadline_ms = self.drain_deadline.as_millis() as u64;
        tracing::info!(deadline_ms, "draining");
        self.health.send_modify(|health| health.phase = Phase::Draining);
        self.intake.cancel();
        let mut in_time = timeout_at(deadline, &mut self.listener).await.is_ok();
        self.listener.abort();
        in_time &= timeout_at(deadline, &mut self.http).await.is_ok();
        self.http.abort();
        self.completion.abort();
        let _ = self.completion.await;
        drop(self.wake);
        in_time &= timeout_at(deadline, self.worker_ended).await.is_ok();
        let _ = self.mode.send(Mode::Drain);
        self.deliveries.close();
        in_time &= timeout_at(deadline, self.deliveries.wait()).await.is_ok();
        let spool = self.spool;
        let count = tokio::task::spawn_blocking(move || spool.count()).await;
        let count = count.ok().and_then(Result::ok).unwrap_or_default();
        let jobs = count.received + count.ready + count.running;
        let deliveries = count.pending_deliveries;
        if in_time && jobs == 0 && deliveries == 0 {
            tracing::info!("stopped; nothing is left to do");
            return Drained::Completely;
        }
        tracing::warn!(in_time, jobs, deliveries, "stopped; the rest waits in the spool");
        Drained::WithRest { jobs, deliveries }
    }
}

fn report(spool: &Spool, recovery: Recovery, destinations: &[String]) -> Result<(), DaemonError> {
    let count = spool.count()?;
    let Recovery { requeued_jobs, failed_jobs, removed_files } = recovery;
    tracing::info!(
        requeued_jobs,
        failed_jobs,
        removed_files,
        ready = count.ready,
        pending_deliveries = count.pending_deliveries,
        "spool opened"
    );
    if failed_jobs > 0 {
        tracing::error!(failed_jobs, "jobs ended the process too often and were given up");
    }
    if count.quarantined + count.dead_deliveries > 0 {
        tracing::error!(
            quarantined_jobs = count.quarantined,
            dead_deliveries = count.dead_deliveries,
            "a person must decide about these"
        );
    }
    if destinations.is_empty() {
        tracing::warn!("no destination is configured; results will only be kept in the spool");
    }
    for (destination, pending) in spool.pending_elsewhere(destinations)? {
        tracing::error!(destination, pending, "pending for a destination that is not configured");
    }
    Ok(())
}

/// Completes series that have been idle for long enough.
async fn watch_idle(spool: Arc<Spool>, idle: Duration, changed: Arc<Notify>, wake: SyncSender<()>) {
    loop {
        let spool = spool.clone();
        let completed = tokio::task::spawn_blocking(move || spool.complete_idle(idle)).await;
        let wait = match completed {
            Ok(Ok((ready, wait))) => {
                if ready > 0 {
                    let _ = wake.try_send(());
                }
                wait.unwrap_or(Duration::from_hours(1))
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "idle series cannot be looked for");
                Duration::from_secs(1)
            }
            Err(_) => return, // the runtime is shutting down
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = changed.notified() => {}
        }
    }
}
