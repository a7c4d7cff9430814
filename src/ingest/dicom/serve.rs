use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dicom_ul::association::Error;
use dicom_ul::association::read_pdu_from_wire_async;
use dicom_ul::association::server::{
    AccessControl, AsyncServerAssociation, Negotiation, ServerAssociationOptions,
};
use dicom_ul::pdu::{
    AssociationRJ, AssociationRJResult,
    AssociationRJServiceProviderPresentationReason as ProviderReason,
    AssociationRJServiceUserReason, AssociationRJSource, Pdu, RequestorRoles, UserIdentity,
    write_pdu,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::association::Session;
use super::syntaxes::{DECODABLE, IMAGES};
use super::{CalledAeTitle, Config, Storage};
use crate::codec::commitment::PUSH_MODEL;
use crate::codec::dimse::VERIFICATION;
use crate::ingest::Sink;
use crate::tls::{self, TlsError};

/// Rejections under way at once; past this a connection is closed without a word.
const MAX_REJECTIONS: usize = 32;

/// Numbers associations across all listeners of the process.
static ASSOCIATIONS: AtomicU64 = AtomicU64::new(1);

/// What connections are accepted with: `tls` as `config.tls` says, read by the caller.
pub struct Scp {
    pub config: Config,
    pub tls: Option<Arc<ServerConfig>>,
}

impl Scp {
    /// # Errors
    /// If the files of `config.tls` are not what they should be.
    pub fn new(config: Config) -> Result<Self, TlsError> {
        let tls = config.tls.as_ref().map(tls::server).transpose()?;
        Ok(Self { config, tls })
    }
}

/// Accepts associations until `shutdown`, then waits for the messages under way. The caller bounds that wait.
pub async fn serve(
    listener: TcpListener,
    scp: Scp,
    sink: Arc<dyn Sink>,
    shutdown: CancellationToken,
) {
    let scp = Arc::new(scp);
    let config = &scp.config;
    let places = Arc::new(Semaphore::new(config.max_associations));
    let rejections = Arc::new(Semaphore::new(MAX_REJECTIONS));
    let tasks = TaskTracker::new();
    loop {
        let (stream, peer) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await; // file descriptors used up
                    continue;
                }
            },
        };
        let networks = &config.allow_addresses;
        if !networks.is_empty() && !networks.iter().any(|network| network.contains(peer.ip())) {
            tracing::warn!(address = %peer.ip(), "connection closed: address not allowed");
            continue;
        }
        let _ = stream.set_nodelay(true);
        let (scp, sink, shutdown) = (scp.clone(), sink.clone(), shutdown.clone());
        if let Ok(place) = places.clone().try_acquire_owned() {
            tasks.spawn(async move {
                scp.handle(stream, sink, shutdown).await;
                drop(place);
            });
        } else if let Ok(place) = rejections.clone().try_acquire_owned() {
            tasks.spawn(async move {
                tracing::warn!(max = scp.config.max_associations, "association rejected: too many");
                scp.reject(stream, ProviderReason::LocalLimitExceeded).await;
                drop(place);
            });
        }
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

impl Scp {
    async fn handle(&self, stream: TcpStream, sink: Arc<dyn Sink>, shutdown: CancellationToken) {
        let asked = sink.clone();
        if !matches!(tokio::task::spawn_blocking(move || asked.admits()).await, Ok(true)) {
            return self.reject(stream, ProviderReason::TemporaryCongestion).await;
        }
        let options = options(&self.config);
        if let Some(tls) = &self.tls {
            let options = options.tls_config(tls.clone());
            self.session(options.establish_tls_async(stream), sink, shutdown).await;
        } else {
            self.session(options.establish_async(stream), sink, shutdown).await;
        }
    }

    async fn session<S: AsyncRead + AsyncWrite + Unpin + Send>(
        &self,
        establish: impl Future<Output = Result<AsyncServerAssociation<S>, Error>>,
        sink: Arc<dyn Sink>,
        shutdown: CancellationToken,
    ) {
        match tokio::time::timeout(self.config.artim_timeout, establish).await {
            Ok(Ok(association)) => {
                let number = ASSOCIATIONS.fetch_add(1, Ordering::Relaxed);
                Session::new(association, &self.config, sink, number).run(shutdown).await;
            }
            Ok(Err(error)) => {
                tracing::warn!(reason = super::association::describe(&error), "no association");
            }
            Err(_) => tracing::warn!("no association: the peer sent no request in time"),
        }
    }

    /// Reads the request and rejects it as transient: the peer may try again later.
    async fn reject(&self, stream: TcpStream, reason: ProviderReason) {
        let answer = async {
            match &self.tls {
                None => reject(stream, self.config.max_pdu_bytes, reason).await,
                Some(tls) => {
                    if let Ok(stream) = TlsAcceptor::from(tls.clone()).accept(stream).await {
                        reject(stream, self.config.max_pdu_bytes, reason).await;
                    }
                }
            }
        };
        let _ = tokio::time::timeout(self.config.artim_timeout, answer).await;
    }
}

fn options(config: &Config) -> ServerAssociationOptions<'_, Access<'_>, Roles> {
    let mut options = ServerAssociationOptions::new()
        .ae_access_control(Access(config))
        .with_negotiation(Roles)
        .ae_title(Cow::Borrowed(config.ae_title.as_str()))
        .max_pdu_length(config.max_pdu_bytes)
        .write_timeout(config.read_timeout)
        .strict(true) // otherwise a declared PDU length is buffered whatever it says
        .with_abstract_syntax(VERIFICATION)
        .with_abstract_syntax(PUSH_MODEL.sop_class_uid.as_str());
    match config.storage {
        Storage::Images => {
            for class in IMAGES {
                options = options.with_abstract_syntax(*class);
            }
            for syntax in DECODABLE {
                options = options.with_transfer_syntax(*syntax);
            }
        }
        Storage::Any => options = options.promiscuous(true),
    }
    options
}

struct Access<'a>(&'a Config);

impl AccessControl for Access<'_> {
    fn check_access(
        &self,
        own: &str,
        calling: &str,
        called: &str,
        _user: Option<&UserIdentity>,
    ) -> Result<(), AssociationRJServiceUserReason> {
        let Self(config) = self;
        if config.called_ae_title == CalledAeTitle::Own && called.trim() != own.trim() {
            return Err(AssociationRJServiceUserReason::CalledAETitleNotRecognized);
        }
        let allowed = |title: &String| title.trim() == calling.trim();
        if !config.allow.is_empty() && !config.allow.iter().any(allowed) {
            return Err(AssociationRJServiceUserReason::CallingAETitleNotRecognized);
        }
        Ok(())
    }
}

/// Whoever reports on storage commitment opens an association as its SCP (PS3.4 section J.3.3).
struct Roles;

impl Negotiation for Roles {
    fn negotiate_roles(&self, class: &str, scu: bool, scp: bool) -> Option<RequestorRoles> {
        let is_commitment = class.trim_end_matches('\0') == PUSH_MODEL.sop_class_uid.as_str();
        is_commitment.then_some(RequestorRoles { scu, scp })
    }
}

async fn reject(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    max_pdu_bytes: u32,
    reason: ProviderReason,
) {
    let mut buffer = bytes::BytesMut::new();
    let request = read_pdu_from_wire_async(&mut stream, &mut buffer, max_pdu_bytes, true).await;
    if !matches!(request, Ok(Pdu::AssociationRQ(_))) {
        return;
    }
    let rejection = Pdu::AssociationRJ(AssociationRJ {
        result: AssociationRJResult::Transient,
        source: AssociationRJSource::ServiceProviderPresentation(reason),
    });
    let mut bytes = Vec::new();
    if write_pdu(&mut bytes, &rejection).is_ok() && stream.write_all(&bytes).await.is_ok() {
        let _ = stream.shutdown().await;
        let _ = stream.read(&mut [0; 64]).await; // let the peer close first, so that it reads the answer
    }
}
