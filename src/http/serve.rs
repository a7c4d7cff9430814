use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Uri;
use axum::http::uri::PathAndQuery;
use hyper::Request;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connections::{Connections, Line};
use super::door::{Door, OnLine};
use super::pace::{Pace, Paced};
use super::routes::{self, Shop};
use super::station::{self, Station};
use super::{Config, Context, HttpError};
use crate::ingest::FolderSink;
use crate::tls;

/// Connections beyond `max_connections`, so that health and metrics are answered while all places are taken.
const RESERVE: usize = 64;

/// What a connection's head, or requests that are sent before the first is answered, may take in memory.
const BUFFER_BYTES: usize = 64 << 10;

/// What the kernel holds of an answer. As much as it holds, a slow client seems fast.
const SEND_BUFFER_BYTES: usize = 128 << 10;

/// HTTP, bound to its address.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    router: Router,
    config: Config,
}

impl Server {
    /// The daemon's. Reads the credentials and takes the address; `None` if HTTP is off.
    ///
    /// # Errors
    /// If the address or a credentials file cannot be used.
    pub async fn bind(config: Config, context: Context) -> Result<Option<Self>, HttpError> {
        let shop = Shop::new(config.clone(), context);
        Self::open(config, |door| routes::router(door, Arc::new(shop))).await
    }

    /// A receiver's: STOW-RS and webhooks into a folder. Otherwise like [`Server::bind`].
    ///
    /// # Errors
    /// If the address or a credentials file cannot be used.
    pub async fn station(config: Config, sink: Arc<FolderSink>) -> Result<Option<Self>, HttpError> {
        let station = Station::new(&config, sink);
        Self::open(config, |door| station::router(door, Arc::new(station))).await
    }

    async fn open(
        config: Config,
        router: impl FnOnce(Arc<Door>) -> Router,
    ) -> Result<Option<Self>, HttpError> {
        let Some(address) = config.listen.clone() else { return Ok(None) };
        let tls = config.tls.as_ref().map(tls::server).transpose()?.map(TlsAcceptor::from);
        let listen = |source| HttpError::Listen { address: address.clone(), source };
        let listener = TcpListener::bind(&address).await.map_err(listen)?;
        let local = listener.local_addr().map_err(listen)?;
        let router = router(Door::open(&config, local.ip())?);
        Ok(Some(Self { listener, address: local, tls, router, config }))
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown`, then ends the requests under way. The caller bounds that wait.
    pub async fn serve(self, shutdown: CancellationToken) {
        let limits = Limits {
            max_connections: self.config.max_connections,
            head_timeout: self.config.head_timeout,
            body_timeout: self.config.body_timeout,
            min_bytes_per_second: self.config.min_bytes_per_second,
        };
        serve(self.listener, self.tls, self.router, limits, shutdown).await;
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub max_connections: usize,
    /// For the head of a request and for the TLS handshake.
    pub head_timeout: Duration,
    /// Longest time for which a client takes nothing of its answer.
    pub body_timeout: Duration,
    /// The least rate at which a client takes its answer; 0 for none.
    pub min_bytes_per_second: u32,
}

/// The DNS names in the certificate that a client showed, in every request's extensions; none without one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer(pub Arc<[String]>);

/// Hands requests to `router` until `shutdown`, then ends those under way. The caller bounds that wait.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let connections = Arc::new(Connections::new(limits.max_connections + RESERVE));
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await; // file descriptors used up
                continue;
            }
        };
        let Some(open) = connections.admit(address.ip()) else {
            tracing::debug!("connection closed: every other one is being answered");
            continue;
        };
        let (tls, router, shutdown) = (tls.clone(), router.clone(), shutdown.clone());
        tasks.spawn(async move {
            let line = Arc::clone(open.line());
            tokio::select! {
                () = connection(stream, tls, router, limits, &line, shutdown) => {}
                () = line.closed() => tracing::debug!("connection closed for others"),
            }
            drop(open);
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

async fn connection(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    router: Router,
    limits: Limits,
    line: &Arc<Line>,
    shutdown: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER_BYTES);
    match acceptor {
        None => exchange(stream, Peer::default(), router, limits, line, shutdown).await,
        Some(acceptor) => {
            match tokio::time::timeout(limits.head_timeout, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                    let peer = Peer(shown.map(tls::names).unwrap_or_default().into());
                    exchange(stream, peer, router, limits, line, shutdown).await;
                }
                Ok(Err(error)) => tracing::debug!(%error, "no TLS connection"),
                Err(_) => tracing::debug!("no TLS connection in time"),
            }
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Peer,
    router: Router,
    limits: Limits,
    line: &Arc<Line>,
    shutdown: CancellationToken,
) {
    let inner = TowerToHyperService::new(router);
    let service = service_fn(|mut request: Request<_>| {
        line.answers();
        request.extensions_mut().insert(peer.clone());
        request.extensions_mut().insert(OnLine(Arc::clone(line)));
        let uri = without_last_slash(request.uri());
        if let Some(uri) = uri {
            *request.uri_mut() = uri;
        }
        let answer = inner.call(request);
        async move {
            let answer = answer.await;
            line.waits();
            answer
        }
    });
    let pace = Pace::new(limits.body_timeout, limits.min_bytes_per_second);
    let paced = Paced::new(stream, pace, Arc::clone(line));
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head_timeout)
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(TokioIo::new(paced), service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// `/v2/` is `/v2`. `None` if there is nothing to take away.
fn without_last_slash(uri: &Uri) -> Option<Uri> {
    let path = uri.path().strip_suffix('/').filter(|path| !path.is_empty())?;
    let target = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(target).ok()?);
    Uri::from_parts(parts).ok()
}

/// Runs `work` where it may block. A panic in it goes on here.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await, // the runtime is shutting down
        },
    }
}
