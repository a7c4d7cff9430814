use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::signals::Signals;
use super::{ExitStatus, Misconfigured};
use crate::daemon::Reporters;
use crate::deliver::{Holdings, ReportConfig, Requester};
use crate::domain::Fault;
use crate::http;
use crate::ingest::dicom::{CalledAeTitle, Config, Scp, Storage};
use crate::ingest::{self, FolderSink};
use crate::spool::{self, Spool};
use crate::tls;

/// Longest wait for an object under way after the signal to stop. Its sender will send it again.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// In the folder: requests for storage commitment that are not answered yet.
const REQUESTS: &str = ".commitment";

/// How often answered requests that are old are forgotten.
const TIDY: Duration = Duration::from_hours(1);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder for what comes in
    #[arg(long)]
    out: PathBuf,
    /// Take nothing while fewer bytes than this are free on the disk
    #[arg(long, value_name = "N", default_value_t = 256 << 20)]
    min_free_bytes: u64,
    /// Take DICOM on this port; 0 takes a free one
    #[arg(long, value_name = "PORT", required_unless_present_any = ["serial", "http"])]
    dicom: Option<u16>,
    /// Address to take DICOM on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "ADDRESS")]
    bind: IpAddr,
    /// Take STOW-RS (POST /studies) and webhooks (POST /events) here; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT")]
    http: Option<SocketAddr>,
    /// Let in by HTTP only who shows a bearer token of this file: lines of NAME SHA256
    #[arg(long, value_name = "FILE", requires = "http")]
    tokens: Option<PathBuf>,
    /// Speak TLS, by DICOM and HTTP, with this certificate
    #[arg(long, value_name = "PEM", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// The certificate's private key
    #[arg(long, value_name = "PEM", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// Let in only who shows a certificate of these roots
    #[arg(long, value_name = "PEM", requires = "tls_certificate")]
    tls_clients: Option<PathBuf>,
    /// Commit to what is here when this AE title asks (storage commitment), and report to this address; may be repeated
    #[arg(long, value_name = "AE=HOST:PORT", requires = "dicom", value_parser = requester)]
    commitment: Vec<Requester>,
    /// Report by TLS to whom these roots trust, showing --tls-certificate where there is one
    #[arg(long, value_name = "PEM", requires = "commitment")]
    commitment_ca: Option<PathBuf>,
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

fn requester(text: &str) -> Result<Requester, String> {
    let (ae_title, address) = text.split_once('=').ok_or("write it as AE=HOST:PORT")?;
    Ok(Requester { ae_title: ae_title.to_owned(), address: address.to_owned(), tls: None })
}

/// Prints one JSON line when it is ready and one for each object that is safe on the disk.
///
/// # Errors
/// If the folder, an address, a credentials file or the serial line cannot be used.
pub fn run(args: Args) -> anyhow::Result<ExitStatus> {
    let faults = args.faults();
    if !faults.is_empty() {
        for fault in faults {
            say!("cdal: {fault}");
        }
        return Ok(ExitStatus::Usage);
    }
    let runtime = tokio::runtime::Runtime::new().context("start the async runtime")?;
    runtime.block_on(receive(args))?;
    Ok(ExitStatus::Done)
}

async fn receive(args: Args) -> anyhow::Result<()> {
    let (dicom, http, reports) = (args.dicom(), args.http(), args.reports());
    let stop = CancellationToken::new();
    Signals::listen().context("listen for signals")?.cancel(stop.clone());

    let (landed, enough, limit) = (AtomicU64::new(0), stop.clone(), args.count);
    let mut sink = FolderSink::open(&args.out, move |object| {
        // Objects are taken whether or not somebody reads this.
        let _ =
            out!("{}", serde_json::to_string(object).expect("an object's facts are plain data"));
        if limit.is_some_and(|limit| landed.fetch_add(1, Ordering::Relaxed) + 1 >= limit) {
            enough.cancel();
        }
    })?
    .leaving_free(args.min_free_bytes);
    let (spool, asked) = (requests(&args, &reports)?, Arc::new(Notify::new()));
    if let Some(spool) = &spool {
        let requesters = reports.requester.iter().map(|r| r.ae_title.trim().to_owned()).collect();
        let asked = Arc::clone(&asked);
        sink = sink.with_commitment(Arc::clone(spool), requesters, move || asked.notify_one());
    }
    let sink = Arc::new(sink);

    let scp = Scp::new(dicom)?;
    let listener = match args.dicom {
        Some(port) => Some(listen(SocketAddr::new(args.bind, port)).await?),
        None => None,
    };
    let address = listener.as_ref().map(TcpListener::local_addr).transpose()?;
    let server = http::Server::station(http, Arc::clone(&sink))
        .await
        .context(Misconfigured("the workstation cannot start"))?;
    let serial = args.serial.map(|path| {
        let (sink, stop) = (sink.clone(), stop.clone());
        tokio::task::spawn_blocking(move || {
            // The port is given up on only if it cannot be opened at all; then there is nothing to wait for.
            ingest::serial::receive(&path, args.baud, sink, &stop).inspect_err(|_| stop.cancel())
        })
    });
    let _ = out!(
        "{}",
        serde_json::json!({
            "ready": true,
            "dicom": address.map(|a| a.to_string()),
            "http": server.as_ref().map(|server| server.address().to_string()),
        })
    );

    let by_dicom = async {
        match listener {
            Some(listener) => {
                ingest::dicom::serve(listener, scp, sink.clone(), stop.clone()).await;
            }
            None => stop.cancelled().await,
        }
    };
    let by_http = async {
        if let Some(server) = server {
            server.serve(stop.clone()).await;
        }
    };
    let reporting = async {
        if let Some(spool) = spool {
            let holder = Arc::clone(&sink);
            let held: Holdings = Arc::new(move |objects| holder.held(objects));
            let reporters = Reporters::start(&reports, &args.ae_title, &spool, &held);
            answer(&reporters, spool, &asked, &stop).await;
        }
    };
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN_DEADLINE).await;
    };
    tokio::select! {
        _ = async { tokio::join!(by_dicom, by_http, reporting) } => {}
        () = overdue => tracing::warn!("an object or a report did not end in time"),
    }
    if let Some(serial) = serial {
        serial.await.context("the serial line's thread panicked")??;
    }
    Ok(())
}

impl Args {
    /// What no single option shows.
    fn faults(&self) -> Vec<String> {
        let told = |option: &str, faults: Vec<Fault>| -> Vec<String> {
            faults
                .iter()
                .map(|Fault { key, problem }| format!("{option}: {key} {problem}"))
                .collect()
        };
        let mut faults = told("--ae-title", self.dicom().faults());
        faults.extend(told("--commitment", self.reports().faults()));
        // The limits are the defaults: nothing else can be wrong.
        if !self.http().faults().is_empty() {
            faults.push(
                "--http: the address is reachable from other machines; give --tls-certificate, and --tokens or \
                 --tls-clients, or listen on 127.0.0.1"
                    .to_owned(),
            );
        }
        faults
    }

    fn tls(&self) -> Option<tls::Server> {
        let (certificate, key) = (self.tls_certificate.clone()?, self.tls_key.clone()?);
        Some(tls::Server { certificate, key, clients: self.tls_clients.clone() })
    }

    fn dicom(&self) -> Config {
        Config {
            ae_title: self.ae_title.clone(),
            called_ae_title: CalledAeTitle::Any,
            storage: Storage::Any,
            tls: self.tls(),
            ..Config::default()
        }
    }

    fn http(&self) -> http::Config {
        http::Config {
            listen: self.http.map(|address| address.to_string()),
            tokens: self.tokens.clone(),
            tls: self.tls(),
            ..http::Config::default()
        }
    }

    fn reports(&self) -> ReportConfig {
        let tls = self.commitment_ca.clone().map(|ca| tls::Client {
            ca,
            certificate: self.tls_certificate.clone(),
            key: self.tls_key.clone(),
            server_name: None,
        });
        let with_tls = |requester: &Requester| Requester { tls: tls.clone(), ..requester.clone() };
        ReportConfig {
            requester: self.commitment.iter().map(with_tls).collect(),
            ..ReportConfig::default()
        }
    }
}

/// Where requests for storage commitment outlast the process.
fn requests(args: &Args, reports: &ReportConfig) -> anyhow::Result<Option<Arc<Spool>>> {
    if reports.requester.is_empty() {
        return Ok(None);
    }
    let directory: &Path = &args.out.join(REQUESTS);
    let config = spool::Config { min_free_bytes: 0, ..spool::Config::new(directory) };
    let (spool, _) = Spool::open(config)?;
    Ok(Some(Arc::new(spool)))
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener
        .with_context(|| format!("listen on {address}; choose a free port"))
        .context(Misconfigured("the workstation cannot start"))
}

/// Passes the word that somebody asked, until `stop`; then tries once more what is left.
async fn answer(
    reporters: &Reporters,
    spool: Arc<Spool>,
    asked: &Notify,
    stop: &CancellationToken,
) {
    let mut tidy = tokio::time::interval(TIDY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return reporters.drain().await,
            () = asked.notified() => reporters.ring(),
            _ = tidy.tick() => {
                let spool = Arc::clone(&spool);
                let tidied = tokio::task::spawn_blocking(move || spool.tidy()).await;
                if let Ok(Err(error)) = tidied {
                    tracing::error!(%error, "old requests for storage commitment are not forgotten");
                }
            }
        }
    }
}
