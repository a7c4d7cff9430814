use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::{Fault, duration};
use crate::tls;

/// Section `[http]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address and port, such as `127.0.0.1:8080`; port 0 takes a free one. Without it there is no HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// Credentials file of the bearer tokens that may do everything: lines of `NAME SHA256`, the hash in hexadecimal.
    /// A relative path lies in `$CREDENTIALS_DIRECTORY` where that is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<tls::Server>,
    /// Host names and addresses under which clients and browsers reach this server, without port; others are refused.
    /// Without any, `localhost` and its addresses where there are neither tokens nor TLS, else every name.
    pub names: Vec<String>,
    /// Requests at once, until their answers are taken; further ones wait for `head_timeout` at most. Health, metrics and
    /// the status page are answered beyond them.
    pub max_connections: usize,
    /// Of these, from one address (of IPv6: one /64).
    pub max_connections_per_address: usize,
    /// Of one request, all its files together.
    pub max_body_bytes: u64,
    /// Of one inference request, which is held in memory.
    pub max_tensor_bytes: usize,
    /// Inference requests at once; a further one is told to come again.
    pub max_inferences: usize,
    /// Longest time for the head of a request and for the TLS handshake.
    #[serde(with = "duration")]
    #[schemars(with = "duration::Text")]
    pub head_timeout: Duration,
    /// Longest silence inside a body, and for which a client takes nothing of its answer.
    #[serde(with = "duration")]
    #[schemars(with = "duration::Text")]
    pub body_timeout: Duration,
    /// Least rate of a body and of an answer, over `body_timeout`; 0 for none.
    pub min_bytes_per_second: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: None,
            tokens: None,
            tls: None,
            names: Vec::new(),
            max_connections: 64,
            max_connections_per_address: 32,
            max_body_bytes: 1 << 30,
            max_tensor_bytes: 256 << 20,
            max_inferences: 4,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            min_bytes_per_second: 4 << 10,
        }
    }
}

impl Config {
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut check = |holds: bool, key: &str, problem: &str| {
            if !holds {
                faults.push(Fault::new(key, problem));
            }
        };
        if let Some(listen) = &self.listen {
            match listen.parse::<SocketAddr>() {
                Err(_) => check(
                    false,
                    "listen",
                    "is not an address and a port, such as \"127.0.0.1:8080\"",
                ),
                Ok(address) if address.ip().is_loopback() => {}
                Ok(_) => {
                    let known = self.tokens.is_some()
                        || self.tls.as_ref().is_some_and(|t| t.clients.is_some());
                    check(
                        self.tls.is_some() && known,
                        "listen",
                        "is reachable from other machines: set http.tls, and http.tokens or http.tls.clients, or \
                         listen on 127.0.0.1",
                    );
                }
            }
        }
        check(
            (1..=4096).contains(&self.max_connections),
            "max_connections",
            "must be from 1 to 4096",
        );
        check(
            (1..=4096).contains(&self.max_connections_per_address),
            "max_connections_per_address",
            "must be from 1 to 4096",
        );
        let is_name = |name: &String| {
            let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            name.parse::<IpAddr>().is_ok() || !name.is_empty() && name.chars().all(is_host)
        };
        check(
            self.names.iter().all(is_name),
            "names",
            "must be host names or addresses without scheme and port, such as \"seg.example\"",
        );
        check(self.max_body_bytes >= 1 << 10, "max_body_bytes", "must be at least 1024");
        check(self.max_tensor_bytes >= 1 << 10, "max_tensor_bytes", "must be at least 1024");
        check((1..=256).contains(&self.max_inferences), "max_inferences", "must be from 1 to 256");
        check(!self.head_timeout.is_zero(), "head_timeout", "must be longer than 0ms");
        check(!self.body_timeout.is_zero(), "body_timeout", "must be longer than 0ms");
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_machines_are_let_in_only_with_tls_and_a_way_to_know_them() {
        let reachable = Config { listen: Some("0.0.0.0:8080".into()), ..Config::default() };
        let refused = |config: &Config| config.faults().iter().any(|fault| fault.key == "listen");
        assert!(refused(&reachable));
        let tokens = Config { tokens: Some("t".into()), ..reachable.clone() };
        assert!(refused(&tokens), "a token in clear text can be read on the way");
        let tls = tls::Server { certificate: "c".into(), key: "k".into(), clients: None };
        let anonymous = Config { tls: Some(tls.clone()), ..reachable.clone() };
        assert!(refused(&anonymous));
        assert!(!refused(&Config { tls: Some(tls.clone()), ..tokens }));
        let mutual = tls::Server { clients: Some("ca".into()), ..tls };
        assert!(!refused(&Config { tls: Some(mutual), ..reachable }));
        let local = Config { listen: Some("[::1]:0".into()), ..Config::default() };
        assert!(!refused(&local));
    }
}
