//! A daemon of our own, for as long as it is measured.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use tempfile::TempDir;

use crate::bench::{BenchError, Choice, ms, stats};
use crate::durable;

pub(super) const AE_TITLE: &str = "CDAL";

/// How it is started.
#[derive(Debug, Clone)]
pub struct Own {
    /// This program.
    pub program: PathBuf,
    /// ONNX Runtime's library, where it was chosen.
    pub runtime: Option<PathBuf>,
    /// On which disk the spool lies; the system's temporary folder by default.
    pub spool: Option<PathBuf>,
}

/// Killed when dropped: what it holds are synthetic cases.
pub(super) struct Running {
    pub(super) dicom: String,
    pub(super) http: String,
    /// Median ms of a write of 4 KiB with its sync, in the spool.
    pub(super) disk_sync: f64,
    child: Child,
    _stdout: BufReader<ChildStdout>,
    _scratch: TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a daemon for `choice` that takes series of `slices` objects over `associations`, and sends to `destination`.
/// Everything else is as it comes.
///
/// # Errors
/// If it does not start; it says why on stderr.
pub(super) fn start(
    own: &Own,
    choice: &Choice,
    slices: usize,
    associations: usize,
    destination: SocketAddr,
) -> Result<Running, BenchError> {
    let parent = own.spool.clone().unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&parent).map_err(BenchError::Scratch)?;
    let scratch = tempfile::tempdir_in(parent).map_err(BenchError::Scratch)?;
    let settings = settings(own, choice, slices, associations, destination, scratch.path())?;
    let file = scratch.path().join("daemon.toml");
    let text = toml::to_string(&settings).expect("settings are plain data");
    durable::write_whole(&file, text.as_bytes())?;
    let disk_sync = sync_time(scratch.path())?;
    let fault = |error: std::io::Error| BenchError::Daemon(format!("start: {error}"));
    let mut child = Command::new(&own.program)
        .args(["--log", "warn", "serve", "--config"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(fault)?;
    let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let mut line = String::new();
    let read = stdout.read_line(&mut line);
    let ready: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
    let address = |key: &str| ready[key].as_str().unwrap_or_default().to_owned();
    let (dicom, http) = (address("dicom"), address("http"));
    let running = Running { dicom, http, disk_sync, child, _stdout: stdout, _scratch: scratch };
    read.map_err(fault)?;
    if running.dicom.is_empty() || running.http.is_empty() {
        return Err(BenchError::Daemon("it did not start".to_owned()));
    }
    Ok(running)
}

fn settings(
    own: &Own,
    choice: &Choice,
    slices: usize,
    associations: usize,
    destination: SocketAddr,
    scratch: &Path,
) -> Result<serde_json::Value, BenchError> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(BenchError::Scratch);
    let mut settings = serde_json::json!({
        "runtime": {
            "provider": choice.options.provider.name(),
            "intra_threads": choice.options.intra_threads.unwrap_or(0),
        },
        "model": { "bundle": absolute(&choice.bundle)?, "stop": choice.stopping.to_string() },
        "spool": { "directory": scratch.join("spool"), "min_free_bytes": 0 },
        "ingest": { "dicom": {
            "listen": "127.0.0.1:0",
            "ae_title": AE_TITLE,
            "max_associations": associations.max(16),
            "idle_timeout": "1h", // a scanner here waits for its mask, however many come before it
            "completion": { "instances": slices },
        } },
        "http": { "listen": "127.0.0.1:0" },
        "destination": [{
            "name": "bench",
            "kind": "dicom",
            "address": destination.to_string(),
            "ae_title": "BENCH",
        }],
    });
    if let Some(votes) = choice.votes {
        settings["model"]["votes"] = votes.into();
    }
    if let Some(library) = &own.runtime {
        settings["runtime"]["library"] = serde_json::json!(absolute(library)?);
    }
    Ok(settings)
}

fn sync_time(folder: &Path) -> Result<f64, BenchError> {
    let times = (0..20).map(|_| {
        let started = Instant::now();
        durable::write(folder, &[0; 4096])?;
        Ok(ms(started.elapsed()))
    });
    let times = times.collect::<Result<Vec<f64>, BenchError>>()?;
    Ok(stats::median(&times).expect("some were measured"))
}
