use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{ExitStatus, Misconfigured};
use crate::cli::signals::Signals;
use crate::daemon::ServiceManager;
use crate::fleet::collect::{Config, Server};

/// Longest wait for requests under way after the signal to stop. A device reports again.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The collector's configuration file, such as configs/collector.toml
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Runs the collector until a signal. Prints `{"ready":true,"collector":"ADDRESS:PORT","page":"ADDRESS:PORT"}` (or null)
/// on stdout once devices can connect.
///
/// # Errors
/// If the collector does not start.
pub fn run(args: &Args) -> anyhow::Result<ExitStatus> {
    let runtime = tokio::runtime::Runtime::new().context("start the async runtime")?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        Signals::listen().context("listen for signals")?.cancel(stop.clone());
        let server = open(args).await.context(Misconfigured("the collector cannot start"))?;
        let address = server.address()?.to_string();
        let page = server.page_address().map(|address| address.to_string());
        // The collector serves whether or not somebody reads this.
        let _ = out!("{}", json!({ "ready": true, "collector": address, "page": page }));
        let manager = ServiceManager::from_environment();
        manager.ready();
        let serving = server.serve(stop.clone());
        tokio::pin!(serving);
        tokio::select! {
            () = &mut serving => {}
            () = stop.cancelled() => {
                manager.stopping(DRAIN_DEADLINE);
                let _ = tokio::time::timeout(DRAIN_DEADLINE, serving).await;
            }
        }
        anyhow::Ok(())
    })?;
    runtime.shutdown_background();
    Ok(ExitStatus::Done)
}

async fn open(args: &Args) -> anyhow::Result<Server> {
    let config = Config::read(&args.config)?;
    Ok(Server::bind(&config).await?)
}
