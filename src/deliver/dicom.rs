//! C-STORE SCU (PS3.4 annex B).

use std::time::Duration;

use dicom_object::FileDicomObject;
use dicom_transfer_syntax_registry::{TransferSyntaxIndex, TransferSyntaxRegistry};
use dicom_ul::association::Error;
use dicom_ul::association::client::{AsyncClientAssociation, ClientAssociationOptions};
use dicom_ul::pdu::{AssociationRJResult, PDV_HEADER_SIZE, PDataValue, PDataValueType, Pdu};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{DicomConfig, Outcome};
use crate::codec::dimse::{Command, MAX_COMMAND_BYTES, VERIFICATION, status};
use crate::codec::part10;
use crate::spool::{Delivery, DicomObject};

const IMPLICIT_VR_LITTLE_ENDIAN: &str = "1.2.840.10008.1.2";
const EXPLICIT_VR_LITTLE_ENDIAN: &str = "1.2.840.10008.1.2.1";

/// Largest fragment of a data set in one PDU, whatever the peer would take.
const MAX_FRAGMENT_BYTES: usize = 128 << 10;

const MESSAGE_ID: u16 = 1;

type Link = AsyncClientAssociation<TcpStream>;

/// Associates, sends one object and releases.
pub(super) async fn send(config: &DicomConfig, delivery: &Delivery, file: &[u8]) -> Outcome {
    let (Some(object), Ok(dataset)) = (&delivery.dicom, part10::dataset(file)) else {
        return Outcome::Never("the product is not a DICOM file".to_owned());
    };
    let mut link = match associate(config, object).await {
        Ok(link) => link,
        Err(outcome) => return outcome,
    };
    let outcome = match store(&mut link, config.timeout, object, file, dataset).await {
        Ok(code) => judge(code),
        Err(outcome) => outcome,
    };
    // The answer has been given; how the association ends changes nothing.
    match outcome {
        Outcome::Unreachable(_) => drop(timeout(config.timeout, link.abort()).await),
        _ => drop(timeout(Duration::from_secs(2).min(config.timeout), link.release()).await),
    }
    outcome
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
        let mut link = options
            .establish_async(config.address.as_str())
            .await
            .map_err(|error| judge_refusal(&error))?;
        let context = link.presentation_contexts().first().map_or(1, |context| context.id);
        let request = Command::EchoRequest { message_id: MESSAGE_ID }.encode();
        send_message(&mut link, context, PDataValueType::Command, &request).await?;
        let status = answer(&mut link).await?;
        drop(timeout(Duration::from_secs(1), link.release()).await);
        Ok::<_, Outcome>(status)
    };
    match timeout(config.timeout, ask).await {
        Err(_) => Err("no answer in time".to_owned()),
        Ok(Ok(status::SUCCESS)) => Ok(()),
        Ok(Ok(code)) => Err(format!("C-ECHO status {code:04X}")),
        Ok(Err(outcome)) => Err(reason(outcome)),
    }
}

async fn associate(config: &DicomConfig, object: &DicomObject) -> Result<Link, Outcome> {
    let stored = object.transfer_syntax.as_str();
    let mut options = ClientAssociationOptions::new()
        .calling_ae_title(config.calling_ae_title.as_str())
        .called_ae_title(config.ae_title.as_str())
        .write_timeout(config.timeout)
        .read_timeout(config.timeout);
    // One context for each transfer syntax, so that the peer says which of them it takes.
    let native = [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN];
    let others = native.iter().filter(|other| native.contains(&stored) && **other != stored);
    for syntax in std::iter::once(&stored).chain(others) {
        options = options.with_presentation_context(object.sop_class_uid.as_str(), vec![*syntax]);
    }
    let connect = options.establish_async(config.address.as_str());
    match timeout(config.timeout, connect).await {
        Ok(Ok(link)) => Ok(link),
        Ok(Err(error)) => Err(judge_refusal(&error)),
        Err(_) => Err(Outcome::Unreachable("no association in time".to_owned())),
    }
}

fn judge_refusal(error: &Error) -> Outcome {
    match error {
        Error::NoAcceptedPresentationContexts { .. } => {
            Outcome::Never("the destination accepts no context for this SOP class".to_owned())
        }
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

/// Sends the object and returns the status of the answer.
async fn store(
    link: &mut Link,
    patience: Duration,
    object: &DicomObject,
    file: &[u8],
    dataset: &[u8],
) -> Result<u16, Outcome> {
    let stored = object.transfer_syntax.as_str();
    let contexts = link.presentation_contexts();
    let context = contexts
        .iter()
        .find(|context| context.transfer_syntax.trim_end_matches('\0') == stored)
        .or_else(|| contexts.first())
        .ok_or_else(|| Outcome::Never("no presentation context".to_owned()))?;
    let (id, syntax) = (context.id, context.transfer_syntax.trim_end_matches('\0').to_owned());
    let transcoded;
    let dataset = if syntax == stored {
        dataset
    } else {
        transcoded = transcode(file, &syntax).ok_or_else(|| {
            Outcome::Never("the product cannot be written in the accepted transfer syntax".into())
        })?;
        &transcoded
    };
    let request = Command::StoreRequest {
        message_id: MESSAGE_ID,
        sop_class_uid: object.sop_class_uid.clone(),
        sop_instance_uid: object.sop_instance_uid.clone(),
    };
    send_message(link, id, PDataValueType::Command, &request.encode()).await?;
    send_message(link, id, PDataValueType::Data, dataset).await?;
    timeout(patience, answer(link))
        .await
        .unwrap_or_else(|_| Err(Outcome::Unreachable("no answer to C-STORE in time".to_owned())))
}

async fn send_message(
    link: &mut Link,
    context: u8,
    value_type: PDataValueType,
    bytes: &[u8],
) -> Result<(), Outcome> {
    let room = (link.acceptor_max_pdu_length() - PDV_HEADER_SIZE) as usize;
    let mut fragments = bytes.chunks(room.min(MAX_FRAGMENT_BYTES) & !1).peekable();
    while let Some(fragment) = fragments.next() {
        let data = vec![PDataValue {
            presentation_context_id: context,
            value_type: value_type.clone(),
            is_last: fragments.peek().is_none(),
            data: fragment.to_vec(),
        }];
        let sent = link.send(&Pdu::PData { data }).await;
        sent.map_err(|error| Outcome::Unreachable(lost(&error)))?;
    }
    Ok(())
}

async fn answer(link: &mut Link) -> Result<u16, Outcome> {
    let mut bytes = Vec::new();
    loop {
        let pdu = link.receive().await.map_err(|error| Outcome::Unreachable(lost(&error)))?;
        let Pdu::PData { data } = pdu else {
            return Err(Outcome::Unreachable("the destination broke the association off".into()));
        };
        for value in data {
            if value.value_type != PDataValueType::Command
                || bytes.len() + value.data.len() > MAX_COMMAND_BYTES
            {
                return Err(Outcome::Unreachable("the answer is not a response".into()));
            }
            bytes.extend_from_slice(&value.data);
            if value.is_last {
                match Command::parse(&std::mem::take(&mut bytes)) {
                    Ok(
                        Command::StoreResponse { message_id: MESSAGE_ID, status, .. }
                        | Command::EchoResponse { message_id: MESSAGE_ID, status }
                        | Command::Failure { message_id: MESSAGE_ID, status, .. },
                    ) => return Ok(status),
                    Ok(_) => {}
                    Err(error) => return Err(Outcome::Unreachable(error.to_string())),
                }
            }
        }
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
