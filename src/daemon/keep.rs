//! Looks after the spool while the daemon runs.

use std::sync::Arc;
use std::time::Duration;

use crate::spool::{Spool, SpoolError, Tidied};

/// How soon an operator's command takes effect, and a lack of room is answered.
const TICK: Duration = Duration::from_secs(1);

/// Ticks between two looks for work that has reached its age.
const TICKS_PER_ROUND: u32 = 60;

/// Removes finished work when its time has come, and calls `on_change` when another process changed the spool: an
/// operator who retries something. The first look calls it in any case, since nothing tells what came between the
/// spool's opening and that look. Runs until it is aborted.
pub(super) async fn look_after(spool: Arc<Spool>, on_change: impl Fn()) {
    let mut seen = None;
    for tick in 0_u32.. {
        let spool = spool.clone();
        let look = move || -> Result<(i64, Tidied), SpoolError> {
            let due = tick.is_multiple_of(TICKS_PER_ROUND) || spool.is_pressed()?;
            let tidied = if due { spool.tidy()? } else { Tidied::default() };
            Ok((spool.changes_from_outside()?, tidied))
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(Ok((changes, Tidied { series, bytes }))) => {
                let before = seen.replace(changes);
                if before != Some(changes) {
                    if before.is_some() {
                        tracing::info!("an operator changed the spool");
                    }
                    on_change();
                }
                if series > 0 {
                    tracing::info!(series, bytes, "finished work removed");
                }
            }
            Ok(Err(error)) => tracing::error!(%error, "the spool cannot be looked after"),
            Err(_) => return, // the runtime is shutting down
        }
        tokio::time::sleep(TICK).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use super::*;
    use crate::spool;

    #[tokio::test]
    async fn what_changed_before_the_first_look_is_not_missed() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, _) = Spool::open(spool::Config::new(folder.path())).unwrap();
        let rung = Arc::new(Notify::new());
        let bell = Arc::clone(&rung);
        let looking = tokio::spawn(look_after(Arc::new(spool), move || bell.notify_one()));
        let first = tokio::time::timeout(Duration::from_secs(30), rung.notified()).await;
        looking.abort();
        first.expect("the first look rings");
    }
}
