use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::desk::Desk;
use super::routes::{self, Shop};
use super::{CollectError, Config};
use crate::http::{Limits, Tokens, blocking, serve};
use crate::tls;

/// Silence is looked for so often.
const WATCH: Duration = Duration::from_secs(1);

/// Least rate at which a client takes its answer.
const MIN_BYTES_PER_SECOND: u32 = 4 << 10;

/// A collector, bound to its addresses.
pub struct Server {
    listener: TcpListener,
    page: Option<TcpListener>,
    tls: TlsAcceptor,
    shop: Arc<Shop>,
    limits: Limits,
}

impl Server {
    /// Reads credentials, ledger and releases, and takes the addresses.
    ///
    /// # Errors
    /// If one of them cannot be used.
    pub async fn bind(config: &Config) -> Result<Self, CollectError> {
        let (opened, runtime) = (config.clone(), Handle::current());
        let open = move || Desk::open(&opened, opened.store(runtime)?);
        let desk = blocking(open).await?;
        let tls = tls::server_with_guests(&config.tls)?.into();
        let shop = Shop {
            desk: Mutex::new(desk),
            operators: config.operators.iter().map(|name| name.to_lowercase()).collect(),
            tokens: config.tokens.as_deref().map(Tokens::read).transpose()?,
            timeout: config.timeout,
        };
        let limits = Limits {
            max_connections: config.max_connections,
            head_timeout: config.timeout,
            body_timeout: config.timeout,
            min_bytes_per_second: MIN_BYTES_PER_SECOND,
        };
        let page = match &config.page {
            Some(page) => Some(listen(page).await?),
            None => None,
        };
        let listener = listen(&config.listen).await?;
        Ok(Self { listener, page, tls, shop: Arc::new(shop), limits })
    }

    /// # Errors
    /// If the system does not tell.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Where the page alone is served.
    #[must_use]
    pub fn page_address(&self) -> Option<SocketAddr> {
        self.page.as_ref().and_then(|page| page.local_addr().ok())
    }

    /// Answers until `shutdown`, then ends the requests under way. The caller bounds that wait.
    pub async fn serve(self, shutdown: CancellationToken) {
        let Self { listener, page, tls, shop, limits } = self;
        let router = routes::router(Arc::clone(&shop));
        let page_router = routes::page_router(Arc::clone(&shop));
        let looking = async {
            if let Some(page) = page {
                serve(page, None, page_router, limits, shutdown.clone()).await;
            }
        };
        tokio::join!(
            serve(listener, Some(tls), router, limits, shutdown.clone()),
            looking,
            watch(shop, shutdown.clone()),
        );
    }
}

async fn listen(address: &str) -> Result<TcpListener, CollectError> {
    let listen = |source| CollectError::Listen { address: address.to_owned(), source };
    TcpListener::bind(address).await.map_err(listen)
}

async fn watch(shop: Arc<Shop>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(WATCH) => {}
        }
        let shop = Arc::clone(&shop);
        if let Err(error) = blocking(move || shop.desk().watch()).await {
            tracing::error!(%error, "the collector cannot keep what it found");
        }
    }
}
