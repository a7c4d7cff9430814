//! An association that this program opens, and the messages over it (PS3.7 section 6.3, PS3.8 annex E).

use std::collections::VecDeque;
use std::time::Duration;

use dicom_ul::association::Error;
use dicom_ul::association::client::{
    AsyncClientAssociation, AsyncTlsStream, ClientAssociationOptions,
};
use dicom_ul::pdu::{
    AssociationRJResult, PDV_HEADER_SIZE, PDataValue, PDataValueType, Pdu,
    PresentationContextNegotiated,
};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{DicomConfig, Outcome};
use crate::codec::commitment;
use crate::codec::dimse::{Command, MAX_COMMAND_BYTES};
use crate::tls;

/// Largest fragment of a data set in one PDU, whatever the peer would take.
const MAX_FRAGMENT_BYTES: usize = 128 << 10;

/// Longest wait for the answer to a release.
const RELEASE_PATIENCE: Duration = Duration::from_secs(2);

pub(super) const NO_CONTEXT: &str = "the destination accepts no context for this SOP class";

pub(super) struct Association {
    stream: Stream,
    /// Of the last request.
    message_id: u16,
    /// Read and not looked at: one PDU may hold parts of several messages.
    values: VecDeque<PDataValue>,
    /// The peer's own request, when it came before the answer to ours.
    unasked: Option<Message>,
}

enum Stream {
    Plain(Box<AsyncClientAssociation<TcpStream>>),
    Tls(Box<AsyncClientAssociation<AsyncTlsStream>>),
}

/// The same call on either kind.
macro_rules! either {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream {
            Stream::Plain($inner) => $call,
            Stream::Tls($inner) => $call,
        }
    };
}

/// A whole message of the peer.
pub(super) struct Message {
    pub(super) context: u8,
    pub(super) command: Command,
    /// Empty where none follows the command.
    pub(super) data: Vec<u8>,
}

/// Why a request has no status for an answer.
pub(super) enum Failure {
    /// The destination said so, or it cannot be sent at all; the association is in order.
    Answered(Outcome),
    /// The association is of no more use.
    Lost(String),
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Answered(outcome) => outcome,
            Failure::Lost(reason) => Self::Unreachable(reason),
        }
    }
}

impl Association {
    /// Who calls whom, and how long each may take; without a context yet.
    pub(super) fn options(config: &DicomConfig) -> ClientAssociationOptions<'_> {
        ClientAssociationOptions::new()
            .calling_ae_title(config.calling_ae_title.as_str())
            .called_ae_title(config.ae_title.as_str())
            .write_timeout(config.timeout)
            .read_timeout(config.timeout)
    }

    /// Associates with the options' contexts.
    pub(super) async fn establish(
        options: ClientAssociationOptions<'_>,
        config: &DicomConfig,
    ) -> Result<Self, Outcome> {
        let address = config.address.as_str();
        let established = match &config.tls {
            None => {
                let establish = options.establish_async(address);
                timeout(config.timeout, establish)
                    .await
                    .map(|plain| plain.map(|link| Stream::Plain(Box::new(link))))
            }
            Some(trust) => {
                let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
                let name = trust.server_name.as_deref().unwrap_or(host.trim_matches(['[', ']']));
                // Read for every association: certificates are renewed while a daemon runs.
                let tls = tls::client(trust)
                    .map_err(|error| Outcome::Unreachable(format!("no TLS: {error}")))?;
                let establish =
                    options.tls_config(tls).server_name(name).establish_tls_async(address);
                timeout(config.timeout, establish)
                    .await
                    .map(|tls| tls.map(|link| Stream::Tls(Box::new(link))))
            }
        };
        match established {
            Ok(Ok(mut stream)) => {
                send_at_once(&mut stream);
                Ok(Self { stream, message_id: 0, values: VecDeque::new(), unasked: None })
            }
            Ok(Err(error)) => Err(judge_refusal(&error)),
            Err(_) => Err(Outcome::Unreachable("no association in time".to_owned())),
        }
    }

    pub(super) fn contexts(&self) -> &[PresentationContextNegotiated] {
        either!(&self.stream, association => association.presentation_contexts())
    }

    /// The first accepted context for this SOP class, and its transfer syntax.
    pub(super) fn context_of(&self, sop_class_uid: &str) -> Option<(u8, String)> {
        let mut contexts = self.contexts().iter();
        let found = contexts
            .find(|context| context.abstract_syntax.trim_end_matches('\0') == sop_class_uid)?;
        Some((found.id, found.transfer_syntax.trim_end_matches('\0').to_owned()))
    }

    /// Sends a request, with the data set that belongs to it, and gives the status of its answer, which may take
    /// `patience`.
    pub(super) async fn ask(
        &mut self,
        context: u8,
        request: impl FnOnce(u16) -> Command,
        data: Option<&[u8]>,
        patience: Duration,
    ) -> Result<u16, Failure> {
        self.message_id = self.message_id.wrapping_add(1);
        let command = request(self.message_id);
        self.send(context, PDataValueType::Command, &command.encode()).await?;
        if let Some(data) = data {
            self.send(context, PDataValueType::Data, data).await?;
        }
        timeout(patience, self.status())
            .await
            .unwrap_or_else(|_| Err(Failure::Lost("no answer in time".to_owned())))
    }

    /// Answers a request of the peer.
    pub(super) async fn answer(&mut self, context: u8, command: &Command) -> Result<(), Failure> {
        self.send(context, PDataValueType::Command, &command.encode()).await
    }

    /// The next message that is no answer.
    pub(super) async fn next_request(&mut self) -> Result<Message, Failure> {
        if let Some(message) = self.unasked.take() {
            return Ok(message);
        }
        loop {
            let message = self.message().await?;
            if message.command.response().is_none() {
                return Ok(message);
            }
        }
    }

    /// Of the answer to the last request.
    async fn status(&mut self) -> Result<u16, Failure> {
        loop {
            let message = self.message().await?;
            match message.command.response() {
                Some((message_id, status)) if message_id == self.message_id => return Ok(status),
                Some(_) => {}
                None => self.unasked = Some(message),
            }
        }
    }

    async fn message(&mut self) -> Result<Message, Failure> {
        let (context, bytes) = self.part(&PDataValueType::Command, MAX_COMMAND_BYTES).await?;
        let command = Command::parse(&bytes).map_err(|error| Failure::Lost(error.to_string()))?;
        let data = if command.has_data_set() {
            self.part(&PDataValueType::Data, commitment::MAX_BYTES).await?.1
        } else {
            Vec::new()
        };
        Ok(Message { context, command, data })
    }

    /// A whole command or data set, and its context.
    async fn part(
        &mut self,
        wanted: &PDataValueType,
        limit: usize,
    ) -> Result<(u8, Vec<u8>), Failure> {
        let mut bytes = Vec::new();
        loop {
            let value = self.value().await?;
            if value.value_type != *wanted || bytes.len() + value.data.len() > limit {
                return Err(Failure::Lost("the answer is not a response".into()));
            }
            bytes.extend_from_slice(&value.data);
            if value.is_last {
                return Ok((value.presentation_context_id, bytes));
            }
        }
    }

    async fn value(&mut self) -> Result<PDataValue, Failure> {
        loop {
            if let Some(value) = self.values.pop_front() {
                return Ok(value);
            }
            let received = either!(&mut self.stream, association => association.receive().await);
            match received.map_err(|error| Failure::Lost(lost(&error)))? {
                Pdu::PData { data } => self.values.extend(data),
                _ => return Err(Failure::Lost("the destination broke the association off".into())),
            }
        }
    }

    async fn send(
        &mut self,
        context: u8,
        value_type: PDataValueType,
        bytes: &[u8],
    ) -> Result<(), Failure> {
        let theirs = either!(&self.stream, association => association.acceptor_max_pdu_length());
        let room = ((theirs - PDV_HEADER_SIZE) as usize).min(MAX_FRAGMENT_BYTES) & !1;
        let mut fragments = bytes.chunks(room).peekable();
        while let Some(fragment) = fragments.next() {
            let data = vec![PDataValue {
                presentation_context_id: context,
                value_type: value_type.clone(),
                is_last: fragments.peek().is_none(),
                data: fragment.to_vec(),
            }];
            let pdu = Pdu::PData { data };
            either!(&mut self.stream, association => association.send(&pdu).await)
                .map_err(|error| Failure::Lost(lost(&error)))?;
        }
        Ok(())
    }

    pub(super) async fn release(self) {
        let release = async { either!(self.stream, association => association.release().await) };
        let _ = timeout(RELEASE_PATIENCE, release).await;
    }

    pub(super) async fn abort(self, patience: Duration) {
        let abort = async { either!(self.stream, association => association.abort().await) };
        let _ = timeout(patience, abort).await;
    }
}

fn judge_refusal(error: &Error) -> Outcome {
    match error {
        Error::NoAcceptedPresentationContexts { .. } => Outcome::Never(NO_CONTEXT.to_owned()),
        Error::Rejected { association_rj, .. } => {
            // A wrong AE title is put right on either side; the object is as good as before.
            let permanent = association_rj.result == AssociationRJResult::Permanent;
            let how = if permanent { "for good (check the AE titles)" } else { "for now" };
            Outcome::Unreachable(format!("association rejected {how}: {}", association_rj.source))
        }
        Error::Connect { source, .. } | Error::ToAddress { source, .. } => {
            Outcome::Unreachable(format!("no connection: {source}"))
        }
        error => Outcome::Unreachable(lost(error)),
    }
}

/// Says what went wrong without quoting the peer.
fn lost(error: &Error) -> String {
    match error {
        Error::ReceivePdu { .. } => "the destination's answer could not be read",
        Error::ConnectionClosed { .. } => "the destination closed the connection",
        Error::WireSend { .. } | Error::WireRead { .. } | Error::SendPdu { .. } => {
            "connection lost"
        }
        Error::Timeout { .. } => "timeout",
        _ => "protocol error",
    }
    .to_owned()
}

/// A request is a small command and then a data set: held back until the first is acknowledged (Nagle), the second would
/// wait for the peer's delayed acknowledgement, 40 ms and more.
fn send_at_once(stream: &mut Stream) {
    let socket = match stream {
        Stream::Plain(association) => &*association.inner_stream(),
        Stream::Tls(association) => association.inner_stream().get_ref().0,
    };
    let _ = socket.set_nodelay(true); // slower without it, but right
}
