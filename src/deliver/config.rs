use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::{Fault, duration};
use crate::durable::is_file_name;
use crate::tls;

/// One `[[destination]]`, as it is written. `route` tells what it means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// `dicom`: with it, TLS is spoken (PS3.15 annex B).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<tls::Client>,
    /// `dicom`: with it, a delivery is done when the destination has committed to keep it (storage commitment, PS3.4
    /// annex J). It reports to `ingest.dicom`, under `calling_ae_title`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commitment: Option<Commitment>,
    /// `stow`: where studies are stored, such as `https://archive/dicom-web/studies`; `webhook`: where results are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// `stow`, `webhook`: credentials file with the bearer token that is shown; a relative path lies in
    /// `$CREDENTIALS_DIRECTORY` where that is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<PathBuf>,
    /// `stow`, `webhook`: PEM file of the roots that an `https` server is trusted by; without it the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// `stow`, `webhook`: certificate to show to an `https` server, followed by the ones between it and the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// `stow`, `webhook`: credentials file with that certificate's private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// `serial`: device; `folder`: directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// `serial`: default 115200; 0 for a pseudo terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baud: Option<u32>,
    /// Longest wait for the destination's word.
    #[serde(with = "duration", default = "default_timeout")]
    #[schemars(with = "duration::Text")]
    pub timeout: Duration,
    /// Wait after the first failure; it doubles up to `retry_max`.
    #[serde(with = "duration", default = "default_retry_first")]
    #[schemars(with = "duration::Text")]
    pub retry_first: Duration,
    #[serde(with = "duration", default = "default_retry_max")]
    #[schemars(with = "duration::Text")]
    pub retry_max: Duration,
    /// What has been pending for longer than this becomes a dead letter: kept, and sent again when a person says so.
    #[serde(with = "duration", default = "default_give_up_after")]
    #[schemars(with = "duration::Text")]
    pub give_up_after: Duration,
}

/// `commitment` of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Commitment {
    /// What the destination has not committed to for so long after it was asked is sent again.
    #[serde(with = "duration")]
    #[schemars(with = "duration::Text")]
    pub within: Duration,
}

impl Default for Commitment {
    fn default() -> Self {
        Self { within: Duration::from_mins(10) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Dicom,
    Serial,
    Folder,
    Stow,
    Webhook,
}

impl Kind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dicom => "dicom",
            Self::Serial => "serial",
            Self::Folder => "folder",
            Self::Stow => "stow",
            Self::Webhook => "webhook",
        }
    }
}

/// How a destination is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    Dicom(DicomConfig),
    Serial(SerialConfig),
    Folder(FolderConfig),
    Stow(HttpConfig),
    Webhook(HttpConfig),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DicomConfig {
    pub address: String,
    pub ae_title: String,
    pub calling_ae_title: String,
    pub tls: Option<tls::Client>,
    pub timeout: Duration,
    pub commitment: Option<Commitment>,
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    pub url: String,
    pub token: Option<PathBuf>,
    pub ca: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub timeout: Duration,
}

impl HttpConfig {
    /// `None` if the URL has no host.
    #[must_use]
    pub fn host_and_port(&self) -> Option<(String, u16)> {
        let url: hyper::Uri = self.url.parse().ok()?;
        let usual = if url.scheme_str() == Some("https") { 443 } else { 80 };
        let host = url.host()?.trim_matches(['[', ']']);
        Some((host.to_owned(), url.port_u16().unwrap_or(usual)))
    }
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

fn default_give_up_after() -> Duration {
    Duration::from_hours(7 * 24)
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

    /// A STOW-RS destination.
    #[must_use]
    pub fn stow(name: &str, url: &str) -> Self {
        Self { url: Some(url.to_owned()), ..Self::bare(name, Kind::Stow) }
    }

    /// A webhook.
    #[must_use]
    pub fn webhook(name: &str, url: &str) -> Self {
        Self { url: Some(url.to_owned()), ..Self::bare(name, Kind::Webhook) }
    }

    fn bare(name: &str, kind: Kind) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            address: None,
            ae_title: None,
            calling_ae_title: None,
            tls: None,
            commitment: None,
            url: None,
            token: None,
            ca: None,
            certificate: None,
            key: None,
            path: None,
            baud: None,
            timeout: default_timeout(),
            retry_first: default_retry_first(),
            retry_max: default_retry_max(),
            give_up_after: default_give_up_after(),
        }
    }

    /// Whether it takes files that are no DICOM objects.
    #[must_use]
    pub fn takes_files(&self) -> bool {
        !matches!(self.kind, Kind::Dicom | Kind::Stow)
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
                calling_ae_title: self
                    .calling_ae_title
                    .clone()
                    .unwrap_or_else(|| CALLING_AE_TITLE.into()),
                tls: self.tls.clone(),
                timeout: self.timeout,
                commitment: self.commitment,
            }),
            Kind::Serial => Route::Serial(SerialConfig {
                path: path(),
                baud: self.baud.unwrap_or(115_200),
                timeout: self.timeout,
            }),
            Kind::Folder => Route::Folder(FolderConfig { path: path() }),
            Kind::Stow => Route::Stow(self.http()),
            Kind::Webhook => Route::Webhook(self.http()),
        })
    }

    fn http(&self) -> HttpConfig {
        HttpConfig {
            url: self.url.clone().unwrap_or_default(),
            token: self.token.clone(),
            ca: self.ca.clone(),
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            timeout: self.timeout,
        }
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
            ("tls", self.tls.is_some(), false, needs(&[Kind::Dicom])),
            ("commitment", self.commitment.is_some(), false, needs(&[Kind::Dicom])),
            (
                "path",
                self.path.is_some(),
                needs(&[Kind::Serial, Kind::Folder]),
                needs(&[Kind::Serial, Kind::Folder]),
            ),
            ("url", self.url.is_some(), needs(WEB), needs(WEB)),
            ("token", self.token.is_some(), false, needs(WEB)),
            ("ca", self.ca.is_some(), false, needs(WEB)),
            ("certificate", self.certificate.is_some(), self.key.is_some(), needs(WEB)),
            ("key", self.key.is_some(), self.certificate.is_some(), needs(WEB)),
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
        if let Some(url) = &self.url {
            let parsed = url.parse::<hyper::Uri>().ok();
            let scheme = parsed.as_ref().and_then(|url| url.scheme_str());
            let is_whole = parsed.as_ref().is_some_and(|url| url.host().is_some());
            if !is_whole || !matches!(scheme, Some("http" | "https")) {
                faults.push(Fault::new(
                    "url",
                    "is not a URL, such as \"https://archive.example/dicom-web/studies\"",
                ));
            } else if self.token.is_some() && scheme == Some("http") {
                faults.push(Fault::new(
                    "url",
                    "would show the token to everyone on the way; use https, or remove token",
                ));
            }
        }
        for (key, title) in
            [("ae_title", &self.ae_title), ("calling_ae_title", &self.calling_ae_title)]
        {
            if title.as_ref().is_some_and(|title| !is_ae_title(title)) {
                faults.push(Fault::new(key, AE_TITLE_RULE));
            }
        }
        let below = |fault: Fault| Fault { key: format!("tls.{}", fault.key), ..fault };
        faults.extend(self.tls.iter().flat_map(tls::Client::faults).map(below));
        let pace = [self.retry_first, self.retry_max, self.give_up_after];
        faults.extend(pace_faults(self.timeout, pace));
        if self.commitment.is_some_and(|commitment| commitment.within.is_zero()) {
            faults.push(Fault::new("commitment.within", "must be longer than 0ms"));
        }
        faults
    }
}

/// What this program calls itself where nothing else is configured.
pub const CALLING_AE_TITLE: &str = "CDAL";

/// What is wrong with the waits of an attempt and between attempts: the first, the longest, all of them together.
pub(super) fn pace_faults(
    timeout: Duration,
    [retry_first, retry_max, give_up_after]: [Duration; 3],
) -> Vec<Fault> {
    let waits =
        [("timeout", timeout), ("retry_first", retry_first), ("give_up_after", give_up_after)];
    let none = waits.into_iter().filter(|(_, wait)| wait.is_zero());
    let mut faults: Vec<_> =
        none.map(|(key, _)| Fault::new(key, "must be longer than 0ms")).collect();
    if retry_max < retry_first {
        faults.push(Fault::new("retry_max", "must not be shorter than retry_first"));
    }
    faults
}

pub(super) const AE_TITLE_RULE: &str = "is not an AE title: 1 to 16 ASCII characters";

pub(super) fn is_ae_title(text: &str) -> bool {
    !text.trim().is_empty() && text.len() <= 16 && text.is_ascii()
}

const WEB: &[Kind] = &[Kind::Stow, Kind::Webhook];

pub(super) fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0))
}
