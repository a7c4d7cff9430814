use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::{CollectError, Postgres, Sqlite, Store};
use crate::domain::{Fault, credential, duration};
use crate::tls;

/// The collector, as written in `configs/collector.toml`. Relative paths of `database` and `releases` lie beside the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address and port for devices and operators, such as `0.0.0.0:8443`; port 0 takes a free one.
    pub listen: String,
    /// Address and port on the loopback interface for the page alone: whoever is on this machine may look.
    #[serde(default)]
    pub page: Option<String>,
    /// What devices are trusted by is `clients`: every device shows a certificate of it, with its id as DNS name.
    pub tls: tls::Server,
    /// File of the embedded database; this or `postgres`.
    #[serde(default)]
    pub database: Option<PathBuf>,
    /// Credentials file with the URL of a PostgreSQL database, such as `postgres://USER:PASSWORD@HOST/NAME`.
    #[serde(default)]
    pub postgres: Option<PathBuf>,
    /// Folder with the manifests of releases, such as `targets` of the repository. Read again when a device
    /// names a release that is not known.
    pub releases: PathBuf,
    /// DNS names in the certificates of those who may look, pause and resume.
    #[serde(default)]
    pub operators: Vec<String>,
    /// Credentials file of tokens that may do the same: lines of `NAME SHA256`.
    #[serde(default)]
    pub tokens: Option<PathBuf>,
    /// Whether a rollout goes on by itself after the canary groups or waits for a person.
    #[serde(default)]
    pub after_canary: AfterCanary,
    #[serde(default = "max_devices")]
    pub max_devices: usize,
    /// Shortest time between two reports of a device.
    #[serde(default = "min_interval", with = "duration")]
    pub min_interval: Duration,
    #[serde(default = "max_connections")]
    pub max_connections: usize,
    /// For the TLS handshake and the head of a request, and for its body.
    #[serde(default = "timeout", with = "duration")]
    pub timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AfterCanary {
    #[default]
    GoOn,
    Wait,
}

fn max_devices() -> usize {
    10_000
}

fn min_interval() -> Duration {
    Duration::from_secs(1)
}

fn max_connections() -> usize {
    256
}

fn timeout() -> Duration {
    Duration::from_secs(10)
}

impl Config {
    /// # Errors
    /// If the file cannot be read, or everything that is wrong with it.
    pub fn read(path: &Path) -> Result<Self, CollectError> {
        let wrong = |problem: String| CollectError::Config { path: path.to_owned(), problem };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let deserializer =
            toml::Deserializer::parse(&text).map_err(|error| wrong(error.message().to_owned()))?;
        let mut config: Self = serde_path_to_error::deserialize(deserializer)
            .map_err(|error| wrong(format!("{}: {}", error.path(), error.inner().message())))?;
        let faults: Vec<_> =
            config.faults().iter().map(|f| format!("{} {}", f.key, f.problem)).collect();
        if !faults.is_empty() {
            return Err(wrong(faults.join("; ")));
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        for relative in config.database.iter_mut().chain([&mut config.releases]) {
            *relative = folder.join(&*relative);
        }
        let tls = &mut config.tls;
        for relative in [&mut tls.certificate, &mut tls.key]
            .into_iter()
            .chain(tls.clients.as_mut())
            .chain(config.tokens.as_mut())
            .chain(config.postgres.as_mut())
        {
            // The service manager's folder comes first where it has set one.
            if credential::locate(relative).is_relative() {
                *relative = folder.join(&*relative);
            }
        }
        Ok(config)
    }

    /// The store that is configured. Calls of it block, and must not come from a task of `runtime`.
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn store(&self, runtime: Handle) -> Result<Box<dyn Store>, CollectError> {
        let Some(path) = &self.postgres else {
            let path = self.database.as_deref().unwrap_or(Path::new("fleet.db"));
            return Ok(Box::new(Sqlite::open(path)?));
        };
        let url = credential::read(path)
            .map_err(|problem| CollectError::Config { path: path.clone(), problem })?;
        Ok(Box::new(Postgres::open(url.trim(), runtime)?))
    }

    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut check = |holds: bool, key: &str, problem: &str| {
            if !holds {
                faults.push(Fault::new(key, problem));
            }
        };
        let is_address = "is not an address and a port, such as \"127.0.0.1:8443\"";
        check(self.listen.parse::<SocketAddr>().is_ok(), "listen", is_address);
        if let Some(page) = &self.page {
            let is_loopback = page.parse().is_ok_and(|page: SocketAddr| page.ip().is_loopback());
            let problem = "must be an address on the loopback interface and a port, as nobody is asked who they are";
            check(is_loopback, "page", problem);
        }
        let is_one = self.database.is_some() != self.postgres.is_some();
        check(is_one, "database", "must be given, or postgres in its place");
        let problem = "is missing; without roots no device can be told from another";
        check(self.tls.clients.is_some(), "tls.clients", problem);
        check(
            (1..=1_000_000).contains(&self.max_devices),
            "max_devices",
            "must be from 1 to 1000000",
        );
        check(
            (1..=4096).contains(&self.max_connections),
            "max_connections",
            "must be from 1 to 4096",
        );
        check(!self.timeout.is_zero(), "timeout", "must be longer than 0ms");
        faults
    }
}
