use std::net::SocketAddr;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::destinations::Destinations;
use super::jobs::Jobs;
use super::keep::look_after;
use super::reporters::Reporters;
use super::sharing::Sharing;
use super::{DaemonError, Settings, Worker};
use crate::deliver::{self, Holdings, Mode};
use crate::http::{self, Gallery, Server, Vitals};
use crate::ingest::dicom::{Completion, Scp};
use crate::ingest::{self, Intake, SpoolSink};
use crate::spool::{self, Queue, Recovery, Spool, SpoolError};
use crate::telemetry::Way;

/// How long the spool may take to answer before it counts as hung.
const SPOOL_PATIENCE: Duration = Duration::from_secs(10);

/// How the daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Health {
    pub phase: Phase,
    /// Since when a job has been computed, while one is.
    pub working_since: Option<std::time::Instant>,
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
        /// Of storage commitment, to senders.
        reports: u64,
    },
}

/// How a daemon is doing, for whoever watches it from another thread. Keeps nothing of it alive.
#[derive(Debug, Clone)]
pub struct Pulse {
    health: watch::Receiver<Health>,
    spool: Weak<Spool>,
    job_deadline: Duration,
}

impl Pulse {
    /// Serves, and no job computes for longer than it may.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        let health = *self.health.borrow();
        let is_hung = health.working_since.is_some_and(|since| since.elapsed() > self.job_deadline);
        health.phase == Phase::Serving && !is_hung && self.spool.strong_count() > 0
    }

    /// Whether a job is under way, or waits for the worker or for the rest of its series. Blocks on the spool.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.health.borrow().working_since.is_some()
            || self.spool.upgrade().is_some_and(|spool| match spool.count() {
                Ok(count) => count.received + count.ready + count.running > 0,
                Err(_) => true,
            })
    }
}

/// A running daemon. Dropped without `stop`, it goes on until the runtime ends.
pub struct Daemon {
    address: Option<SocketAddr>,
    http_address: Option<SocketAddr>,
    spool: Arc<Spool>,
    drain_deadline: Duration,
    job_deadline: Duration,
    health: watch::Sender<Health>,
    intake: CancellationToken,
    listener: JoinHandle<()>,
    http: JoinHandle<()>,
    completion: JoinHandle<()>,
    keeper: JoinHandle<()>,
    sharing: Option<Sharing>,
    /// When a series is complete.
    rule: watch::Sender<Completion>,
    /// Dropped to end the worker's thread after its job.
    wake: SyncSender<()>,
    worker_ended: oneshot::Receiver<()>,
    destinations: Arc<Destinations>,
    reporters: Arc<Reporters>,
}

impl Daemon {
    /// Opens the spool, listens, and starts to work. When this returns, peers can connect.
    ///
    /// # Errors
    /// If the spool, the address or a destination cannot be used.
    pub async fn start(settings: Settings, mut worker: impl Worker) -> Result<Self, DaemonError> {
        let Settings {
            daemon: config,
            spool,
            shared,
            ingest,
            http,
            commitment,
            destinations: configured,
        } = settings;
        let names: Vec<String> = configured.iter().map(|d| d.name.clone()).collect();
        let room = spool.clone();
        let spool = open_spool(spool, &names)?;

        let dicom = listen(&ingest.dicom).await?;
        let local = dicom.as_ref().map(|(_, _, address)| *address);

        let sharing =
            shared.map(|shared| Sharing::join(shared, room, &spool, &worker)).transpose()?;
        let shared = sharing.as_ref().map(|sharing| sharing.shared.clone());
        let queue: Arc<dyn Queue> = match &shared {
            Some(shared) => shared.clone(),
            None => spool.clone(),
        };
        let destinations = Arc::new(Destinations::new(queue.clone()));
        destinations.replace(&configured)?;
        sharing.as_ref().map_or(Ok(()), |sharing| sharing.own.replace(&configured))?;
        let held = holdings(&spool);
        let reporters = Reporters::start(&commitment, &ingest.dicom.ae_title, &spool, &held);
        let reporters = Arc::new(reporters);

        let health = watch::Sender::new(Health::default());
        let gallery = Arc::new(Gallery::default());
        if http.listen.is_some() {
            worker.show_previews(&gallery);
        }
        let (model, updates) = (worker.model(), worker.updates());
        let jobs = Jobs {
            queue,
            worker,
            destinations: destinations.clone(),
            retry_delay: config.retry_delay,
            health: health.clone(),
            gallery: http.listen.is_some().then(|| gallery.clone()),
        };
        let (wake, worker_ended) = start_worker(jobs)?;

        let intake = CancellationToken::new();
        let relay = sharing.as_ref().and_then(Sharing::bell);
        let bell = Bell { changed: Arc::new(Notify::new()), wake: wake.clone(), relay };
        let rule = watch::Sender::new(ingest.dicom.completion.clone());
        let own = sharing.as_ref().map(|sharing| sharing.own.clone());
        let on_change = bell.with([destinations.clone()].into_iter().chain(own).collect());
        let keeper = tokio::spawn(look_after(spool.clone(), on_change.clone()));
        let sharing = sharing.map(|sharing| sharing.start(rule.subscribe(), on_change));
        let context = http::Context {
            spool: spool.clone(),
            shared,
            intake: bell.intake(&spool, Way::Http),
            model,
            updates,
            gallery,
            vitals: vitals(&health, &destinations),
        };
        let (http_address, http) = start_http(http, context, intake.clone()).await?;
        start_folder(ingest.folder, bell.intake(&spool, Way::Folder), intake.clone())?;
        let ring = bell.clone();
        let requesters = commitment.requester.iter().map(|r| r.ae_title.trim().to_owned());
        let (answer, tell) = (reporters.clone(), destinations.clone());
        let sink = SpoolSink::new(spool.clone(), rule.subscribe(), move || ring.ring())
            .with_commitment(requesters.collect(), move || {
                answer.ring();
                tell.ring();
            });
        let sink = Arc::new(sink);
        let completion = tokio::spawn(watch_idle(sink.clone(), rule.subscribe(), bell));
        let listener = serve_dicom(dicom, sink, intake.clone());
        let dicom_shown = local.map(|address| address.to_string());
        let http_shown = http_address.map(|address| address.to_string());
        tracing::info!(dicom = dicom_shown, http = http_shown, "ready");
        Ok(Self {
            address: local,
            http_address,
            spool,
            drain_deadline: config.drain_deadline,
            job_deadline: config.job_deadline,
            health,
            intake,
            listener,
            http,
            completion,
            keeper,
            sharing,
            rule,
            wake,
            worker_ended,
            destinations,
            reporters,
        })
    }

    /// Where DICOM is taken in, if it is.
    #[must_use]
    pub fn dicom_address(&self) -> Option<SocketAddr> {
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

    /// Puts other destinations and another rule of completion in force, while everything goes on.
    ///
    /// # Errors
    /// If a destination means nothing; then nothing changes.
    pub fn reload(
        &self,
        destinations: &[deliver::Config],
        completion: &Completion,
    ) -> Result<(), DaemonError> {
        self.destinations.replace(destinations)?;
        self.sharing.as_ref().map_or(Ok(()), |sharing| sharing.own.replace(destinations))?;
        self.rule.send_if_modified(|rule| {
            let changed = rule != completion;
            rule.clone_from(completion);
            changed
        });
        Ok(())
    }

    #[must_use]
    pub fn pulse(&self) -> Pulse {
        Pulse {
            health: self.health.subscribe(),
            spool: Arc::downgrade(&self.spool),
            job_deadline: self.job_deadline,
        }
    }

    /// Stops, and gives ports and spool free for the next daemon of this process.
    ///
    /// # Errors
    /// If something still holds the spool long after the drain: a job that does not end, say.
    pub async fn hand_over(self) -> Result<Drained, DaemonError> {
        let spool = Arc::downgrade(&self.spool);
        let deadline = Instant::now() + self.drain_deadline + SPOOL_PATIENCE;
        let drained = self.stop().await;
        while spool.strong_count() > 0 {
            if Instant::now() > deadline {
                return Err(DaemonError::HandOver);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(drained)
    }

    /// Whether the worker gets on and the spool answers: what a watchdog wants to know.
    pub async fn is_alive(&self) -> bool {
        let since = self.health.borrow().working_since;
        if since.is_some_and(|since| since.elapsed() > self.job_deadline) {
            tracing::error!("a job computes for longer than daemon.job_deadline");
            return false;
        }
        let spool = self.spool.clone();
        let count = tokio::task::spawn_blocking(move || spool.count());
        matches!(tokio::time::timeout(SPOOL_PATIENCE, count).await, Ok(Ok(Ok(_))))
    }

    #[must_use]
    pub fn drain_deadline(&self) -> Duration {
        self.drain_deadline
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
        self.keeper.abort();
        let _ = (self.completion.await, self.keeper.await);
        // Where devices share a queue, the others go on: a queue under load is never empty.
        let mode = if self.sharing.is_some() { Mode::Stop } else { Mode::Drain };
        drop(self.wake);
        let own = match self.sharing {
            Some(sharing) => {
                let (own, ended) = sharing.end(deadline).await;
                in_time &= ended;
                Some(own)
            }
            None => None,
        };
        in_time &= timeout_at(deadline, self.worker_ended).await.is_ok();
        in_time &= timeout_at(deadline, self.destinations.end(mode)).await.is_ok();
        if let Some(own) = own {
            in_time &= timeout_at(deadline, own.end(Mode::Drain)).await.is_ok();
        }
        in_time &= timeout_at(deadline, self.reporters.drain()).await.is_ok();
        let spool = self.spool;
        let count = tokio::task::spawn_blocking(move || spool.count()).await;
        let count = count.ok().and_then(Result::ok).unwrap_or_default();
        let jobs = count.received + count.ready + count.running;
        let (deliveries, reports) = (count.pending_deliveries, count.pending_reports);
        if in_time && jobs + deliveries + reports == 0 {
            tracing::info!("stopped; nothing is left to do");
            return Drained::Completely;
        }
        tracing::warn!(in_time, jobs, deliveries, reports, "stopped; the rest waits in the spool");
        Drained::WithRest { jobs, deliveries, reports }
    }
}

fn open_spool(config: spool::Config, destinations: &[String]) -> Result<Arc<Spool>, DaemonError> {
    let (spool, recovery) = Spool::open(config)?;
    spool.understand(Arc::new(ingest::Reading));
    report(&spool, recovery, destinations)?;
    Ok(Arc::new(spool))
}

type Listening = (TcpListener, Scp, SocketAddr);

/// Takes objects by DICOM until `stop`, if there is a listener.
fn serve_dicom(
    dicom: Option<Listening>,
    sink: Arc<SpoolSink>,
    stop: CancellationToken,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Some((listener, scp, _)) = dicom {
            ingest::dicom::serve(listener, scp, sink, stop).await;
        }
    })
}

/// The listener for DICOM with its address, if there is one.
async fn listen(config: &ingest::dicom::Config) -> Result<Option<Listening>, DaemonError> {
    if !config.is_on() {
        return Ok(None);
    }
    let failed = |source| DaemonError::Listen { address: config.listen.clone(), source };
    let scp = Scp::new(config.clone())?;
    let listener = TcpListener::bind(&config.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Some((listener, scp, address)))
}

/// What the spool answers for.
fn holdings(spool: &Arc<Spool>) -> Holdings {
    let spool = spool.clone();
    Arc::new(move |objects| spool.held(objects))
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
    if count.failed + count.quarantined + count.dead_deliveries > 0 {
        tracing::error!(
            failed_jobs = count.failed,
            quarantined_jobs = count.quarantined,
            dead_deliveries = count.dead_deliveries,
            "a person must decide about these: cdal spool list"
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

/// What HTTP tells of the daemon.
fn vitals(
    health: &watch::Sender<Health>,
    destinations: &Arc<Destinations>,
) -> Box<dyn Fn() -> Vitals + Send + Sync> {
    let (health, destinations) = (health.subscribe(), Arc::clone(destinations));
    Box::new(move || {
        let health = *health.borrow();
        Vitals {
            serving: health.phase == Phase::Serving,
            working: health.working_since.map(|since| since.elapsed()),
            destinations: destinations.names(),
        }
    })
}

/// Tells that there is something new in the spool: the watch over idle series, the worker, and the relay.
#[derive(Clone)]
struct Bell {
    changed: Arc<Notify>,
    wake: SyncSender<()>,
    relay: Option<SyncSender<()>>,
}

impl Bell {
    fn ring(&self) {
        self.changed.notify_one();
        self.ring_worker();
    }

    fn ring_worker(&self) {
        let _ = self.wake.try_send(());
        if let Some(relay) = &self.relay {
            let _ = relay.try_send(());
        }
    }

    /// Rings for the worker and for all of `destinations`.
    fn with(&self, destinations: Vec<Arc<Destinations>>) -> impl Fn() + Clone + Send + use<> {
        let bell = self.clone();
        move || {
            bell.ring_worker();
            for destinations in &destinations {
                destinations.ring();
            }
        }
    }

    fn intake(&self, spool: &Arc<Spool>, way: Way) -> Intake {
        let bell = self.clone();
        Intake::new(Arc::clone(spool), way, move || bell.ring())
    }
}

/// The worker's thread: what wakes it, and what tells that it has ended.
fn start_worker<W: Worker>(
    jobs: Jobs<W>,
) -> Result<(SyncSender<()>, oneshot::Receiver<()>), DaemonError> {
    let (wake, woken) = sync_channel(1);
    let (ended, worker_ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("worker".to_owned())
        .spawn(move || {
            jobs.run(&woken);
            let _ = ended.send(());
        })
        .map_err(DaemonError::Thread)?;
    Ok((wake, worker_ended))
}

/// Where HTTP is answered, if it is, and what answers until `shutdown`.
async fn start_http(
    config: http::Config,
    context: http::Context,
    shutdown: CancellationToken,
) -> Result<(Option<SocketAddr>, JoinHandle<()>), DaemonError> {
    let server = Server::bind(config, context).await?;
    let address = server.as_ref().map(Server::address);
    let answering = tokio::spawn(async move {
        if let Some(server) = server {
            server.serve(shutdown).await;
        }
    });
    Ok((address, answering))
}

/// The watched folder's thread, if one is configured.
fn start_folder(
    config: ingest::folder::Config,
    intake: Intake,
    shutdown: CancellationToken,
) -> Result<(), DaemonError> {
    let Some(path) = &config.path else { return Ok(()) };
    ingest::folder::prepare(path).map_err(SpoolError::from)?;
    std::thread::Builder::new()
        .name("folder".to_owned())
        .spawn(move || ingest::folder::watch(&config, &intake, &shutdown))
        .map_err(DaemonError::Thread)?;
    Ok(())
}

/// Completes series that have been idle for long enough.
async fn watch_idle(sink: Arc<SpoolSink>, mut rule: watch::Receiver<Completion>, bell: Bell) {
    loop {
        let sink = sink.clone();
        rule.mark_unchanged();
        let completed = tokio::task::spawn_blocking(move || sink.complete_idle()).await;
        let wait = match completed {
            Ok(Ok((ready, wait))) => {
                if ready > 0 {
                    bell.ring_worker();
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
            () = bell.changed.notified() => {}
            changed = rule.changed() => if changed.is_err() { return },
        }
    }
}
