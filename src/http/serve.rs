use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::door::Door;
use super::routes::{self, Shop};
use super::station::{self, Station};
use super::{Config, Context, HttpError};
use crate::ingest::FolderSink;
use crate::tls;

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
        let inferences = Arc::new(Semaphore::new(config.max_inferences));
        let shop = Shop { config: config.clone(), context: Arc::new(context), inferences };
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
        let router = router(Door::open(&config)?);
        let tls = config.tls.as_ref().map(tls::server).transpose()?.map(TlsAcceptor::from);
        let listen = |source| HttpError::Listen { address: address.clone(), source };
        let listener = TcpListener::bind(&address).await.map_err(listen)?;
        let local = listener.local_addr().map_err(listen)?;
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
        };
        serve(self.listener, self.tls, self.router, limits, shutdown).await;
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub max_connections: usize,
    /// For the head of a request and for the TLS handshake.
    pub head_timeout: Duration,
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
    let places = Arc::new(Semaphore::new(limits.max_connections));
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (listener.accept().await, place)
            } => accepted,
        };
        let (stream, place) = match accepted {
            (Ok((stream, _)), place) => (stream, place),
            (Err(error), _) => {
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await; // file descriptors used up
                continue;
            }
        };
        let (tls, router, shutdown) = (tls.clone(), router.clone(), shutdown.clone());
        tasks.spawn(async move {
            connection(stream, tls, router, limits.head_timeout, shutdown).await;
            drop(place);
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
    head_timeout: Duration,
    shutdown: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    match acceptor {
        None => exchange(stream, Peer::default(), router, head_timeout, shutdown).await,
        Some(acceptor) => match tokio::time::timeout(head_timeout, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let peer = Peer(shown.map(tls::names).unwrap_or_default().into());
                exchange(stream, peer, router, head_timeout, shutdown).await;
            }
            Ok(Err(error)) => tracing::debug!(%error, "no TLS connection"),
            Err(_) => tracing::debug!("no TLS connection in time"),
        },
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Peer,
    router: Router,
    head_timeout: Duration,
    shutdown: CancellationToken,
) {
    let inner = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<_>| {
        request.extensions_mut().insert(peer.clone());
        inner.call(request)
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head_timeout)
            .serve_connection(TokioIo::new(stream), service)
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
