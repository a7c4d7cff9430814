//! A daemon in this process.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use cdal::daemon::{Config, Daemon, Drained, Settings, Worker};
use cdal::deliver;
use cdal::http;
use cdal::ingest::{self, dicom, folder};
use cdal::spool;
use tokio::runtime::Runtime;

pub struct Running {
    pub runtime: Runtime,
    daemon: Option<Daemon>,
}

/// Small times, any free port.
pub fn settings(spool: &Path, destinations: Vec<deliver::Config>) -> Settings {
    let destinations = destinations.into_iter().map(|destination| deliver::Config {
        timeout: Duration::from_secs(5),
        retry_first: Duration::from_millis(50),
        retry_max: Duration::from_millis(200),
        ..destination
    });
    Settings {
        daemon: Config { drain_deadline: Duration::from_secs(10), ..Config::default() },
        spool: spool::Config { min_free_bytes: 0, ..spool::Config::new(spool) },
        shared: None,
        ingest: ingest::Config {
            dicom: dicom::Config {
                listen: "127.0.0.1:0".to_owned(),
                completion: dicom::Completion {
                    idle: Duration::from_millis(300),
                    ..dicom::Completion::default()
                },
                ..dicom::Config::default()
            },
            folder: folder::Config::default(),
        },
        http: http::Config { listen: Some("127.0.0.1:0".to_owned()), ..http::Config::default() },
        commitment: deliver::ReportConfig::default(),
        destinations: destinations.collect(),
    }
}

impl Running {
    pub fn start(settings: Settings, worker: impl Worker) -> Self {
        cdal::telemetry::start("error");
        let runtime = Runtime::new().expect("a runtime");
        let daemon = runtime.block_on(Daemon::start(settings, worker)).expect("the daemon starts");
        Self { runtime, daemon: Some(daemon) }
    }

    pub fn address(&self) -> SocketAddr {
        self.daemon().dicom_address().expect("the test's daemon listens")
    }

    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("not stopped")
    }

    pub fn stop(mut self) -> Drained {
        let daemon = self.daemon.take().expect("not stopped");
        self.runtime.block_on(daemon.stop())
    }
}
