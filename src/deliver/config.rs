use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::{Fault, duration};
use crate::spool::durable::is_file_name;

/// One `[[destination]]`, as it is written. `route` tells what it means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Under which deliveries are kept; renaming a destination leaves its pending deliveries behind.
    pub name: String,
    pub kind: Kind,
    /// `dicom`: host and port, such as `10.0.0.5:104`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// `dicom`: AE title of the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ae_title: Option<String>,
    /// `dicom`: AE title this program calls itself; default `CDAL`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calling_ae_title: Option<String>,
    /// `serial`: device; `folder`: directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// `serial`: default 115200; 0 for a pseudo terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baud: Option<u32>,
    /// Longest wait for the destination's word.
    #[serde(with = "duration", default = "default_timeout")]
    pub timeout: Duration,
    /// Wait after the first failure; it doubles up to `retry_max`.
    #[serde(with = "duration", default = "default_retry_first")]
    pub retry_first: Duration,
    #[serde(with = "duration", default = "default_retry_max")]
    pub retry_max: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Dicom,
    Serial,
    Folder,
}

/// How a destination is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    Dicom(DicomConfig),
    Serial(SerialConfig),
    Folder(FolderConfig),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DicomConfig {
    pub address: String,
    pub ae_title: String,
    pub calling_ae_title: String,
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SerialConfig {
    pub path: PathBuf,
    pub baud: u32,
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderConfig {
    pub path: PathBuf,
}

fn default_timeout() -> Duration {
    Duration::from_secs(30)
}

fn default_retry_first() -> Duration {
    Duration::from_secs(1)
}

fn default_retry_max() -> Duration {
    Duration::from_mins(1)
}

impl Config {
    /// A DICOM destination with everything else by default.
    #[must_use]
    pub fn dicom(name: &str, address: &str, ae_title: &str) -> Self {
        Self {
            address: Some(address.to_owned()),
            ae_title: Some(ae_title.to_owned()),
            ..Self::bare(name, Kind::Dicom)
        }
    }

    /// A folder destination.
    #[must_use]
    pub fn folder(name: &str, path: impl Into<PathBuf>) -> Self {
        Self { path: Some(path.into()), ..Self::bare(name, Kind::Folder) }
    }

    /// A serial destination.
    #[must_use]
    pub fn serial(name: &str, path: impl Into<PathBuf>, baud: u32) -> Self {
        Self { path: Some(path.into()), baud: Some(baud), ..Self::bare(name, Kind::Serial) }
    }

    fn bare(name: &str, kind: Kind) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            address: None,
            ae_title: None,
            calling_ae_title: None,
            path: None,
            baud: None,
            timeout: default_timeout(),
            retry_first: default_retry_first(),
            retry_max: default_retry_max(),
        }
    }

    /// Whether it takes files that are no DICOM objects.
    #[must_use]
    pub fn takes_files(&self) -> bool {
        self.kind != Kind::Dicom
    }

    /// What this destination means, or everything that is wrong with it.
    ///
    /// # Errors
    /// Every fault, with keys below this destination.
    pub fn route(&self) -> Result<Route, Vec<Fault>> {
        let faults = self.faults();
        if !faults.is_empty() {
            return Err(faults);
        }
        let path = || self.path.clone().unwrap_or_default();
        Ok(match self.kind {
            Kind::Dicom => Route::Dicom(DicomConfig {
                address: self.address.clone().unwrap_or_default(),
                ae_title: self.ae_title.clone().unwrap_or_default(),
                calling_ae_title: self.calling_ae_title.clone().unwrap_or_else(|| "CDAL".into()),
                timeout: self.timeout,
            }),
            Kind::Serial => Route::Serial(SerialConfig {
                path: path(),
                baud: self.baud.unwrap_or(115_200),
                timeout: self.timeout,
            }),
            Kind::Folder => Route::Folder(FolderConfig { path: path() }),
        })
    }

    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if !is_file_name(&self.name) {
            faults.push(Fault::new(
                "name",
                "must be 1 to 128 letters, digits, \".\", \"-\" or \"_\"",
            ));
        }
        let needs = |kinds: &[Kind]| kinds.contains(&self.kind);
        for (key, given, needed, allowed) in [
            ("address", self.address.is_some(), needs(&[Kind::Dicom]), needs(&[Kind::Dicom])),
            ("ae_title", self.ae_title.is_some(), needs(&[Kind::Dicom]), needs(&[Kind::Dicom])),
            ("calling_ae_title", self.calling_ae_title.is_some(), false, needs(&[Kind::Dicom])),
            (
                "path",
                self.path.is_some(),
                needs(&[Kind::Serial, Kind::Folder]),
                needs(&[Kind::Serial, Kind::Folder]),
            ),
            ("baud", self.baud.is_some(), false, needs(&[Kind::Serial])),
        ] {
            if needed && !given {
                faults.push(Fault::new(key, "is missing; this kind of destination needs it"));
            }
            if given && !allowed {
                faults
                    .push(Fault::new(key, "means nothing for this kind of destination; remove it"));
            }
        }
        if self.address.as_deref().is_some_and(|text| !is_host_and_port(text)) {
            faults
                .push(Fault::new("address", "is not a host and a port, such as \"10.0.0.5:104\""));
        }
        for (key, title) in
            [("ae_title", &self.ae_title), ("calling_ae_title", &self.calling_ae_title)]
        {
            if title.as_ref().is_some_and(|t| t.trim().is_empty() || t.len() > 16 || !t.is_ascii())
            {
                faults.push(Fault::new(key, "is not an AE title: 1 to 16 ASCII characters"));
            }
        }
        for (key, time) in [("timeout", self.timeout), ("retry_first", self.retry_first)] {
            if time.is_zero() {
                faults.push(Fault::new(key, "must be longer than 0ms"));
            }
        }
        if self.retry_max < self.retry_first {
            faults.push(Fault::new("retry_max", "must not be shorter than retry_first"));
        }
        faults
    }
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0))
}
