//! C-STORE SCU (PS3.4 annex B) and, where a destination is to commit to what it took, storage commitment SCU (annex
//! J). One association carries whatever is due.

use std::sync::Arc;
use std::time::Duration;

use dicom_dictionary_std::uids;
use dicom_object::FileDicomObject;
use dicom_transfer_syntax_registry::{TransferSyntaxIndex, TransferSyntaxRegistry};
use tokio::time::timeout;

use super::association::{Association, Failure, NO_CONTEXT};
use super::worker::blocking;
use super::{DicomConfig, Outcome};
use crate::codec::commitment::{PUSH_MODEL, REQUEST, Report, Request};
use crate::codec::dimse::{Command, VERIFICATION, status};
use crate::codec::part10;
use crate::domain::SopReference;
use crate::spool::{Delivery, DicomObject, Inquiry, Queue};

const IMPLICIT_VR_LITTLE_ENDIAN: &str = uids::IMPLICIT_VR_LITTLE_ENDIAN;
const EXPLICIT_VR_LITTLE_ENDIAN: &str = uids::EXPLICIT_VR_LITTLE_ENDIAN;

/// Offered in every association beside the class of the first object: what this program makes.
const CLASSES: [&str; 2] = [uids::SEGMENTATION_STORAGE, uids::SECONDARY_CAPTURE_IMAGE_STORAGE];

/// The way to one destination: an association that stays open from object to object until it is released.
#[derive(Default)]
pub(super) struct Link {
    open: Option<Open>,
}

struct Open {
    association: Association,
    /// SOP classes that were offered; those not accepted will not be in this association.
    offered: Vec<String>,
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
                Ok(code) => return config.judge(code),
                Err(Failure::Answered(outcome)) => return outcome,
                Err(Failure::Lost(_)) => self.abort(config.timeout).await,
            }
        }
        let syntax = object.transfer_syntax.as_str();
        let mut open = match Open::associate(config, &[class], &[syntax]).await {
            Ok(open) => open,
            Err(outcome) => return outcome,
        };
        let stored = open.store(config.timeout, object, file, dataset).await;
        self.open = Some(open);
        match stored {
            Ok(code) => config.judge(code),
            Err(Failure::Answered(outcome)) => outcome,
            Err(Failure::Lost(reason)) => {
                self.abort(config.timeout).await;
                Outcome::Unreachable(reason)
            }
        }
    }

    /// Asks the destination to commit to what it took (N-ACTION). Its word comes later, in a report.
    pub(super) async fn inquire(
        &mut self,
        config: &DicomConfig,
        inquiry: &Inquiry,
    ) -> Result<(), Outcome> {
        let reference = |delivery: &Delivery| {
            let DicomObject { sop_class_uid, sop_instance_uid, .. } = delivery.dicom.clone()?;
            Some(SopReference { sop_class_uid, sop_instance_uid })
        };
        let objects = inquiry.deliveries.iter().filter_map(reference).collect();
        let request = Request { transaction: inquiry.transaction.clone(), objects };
        if self.open.is_none() {
            let associated = Open::associate(config, &[], &[]).await;
            self.open = Some(associated.map_err(|outcome| match outcome {
                // The objects were taken; a destination that does not offer this may do so tomorrow.
                Outcome::Never(_) => Outcome::Later(NO_COMMITMENT.to_owned()),
                outcome => outcome,
            })?);
        }
        let open = self.open.as_mut().expect("opened above");
        let answer = open.inquire(config.timeout, &request).await;
        match answer {
            Ok(status::SUCCESS) => Ok(()),
            Ok(code) => Err(Outcome::Later(format!("N-ACTION status {code:04X}"))),
            Err(failure) => {
                if matches!(failure, Failure::Lost(_)) {
                    self.abort(config.timeout).await;
                }
                Err(failure.into())
            }
        }
    }

    /// Waits for a report on the open association. Never ends if there is none. What it says is put into the spool, and
    /// then acknowledged.
    pub(super) async fn report(&mut self, queue: &Arc<dyn Queue>) {
        let Some(open) = &mut self.open else { return std::future::pending().await };
        if open.report(queue).await.is_err() {
            // Closed by the destination, which will report on an association of its own.
            self.open = None;
            std::future::pending::<()>().await;
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
    /// Offers `classes` beside those of this program's products, in `syntaxes` beside the native ones.
    async fn associate(
        config: &DicomConfig,
        classes: &[&str],
        syntaxes: &[&str],
    ) -> Result<Self, Outcome> {
        let with = |first: &[&'static str], more: &[&str]| -> Vec<String> {
            let others = first.iter().filter(|other| !more.contains(other));
            more.iter().chain(others).map(|text| (*text).to_owned()).collect()
        };
        let native = [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN];
        let is_native = syntaxes.iter().all(|syntax| native.contains(syntax));
        let offered = with(&CLASSES, classes);
        let syntaxes = if is_native { with(&native, syntaxes) } else { with(&[], syntaxes) };
        // One context for each transfer syntax, so that the peer says which of them it takes.
        let mut contexts: Vec<_> = offered
            .iter()
            .flat_map(|class| syntaxes.iter().map(|syntax| (class.clone(), vec![syntax.clone()])))
            .collect();
        if config.commitment.is_some() {
            let class = PUSH_MODEL.sop_class_uid.to_string();
            contexts.push((class, native.map(str::to_owned).to_vec()));
        }
        let association = Association::establish(config, contexts, Vec::new()).await?;
        Ok(Self { association, offered })
    }

    async fn inquire(&mut self, patience: Duration, request: &Request) -> Result<u16, Failure> {
        let later = |reason: String| Failure::Answered(Outcome::Later(reason));
        let found = self.association.context_of(PUSH_MODEL.sop_class_uid.as_str());
        let (context, syntax) = found.ok_or_else(|| later(NO_COMMITMENT.to_owned()))?;
        let data = request.encode(&syntax).map_err(|error| later(error.to_string()))?;
        let action = |message_id| Command::ActionRequest {
            message_id,
            target: PUSH_MODEL.clone(),
            action_type: REQUEST,
        };
        self.association.ask(context, action, Some(&data), patience).await
    }

    async fn report(&mut self, queue: &Arc<dyn Queue>) -> Result<(), Failure> {
        let message = self.association.next_request().await?;
        let Command::EventReportRequest { message_id, source, event_type } = message.command else {
            return Err(Failure::Lost("the destination asks for something".to_owned()));
        };
        let class = PUSH_MODEL.sop_class_uid.as_str();
        let syntax = self.association.context_of(class).map(|(_, syntax)| syntax);
        let status = match Report::parse(message.data, &syntax.unwrap_or_default()) {
            Err(_) => status::INVALID_ARGUMENT_VALUE,
            Ok(Report { transaction, safe, failed }) => {
                let queue = Arc::clone(queue);
                match blocking(move || queue.report_custody(&transaction, &safe, &failed)).await {
                    Ok(_) => status::SUCCESS,
                    Err(_) => status::RESOURCE_LIMITATION,
                }
            }
        };
        let answer = Command::EventReportResponse { message_id, status, source, event_type };
        self.association.answer(message.context, &answer).await
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
        let contexts = self.association.contexts().iter();
        let contexts: Vec<_> = contexts
            .filter(|context| context.abstract_syntax == object.sop_class_uid.as_str())
            .collect();
        let context = contexts
            .iter()
            .find(|context| context.transfer_syntax == stored)
            .or_else(|| contexts.first())
            .ok_or_else(|| never(NO_CONTEXT))?;
        let (id, syntax) = (context.id, context.transfer_syntax.clone());
        let transcoded;
        let dataset = if syntax == stored {
            dataset
        } else {
            transcoded = transcode(file, &syntax).ok_or_else(|| {
                never("the product cannot be written in the accepted transfer syntax")
            })?;
            &transcoded
        };
        let (class, instance) = (&object.sop_class_uid, &object.sop_instance_uid);
        let request = |message_id| Command::StoreRequest {
            message_id,
            sop_class_uid: class.clone(),
            sop_instance_uid: instance.clone(),
        };
        self.association.ask(id, request, Some(dataset), patience).await
    }
}

/// Asks a peer whether it is there (C-ECHO, PS3.4 annex A).
///
/// # Errors
/// Why not, in words.
pub async fn echo(config: &DicomConfig) -> Result<(), String> {
    let contexts = vec![(VERIFICATION.to_owned(), vec![IMPLICIT_VR_LITTLE_ENDIAN.to_owned()])];
    let ask = async {
        let mut association = Association::establish(config, contexts, Vec::new()).await?;
        let context = association.contexts().first().map_or(1, |context| context.id);
        let request = |message_id| Command::EchoRequest { message_id };
        let answered = association.ask(context, request, None, config.timeout).await;
        association.release().await;
        answered.map_err(Outcome::from)
    };
    match timeout(config.timeout, ask).await {
        Err(_) => Err("no answer in time".to_owned()),
        Ok(Ok(status::SUCCESS)) => Ok(()),
        Ok(Ok(code)) => Err(format!("C-ECHO status {code:04X}")),
        Ok(Err(outcome)) => Err(outcome.reason().to_owned()),
    }
}

const NO_COMMITMENT: &str =
    "the destination does not offer storage commitment; remove commitment, or switch it on there";

impl DicomConfig {
    /// Where the destination is to commit to what it has taken, more is to come.
    fn judge(&self, code: u16) -> Outcome {
        match judge(code) {
            Outcome::Sent if self.commitment.is_some() => Outcome::Taken,
            outcome => outcome,
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
