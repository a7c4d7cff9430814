use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dicom_ul::association::read_pdu_from_wire_async;
use dicom_ul::association::server::{AccessControl, DefaultNegotiation, ServerAssociationOptions};
use dicom_ul::pdu::{
    AssociationRJ, AssociationRJResult,
    AssociationRJServiceProviderPresentationReason as ProviderReason,
    AssociationRJServiceUserReason, AssociationRJSource, Pdu, UserIdentity, write_pdu,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::association::Session;
use super::syntaxes::{DECODABLE, IMAGES};
use super::{CalledAeTitle, Config, Storage};
use crate::codec::dimse::VERIFICATION;
use crate::ingest::Sink;

/// Rejections under way at once; past this a connection is closed without a word.
const MAX_REJECTIONS: usize = 32;

/// Numbers associations across all listeners of the process.
static ASSOCIATIONS: AtomicU64 = AtomicU64::new(1);

/// Accepts associations until `shutdown`, then waits for the messages under way. The caller bounds that wait.
pub async fn serve(
    listener: TcpListener,
    config: Config,
    sink: Arc<dyn Sink>,
    shutdown: CancellationToken,
) {
    let config = Arc::new(config);
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
        let (config, sink, shutdown) = (config.clone(), sink.clone(), shutdown.clone());
        if let Ok(place) = places.clone().try_acquire_owned() {
            tasks.spawn(async move {
                handle(stream, &config, sink, shutdown).await;
                drop(place);
            });
        } else if let Ok(place) = rejections.clone().try_acquire_owned() {
            tasks.spawn(async move {
                tracing::warn!(max = config.max_associations, "association rejected: too many");
                reject(stream, &config, ProviderReason::LocalLimitExceeded).await;
                drop(place);
            });
        }
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

async fn handle(
    stream: TcpStream,
    config: &Config,
    sink: Arc<dyn Sink>,
    shutdown: CancellationToken,
) {
    let asked = sink.clone();
    if !matches!(tokio::task::spawn_blocking(move || asked.admits()).await, Ok(true)) {
        return reject(stream, config, ProviderReason::TemporaryCongestion).await;
    }
    let options = options(config);
    let established = tokio::time::timeout(config.artim_timeout, options.establish_async(stream));
    let association = match established.await {
        Ok(Ok(association)) => association,
        Ok(Err(error)) => {
            tracing::warn!(reason = super::association::describe(&error), "no association");
            return;
        }
        Err(_) => {
            tracing::warn!("no association: the peer sent no request in time");
            return;
        }
    };
    let number = ASSOCIATIONS.fetch_add(1, Ordering::Relaxed);
    Session::new(association, config, sink, number).run(shutdown).await;
}

fn options(config: &Config) -> ServerAssociationOptions<'_, Access<'_>, DefaultNegotiation> {
    let mut options = ServerAssociationOptions::new()
        .ae_access_control(Access(config))
        .ae_title(Cow::Borrowed(config.ae_title.as_str()))
        .max_pdu_length(config.max_pdu_bytes)
        .write_timeout(config.read_timeout)
        .strict(true) // otherwise a declared PDU length is buffered whatever it says
        .with_abstract_syntax(VERIFICATION);
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

/// Reads the request and rejects it as transient: the peer may try again later.
async fn reject(mut stream: TcpStream, config: &Config, reason: ProviderReason) {
    let answer = async {
        let mut buffer = bytes::BytesMut::new();
        let request =
            read_pdu_from_wire_async(&mut stream, &mut buffer, config.max_pdu_bytes, true).await;
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
    };
    let _ = tokio::time::timeout(config.artim_timeout, answer).await;
}
