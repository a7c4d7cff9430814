use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dicom_transfer_syntax_registry::{TransferSyntaxIndex, TransferSyntaxRegistry};
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
use crate::codec::pdu::{AeTitle, Role};
use crate::ingest::{Sink, Source};
use crate::telemetry::{Rejected, metrics};
use crate::tls::{self, TlsError};
use crate::upper_layer::{
    Acceptor, Acknowledge, Limits, Link, Refusal, Unmet, UpperLayerError, Wire, accept, refuse,
};

/// Rejections under way at once; past this a connection is closed without a word.
const MAX_REJECTIONS: usize = 32;

/// Numbers associations across all listeners of the process.
static ASSOCIATIONS: AtomicU64 = AtomicU64::new(1);

/// What connections are accepted with: `tls` as `config.tls` says, read by the caller.
pub struct Scp {
    pub config: Config,
    pub tls: Option<Arc<ServerConfig>>,
    pub acknowledge: Acknowledge,
}

impl Scp {
    /// # Errors
    /// If the files of `config.tls` are not what they should be.
    pub fn new(config: Config) -> Result<Self, TlsError> {
        let tls = config.tls.as_ref().map(tls::server).transpose()?;
        Ok(Self { config, tls, acknowledge: Acknowledge::AtOnce })
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
            metrics().rejected(Rejected::Address);
            tracing::warn!(peer = %peer.ip(), "connection closed: the address is not in allow_addresses");
            continue;
        }
        let (scp, sink, shutdown) = (scp.clone(), sink.clone(), shutdown.clone());
        if let Ok(place) = places.clone().try_acquire_owned() {
            tasks.spawn(async move {
                scp.handle(stream, peer, sink, shutdown).await;
                drop(place);
            });
        } else if let Ok(place) = rejections.clone().try_acquire_owned() {
            tasks.spawn(async move {
                scp.reject(stream, peer, Refusal::TooManyAssociations).await;
                drop(place);
            });
        }
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

impl Scp {
    async fn handle(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        sink: Arc<dyn Sink>,
        shutdown: CancellationToken,
    ) {
        let asked = sink.clone();
        if !matches!(tokio::task::spawn_blocking(move || asked.admits()).await, Ok(true)) {
            return self.reject(stream, peer, Refusal::LowDisk).await;
        }
        let establish = async {
            match self.link(stream).await {
                Ok(link) => accept(link, self.limits(), self).await,
                Err(error) => Err(Unmet::from(error)),
            }
        };
        match tokio::time::timeout(self.config.artim_timeout, establish).await {
            Ok(Ok(association)) => {
                let number = ASSOCIATIONS.fetch_add(1, Ordering::Relaxed);
                let calling = association.calling().clone();
                let source = Source { association: number, address: peer.ip(), calling };
                Session::new(association, &self.config, sink, source).run(shutdown).await;
            }
            Ok(Err(unmet)) => self.report(unmet, peer).await,
            Err(_) => {
                tracing::warn!(peer = %peer.ip(), "no association: the peer sent no request in time");
            }
        }
    }

    /// Reads the request and rejects it as transient: the peer may try again later.
    async fn reject(&self, stream: TcpStream, peer: SocketAddr, refusal: Refusal) {
        let answer = async {
            match self.link(stream).await {
                Ok(link) => refuse(link, self.limits(), refusal).await,
                Err(error) => Unmet::from(error),
            }
        };
        match tokio::time::timeout(self.config.artim_timeout, answer).await {
            Ok(unmet) => self.report(unmet, peer).await,
            Err(_) => metrics().rejected(rejected(refusal)),
        }
    }

    async fn link(&self, stream: TcpStream) -> Result<Box<dyn Link>, UpperLayerError> {
        let wire = Wire::new(stream, self.acknowledge);
        Ok(match &self.tls {
            None => Box::new(wire),
            Some(tls) => {
                let accepted = TlsAcceptor::from(tls.clone()).accept(wire).await;
                Box::new(accepted.map_err(UpperLayerError::Handshake)?)
            }
        })
    }

    fn limits(&self) -> Limits {
        let Config { max_pdu_bytes, read_timeout, .. } = self.config;
        Limits { max_pdu_bytes, write_timeout: read_timeout }
    }

    /// Into log and metrics: why there is no association. AE titles are no patient's.
    async fn report(&self, unmet: Unmet, peer: SocketAddr) {
        let address = peer.ip();
        match &unmet.error {
            UpperLayerError::Refused { calling, called, refusal } => {
                metrics().rejected(rejected(*refusal));
                let reason = self.explain(*refusal, calling, called);
                tracing::warn!(peer = %address, %calling, %called, "association rejected: {reason}");
            }
            // A probe of the port, as load balancers and monitors do it.
            UpperLayerError::Closed => {
                tracing::debug!(peer = %address, "connection closed without a request");
            }
            error => tracing::warn!(peer = %address, reason = %error, "no association"),
        }
        let _ = tokio::time::timeout(self.config.artim_timeout, unmet.part()).await;
    }

    /// With the titles, and the key that would let the caller in.
    fn explain(&self, refusal: Refusal, calling: &AeTitle, called: &AeTitle) -> String {
        match refusal {
            Refusal::CallingAeTitle => {
                format!("calling AE title {calling} is not allowed; add it to ingest.dicom.allow")
            }
            Refusal::CalledAeTitle => format!(
                "called AE title {called} is not {}; correct it at the sender, or set \
                 ingest.dicom.called_ae_title",
                self.config.ae_title.trim()
            ),
            Refusal::TooManyAssociations => {
                format!("there are max_associations = {} already", self.config.max_associations)
            }
            other => other.to_string(),
        }
    }
}

/// As it is counted.
fn rejected(refusal: Refusal) -> Rejected {
    match refusal {
        Refusal::CallingAeTitle => Rejected::CallingAeTitle,
        Refusal::CalledAeTitle => Rejected::CalledAeTitle,
        Refusal::TooManyAssociations => Rejected::TooMany,
        Refusal::LowDisk => Rejected::LowDisk,
        Refusal::ApplicationContext | Refusal::ProtocolVersion(_) | Refusal::MaximumLength(_) => {
            Rejected::Protocol
        }
    }
}

impl Acceptor for Scp {
    fn admit(&self, calling: &AeTitle, called: &AeTitle) -> Result<(), Refusal> {
        let Config { called_ae_title, ae_title, allow, .. } = &self.config;
        if *called_ae_title == CalledAeTitle::Own && called.as_str() != ae_title.trim() {
            return Err(Refusal::CalledAeTitle);
        }
        if !allow.is_empty() && !allow.iter().any(|title| title.trim() == calling.as_str()) {
            return Err(Refusal::CallingAeTitle);
        }
        Ok(())
    }

    fn takes_class(&self, class: &str) -> bool {
        [VERIFICATION, PUSH_MODEL.sop_class_uid.as_str()].contains(&class)
            || match self.config.storage {
                Storage::Images => IMAGES.contains(&class),
                Storage::Any => true,
            }
    }

    fn takes_syntax(&self, syntax: &str) -> bool {
        match self.config.storage {
            Storage::Images => DECODABLE.contains(&syntax),
            Storage::Any => {
                TransferSyntaxRegistry.get(syntax).is_some_and(|known| !known.is_unsupported())
            }
        }
    }

    /// Whoever reports on storage commitment opens an association as its SCP (PS3.4 section J.3.3).
    fn roles(&self, proposed: &Role) -> Option<Role> {
        (proposed.sop_class == PUSH_MODEL.sop_class_uid.as_str()).then(|| proposed.clone())
    }
}
