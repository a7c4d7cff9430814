//! What this machine has, and what a configuration would find on it.

mod start;

use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::ExitStatus;
use crate::config::{self, Loaded, Settings};
use crate::deliver::{self, Route};
use crate::durable;
use crate::engine::{Progress, Provider, Purpose, Runtime, Serving};
use crate::segmenter::Segmenter;
use crate::telemetry::{machine::Machine, sensors};

/// Longest wait for a peer.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration to check the machine against; without it only the machine is looked at
    #[arg(long)]
    config: Vec<PathBuf>,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Nothing to worry about yet, or not known.
    Warning,
    /// The daemon would not work, or not well.
    Bad,
}

#[derive(Debug, Serialize)]
struct Finding {
    check: String,
    verdict: Verdict,
    said: String,
}

/// Looks at everything, whatever is wrong with the first things. Exit status 1 if something is bad.
///
/// # Errors
/// If the configuration has faults.
pub fn run(args: &Args) -> anyhow::Result<ExitStatus> {
    let files: Vec<&Path> = args.config.iter().map(PathBuf::as_path).collect();
    let loaded = if files.is_empty() { None } else { Some(config::load(&files)?) };
    let mut doctor = Doctor::default();
    doctor.examine(loaded.as_ref());
    let worst = doctor.findings.iter().map(|finding| finding.verdict).max();
    if args.json {
        let report = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"), "verdict": worst, "findings": doctor.findings,
        });
        out!("{report}")?;
    } else {
        for Finding { check, verdict, said } in &doctor.findings {
            let verdict = match verdict {
                Verdict::Ok => "ok",
                Verdict::Warning => "warning",
                Verdict::Bad => "BAD",
            };
            out!("{verdict:8} {check:20} {said}")?;
        }
    }
    Ok(if worst == Some(Verdict::Bad) { ExitStatus::JobFailed } else { ExitStatus::Done })
}

#[derive(Default)]
struct Doctor {
    findings: Vec<Finding>,
}

impl Doctor {
    fn note(&mut self, check: impl Into<String>, verdict: Verdict, said: impl Into<String>) {
        self.findings.push(Finding { check: check.into(), verdict, said: said.into() });
    }

    /// Good, or bad with the reason.
    fn hold<T: Into<String>, E: ToString>(&mut self, check: &str, result: Result<T, E>) {
        match result {
            Ok(said) => self.note(check, Verdict::Ok, said),
            Err(error) => self.note(check, Verdict::Bad, error.to_string()),
        }
    }

    fn examine(&mut self, loaded: Option<&Loaded>) {
        let settings = loaded.map(|loaded| &loaded.settings);
        if let Some(loaded) = loaded {
            self.note("configuration", Verdict::Ok, format!("revision {}", loaded.revision));
        }
        self.engine(settings);
        self.devices();
        self.clock();
        self.disk(settings);
        self.serial_ports(settings);
        if let Some(settings) = settings {
            self.start(settings);
            for destination in &settings.destination {
                self.peer(destination);
            }
        }
    }

    fn engine(&mut self, settings: Option<&Settings>) {
        let library = settings.and_then(|settings| settings.runtime.library.as_deref());
        let runtime = match Runtime::load(Purpose::Inference, library) {
            Ok(runtime) => {
                let cache = settings.and_then(|settings| settings.runtime.cache.clone());
                Arc::new(runtime.with_cache(cache))
            }
            Err(error) => return self.note("runtime", Verdict::Bad, error.to_string()),
        };
        let said = format!("{}, {}", runtime.path.display(), runtime.build);
        self.note("runtime", Verdict::Ok, said);
        let wanted = settings.map_or(Provider::Cpu, |settings| settings.runtime.provider);
        for provider in [Provider::Cpu, Provider::Cuda, Provider::TensorRt] {
            let check = format!("provider {}", provider.name());
            match (runtime.has(provider), provider == wanted) {
                (true, _) => self.note(check, Verdict::Ok, "in the library"),
                (false, true) => {
                    self.note(check, Verdict::Bad, "is configured, but this library was built without it; give another (runtime.library, ORT_DYLIB_PATH), see README.md");
                }
                (false, false) => {
                    self.note(check, Verdict::Ok, "not in the library, not asked for");
                }
            }
        }
        if let Some(settings) = settings {
            let options = settings.runtime.options();
            let started = Instant::now();
            // Engines that must be built first are no reason to wait here.
            let opened = Segmenter::open_at_once(runtime, &settings.model.bundle, options);
            self.hold(
                "model",
                opened.map(|segmenter| {
                    let manifest = &segmenter.bundle().manifest;
                    let Serving { provider, progress, .. } = segmenter.serving();
                    let building = match progress {
                        Progress::Settled => String::new(),
                        _ => format!("; no engine of {} is built for it yet", wanted.name()),
                    };
                    format!(
                        "{} {}, golden case right on {}, loaded in {} ms{building}",
                        manifest.name,
                        manifest.version,
                        provider.name(),
                        started.elapsed().as_millis()
                    )
                }),
            );
        }
    }

    fn devices(&mut self) {
        let machine = Machine::read();
        let Machine { processor, cores, memory_bytes, gpus, .. } = &machine;
        let memory = memory_bytes >> 20;
        self.note(
            "processor",
            Verdict::Ok,
            format!("{processor}, {cores} cores, {memory} MiB memory"),
        );
        let gpus = if gpus.is_empty() { "none seen".to_owned() } else { gpus.join(", ") };
        self.note("gpu", Verdict::Ok, gpus);
        let readings: Vec<String> = sensors::read(Path::new("/sys"))
            .into_iter()
            .map(|sensor| match sensor.reading {
                sensors::Reading::Celsius(value) => format!("{} {value:.0} °C", sensor.name),
                sensors::Reading::Watts(value) => format!("{} {value:.1} W", sensor.name),
            })
            .collect();
        let readings = if readings.is_empty() {
            "the kernel shows none".to_owned()
        } else {
            readings.join(", ")
        };
        self.note("sensors", Verdict::Ok, readings);
    }

    /// Times in results, logs and the audit trail are worth what the clock is worth.
    fn clock(&mut self) {
        let asked = Command::new("timedatectl")
            .args(["show", "--property=NTPSynchronized", "--value"])
            .output();
        let answer = asked.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        match answer.as_deref() {
            Ok("yes") => self.note("clock", Verdict::Ok, "synchronised"),
            Ok("no") => {
                self.note(
                    "clock",
                    Verdict::Warning,
                    "not synchronised; set up chrony or timesyncd",
                );
            }
            _ => self.note("clock", Verdict::Warning, "not known: timedatectl does not answer"),
        }
    }

    fn disk(&mut self, settings: Option<&Settings>) {
        let Some(spool) = settings.map(|settings| &settings.spool) else { return };
        let place = start::existing(&spool.directory);
        match durable::free_bytes(place) {
            Ok(free) => {
                let said = format!(
                    "{} MB free at {}, at least {} MB are kept free",
                    free / 1_000_000,
                    place.display(),
                    spool.min_free_bytes / 1_000_000
                );
                let verdict = match free {
                    free if free < spool.min_free_bytes => Verdict::Bad,
                    free if free < spool.min_free_bytes.saturating_mul(2) => Verdict::Warning,
                    _ => Verdict::Ok,
                };
                self.note("disk", verdict, said);
            }
            Err(error) => self.note("disk", Verdict::Bad, error.to_string()),
        }
    }

    fn serial_ports(&mut self, settings: Option<&Settings>) {
        let ports = serialport::available_ports().unwrap_or_default();
        let names: Vec<_> = ports.into_iter().map(|port| port.port_name).collect();
        let said = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        self.note("serial ports", Verdict::Ok, said);
        let configured = settings.map_or(&[][..], |settings| &settings.destination);
        for (name, path) in configured.iter().filter_map(|destination| match destination.route() {
            Ok(Route::Serial(serial)) => Some((&destination.name, serial.path)),
            _ => None,
        }) {
            let opened = std::fs::OpenOptions::new().read(true).write(true).open(&path);
            let said = opened.map(|_| format!("{} can be opened", path.display()));
            self.hold(
                &format!("destination {name}"),
                said.map_err(|error| {
                    format!(
                        "{}: {error}; check the cable and the rights (group dialout)",
                        path.display()
                    )
                }),
            );
        }
    }

    fn peer(&mut self, destination: &deliver::Config) {
        let check = format!("destination {}", destination.name);
        match destination.route() {
            Ok(Route::Dicom(config)) => {
                let started = Instant::now();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let echo = runtime.map_err(|error| error.to_string()).and_then(|runtime| {
                    runtime.block_on(deliver::echo(&deliver::DicomConfig {
                        timeout: config.timeout.min(PATIENCE),
                        ..config
                    }))
                });
                let said = |()| format!("answered C-ECHO in {} ms", started.elapsed().as_millis());
                self.hold(&check, echo.map(said));
            }
            Ok(Route::Stow(config) | Route::Webhook(config)) => {
                let reached = config.host_and_port().and_then(|(host, port)| {
                    let mut addresses = (host.as_str(), port).to_socket_addrs().ok()?;
                    addresses.find_map(|at| TcpStream::connect_timeout(&at, PATIENCE).ok())
                });
                let said = reached.map(|_| "takes connections").ok_or("cannot be connected to");
                self.hold(&check, said);
                self.credentials_of(&check, &config);
            }
            Ok(Route::Folder(config)) => {
                let made = tempfile::tempfile_in(&config.path);
                let path = config.path.display();
                let said = made.map(|_| format!("{path} is writable"));
                self.hold(&check, said.map_err(|error| format!("{path}: {error}")));
            }
            Ok(Route::Serial(_)) | Err(_) => {} // looked at with the ports, or a fault of the configuration
        }
    }
}
