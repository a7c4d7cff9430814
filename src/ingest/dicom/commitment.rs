//! A request for storage commitment or a report on it, from its command to its answer.

use std::sync::Arc;

use crate::codec::commitment::{
    ALL_SAFE, CommitmentError, FAILURES_EXIST, MAX_BYTES, PUSH_MODEL, REQUEST, Report, Request,
};
use crate::codec::dimse::{Command, status};
use crate::domain::{SopReference, Uid};
use crate::ingest::{Declined, Sink};

/// N-ACTION or N-EVENT-REPORT whose data set is on its way.
pub(super) struct Note {
    subject: Subject,
    /// AE title of whoever sends it.
    requester: String,
    transfer_syntax: Uid,
    data: Vec<u8>,
}

/// What it is, about which instance, with its Action or Event Type ID.
#[derive(Debug, Clone)]
enum Subject {
    Request(SopReference, u16),
    Report(SopReference, u16),
}

impl Subject {
    fn answer(self, message_id: u16, status: u16) -> Command {
        match self {
            Self::Request(target, action_type) => {
                Command::ActionResponse { message_id, status, target, action_type }
            }
            Self::Report(source, event_type) => {
                Command::EventReportResponse { message_id, status, source, event_type }
            }
        }
    }
}

impl Note {
    /// `syntax` tells the transfer syntax of the command's context if that is for the given SOP class. What is answered
    /// with a failure has its answer here, to be given after its data set.
    pub(super) fn begin(
        command: &Command,
        requester: String,
        syntax: impl FnOnce(&Uid) -> Option<Uid>,
    ) -> Result<(u16, Self), (u16, Command)> {
        let (subject, message_id, about, unknown_type) = match command {
            Command::ActionRequest { message_id, target, action_type } => {
                let unknown = (*action_type != REQUEST).then_some(status::NO_SUCH_ACTION);
                (Subject::Request(target.clone(), *action_type), *message_id, target, unknown)
            }
            Command::EventReportRequest { message_id, source, event_type } => {
                let known = [ALL_SAFE, FAILURES_EXIST].contains(event_type);
                let unknown = (!known).then_some(status::NO_SUCH_EVENT_TYPE);
                (Subject::Report(source.clone(), *event_type), *message_id, source, unknown)
            }
            other => unreachable!("no N-service of storage commitment: {other:?}"),
        };
        let refuse = |status| Err((message_id, subject.clone().answer(message_id, status)));
        let SopReference { sop_class_uid, sop_instance_uid } = &*PUSH_MODEL;
        let Some(transfer_syntax) = syntax(sop_class_uid) else {
            return refuse(status::SOP_CLASS_NOT_SUPPORTED);
        };
        if about.sop_class_uid != *sop_class_uid {
            return refuse(status::SOP_CLASS_NOT_SUPPORTED);
        }
        if about.sop_instance_uid != *sop_instance_uid {
            return refuse(status::NO_SUCH_OBJECT_INSTANCE);
        }
        if let Some(status) = unknown_type {
            return refuse(status);
        }
        Ok((message_id, Self { subject, requester, transfer_syntax, data: Vec::new() }))
    }

    /// Takes a fragment of the data set, or gives the answer to one that is too long.
    pub(super) fn add(&mut self, message_id: u16, fragment: &[u8]) -> Result<(), Command> {
        if self.data.len() + fragment.len() > MAX_BYTES {
            return Err(self.subject.clone().answer(message_id, status::RESOURCE_LIMITATION));
        }
        self.data.extend_from_slice(fragment);
        Ok(())
    }

    /// The data set is there: hands what it says to `sink`, which blocks, and gives the answer.
    pub(super) async fn hand_over(
        self,
        message_id: u16,
        sink: &Arc<dyn Sink>,
        association: u64,
    ) -> Command {
        let (subject, sink) = (self.subject.clone(), Arc::clone(sink));
        // A panic, as of a parser on hostile bytes, refuses it.
        let status = match tokio::task::spawn_blocking(move || self.tell(sink.as_ref())).await {
            Ok(Ok(())) => status::SUCCESS,
            Ok(Err(failure)) => {
                tracing::warn!(association, reason = %failure, "storage commitment refused");
                failure.status()
            }
            Err(_) => status::PROCESSING_FAILURE,
        };
        subject.answer(message_id, status)
    }

    fn tell(self, sink: &dyn Sink) -> Result<(), Failure> {
        let syntax = self.transfer_syntax.as_str();
        match self.subject {
            Subject::Request(..) => {
                let request = Request::parse(self.data, syntax)?;
                sink.ask_commitment(&self.requester, &request)?;
            }
            Subject::Report(..) => sink.report_commitment(&Report::parse(self.data, syntax)?)?,
        }
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Content(#[from] CommitmentError),
    #[error(transparent)]
    Declined(#[from] Declined),
}

impl Failure {
    fn status(&self) -> u16 {
        match self {
            Self::Content(_) => status::INVALID_ARGUMENT_VALUE,
            Self::Declined(declined) => declined.status(),
        }
    }
}
