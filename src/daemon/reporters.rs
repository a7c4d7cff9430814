use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tokio_util::task::TaskTracker;

use crate::deliver::{Holdings, Mode, ReportConfig, Reporter};
use crate::spool::Spool;

/// The tasks that tell senders which of their objects are safe.
pub struct Reporters {
    tasks: TaskTracker,
    bells: Vec<Arc<Notify>>,
    mode: watch::Sender<Mode>,
}

impl Reporters {
    /// `ae_title` is this program's; `spool` keeps what was asked, `held` tells what is safe.
    #[must_use]
    pub fn start(
        config: &ReportConfig,
        ae_title: &str,
        spool: &Arc<Spool>,
        held: &Holdings,
    ) -> Self {
        let (tasks, mode) = (TaskTracker::new(), watch::Sender::new(Mode::Serve));
        let start = |reporter: Reporter| {
            let bell = Arc::new(Notify::new());
            tasks.spawn(reporter.run(Arc::clone(&bell), mode.subscribe()));
            bell
        };
        let bells = config.reporters(ae_title, spool, held).into_iter().map(start).collect();
        Self { tasks, bells, mode }
    }

    /// Tells all of them that there is a request.
    pub fn ring(&self) {
        self.bells.iter().for_each(|bell| bell.notify_one());
    }

    /// Tries what is to be told once more and ends. The caller bounds the wait.
    pub async fn drain(&self) {
        self.mode.send_replace(Mode::Drain);
        self.tasks.close();
        self.tasks.wait().await;
    }
}
