//! TLS 1.2 and 1.3 from PEM files, with certificates on both sides where asked for.
//!
//! One place says what is trusted: `ingest`, `deliver` and `http` name the files, this room reads them. The
//! cryptography is `ring`'s, which needs nothing but a C compiler. Keys are credentials: they are refused where everyone
//! may read them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, Error, RootCertStore, ServerConfig, crypto::ring};
use webpki::EndEntityCert;

use crate::domain::{Fault, credential};

/// How this program shows itself to those who connect, and what they have to show. A relative path lies in
/// `$CREDENTIALS_DIRECTORY` where that is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// The server's certificate, followed by the ones between it and the root.
    pub certificate: PathBuf,
    /// Credentials file with the certificate's private key.
    pub key: PathBuf,
    /// Roots of client certificates; with it, every client must show one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<PathBuf>,
}

/// Whom this program trusts when it connects, and what it shows. Paths as in [`Server`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// Roots that a server is trusted by.
    pub ca: PathBuf,
    /// Certificate to show, followed by the ones between it and the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// Credentials file with that certificate's private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The name the server's certificate must hold, where it is not the host of the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

impl Client {
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let alone = match (&self.certificate, &self.key) {
            (Some(_), None) => "key",
            (None, Some(_)) => "certificate",
            _ => return Vec::new(),
        };
        vec![Fault::new(alone, "is missing; certificate and key belong together")]
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct TlsError {
    pub path: PathBuf,
    pub problem: String,
}

impl TlsError {
    fn of(path: &Path, problem: impl std::fmt::Display) -> Self {
        Self { path: path.to_owned(), problem: problem.to_string() }
    }
}

/// # Errors
/// If a file cannot be read or is not what it should be.
pub fn server(server: &Server) -> Result<Arc<ServerConfig>, TlsError> {
    accept(server, false)
}

/// Like [`server`], but who shows no certificate is let in too, nameless: to be known by a token, or not at all.
///
/// # Errors
/// If a file cannot be read or is not what it should be.
pub fn server_with_guests(server: &Server) -> Result<Arc<ServerConfig>, TlsError> {
    accept(server, true)
}

/// The DNS names that a certificate was given (its SAN), in lower case. That it is genuine is the handshake's to check.
#[must_use]
pub fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let parsed = EndEntityCert::try_from(certificate);
    parsed.map_or_else(|_| Vec::new(), |c| c.valid_dns_names().map(str::to_lowercase).collect())
}

fn accept(server: &Server, guests: bool) -> Result<Arc<ServerConfig>, TlsError> {
    let wrong = |error: Error| TlsError::of(&server.certificate, error);
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(wrong)?;
    let builder = match &server.clients {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(roots(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            let verifier = if guests { verifier.allow_unauthenticated() } else { verifier };
            let verifier = verifier.build().map_err(|error| TlsError::of(path, error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let chain = certificates(&server.certificate)?;
    let config = builder.with_single_cert(chain, key(&server.key)?).map_err(wrong)?;
    Ok(Arc::new(config))
}

/// # Errors
/// If a file cannot be read or is not what it should be.
pub fn client(client: &Client) -> Result<Arc<ClientConfig>, TlsError> {
    let wrong = |error: Error| TlsError::of(&client.ca, error);
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(wrong)?
        .with_root_certificates(roots(&client.ca)?);
    let config = match (&client.certificate, &client.key) {
        (Some(path), Some(secret)) => builder
            .with_client_auth_cert(certificates(path)?, key(secret)?)
            .map_err(|error| TlsError::of(path, error))?,
        _ => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// Roots that cannot be parsed are passed over, as in a system's list there always are some; one must be left.
fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates(path)?);
    if added == 0 { Err(TlsError::of(path, "holds no root certificate")) } else { Ok(roots) }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |problem: &dyn std::fmt::Display| {
        TlsError::of(path, format!("is no list of certificates in PEM: {problem}"))
    };
    let found: Vec<_> = CertificateDer::pem_file_iter(credential::locate(path))
        .and_then(Iterator::collect)
        .map_err(|error| wrong(&error))?;
    if found.is_empty() { Err(wrong(&"it holds none")) } else { Ok(found) }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = credential::read(path).map_err(|problem| TlsError::of(path, problem))?;
    PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|error| TlsError::of(path, format!("is no private key in PEM: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_of_the_file_it_is_wrong_with() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roots.pem");
        let ask = || {
            client(&Client { ca: path.clone(), certificate: None, key: None, server_name: None })
        };
        for content in [None, Some("no certificate")] {
            if let Some(text) = content {
                std::fs::write(&path, text).unwrap();
            }
            let error = ask().unwrap_err();
            assert_eq!(error.path, path);
            assert!(error.problem.contains("certificates in PEM"), "{error}");
        }
    }

    #[test]
    fn a_certificate_and_its_key_belong_together() {
        let both = Client {
            ca: "ca".into(),
            certificate: Some("c".into()),
            key: Some("k".into()),
            server_name: None,
        };
        assert!(both.faults().is_empty());
        assert_eq!(Client { key: None, ..both.clone() }.faults()[0].key, "key");
        assert_eq!(Client { certificate: None, ..both }.faults()[0].key, "certificate");
    }
}
