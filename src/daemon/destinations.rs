use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::DaemonError;
use crate::deliver::{self, Destination, Mode};
use crate::spool::{Product, Queue};

/// The destinations in force, each with the task that works its deliveries off. They can be replaced while others run.
pub(super) struct Destinations {
    queue: Arc<dyn Queue>,
    tasks: TaskTracker,
    running: Mutex<Vec<Running>>,
}

struct Running {
    config: deliver::Config,
    /// Tells that there are new deliveries.
    bell: Arc<Notify>,
    mode: watch::Sender<Mode>,
    task: JoinHandle<()>,
}

impl Destinations {
    pub(super) fn new(queue: Arc<dyn Queue>) -> Self {
        Self { queue, tasks: TaskTracker::new(), running: Mutex::default() }
    }

    /// Makes `configs` the destinations in force: those that stay as they are go on undisturbed, a changed one ends its
    /// attempt under way before it starts anew, one that is gone leaves its pending deliveries in the spool.
    ///
    /// # Errors
    /// If one of them means nothing; then nothing changes.
    pub(super) fn replace(&self, configs: &[deliver::Config]) -> Result<(), DaemonError> {
        let mut running = self.running();
        let mut fresh = Vec::new();
        for config in configs.iter().filter(|c| !running.iter().any(|r| r.config == **c)) {
            let destination = Destination::new(config.clone(), Arc::clone(&self.queue));
            fresh.push((
                config.clone(),
                destination.map_err(|faults| {
                    let faults: Vec<_> =
                        faults.iter().map(|f| format!("{} {}", f.key, f.problem)).collect();
                    DaemonError::Destination {
                        name: config.name.clone(),
                        faults: faults.join("; "),
                    }
                })?,
            ));
        }
        let (mut kept, gone): (Vec<_>, Vec<_>) =
            running.drain(..).partition(|r| configs.contains(&r.config));
        let mut ending: Vec<_> = gone
            .into_iter()
            .map(|gone| {
                gone.mode.send_replace(Mode::Stop);
                (gone.config.name, gone.task)
            })
            .collect();
        for (config, destination) in fresh {
            let before = ending.iter().position(|(name, _)| *name == config.name);
            let before = before.map(|index| ending.swap_remove(index).1);
            let (bell, mode) = (Arc::new(Notify::new()), watch::Sender::new(Mode::Serve));
            let (woken, seen) = (Arc::clone(&bell), mode.subscribe());
            let task = self.tasks.spawn(async move {
                if let Some(before) = before {
                    let _ = before.await; // one task at a time sends to a destination
                }
                destination.run(woken, seen).await;
            });
            kept.push(Running { config, bell, mode, task });
        }
        *running = kept;
        Ok(())
    }

    /// Names of those that take a job's products. Products of one job are of one kind: all DICOM objects, or all other
    /// files.
    pub(super) fn taking(&self, products: &[Product]) -> Vec<String> {
        let all_dicom = products.iter().all(|product| product.dicom.is_some());
        let running = self.running();
        let taking = running.iter().filter(|r| all_dicom || r.config.takes_files());
        taking.map(|running| running.config.name.clone()).collect()
    }

    /// Each name with its kind.
    pub(super) fn names(&self) -> Vec<(String, &'static str)> {
        self.running().iter().map(|r| (r.config.name.clone(), r.config.kind.as_str())).collect()
    }

    /// Tells all of them that there are new deliveries.
    pub(super) fn ring(&self) {
        self.running().iter().for_each(|running| running.bell.notify_one());
    }

    /// Ends: after what is pending was tried once more, or after the attempt under way. The caller bounds the wait.
    pub(super) async fn end(&self, mode: Mode) {
        for running in self.running().iter() {
            running.mode.send_replace(mode);
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn running(&self) -> MutexGuard<'_, Vec<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
