use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{Answer, Fleet};
use crate::domain::{Fault, credential, duration};
use crate::fleet::rollout::Report;
use crate::tls;

/// Of an answer, at most this much is read: the table of a large fleet.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// How a collector is reached, and what is shown to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// Such as `https://fleet.hospital.example:8443`.
    pub url: String,
    pub tls: tls::Client,
    /// Credentials file with an operator's token; devices have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<PathBuf>,
    /// Of one request.
    #[serde(default = "request_timeout", with = "duration")]
    #[schemars(with = "duration::Text")]
    pub timeout: Duration,
}

#[must_use]
fn request_timeout() -> Duration {
    Duration::from_secs(20)
}

impl ClientConfig {
    #[must_use]
    pub fn new(url: impl Into<String>, tls: tls::Client, token: Option<PathBuf>) -> Self {
        Self { url: url.into(), tls, token, timeout: request_timeout() }
    }

    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = self.tls.faults();
        for fault in &mut faults {
            fault.key = format!("tls.{}", fault.key);
        }
        if address(&self.url).is_none() {
            faults.push(Fault::new("url", "is not of the form \"https://HOST:PORT\""));
        }
        faults
    }
}

/// Host, port and authority.
fn address(url: &str) -> Option<(String, u16, String)> {
    let url: Uri = url.parse().ok()?;
    if url.scheme_str() != Some("https") || url.path() != "/" || url.query().is_some() {
        return None;
    }
    let host = url.host()?.trim_matches(['[', ']']).to_owned();
    Some((host, url.port_u16().unwrap_or(443), url.authority()?.to_string()))
}

/// A collector, as devices and operators speak to it: one request on one connection.
#[derive(Debug, Clone)]
pub struct Collector {
    config: ClientConfig,
}

/// Why the collector did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    #[error("collector {url}: {problem}")]
    Connection { url: String, problem: String },
    #[error("collector {url}: {problem} (HTTP status {status})")]
    Refused { url: String, status: u16, problem: String },
}

/// The body of a refusal.
#[derive(Deserialize)]
struct Problem {
    error: String,
}

impl Collector {
    #[must_use]
    pub fn new(config: ClientConfig) -> Self {
        Self { config }
    }

    /// # Errors
    /// If it cannot be reached or does not take the report.
    pub async fn report(&self, report: &Report) -> Result<Answer, Unreachable> {
        let body = serde_json::to_vec(report).expect("a report is plain data");
        self.ask("POST", "/v1/reports", body).await
    }

    /// `counter`: a release, in place of the newest.
    ///
    /// # Errors
    /// If it cannot be reached or does not let this operator in.
    pub async fn fleet(&self, counter: Option<u64>) -> Result<Fleet, Unreachable> {
        let query = counter.map(|counter| format!("?counter={counter}")).unwrap_or_default();
        self.ask("GET", &format!("/v1/fleet{query}"), Vec::new()).await
    }

    /// # Errors
    /// If it cannot be reached, does not let this operator in, or knows no such release.
    pub async fn pause(&self, counter: u64, words: &str) -> Result<(), Unreachable> {
        let body = serde_json::json!({ "words": words }).to_string().into_bytes();
        let path = format!("/v1/rollouts/{counter}/pause");
        self.ask::<serde_json::Value>("POST", &path, body).await.map(drop)
    }

    /// # Errors
    /// If it cannot be reached, does not let this operator in, or knows no such release.
    pub async fn resume(&self, counter: u64) -> Result<(), Unreachable> {
        let path = format!("/v1/rollouts/{counter}/resume");
        self.ask::<serde_json::Value>("POST", &path, Vec::new()).await.map(drop)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: &'static str,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, Unreachable> {
        let url = self.config.url.clone();
        let answer = timeout(self.config.timeout, self.exchange(method, path, body)).await;
        let answer = answer.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        let broken = |problem| Unreachable::Connection { url: url.clone(), problem };
        let (status, bytes) = answer.map_err(broken)?;
        if status.is_success() {
            return serde_json::from_slice(&bytes)
                .map_err(|error| broken(format!("the answer is not understood: {error}")));
        }
        let problem = serde_json::from_slice(&bytes).map(|problem: Problem| problem.error);
        let problem = problem.unwrap_or_else(|_| "no reason is given".to_owned());
        Err(Unreachable::Refused { url, status: status.as_u16(), problem })
    }

    async fn exchange(
        &self,
        method: &'static str,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), String> {
        let (host, port, authority) =
            address(&self.config.url).ok_or("the URL is not of the form https://HOST:PORT")?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, authority)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("cdal/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &self.config.token {
            let token = credential::read(path)
                .map_err(|problem| format!("the token in {}: {problem}", path.display()))?;
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.trim()));
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|_| "the token holds characters that a header cannot".to_owned())?;
        let trust = tls::client(&self.config.tls).map_err(|error| error.to_string())?;
        let name = self.config.tls.server_name.clone().unwrap_or_else(|| host.clone());
        let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
        let stream = TcpStream::connect((host, port))
            .await
            .map_err(|error| format!("no connection: {error}"))?;
        let _ = stream.set_nodelay(true);
        let stream = TlsConnector::from(Arc::clone(&trust))
            .connect(name, stream)
            .await
            .map_err(|error| format!("no TLS connection: {error}"))?;
        let lost = |error: hyper::Error| format!("connection lost: {error}");
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        let connection = tokio::spawn(connection);
        let answer = async {
            let answer = sender.send_request(request).await.map_err(lost)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
            Ok((status, body.map_err(|error| format!("the answer broke off: {error}"))?.to_bytes()))
        };
        let answer = answer.await;
        connection.abort();
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_reached_by_https_alone() {
        let of = |url| address(url).map(|(host, port, _)| (host, port));
        assert_eq!(of("https://fleet.example:8443"), Some(("fleet.example".into(), 8443)));
        assert_eq!(of("https://[::1]/"), Some(("::1".into(), 443)));
        for bad in ["http://fleet.example", "fleet.example:8443", "https://a/b", "https://a/?b", ""]
        {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
