use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::ExitStatus;
use super::signals::Signals;
use crate::ingest::dicom::{CalledAeTitle, Config, Scp, Storage};
use crate::ingest::{self, FolderSink};

/// Longest wait for an object under way after the signal to stop. Its sender will send it again.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder for what comes in
    #[arg(long)]
    out: PathBuf,
    /// Take DICOM on this port; 0 takes a free one
    #[arg(long, value_name = "PORT", required_unless_present = "serial")]
    dicom: Option<u16>,
    /// Address to take DICOM on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "ADDRESS")]
    bind: IpAddr,
    /// Take files from this serial port
    #[arg(long, value_name = "PATH")]
    serial: Option<String>,
    /// Speed of the serial port; 0 for a pseudo terminal
    #[arg(long, default_value_t = 115_200)]
    baud: u32,
    #[arg(long, default_value = "WORKSTATION")]
    ae_title: String,
    /// Exit after this many objects
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// Prints one JSON line when it is ready and one for each object that is safe on the disk.
///
/// # Errors
/// If the folder, the port or the serial line cannot be used.
pub fn run(args: Args) -> anyhow::Result<ExitStatus> {
    let runtime = tokio::runtime::Runtime::new().context("start the async runtime")?;
    runtime.block_on(receive(args))?;
    Ok(ExitStatus::Done)
}

async fn receive(args: Args) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    Signals::listen().context("listen for signals")?.cancel(stop.clone());

    let (landed, enough, limit) = (AtomicU64::new(0), stop.clone(), args.count);
    let sink = FolderSink::open(&args.out, move |object| {
        println!("{}", serde_json::to_string(object).expect("an object's facts are plain data"));
        if limit.is_some_and(|limit| landed.fetch_add(1, Ordering::Relaxed) + 1 >= limit) {
            enough.cancel();
        }
    })?;
    let sink = Arc::new(sink);

    let mut dicom = None;
    if let Some(port) = args.dicom {
        let address = SocketAddr::new(args.bind, port);
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("listen on {address}; choose a free port"))?;
        dicom = Some(listener);
    }
    let address = dicom.as_ref().map(TcpListener::local_addr).transpose()?;
    let serial = args.serial.map(|path| {
        let (sink, stop) = (sink.clone(), stop.clone());
        tokio::task::spawn_blocking(move || {
            // The port is given up on only if it cannot be opened at all; then there is nothing to wait for.
            ingest::serial::receive(&path, args.baud, sink, &stop).inspect_err(|_| stop.cancel())
        })
    });
    println!("{}", serde_json::json!({ "ready": true, "dicom": address.map(|a| a.to_string()) }));

    match dicom {
        Some(listener) => {
            let config = Config {
                ae_title: args.ae_title,
                called_ae_title: CalledAeTitle::Any,
                storage: Storage::Any,
                ..Config::default()
            };
            let serve =
                ingest::dicom::serve(listener, Scp { config, tls: None }, sink, stop.clone());
            let overdue = async {
                stop.cancelled().await;
                tokio::time::sleep(DRAIN_DEADLINE).await;
            };
            tokio::select! {
                () = serve => {}
                () = overdue => tracing::warn!("an association did not end in time"),
            }
        }
        None => stop.cancelled().await,
    }
    if let Some(serial) = serial {
        serial.await.context("the serial line's thread panicked")??;
    }
    Ok(())
}
