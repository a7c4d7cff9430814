use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto::ring};

use super::{HttpError, Tls};
use crate::domain::credential;

/// TLS 1.2 and 1.3, as the files of the section say.
pub(super) fn acceptor(config: &Tls) -> Result<TlsAcceptor, HttpError> {
    let wrong = |path: &Path, problem: String| HttpError::credential(path, problem);
    let chain = certificates(&config.certificate)?;
    let key = credential::read(&config.key).map_err(|problem| wrong(&config.key, problem))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|error| wrong(&config.key, format!("is no private key in PEM: {error}")))?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&config.certificate, error.to_string()))?;
    let builder = match &config.clients {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| wrong(path, error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| wrong(path, error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let server = builder
        .with_single_cert(chain, key)
        .map_err(|error| wrong(&config.certificate, error.to_string()))?;
    Ok(TlsAcceptor::from(Arc::new(server)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, HttpError> {
    let located = credential::locate(path);
    let read = |error: &dyn std::fmt::Display| {
        HttpError::credential(path, format!("is no list of certificates in PEM: {error}"))
    };
    let found: Vec<_> = CertificateDer::pem_file_iter(&located)
        .and_then(Iterator::collect)
        .map_err(|error| read(&error))?;
    if found.is_empty() { Err(read(&"it holds none")) } else { Ok(found) }
}
