use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// SIGHUP: read the configuration again.
pub(super) fn hangup() -> std::io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// SIGTERM and SIGINT.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Cancels `token` at the next signal.
    pub(super) fn cancel(mut self, token: CancellationToken) {
        tokio::spawn(async move {
            self.next().await;
            token.cancel();
        });
    }
}

/// For work outside of an async runtime: calls `told` and raises the flag at the first SIGTERM or SIGINT; the second ends
/// the process at once.
pub(super) fn raise(told: impl FnOnce() + Send + 'static) -> std::io::Result<Arc<AtomicBool>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signals = {
        let _inside = runtime.enter();
        Signals::listen()?
    };
    let flag = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&flag);
    let wait = move || {
        runtime.block_on(async {
            signals.next().await;
            told();
            raised.store(true, Ordering::Relaxed);
            signals.next().await;
            std::process::exit(super::ExitStatus::JobFailed as i32);
        });
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait)?;
    Ok(flag)
}
