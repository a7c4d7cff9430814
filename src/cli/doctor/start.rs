//! What `cdal serve` needs to start: everything that would end its start is looked at here, and nothing is left behind.

use std::fs::OpenOptions;
use std::io;
use std::net::TcpListener;
use std::path::Path;

use super::{Doctor, Verdict};
use crate::config::Settings;
use crate::deliver::HttpConfig;
use crate::domain::credential;
use crate::durable::Lock;
use crate::http::Tokens;
use crate::spool::shared::{self, Means, Shared};
use crate::spool::{self, Desk};
use crate::telemetry::audit;
use crate::tls;

impl Doctor {
    pub(super) fn start(&mut self, settings: &Settings) {
        let is_running = self.spool(&settings.spool);
        let dicom = &settings.ingest.dicom;
        if dicom.is_on() {
            self.port("dicom port", &dicom.listen, is_running);
        }
        if let Some(address) = &settings.http.listen {
            self.port("http port", address, is_running);
        }
        if let Some(path) = &settings.ingest.folder.path {
            self.folder("watched folder", path);
        }
        if let Some(path) = &settings.daemon.audit {
            self.hold("audit trail", trail(path));
        }
        self.credentials(settings);
        if let Some(shared) = &settings.shared {
            self.hold("shared queue", reach(shared, &settings.spool));
        }
        if let Some(fleet) = &settings.fleet {
            self.folder("fleet folder", &fleet.directory);
            let root = std::fs::File::open(&fleet.root);
            let said = root.map(|_| format!("{} can be read", fleet.root.display()));
            self.hold("fleet root", said.map_err(|e| format!("{}: {e}", fleet.root.display())));
        }
    }

    /// Whether another process has the spool, most likely the daemon of this configuration.
    fn spool(&mut self, config: &spool::Config) -> bool {
        let directory = &config.directory;
        let lock = directory.join("lock");
        if lock.exists() && matches!(Lock::take(&lock), Ok(None)) {
            let said = format!("{} is in use by another process", directory.display());
            self.note("spool", Verdict::Warning, format!("{said}: does a daemon run already?"));
            return true;
        }
        let usable = writable(directory).map_err(|error| error.to_string()).and_then(|said| {
            if !directory.join("spool.db").exists() {
                return Ok(said);
            }
            let counted = Desk::open(config.clone()).and_then(|desk| desk.count());
            counted.map(|_| said).map_err(|error| error.to_string())
        });
        self.hold("spool", usable);
        false
    }

    /// `is_running`: whether a daemon may have the port already.
    fn port(&mut self, check: &str, address: &str, is_running: bool) {
        match TcpListener::bind(address) {
            Ok(_) => self.note(check, Verdict::Ok, format!("{address} is free")),
            Err(error) if is_running && error.kind() == io::ErrorKind::AddrInUse => {
                let said = format!("{address} is in use, as the spool is: by the same daemon?");
                self.note(check, Verdict::Warning, said);
            }
            Err(error) => self.note(check, Verdict::Bad, format!("listen on {address}: {error}")),
        }
    }

    fn folder(&mut self, check: &str, path: &Path) {
        self.hold(check, writable(path).map_err(|error| error.to_string()));
    }

    /// Tokens, certificates and keys of all sections.
    fn credentials(&mut self, settings: &Settings) {
        if let Some(path) = &settings.http.tokens {
            let read = Tokens::read(path);
            self.hold("tokens", read.map(|_| format!("{} can be read", path.display())));
        }
        let listeners =
            [("dicom tls", &settings.ingest.dicom.tls), ("http tls", &settings.http.tls)];
        for (check, server) in listeners {
            if let Some(server) = server {
                self.hold(check, tls::server(server).map(|_| "certificate and key can be used"));
            }
        }
        for destination in &settings.destination {
            if let Some(client) = &destination.tls {
                let check = format!("destination {}", destination.name);
                self.hold(&check, tls::client(client).map(|_| "its TLS files can be used"));
            }
        }
        for requester in &settings.commitment.requester {
            if let Some(client) = &requester.tls {
                let check = format!("requester {}", requester.ae_title.trim());
                self.hold(&check, tls::client(client).map(|_| "its TLS files can be used"));
            }
        }
    }

    /// Of a destination by HTTP.
    pub(super) fn credentials_of(&mut self, check: &str, config: &HttpConfig) {
        if let Some(path) = &config.token {
            let read = credential::read(path).map(|_| "its token can be read");
            self.hold(check, read.map_err(|problem| format!("{}: {problem}", path.display())));
        }
        if let Some(ca) = &config.ca {
            let (certificate, key) = (config.certificate.clone(), config.key.clone());
            let client = tls::Client { ca: ca.clone(), certificate, key, server_name: None };
            self.hold(check, tls::client(&client).map(|_| "its TLS files can be used"));
        } else if let Some(path) = &config.key {
            let read = credential::read(path).map(|_| "its key can be read");
            self.hold(check, read.map_err(|problem| format!("{}: {problem}", path.display())));
        }
    }
}

/// The nearest folder above that is there, or the path itself.
pub(super) fn existing(path: &Path) -> &Path {
    let found = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    if found.as_os_str().is_empty() { Path::new(".") } else { found }
}

/// Whether files can be made in the folder, or the folder itself where it is not there yet.
fn writable(folder: &Path) -> io::Result<String> {
    let place = existing(folder);
    tempfile::tempfile_in(place)
        .map(|_| format!("{} is writable", place.display()))
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", place.display())))
}

/// Serving makes the file, not its folder.
fn trail(path: &Path) -> Result<String, String> {
    let wrong = |error: io::Error| format!("{}: {error}", path.display());
    if path.exists() {
        OpenOptions::new().append(true).open(path).map_err(wrong)?;
        let end = audit::verify(path).map_err(|error| error.to_string())?;
        return Ok(format!("{} lines, every seal is right", end.seq));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    tempfile::tempfile_in(folder)
        .map(|_| format!("{} can be made", path.display()))
        .map_err(|error| format!("the folder of daemon.audit, {}: {error}", folder.display()))
}

/// A daemon starts without the server; but nothing is computed until it is there.
fn reach(config: &shared::Config, spool: &spool::Config) -> Result<String, String> {
    let ask = || {
        let shared = Shared::open(config.clone(), spool.clone(), Means::default())?;
        shared.ping()
    };
    ask()
        .map(|()| "the server answers".to_owned())
        .map_err(|error: spool::SpoolError| error.to_string())
}
