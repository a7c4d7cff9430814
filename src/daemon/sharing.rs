//! What a daemon has more where it shares a queue with others.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::destinations::Destinations;
use super::relay::{self, Relay};
use super::{DaemonError, Worker};
use crate::ingest::dicom::Completion;
use crate::spool::shared::{Config, Durability, Means, Shared};
use crate::spool::{self, Spool};

pub(super) struct Sharing {
    pub(super) shared: Arc<Shared>,
    /// For what the spool itself still has to deliver from before.
    pub(super) own: Arc<Destinations>,
    /// What wakes the thread that hands series over, and what tells that it has ended.
    relay: Option<(SyncSender<()>, oneshot::Receiver<()>)>,
    tasks: Vec<JoinHandle<()>>,
}

impl Sharing {
    /// Joins the queue. Its server need not be there yet.
    pub(super) fn join(
        config: Config,
        room: spool::Config,
        spool: &Arc<Spool>,
        worker: &impl Worker,
    ) -> Result<Self, DaemonError> {
        let about = worker.model().map(|model| model.describe());
        let means = about.map_or_else(Means::default, |about| Means {
            model: about.name,
            model_digest: about.digest,
        });
        let durability = config.durability;
        tracing::info!(device = config.device, ?durability, model = means.model, "work is shared");
        let shared = Shared::open(config, room, means)?;
        shared.understand(Arc::new(crate::ingest::Reading));
        let shared = Arc::new(shared);
        shared.clear_desk()?;
        if durability == Durability::Replicated {
            spool.replicate_to(Arc::clone(&shared));
        }
        // Without a model nobody knows what may compute a series: it waits here.
        let relay = worker.takes_jobs().then(|| start_relay(spool, &shared)).transpose()?;
        let own = Arc::new(Destinations::new(Arc::clone(spool) as _));
        Ok(Self { shared, own, relay, tasks: Vec::new() })
    }

    /// Tells the relay that a series may be complete.
    pub(super) fn bell(&self) -> Option<SyncSender<()>> {
        self.relay.as_ref().map(|(wake, _)| wake.clone())
    }

    /// Listens to the other devices, and looks after what they leave.
    pub(super) fn start(
        mut self,
        rule: watch::Receiver<Completion>,
        on_change: impl Fn() + Send + 'static,
    ) -> Self {
        let shared = &self.shared;
        self.tasks.push(tokio::spawn(relay::look_after(Arc::clone(shared), rule)));
        self.tasks.push(tokio::spawn(hear(Arc::clone(shared), on_change)));
        self
    }

    /// Hands nothing more over. Returns the deliveries that are left to the spool itself, and whether it ended in time.
    pub(super) async fn end(self, deadline: Instant) -> (Arc<Destinations>, bool) {
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
        let Some((wake, ended)) = self.relay else { return (self.own, true) };
        drop(wake);
        (self.own, timeout_at(deadline, ended).await.is_ok())
    }
}

fn start_relay(
    spool: &Arc<Spool>,
    shared: &Arc<Shared>,
) -> Result<(SyncSender<()>, oneshot::Receiver<()>), DaemonError> {
    let relay = Relay { spool: Arc::clone(spool), shared: Arc::clone(shared) };
    let (wake, woken) = sync_channel(1);
    let (ended, relay_ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("relay".to_owned())
        .spawn(move || {
            relay.run(&woken);
            let _ = ended.send(());
        })
        .map_err(DaemonError::Thread)?;
    Ok((wake, relay_ended))
}

/// Calls `on_change` whenever a device says that there is something to do. What the queue's own task holds must not keep
/// the worker's bell: that would keep the worker.
async fn hear(shared: Arc<Shared>, on_change: impl Fn()) {
    let told = Arc::new(Notify::new());
    let tell = Arc::clone(&told);
    shared.start(move || tell.notify_one());
    drop(shared);
    loop {
        told.notified().await;
        on_change();
    }
}
