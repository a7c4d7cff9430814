//! C-STORE SCU (PS3.4 annex B). One association carries whatever is due.

use std::time::Duration;

use dicom_dictionary_std::uids;
use dicom_object::FileDicomObject;
use dicom_transfer_syntax_registry::{TransferSyntaxIndex, TransferSyntaxRegistry};
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
use crate::codec::dimse::{Command, MAX_COMMAND_BYTES, VERIFICATION, status};
use crate::codec::part10;
use crate::spool::{Delivery, DicomObject};
use crate::tls;

const IMPLICIT_VR_LITTLE_ENDIAN: &str = "1.2.840.10008.1.2";
const EXPLICIT_VR_LITTLE_ENDIAN: &str = "1.2.840.10008.1.2.1";

/// Largest fragment of a data set in one PDU, whatever the peer would take.
const MAX_FRAGMENT_BYTES: usize = 128 << 10;

/// Offered in every association beside the class of the first object: what this program makes.
const CLASSES: [&str; 2] = [uids::SEGMENTATION_STORAGE, uids::SECONDARY_CAPTURE_IMAGE_STORAGE];

enum Association {
    Plain(Box<AsyncClientAssociation<TcpStream>>),
    Tls(Box<AsyncClientAssociation<AsyncTlsStream>>),
}

/// The same call on either kind.
macro_rules! either {
    ($association:expr, $inner:ident => $call:expr) => {
        match $association {
            Association::Plain($inner) => $call,
            Association::Tls($inner) => $call,
        }
    };
}

impl Association {
    /// Associates with the options' contexts.
    async fn establish(
        options: ClientAssociationOptions<'_>,
        config: &DicomConfig,
    ) -> Result<Self, Outcome> {
        let address = config.address.as_str();
        let established = match &config.tls {
            None => {
                let establish = options.establish_async(address);
                timeout(config.timeout, establish)
                    .await
                    .map(|plain| plain.map(|link| Self::Plain(Box::new(link))))
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
                    .map(|tls| tls.map(|link| Self::Tls(Box::new(link))))
            }
        };
        match established {
            Ok(Ok(mut association)) => {
                association.send_at_once();
                Ok(association)
            }
            Ok(Err(error)) => Err(judge_refusal(&error)),
            Err(_) => Err(Outcome::Unreachable("no association in time".to_owned())),
        }
    }

    /// A request is a small command and then a data set: held back until the first is acknowledged (Nagle), the second
    /// would wait for the peer's delayed acknowledgement, 40 ms and more.
    fn send_at_once(&mut self) {
        let stream = match self {
            Self::Plain(association) => &*association.inner_stream(),
            Self::Tls(association) => association.inner_stream().get_ref().0,
        };
        let _ = stream.set_nodelay(true); // slower without it, but right
    }

    fn contexts(&self) -> &[PresentationContextNegotiated] {
        either!(self, association => association.presentation_contexts())
    }

    /// Largest fragment of a message that the peer takes.
    fn room(&self) -> usize {
        let pdu = either!(self, association => association.acceptor_max_pdu_length());
        (pdu - PDV_HEADER_SIZE) as usize
    }

    async fn send(&mut self, pdu: &Pdu) -> Result<(), Failure> {
        either!(self, association => association.send(pdu).await)
            .map_err(|error| Failure::Lost(lost(&error)))
    }

    async fn receive(&mut self) -> Result<Pdu, Failure> {
        either!(self, association => association.receive().await)
            .map_err(|error| Failure::Lost(lost(&error)))
    }

    async fn release(self) {
        let release = async { either!(self, association => association.release().await) };
        let _ = timeout(RELEASE_PATIENCE, release).await;
    }

    async fn abort(self, patience: Duration) {
        let abort = async { either!(self, association => association.abort().await) };
        let _ = timeout(patience, abort).await;
    }
}

/// The way to one destination: an association that stays open from object to object until it is released.
#[derive(Default)]
pub(super) struct Link {
    open: Option<Open>,
}

struct Open {
    association: Association,
    /// SOP classes that were offered; those not accepted will not be in this association.
    offered: Vec<String>,
    /// Of the last request.
    message_id: u16,
}

/// Why an object was not stored.
enum Failure {
    /// The destination said so, or it cannot be sent at all; the association is in order.
    Answered(Outcome),
    /// The association is of no more use.
    Lost(String),
}

impl Link {
    /// Sends one object, over the open association where it will do.
    pub(super) async fn send(
        &mut self,
        config: &DicomConfig,
        delivery: &Delivery,
        file: &[u8],
    ) -> Outcome {
        let (Some(object), Ok(dataset)) = (&delivery.dicom, part10::dataset(file)) else {
            return Outcome::Never("the product is not a DICOM file".to_owned());
        };
        let class = object.sop_class_uid.as_str();
        if self.open.as_ref().is_some_and(|open| !open.offered.iter().any(|c| c == class)) {
            self.release().await;
        }
        // A peer may have closed an association that was open for a while; that is no outage yet.
        while let Some(open) = &mut self.open {
            match open.store(config.timeout, object, file, dataset).await {
                Ok(code) => return judge(code),
                Err(Failure::Answered(outcome)) => return outcome,
                Err(Failure::Lost(_)) => self.abort(config.timeout).await,
            }
        }
        let mut open = match Open::associate(config, object).await {
            Ok(open) => open,
            Err(outcome) => return outcome,
        };
        let stored = open.store(config.timeout, object, file, dataset).await;
        self.open = Some(open);
        match stored {
            Ok(code) => judge(code),
            Err(Failure::Answered(outcome)) => outcome,
            Err(Failure::Lost(reason)) => {
                self.abort(config.timeout).await;
                Outcome::Unreachable(reason)
            }
        }
    }

    /// Everything is answered; how the association ends changes nothing.
    pub(super) async fn release(&mut self) {
        if let Some(open) = self.open.take() {
            open.association.release().await;
        }
    }

    async fn abort(&mut self, patience: Duration) {
        if let Some(open) = self.open.take() {
            open.association.abort(patience).await;
        }
    }
}

impl Open {
    async fn associate(config: &DicomConfig, object: &DicomObject) -> Result<Self, Outcome> {
        let stored = object.transfer_syntax.as_str();
        let mut options = ClientAssociationOptions::new()
            .calling_ae_title(config.calling_ae_title.as_str())
            .called_ae_title(config.ae_title.as_str())
            .write_timeout(config.timeout)
            .read_timeout(config.timeout);
        let class = object.sop_class_uid.as_str();
        let others = CLASSES.into_iter().filter(|other| *other != class);
        let offered: Vec<String> =
            std::iter::once(class).chain(others).map(str::to_owned).collect();
        // One context for each transfer syntax, so that the peer says which of them it takes.
        let native = [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN];
        let others = native.iter().filter(|other| native.contains(&stored) && **other != stored);
        let syntaxes: Vec<&str> = std::iter::once(&stored).chain(others).copied().collect();
        for class in &offered {
            for syntax in &syntaxes {
                options = options.with_presentation_context(class.as_str(), vec![*syntax]);
            }
        }
        let association = Association::establish(options, config).await?;
        Ok(Self { association, offered, message_id: 0 })
    }

    /// Sends the object and returns the status of the answer.
    async fn store(
        &mut self,
        patience: Duration,
        object: &DicomObject,
        file: &[u8],
        dataset: &[u8],
    ) -> Result<u16, Failure> {
        let never = |reason: &str| Failure::Answered(Outcome::Never(reason.to_owned()));
        let stored = object.transfer_syntax.as_str();
        let syntax_of = |context: &PresentationContextNegotiated| {
            context.transfer_syntax.trim_end_matches('\0').to_owned()
        };
        let contexts: Vec<_> = self
            .association
            .contexts()
            .iter()
            .filter(|context| {
                context.abstract_syntax.trim_end_matches('\0') == object.sop_class_uid.as_str()
            })
            .collect();
        let context = contexts
            .iter()
            .find(|context| syntax_of(context) == stored)
            .or_else(|| contexts.first())
            .ok_or_else(|| never(NO_CONTEXT))?;
        let (id, syntax) = (context.id, syntax_of(context));
        let transcoded;
        let dataset = if syntax == stored {
            dataset
        } else {
            transcoded = transcode(file, &syntax).ok_or_else(|| {
                never("the product cannot be written in the accepted transfer syntax")
            })?;
            &transcoded
        };
        self.message_id = self.message_id.wrapping_add(1);
        let request = Command::StoreRequest {
            message_id: self.message_id,
            sop_class_uid: object.sop_class_uid.clone(),
            sop_instance_uid: object.sop_instance_uid.clone(),
        };
        self.send(id, PDataValueType::Command, &request.encode()).await?;
        self.send(id, PDataValueType::Data, dataset).await?;
        timeout(patience, self.answer())
            .await
            .unwrap_or_else(|_| Err(Failure::Lost("no answer to C-STORE in time".to_owned())))
    }

    async fn send(
        &mut self,
        context: u8,
        value_type: PDataValueType,
        bytes: &[u8],
    ) -> Result<(), Failure> {
        let room = self.association.room().min(MAX_FRAGMENT_BYTES) & !1;
        let mut fragments = bytes.chunks(room).peekable();
        while let Some(fragment) = fragments.next() {
            let data = vec![PDataValue {
                presentation_context_id: context,
                value_type: value_type.clone(),
                is_last: fragments.peek().is_none(),
                data: fragment.to_vec(),
            }];
            self.association.send(&Pdu::PData { data }).await?;
        }
        Ok(())
    }

    async fn answer(&mut self) -> Result<u16, Failure> {
        let expected = self.message_id;
        let mut bytes = Vec::new();
        loop {
            let Pdu::PData { data } = self.association.receive().await? else {
                return Err(Failure::Lost("the destination broke the association off".into()));
            };
            for value in data {
                if value.value_type != PDataValueType::Command
                    || bytes.len() + value.data.len() > MAX_COMMAND_BYTES
                {
                    return Err(Failure::Lost("the answer is not a response".into()));
                }
                bytes.extend_from_slice(&value.data);
                if !value.is_last {
                    continue;
                }
                match Command::parse(&std::mem::take(&mut bytes)) {
                    Ok(
                        Command::StoreResponse { message_id, status, .. }
                        | Command::EchoResponse { message_id, status }
                        | Command::Failure { message_id, status, .. },
                    ) if message_id == expected => return Ok(status),
                    Ok(_) => {}
                    Err(error) => return Err(Failure::Lost(error.to_string())),
                }
            }
        }
    }
}

/// Asks a peer whether it is there (C-ECHO, PS3.4 annex A).
///
/// # Errors
/// Why not, in words.
pub async fn echo(config: &DicomConfig) -> Result<(), String> {
    let options = ClientAssociationOptions::new()
        .calling_ae_title(config.calling_ae_title.as_str())
        .called_ae_title(config.ae_title.as_str())
        .write_timeout(config.timeout)
        .read_timeout(config.timeout)
        .with_presentation_context(VERIFICATION, vec![IMPLICIT_VR_LITTLE_ENDIAN]);
    let reason = |outcome| match outcome {
        Outcome::Never(reason) | Outcome::Unreachable(reason) | Outcome::Later(reason) => reason,
        Outcome::Sent => String::new(),
    };
    let ask = async {
        let association = Association::establish(options, config).await?;
        let context = association.contexts().first().map_or(1, |context| context.id);
        let mut open = Open { association, offered: Vec::new(), message_id: 1 };
        let request = Command::EchoRequest { message_id: 1 }.encode();
        let asked = open.send(context, PDataValueType::Command, &request).await;
        let answered = match asked {
            Ok(()) => open.answer().await,
            Err(failure) => Err(failure),
        };
        open.association.release().await;
        answered.map_err(|failure| match failure {
            Failure::Answered(outcome) => outcome,
            Failure::Lost(reason) => Outcome::Unreachable(reason),
        })
    };
    match timeout(config.timeout, ask).await {
        Err(_) => Err("no answer in time".to_owned()),
        Ok(Ok(status::SUCCESS)) => Ok(()),
        Ok(Ok(code)) => Err(format!("C-ECHO status {code:04X}")),
        Ok(Err(outcome)) => Err(reason(outcome)),
    }
}

const NO_CONTEXT: &str = "the destination accepts no context for this SOP class";

/// Longest wait for the answer to a release.
const RELEASE_PATIENCE: Duration = Duration::from_secs(2);

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

/// What a C-STORE status means for the delivery (PS3.4 table B.2-1, PS3.7 annex C).
fn judge(code: u16) -> Outcome {
    let reason = || format!("C-STORE status {code:04X}");
    match code {
        // 0111: the destination holds this instance already; its UID stands for the same bytes.
        status::SUCCESS | 0x0001 | 0x0107 | 0x0111 | 0x0116 | 0xB000..=0xBFFF => Outcome::Sent,
        // 0110: processing failure, of the moment
        0x0110 | 0xA700..=0xA7FF => Outcome::Later(reason()),
        _ => Outcome::Never(reason()),
    }
}

/// The data set of `file` in the uncompressed transfer syntax `to`.
fn transcode(file: &[u8], to: &str) -> Option<Vec<u8>> {
    let object: FileDicomObject<_> = dicom_object::from_reader(file).ok()?;
    let syntax = TransferSyntaxRegistry.get(to)?;
    let mut bytes = Vec::new();
    object.write_dataset_with_ts(&mut bytes, syntax).ok()?;
    Some(bytes)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_done_retried_or_dead_as_the_standard_means_them() {
        for code in [0x0000, 0xB000, 0xB007, 0xB006] {
            assert_eq!(judge(code), Outcome::Sent, "{code:04X}");
        }
        for code in [0xA700, 0xA701, 0x0110] {
            assert!(matches!(judge(code), Outcome::Later(_)), "{code:04X}");
        }
        for code in [0xA900, 0xC000, 0xCFFF, 0x0122, 0x0124] {
            assert!(matches!(judge(code), Outcome::Never(_)), "{code:04X}");
        }
    }
}
