//! What goes between this device's spool and the queue that it shares with others.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

use tokio::sync::watch;

use crate::ingest::dicom::Completion;
use crate::spool::{Queue, Shared, Spool, SpoolError};

/// How long a series that the queue refuses lets others go first.
const SET_BACK: Duration = Duration::from_secs(30);

/// How often finished work is looked for. Every device does.
const TIDY: Duration = Duration::from_mins(10);

/// The thread that hands complete series over. It owns nothing: a kill at any moment repeats a handover at most.
pub(super) struct Relay {
    pub(super) spool: Arc<Spool>,
    pub(super) shared: Arc<Shared>,
}

impl Relay {
    /// Works until `wake` is closed. A message in it says that a series may be complete.
    pub(super) fn run(self, wake: &Receiver<()>) {
        let poll = self.shared.config().poll;
        loop {
            match wake.try_recv() {
                Ok(()) => continue,
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return,
            }
            match self.hand_over() {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) if error.is_outage() => {}
                Err(error) => tracing::error!(%error, "no series can be handed over"),
            }
            if matches!(wake.recv_timeout(poll), Err(RecvTimeoutError::Disconnected)) {
                return;
            }
        }
    }

    /// Returns whether there was anything.
    fn hand_over(&self) -> Result<bool, SpoolError> {
        let Some((job, handover)) = self.spool.next_handover()? else { return Ok(false) };
        let objects = handover.objects.len();
        match self.shared.enqueue(&handover) {
            Ok(enqueued) => {
                let as_job = &enqueued.job;
                if self.spool.handed_over(&job, &handover, as_job)? {
                    tracing::info!(%job, %as_job, objects, "handed over to the shared queue");
                }
            }
            Err(error) if error.is_outage() => return Err(error),
            Err(error @ (SpoolError::Damaged { .. } | SpoolError::Disk(_))) => {
                tracing::error!(%job, %error, "not what came in; kept for a person");
                self.spool.set_aside(&job, "an object is damaged on this device's disk")?;
            }
            Err(error) => {
                tracing::error!(%job, %error, "not handed over; will try again");
                self.spool.postpone_handover(&job, SET_BACK)?;
            }
        }
        Ok(true)
    }
}

/// Completes series that a dead device has left on the queue, and removes finished work. Runs until it is aborted.
pub(super) async fn look_after(shared: Arc<Shared>, rule: watch::Receiver<Completion>) {
    let ticks_per_round = (TIDY.as_millis() / shared.config().lease.as_millis().max(1)).max(1);
    for tick in 0_u128.. {
        let (queue, idle) = (Arc::clone(&shared), rule.borrow().idle);
        let look = move || -> Result<(), SpoolError> {
            let completed = queue.complete_abandoned(idle)?;
            if completed > 0 {
                tracing::warn!(completed, "series of a device that is gone are taken as complete");
            }
            if tick.is_multiple_of(ticks_per_round) {
                let tidied = queue.tidy()?;
                if tidied.series > 0 {
                    let (series, bytes) = (tidied.series, tidied.bytes);
                    tracing::info!(series, bytes, "finished work removed from the shared queue");
                }
            }
            Ok(())
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(Err(error)) if !error.is_outage() => {
                tracing::error!(%error, "the shared queue cannot be looked after");
            }
            Ok(_) => {}
            Err(_) => return, // the runtime is shutting down
        }
        tokio::time::sleep(shared.config().lease).await;
    }
}
