use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Network, Storage};
use crate::domain::{Fault, duration};
use crate::tls;

/// Section `[ingest.dicom]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address and port, such as `0.0.0.0:11112`; port 0 takes a free one. Empty: nothing is taken by DICOM.
    pub listen: String,
    pub ae_title: String,
    pub called_ae_title: CalledAeTitle,
    /// Calling AE titles that may associate; empty: all.
    pub allow: Vec<String>,
    /// Addresses and networks that may connect, such as `10.0.0.0/24`; empty: all.
    #[schemars(with = "Vec<String>")]
    pub allow_addresses: Vec<Network>,
    pub storage: Storage,
    /// With it, nothing but TLS is spoken (PS3.15 annex B).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<tls::Server>,
    pub max_associations: usize,
    pub max_pdu_bytes: u32,
    pub max_object_bytes: u64,
    /// Longest wait for an association request after a connection, and for its closing at the end (ARTIM, PS3.8
    /// section 9.1.5).
    #[serde(with = "duration")]
    #[schemars(with = "duration::Text")]
    pub artim_timeout: Duration,
    /// Longest silence inside a message.
    #[serde(with = "duration")]
    #[schemars(with = "duration::Text")]
    pub read_timeout: Duration,
    /// Longest silence between messages.
    #[serde(with = "duration")]
    #[schemars(with = "duration::Text")]
    pub idle_timeout: Duration,
    pub completion: Completion,
}

/// Whether an association must be addressed to this AE title.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CalledAeTitle {
    Own,
    Any,
}

/// When a series is complete. DICOM has no sign for it, so the first of these that holds decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Completion {
    /// Nothing came for the series during this time.
    #[serde(with = "duration")]
    #[schemars(with = "duration::Text")]
    pub idle: Duration,
    /// The series has this many objects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instances: Option<u64>,
    /// The association that brought an object of the series was released.
    pub on_release: OnRelease,
}

/// `Complete` is for senders that send a series in one association.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnRelease {
    Complete,
    Wait,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:11112".to_owned(),
            ae_title: "CDAL".to_owned(),
            called_ae_title: CalledAeTitle::Own,
            allow: Vec::new(),
            allow_addresses: Vec::new(),
            storage: Storage::Images,
            tls: None,
            max_associations: 16,
            max_pdu_bytes: 128 << 10,
            max_object_bytes: 1 << 30,
            artim_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_mins(1),
            completion: Completion::default(),
        }
    }
}

impl Default for Completion {
    fn default() -> Self {
        Self { idle: Duration::from_secs(1), instances: None, on_release: OnRelease::Wait }
    }
}

impl Config {
    /// Takes nothing in.
    #[must_use]
    pub fn off() -> Self {
        Self { listen: String::new(), ..Self::default() }
    }

    /// Whether objects are taken by DICOM.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.listen.is_empty()
    }

    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut check = |holds: bool, key: &str, problem: &str| {
            if !holds {
                faults.push(Fault::new(key, problem));
            }
        };
        let is_address = self.listen.parse::<std::net::SocketAddr>().is_ok();
        check(
            !self.is_on() || is_address,
            "listen",
            "is not an address and a port, such as \"0.0.0.0:11112\"",
        );
        check(is_ae_title(&self.ae_title), "ae_title", AE_TITLE_RULE);
        for (index, title) in self.allow.iter().enumerate() {
            check(is_ae_title(title), &format!("allow[{index}]"), AE_TITLE_RULE);
        }
        check(
            (1..=1024).contains(&self.max_associations),
            "max_associations",
            "must be from 1 to 1024",
        );
        check(
            (16 << 10..=1 << 20).contains(&self.max_pdu_bytes),
            "max_pdu_bytes",
            "must be from 16384 to 1048576",
        );
        check(self.max_object_bytes >= 1 << 10, "max_object_bytes", "must be at least 1024");
        check(!self.artim_timeout.is_zero(), "artim_timeout", "must be longer than 0ms");
        check(!self.read_timeout.is_zero(), "read_timeout", "must be longer than 0ms");
        check(!self.idle_timeout.is_zero(), "idle_timeout", "must be longer than 0ms");
        check(!self.completion.idle.is_zero(), "completion.idle", "must be longer than 0ms");
        let instances = self.completion.instances;
        check(instances != Some(0), "completion.instances", "must be at least 1");
        faults
    }
}

const AE_TITLE_RULE: &str = "is not an AE title: 1 to 16 printable ASCII characters, no backslash";

/// PS3.5 table 6.2-1.
fn is_ae_title(text: &str) -> bool {
    (1..=16).contains(&text.len())
        && !text.trim().is_empty()
        && text.bytes().all(|b| (b.is_ascii_graphic() || b == b' ') && b != b'\\')
}
