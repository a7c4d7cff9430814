use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use url::Url;

use crate::fleet::Blob;
use crate::tls;

/// Of one file of metadata, and of one silence while a blob comes.
const PATIENCE: Duration = Duration::from_mins(1);

/// Roots that the system trusts, where Debian and its kin keep them.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Where a repository lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Http {
        /// Ends with a slash.
        base: Url,
        /// Roots that its certificate is trusted by; the system's without. What comes is believed for its signatures
        /// alone: TLS keeps others from reading along.
        ca: Option<PathBuf>,
    },
    /// On a stick, say.
    Folder(Url),
}

/// Why a file of the repository is not to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    #[error("{0:?} is neither http://…, https://… nor a folder")]
    Unknown(String),
    #[error("{0} is not there")]
    Missing(String),
    #[error("{0}: HTTP status 403 Forbidden")]
    Denied(String),
    #[error("{url}: {problem}")]
    Failed { url: String, problem: String },
}

impl Source {
    /// From how a person names it.
    ///
    /// # Errors
    /// If it is nothing that could be a repository.
    pub fn parse(text: &str, ca: Option<PathBuf>) -> Result<Self, SourceError> {
        let unknown = || SourceError::Unknown(text.to_owned());
        if text.starts_with("http://") || text.starts_with("https://") {
            let base = Url::parse(&format!("{}/", text.trim_end_matches('/')));
            let base = base.ok().filter(Url::has_host).ok_or_else(unknown)?;
            return Ok(Self::Http { base, ca });
        }
        // It need not be there yet: a stick comes and goes.
        let is_path = !text.is_empty() && !text.contains("://");
        let folder = std::path::absolute(text).ok().filter(|_| is_path);
        let url = folder.and_then(|folder| Url::from_directory_path(folder).ok());
        url.map(Self::Folder).ok_or_else(unknown)
    }

    pub(super) fn base(&self) -> &Url {
        match self {
            Self::Http { base, .. } | Self::Folder(base) => base,
        }
    }

    /// Of metadata and targets.
    pub(super) fn folders(&self) -> [Url; 2] {
        ["metadata/", "targets/"].map(|name| self.base().join(name).expect("a plain name joins"))
    }

    fn blob(&self, blob: &Blob) -> Url {
        let [_, targets] = self.folders();
        targets.join(&blob.file_name()).expect("a plain name joins")
    }
}

fn failed(url: &Url, problem: impl ToString) -> SourceError {
    SourceError::Failed { url: url.to_string(), problem: problem.to_string() }
}

/// Fetches files whole, within a number of bytes and a time.
#[derive(Debug, Clone)]
pub(super) struct Fetcher {
    source: Source,
    patience: Duration,
}

impl Fetcher {
    pub(super) fn new(source: Source) -> Self {
        Self { source, patience: PATIENCE }
    }

    pub(super) async fn whole(&self, url: &Url, limit: u64) -> Result<Vec<u8>, SourceError> {
        let Source::Http { ca, .. } = &self.source else { return whole_file(url, limit) };
        let body = async {
            let Opened { response, .. } = &mut get(url, ca.as_ref(), 0).await?;
            let mut whole = Vec::new();
            while let Some(frame) = response.body_mut().frame().await {
                let frame = frame.map_err(|error| failed(url, format!("it broke off: {error}")))?;
                whole.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                if whole.len() as u64 > limit {
                    return Err(failed(url, format!("sends more than {limit} bytes")));
                }
            }
            Ok(whole)
        };
        let late = || failed(url, format!("has not come within {} s", self.patience.as_secs()));
        timeout(self.patience, body).await.unwrap_or_else(|_| Err(late()))
    }
}

fn whole_file(url: &Url, limit: u64) -> Result<Vec<u8>, SourceError> {
    let mut bytes = Vec::new();
    let read = open(url)?.take(limit.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|error| failed(url, error))?;
    if bytes.len() as u64 > limit {
        return Err(failed(url, format!("has more than {limit} bytes")));
    }
    Ok(bytes)
}

fn open(url: &Url) -> Result<std::fs::File, SourceError> {
    let path = url.to_file_path().map_err(|()| failed(url, "is no path of this machine"))?;
    std::fs::File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => SourceError::Missing(url.to_string()),
        _ => failed(url, error),
    })
}

/// A blob's bytes, from wherever the repository lies.
pub(super) enum BlobReader {
    File(std::fs::File),
    Http {
        opened: Box<Opened>,
        rest: Bytes,
        /// Bytes still to be passed over.
        skip: u64,
        runtime: Arc<Runtime>,
    },
}

impl BlobReader {
    pub(super) fn open(
        source: &Source,
        runtime: Arc<Runtime>,
        blob: &Blob,
        offset: u64,
    ) -> Result<Self, SourceError> {
        let url = source.blob(blob);
        let Source::Http { ca, .. } = source else {
            let mut file = open(&url)?;
            file.seek(SeekFrom::Start(offset)).map_err(|error| failed(&url, error))?;
            return Ok(Self::File(file));
        };
        let opened = runtime.block_on(async {
            let late = || failed(&url, format!("no answer within {} s", PATIENCE.as_secs()));
            timeout(PATIENCE, get(&url, ca.as_ref(), offset)).await.unwrap_or_else(|_| Err(late()))
        })?;
        let is_part = opened.response.status() == StatusCode::PARTIAL_CONTENT;
        let skip = if is_part { 0 } else { offset };
        Ok(Self::Http { opened: Box::new(opened), rest: Bytes::new(), skip, runtime })
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (opened, rest, skip, runtime) = match self {
            Self::File(file) => return file.read(buffer),
            Self::Http { opened, rest, skip, runtime } => (opened, rest, skip, runtime),
        };
        while rest.is_empty() {
            let body = opened.response.body_mut();
            let frame = runtime.block_on(async { timeout(PATIENCE, body.frame()).await });
            let silent = |_| io::Error::new(io::ErrorKind::TimedOut, "nothing came for a minute");
            match frame.map_err(silent)? {
                None => return Ok(0),
                Some(frame) => {
                    let frame = frame.map_err(io::Error::other)?;
                    *rest = frame.into_data().unwrap_or_default();
                    let past = usize::try_from(*skip).unwrap_or(usize::MAX).min(rest.len());
                    let _ = rest.split_to(past);
                    *skip -= past as u64;
                }
            }
        }
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest.split_to(count));
        Ok(count)
    }
}

/// An answer that has begun.
pub(super) struct Opened {
    response: Response<Incoming>,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Asks for `url` from byte `offset` on, over a connection of its own.
async fn get(url: &Url, ca: Option<&PathBuf>, offset: u64) -> Result<Opened, SourceError> {
    let wrong = |problem: String| failed(url, problem);
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = url.port_or_known_default().unwrap_or(80);
    let authority = match url.port() {
        Some(port) => format!("{}:{port}", url.host_str().unwrap_or_default()),
        None => url.host_str().unwrap_or_default().to_owned(),
    };
    let mut request = Request::get(url.path())
        .header(header::HOST, authority)
        .header(header::USER_AGENT, concat!("cdal/", env!("CARGO_PKG_VERSION")));
    if offset > 0 {
        request = request.header(header::RANGE, format!("bytes={offset}-"));
    }
    let request = request.body(Empty::new()).map_err(|error| wrong(error.to_string()))?;
    let stream = TcpStream::connect((host.as_str(), port))
        .await
        .map_err(|error| wrong(format!("no connection: {error}")))?;
    let _ = stream.set_nodelay(true);
    let opened = if url.scheme() == "https" {
        let ca = ca.cloned().unwrap_or_else(|| SYSTEM_ROOTS.into());
        let trust = tls::Client { ca, certificate: None, key: None, server_name: None };
        let trust = tls::client(&trust).map_err(|error| wrong(error.to_string()))?;
        let name = ServerName::try_from(host).map_err(|error| wrong(error.to_string()))?;
        let stream = TlsConnector::from(trust).connect(name, stream).await;
        exchange(stream.map_err(|error| wrong(format!("no TLS connection: {error}")))?, request)
            .await
    } else {
        exchange(stream, request).await
    };
    let opened = opened.map_err(|error| wrong(format!("connection lost: {error}")))?;
    match opened.response.status() {
        StatusCode::NOT_FOUND | StatusCode::GONE => Err(SourceError::Missing(url.to_string())),
        StatusCode::FORBIDDEN => Err(SourceError::Denied(url.to_string())),
        // A server without ranges sends all of it again: the reader passes over what is there.
        StatusCode::PARTIAL_CONTENT | StatusCode::OK => Ok(opened),
        status => Err(wrong(format!("HTTP status {status}"))),
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<Opened, hyper::Error> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(async move {
        let _ = connection.await;
    });
    let response = sender.send_request(request).await;
    match response {
        Ok(response) => Ok(Opened { response, connection }),
        Err(error) => {
            connection.abort();
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends a byte now and then would hold a device for ever.
    #[test]
    fn metadata_that_drips_is_given_up() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let place = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            use std::io::Write;
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n");
            while stream.write_all(b"{").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let source = Source::parse(&place, None).unwrap();
        let [metadata, _] = source.folders();
        let fetcher = Fetcher { patience: Duration::from_millis(200), ..Fetcher::new(source) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let url = metadata.join("timestamp.json").unwrap();
        let error = runtime.block_on(fetcher.whole(&url, 1 << 20)).unwrap_err();
        assert!(error.to_string().contains("has not come within"), "{error}");
    }

    #[test]
    fn a_repository_is_named_by_its_url_or_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let named = |text: &str| Source::parse(text, None);
        let Ok(Source::Http { base, .. }) = named("https://fleet.example/cdal") else { panic!() };
        assert_eq!(base.as_str(), "https://fleet.example/cdal/");
        let stick = named(folder.path().to_str().unwrap()).unwrap();
        let [metadata, _] = stick.folders();
        assert_eq!(metadata.to_file_path().unwrap(), folder.path().join("metadata"));
        assert!(named("/media/a-stick-that-is-not-in/cdal").is_ok());
        for bad in ["", "ftp://a/b", "https://"] {
            assert!(named(bad).is_err(), "{bad}");
        }
    }
}
