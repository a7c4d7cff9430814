use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use tokio::sync::mpsc::Receiver;
use tokio::time::Interval;

use super::super::ExitStatus;
use super::super::signals::{self, Signals};
use super::generation::HandOver;
use crate::daemon::{Daemon, DaemonError, ServiceManager};
use crate::durable::failpoint;

/// The daemon that serves, with what a hang-up signal does to it.
type Current = (Daemon, Box<dyn FnMut(&Daemon) + Send>);

/// Serves generation after generation until a signal, then drains the last one. A second signal ends the draining.
pub(super) fn run(turns: Receiver<HandOver>) -> anyhow::Result<ExitStatus> {
    let runtime = tokio::runtime::Runtime::new().context("start the async runtime")?;
    let result = runtime.block_on(serve(turns));
    // A job past the deadline is not waited for: it is in the spool.
    runtime.shutdown_background();
    result
}

async fn serve(mut turns: Receiver<HandOver>) -> anyhow::Result<ExitStatus> {
    let mut signals = Signals::listen().context("listen for signals")?;
    let mut hangup = signals::hangup().context("listen for signals")?;
    let manager = ServiceManager::from_environment();
    let interval = manager.interval();
    let mut pulse = tokio::time::interval(interval.unwrap_or(Duration::from_hours(1)));
    let mut current: Option<Current> = None;
    let mut is_ready = false;
    loop {
        tokio::select! {
            () = signals.next() => break,
            _ = hangup.recv() => if let Some((daemon, reload)) = &mut current {
                manager.reloading();
                reload(daemon);
                manager.ready();
            },
            _ = pulse.tick(), if interval.is_some() => match &current {
                Some((daemon, _)) if !daemon.is_alive().await => {}
                _ => manager.alive(),
            },
            Some(turn) = turns.recv() => {
                let HandOver { generation, answer, is_last_resort } = turn;
                let next = replace(current.take(), generation.settings, generation.worker);
                // The next one starts even if a signal came: what it took over it can drain.
                match while_alive(next, &manager, &mut pulse).await {
                    Ok(daemon) => {
                        let _ = answer.send(Ok(daemon.pulse()));
                        if !is_ready {
                            tell(&daemon);
                            manager.ready();
                        }
                        is_ready = true;
                        current = Some((daemon, generation.reload));
                    }
                    Err(error) if is_last_resort => return Err(error.into()),
                    Err(error) => {
                        let _ = answer.send(Err(error.to_string()));
                    }
                }
            }
        }
    }
    // No generation takes over any more.
    turns.close();
    if let Some((daemon, _)) = current {
        manager.stopping(daemon.drain_deadline());
        tokio::select! {
            _ = daemon.stop() => {}
            () = signals.next() => tracing::warn!("second signal; not waiting any longer"),
        }
    }
    Ok(ExitStatus::Done)
}

/// Ends one daemon, with what it has under way, and starts the next on the same ports and the same spool.
async fn replace(
    before: Option<Current>,
    settings: crate::daemon::Settings,
    worker: Box<dyn crate::daemon::Worker>,
) -> Result<Daemon, DaemonError> {
    if let Some((daemon, _)) = before {
        daemon.hand_over().await?;
        failpoint::reach("fleet.between");
    }
    Daemon::start(settings, worker).await
}

/// Keeps the service manager's watchdog quiet over a hand-over, which has a deadline of its own.
async fn while_alive<T>(
    work: impl Future<Output = T>,
    manager: &ServiceManager,
    pulse: &mut Interval,
) -> T {
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = pulse.tick() => manager.alive(),
        }
    }
}

fn tell(daemon: &Daemon) {
    let address = daemon.dicom_address().map(|address| address.to_string());
    let http = daemon.http_address().map(|address| address.to_string());
    // The daemon serves whether or not somebody reads this.
    let _ = out!("{}", json!({ "ready": true, "dicom": address, "http": http }));
}
