//! An association that this program opens, and the messages over it (PS3.7 section 6.3, PS3.8 annex E).

use std::collections::VecDeque;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{DicomConfig, Outcome};
use crate::codec::commitment;
use crate::codec::dimse::{Command, MAX_COMMAND_BYTES};
use crate::codec::pdu::{Part, Pdu, Role, Value};
use crate::tls;
use crate::upper_layer::{
    self, Acknowledge, Context, Limits, Link, Proposal, UpperLayerError, Wire, request,
};

/// Longest P-DATA-TF PDU that is taken. Answers are short.
const MAX_PDU_BYTES: u32 = 32 << 10;

/// Longest wait for the answer to a release.
const RELEASE_PATIENCE: Duration = Duration::from_secs(2);

pub(super) const NO_CONTEXT: &str = "the destination accepts no context for this SOP class";

pub(super) struct Association {
    link: upper_layer::Association,
    /// Of the last request.
    message_id: u16,
    /// Read and not looked at: one PDU may hold parts of several messages.
    values: VecDeque<Value>,
    /// The peer's own request, when it came before the answer to ours.
    unasked: Option<Message>,
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
    /// Associates with these contexts: abstract syntax and transfer syntaxes of each.
    pub(super) async fn establish(
        config: &DicomConfig,
        contexts: Vec<(String, Vec<String>)>,
        roles: Vec<Role>,
    ) -> Result<Self, Outcome> {
        let (calling, called) = (config.calling_ae_title.clone(), config.ae_title.clone());
        let proposal = Proposal { calling, called, contexts, roles };
        let limits = Limits { max_pdu_bytes: MAX_PDU_BYTES, write_timeout: config.timeout };
        let establish = async {
            let link = connect(config).await?;
            request(link, limits, proposal).await.map_err(|error| judge_refusal(&error))
        };
        match timeout(config.timeout, establish).await {
            Ok(established) => {
                let link = established?;
                Ok(Self { link, message_id: 0, values: VecDeque::new(), unasked: None })
            }
            Err(_) => Err(Outcome::Unreachable("no association in time".to_owned())),
        }
    }

    pub(super) fn contexts(&self) -> &[Context] {
        self.link.contexts()
    }

    /// The first accepted context for this SOP class, and its transfer syntax.
    pub(super) fn context_of(&self, sop_class_uid: &str) -> Option<(u8, String)> {
        let mut contexts = self.contexts().iter();
        let found = contexts.find(|context| context.abstract_syntax == sop_class_uid)?;
        Some((found.id, found.transfer_syntax.clone()))
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
        self.link.send(context, &command.encode(), data).await.map_err(lost)?;
        timeout(patience, self.status())
            .await
            .unwrap_or_else(|_| Err(Failure::Lost("no answer in time".to_owned())))
    }

    /// Answers a request of the peer.
    pub(super) async fn answer(&mut self, context: u8, command: &Command) -> Result<(), Failure> {
        self.link.send(context, &command.encode(), None).await.map_err(lost)
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
        let (context, bytes) = self.part(Part::Command, MAX_COMMAND_BYTES).await?;
        let command = Command::parse(&bytes).map_err(|error| Failure::Lost(error.to_string()))?;
        let data = if command.has_data_set() {
            self.part(Part::Data, commitment::MAX_BYTES).await?.1
        } else {
            Vec::new()
        };
        Ok(Message { context, command, data })
    }

    /// A whole command or data set, and its context.
    async fn part(&mut self, wanted: Part, limit: usize) -> Result<(u8, Vec<u8>), Failure> {
        let mut bytes = Vec::new();
        loop {
            let value = self.value().await?;
            if value.part != wanted || bytes.len() + value.data.len() > limit {
                return Err(Failure::Lost("the answer is not a response".into()));
            }
            bytes.extend_from_slice(&value.data);
            if value.is_last {
                return Ok((value.context, bytes));
            }
        }
    }

    async fn value(&mut self) -> Result<Value, Failure> {
        loop {
            if let Some(value) = self.values.pop_front() {
                return Ok(value);
            }
            match self.link.receive().await.map_err(lost)? {
                Pdu::Data(values) => self.values.extend(values),
                _ => return Err(Failure::Lost("the destination broke the association off".into())),
            }
        }
    }

    pub(super) async fn release(self) {
        let _ = timeout(RELEASE_PATIENCE, self.link.release()).await;
    }

    pub(super) async fn abort(self, patience: Duration) {
        let _ = timeout(patience, self.link.abort()).await;
    }
}

async fn connect(config: &DicomConfig) -> Result<Box<dyn Link>, Outcome> {
    let unreachable = |reason: String| Outcome::Unreachable(reason);
    let address = config.address.as_str();
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| unreachable(format!("no connection: {error}")))?;
    let wire = Wire::new(stream, Acknowledge::AtOnce);
    let Some(trust) = &config.tls else { return Ok(Box::new(wire)) };
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let name = trust.server_name.as_deref().unwrap_or(host.trim_matches(['[', ']']));
    let name = ServerName::try_from(name.to_owned())
        .map_err(|error| unreachable(format!("no TLS: {error}; set tls.server_name")))?;
    // Read for every association: certificates are renewed while a daemon runs.
    let tls = tls::client(trust).map_err(|error| unreachable(format!("no TLS: {error}")))?;
    let stream = TlsConnector::from(tls).connect(name, wire).await;
    Ok(Box::new(stream.map_err(|error| unreachable(format!("no TLS connection: {error}")))?))
}

fn judge_refusal(error: &UpperLayerError) -> Outcome {
    match error {
        UpperLayerError::NoContext => Outcome::Never(NO_CONTEXT.to_owned()),
        // A wrong AE title is put right on either side; the object is as good as before.
        error => Outcome::Unreachable(error.to_string()),
    }
}

fn lost(error: UpperLayerError) -> Failure {
    Failure::Lost(error.to_string())
}
