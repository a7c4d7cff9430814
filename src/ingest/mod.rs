//! Ways in: what arrives can be read to its end and is on the disk and recorded before it is acknowledged.
//!
//! A way in (DICOM, serial) writes an object to a synced file and hands it to a [`Sink`], which decides where it
//! stays: the spool (`cdal serve`) or a folder (`cdal workstation`). Whatever a peer sends is checked before it
//! meets a path or a log: UIDs become `domain::Uid`, file names pass `durable::is_file_name`.
//!
//! Called by `daemon`, `http` and `cli::workstation`.

pub mod dicom;
pub mod folder;
pub mod serial;

mod folder_sink;
mod identify;
mod intake;
mod reading;
mod sink;
mod spool_sink;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::Fault;

pub use folder_sink::{FolderSink, Landed, Unkept, Via};
pub use identify::Examined;
pub use intake::{Accepted, Intake};
pub use reading::Reading;
pub use sink::{Declined, Hold, Received, Refusal, Sink, Source};
pub use spool_sink::SpoolSink;

/// Section `[ingest]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Without this section nothing is taken by DICOM.
    #[serde(default = "dicom::Config::off")]
    pub dicom: dicom::Config,
    #[serde(default)]
    pub folder: folder::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self { dicom: dicom::Config::off(), folder: folder::Config::default() }
    }
}

impl Config {
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let sections = [("dicom", self.dicom.faults()), ("folder", self.folder.faults())];
        let below =
            |section, fault: Fault| Fault { key: format!("{section}.{}", fault.key), ..fault };
        sections
            .into_iter()
            .flat_map(|(section, faults)| {
                faults.into_iter().map(move |fault| below(section, fault))
            })
            .collect()
    }
}

/// Why a way in could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    #[error(
        "open serial port {path}: {source}; check the path, the cable and the rights (group dialout)"
    )]
    SerialPort { path: String, source: serialport::Error },
    #[error("serial line: {0}")]
    SerialLine(std::io::Error),
}
