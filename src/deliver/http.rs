//! One request to an HTTP server, on a connection of its own.

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{HttpConfig, Outcome};
use crate::domain::credential;
use crate::tls;

/// Roots that the system trusts, where Debian and its kin keep them.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Of an answer, at most this much is read. What says more about one object is no answer to it: its status counts alone.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// What is posted.
pub(super) struct Message {
    pub(super) content_type: String,
    pub(super) accept: &'static str,
    /// The same for every attempt at the same delivery.
    pub(super) key: String,
    pub(super) body: Vec<u8>,
}

/// Posts `message` and returns status and body of the answer.
///
/// # Errors
/// [`Outcome::Unreachable`] with the reason.
pub(super) async fn post(
    config: &HttpConfig,
    message: Message,
) -> Result<(StatusCode, Bytes), Outcome> {
    let attempt = attempt(config, message);
    let answer = timeout(config.timeout, attempt).await;
    answer.unwrap_or_else(|_| Err("no answer in time".to_owned())).map_err(Outcome::Unreachable)
}

async fn attempt(config: &HttpConfig, message: Message) -> Result<(StatusCode, Bytes), String> {
    let url: Uri = config.url.parse().map_err(|_| "the URL cannot be read".to_owned())?;
    let host = url.host().ok_or("the URL has no host")?;
    let is_tls = url.scheme_str() == Some("https");
    let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::post(path)
        .header(header::HOST, url.authority().map_or(host, |authority| authority.as_str()))
        .header(header::CONTENT_TYPE, message.content_type)
        .header(header::ACCEPT, message.accept)
        .header(header::USER_AGENT, concat!("cdal/", env!("CARGO_PKG_VERSION")))
        .header("idempotency-key", message.key);
    if let Some(path) = &config.token {
        let token = credential::read(path)
            .map_err(|problem| format!("the token in {}: {problem}", path.display()))?;
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.trim()));
    }
    let request = request
        .body(Full::new(Bytes::from(message.body)))
        .map_err(|_| "the token holds characters that a header cannot".to_owned())?;
    let name = host.trim_matches(['[', ']']);
    let stream = TcpStream::connect((name, port))
        .await
        .map_err(|error| format!("no connection: {error}"))?;
    let _ = stream.set_nodelay(true);
    if !is_tls {
        return exchange(stream, request).await;
    }
    let ca = config.ca.clone().unwrap_or_else(|| SYSTEM_ROOTS.into());
    let (certificate, key) = (config.certificate.clone(), config.key.clone());
    let trust = tls::Client { ca, certificate, key, server_name: None };
    let connector = TlsConnector::from(tls::client(&trust).map_err(|error| error.to_string())?);
    let name = ServerName::try_from(name.to_owned()).map_err(|error| error.to_string())?;
    let stream = connector
        .connect(name, stream)
        .await
        .map_err(|error| format!("no TLS connection: {error}"))?;
    exchange(stream, request).await
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), String> {
    let lost = |error: hyper::Error| format!("connection lost: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    let connection = tokio::spawn(connection);
    let answer = async {
        let answer = sender.send_request(request).await.map_err(lost)?;
        let status = answer.status();
        match Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await {
            Ok(body) => Ok((status, body.to_bytes())),
            Err(error) if error.is::<LengthLimitError>() => Ok((status, Bytes::new())),
            Err(error) => Err(format!("the answer broke off: {error}")),
        }
    }
    .await;
    connection.abort();
    answer
}

/// What a status without a more telling body means: the object is at fault, or the destination.
pub(super) fn judge(status: StatusCode) -> Outcome {
    let reason = || format!("HTTP status {status}");
    match status.as_u16() {
        200..=299 => Outcome::Sent,
        300..=399 => Outcome::Unreachable(format!(
            "{}: the server names another address; set url to it",
            reason()
        )),
        400 | 409 | 411..=415 | 422 => Outcome::Never(reason()),
        // Put right on either side, in the configuration or by waiting; the object is as good as before.
        401 | 403 | 404 | 405 | 407 => {
            Outcome::Unreachable(format!("{}; check url and token", reason()))
        }
        _ => Outcome::Unreachable(reason()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_the_objects_fault_is_refused_for_good() {
        let outcome = |code| judge(StatusCode::from_u16(code).unwrap());
        assert_eq!(outcome(204), Outcome::Sent);
        for code in [400, 413, 415, 422] {
            assert!(matches!(outcome(code), Outcome::Never(_)), "{code}");
        }
        for code in [301, 401, 404, 408, 429, 500, 503] {
            assert!(matches!(outcome(code), Outcome::Unreachable(_)), "{code}");
        }
    }
}
