use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Config;
use super::commitment::Note;
use crate::codec::dicom::series_in;
use crate::codec::dimse::{Command, MAX_COMMAND_BYTES, status};
use crate::codec::part10;
use crate::codec::pdu::{Part, Pdu, Value};
use crate::domain::Uid;
use crate::durable::{Incoming, failpoint};
use crate::ingest::{Hold, Received, Refusal, Sink, Source};
use crate::upper_layer::{Association, UpperLayerError};

/// Of one object, at most this much is held in memory.
const BUFFER_BYTES: usize = 1 << 20;

/// At a shutdown, how long an idle association may take to end by itself.
const RELEASE_GRACE: Duration = Duration::from_millis(500);

const NO_UID: &str = "AffectedSOPClassUID or AffectedSOPInstanceUID of the command is no UID";

/// One association, from its acceptance to its end.
pub(super) struct Session<'a> {
    association: Association,
    config: &'a Config,
    sink: Arc<dyn Sink>,
    source: Source,
    message: Message,
}

/// What of a message has arrived.
enum Message {
    /// Fragments of a command set.
    Command(Vec<u8>),
    Data(Box<Data>),
}

/// A data set on its way, and how its request will be answered.
struct Data {
    context: u8,
    message_id: u16,
    request: Request,
    /// Bytes of the data set so far.
    bytes: u64,
}

enum Request {
    Store(Box<Object>),
    /// About storage commitment.
    Note(Note),
    /// The rest is read and thrown away, then the answer is given.
    Refused(Command),
}

struct Object {
    received: Received,
    /// Made when the first megabyte is full, or at the end.
    file: Option<Incoming>,
    buffer: Vec<u8>,
    hold: Option<Hold>,
    /// The head is looked through for its series when so much of it is there.
    next_look: usize,
}

/// Why an association ends.
enum End {
    Released,
    Aborted,
    /// This side breaks it off.
    Abort(&'static str),
    /// The connection, or what came over it, is at fault.
    Failed(UpperLayerError),
}

impl<'a> Session<'a> {
    pub(super) fn new(
        association: Association,
        config: &'a Config,
        sink: Arc<dyn Sink>,
        source: Source,
    ) -> Self {
        sink.association_began(&source);
        Self { association, config, sink, source, message: Message::Command(Vec::new()) }
    }

    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        let end = loop {
            if let Err(end) = self.step(&shutdown).await {
                break end;
            }
        };
        let Source { association, address: peer, calling } = &self.source;
        let released = matches!(end, End::Released);
        let mut closing = None;
        match end {
            End::Released => {
                let _ = self.association.answer_release().await;
                closing = Some(self.association);
                tracing::debug!(association, "association released");
            }
            End::Aborted => {
                tracing::warn!(association, %peer, %calling, "association aborted by the peer");
            }
            End::Abort(reason) => {
                tracing::warn!(association, %peer, %calling, reason, "association broken off");
                self.association.abort().await;
            }
            End::Failed(error) => {
                tracing::warn!(association, %peer, %calling, reason = %error, "association broken off");
                self.association.abort_for(&error).await;
            }
        }
        let (sink, association) = (self.sink, *association);
        let _ = tokio::task::spawn_blocking(move || sink.association_ended(association, released))
            .await;
        // The peer closes the connection: who closes first may cut off the answer that is on its way.
        if let Some(mut association) = closing {
            let _ = tokio::time::timeout(self.config.artim_timeout, association.receive()).await;
        }
    }

    /// Takes one PDU.
    async fn step(&mut self, shutdown: &CancellationToken) -> Result<(), End> {
        let between_messages = matches!(&self.message, Message::Command(bytes) if bytes.is_empty());
        let patience =
            if between_messages { self.config.idle_timeout } else { self.config.read_timeout };
        let pdu = tokio::select! {
            biased;
            pdu = tokio::time::timeout(patience, self.association.receive()) => pdu,
            () = shutdown.cancelled(), if between_messages => return Err(self.part().await),
        };
        match pdu {
            Err(_) => Err(End::Abort("the peer was silent for too long")),
            Ok(Ok(Pdu::Data(values))) => {
                for value in values {
                    self.take(value).await?;
                }
                Ok(())
            }
            Ok(Ok(Pdu::ReleaseRequest)) => Err(End::Released),
            Ok(Ok(Pdu::Abort { .. }) | Err(UpperLayerError::Closed)) => Err(End::Aborted),
            Ok(Ok(_)) => Err(End::Failed(UpperLayerError::Unexpected)),
            Ok(Err(error)) => Err(End::Failed(error)),
        }
    }

    /// Shutting down: a peer that has just finished gets the time to release.
    async fn part(&mut self) -> End {
        match tokio::time::timeout(RELEASE_GRACE, self.association.receive()).await {
            Ok(Ok(Pdu::ReleaseRequest)) => End::Released,
            Ok(Ok(Pdu::Abort { .. }) | Err(_)) => End::Aborted,
            _ => End::Abort("shutting down"),
        }
    }

    async fn take(&mut self, value: Value) -> Result<(), End> {
        let context = value.context;
        match (&mut self.message, value.part) {
            (Message::Command(bytes), Part::Command) => {
                if bytes.len() + value.data.len() > MAX_COMMAND_BYTES {
                    return Err(End::Abort("command set too long"));
                }
                bytes.extend_from_slice(&value.data);
                if value.is_last {
                    let bytes = std::mem::take(bytes);
                    self.command(context, &bytes).await?;
                }
                Ok(())
            }
            (Message::Data(data), Part::Data) if data.context == context => {
                self.data(&value.data, value.is_last).await
            }
            _ => Err(End::Abort("fragments of messages are mixed up")),
        }
    }

    async fn command(&mut self, context: u8, bytes: &[u8]) -> Result<(), End> {
        let command =
            Command::parse(bytes).map_err(|_| End::Abort("command set not understood"))?;
        let (message_id, request) = match command {
            Command::EchoRequest { message_id } => {
                let answer = Command::EchoResponse { message_id, status: status::SUCCESS };
                return self.answer(context, &answer).await;
            }
            Command::StoreRequest { message_id, sop_class_uid, sop_instance_uid } => {
                (message_id, self.store(context, message_id, sop_class_uid, sop_instance_uid))
            }
            Command::UnknownRequest { field, message_id, data_set } => {
                let (status, reason) = match field {
                    0x0001 => (status::CANNOT_UNDERSTAND, NO_UID),
                    _ => (status::UNRECOGNIZED_OPERATION, "the operation is not offered here"),
                };
                self.refused(reason);
                let answer = Command::Failure { field, message_id, status };
                if !data_set {
                    return self.answer(context, &answer).await;
                }
                (message_id, Request::Refused(answer))
            }
            Command::ActionRequest { .. } | Command::EventReportRequest { .. } => {
                let requester = self.source.calling.as_str().to_owned();
                let syntax = |class: &Uid| self.transfer_syntax(context, class);
                match Note::begin(&command, requester, syntax) {
                    Ok((message_id, note)) => (message_id, Request::Note(note)),
                    Err((message_id, answer)) => (message_id, Request::Refused(answer)),
                }
            }
            _ => return Ok(()),
        };
        self.message = Message::Data(Box::new(Data { context, message_id, request, bytes: 0 }));
        Ok(())
    }

    /// C-STORE: what will become of the object.
    fn store(&self, context: u8, message_id: u16, class: Uid, instance: Uid) -> Request {
        let (sop_class_uid, sop_instance_uid) = (class, instance);
        let Some(transfer_syntax) = self.transfer_syntax(context, &sop_class_uid) else {
            self.refused("no accepted presentation context is for its SOP class");
            return Request::Refused(Command::StoreResponse {
                message_id,
                status: status::SOP_CLASS_NOT_SUPPORTED,
                sop_class_uid,
                sop_instance_uid,
            });
        };
        let association = self.source.association;
        let received = Received { sop_class_uid, sop_instance_uid, transfer_syntax, association };
        let (file, hold) = Default::default();
        Request::Store(Box::new(Object { received, file, buffer: Vec::new(), hold, next_look: 1 }))
    }

    /// Into the log.
    fn refused(&self, reason: &str) {
        let Source { association, address: peer, calling } = &self.source;
        tracing::warn!(association, %peer, %calling, reason, "request refused");
    }

    /// Takes a fragment of a data set; with the last one the object is stored and the request answered.
    async fn data(&mut self, fragment: &[u8], is_last: bool) -> Result<(), End> {
        let Message::Data(data) = &mut self.message else {
            return Err(End::Abort("a data set without a command"));
        };
        let limit = self.config.max_object_bytes;
        data.bytes += fragment.len() as u64;
        if data.bytes > limit.saturating_mul(2) {
            return Err(End::Abort("the object does not end"));
        }
        if let Request::Note(note) = &mut data.request
            && let Err(answer) = note.add(data.message_id, fragment)
        {
            data.request = Request::Refused(answer);
        }
        if let Request::Store(object) = &mut data.request {
            let kept = if data.bytes > limit {
                Err(Refusal::TooLarge { max_object_bytes: limit })
            } else {
                object.buffer.extend_from_slice(fragment);
                if !is_last {
                    object.look_for_series(self.sink.as_ref());
                }
                if object.buffer.len() >= BUFFER_BYTES && !is_last {
                    object.write(&self.sink).await
                } else {
                    Ok(())
                }
            };
            if let Err(refusal) = kept {
                data.refuse(&self.source, &refusal);
            }
        }
        if !is_last {
            return Ok(());
        }
        let Message::Data(data) =
            std::mem::replace(&mut self.message, Message::Command(Vec::new()))
        else {
            unreachable!("matched above")
        };
        let context = data.context;
        let answer = data.finish(&self.sink, &self.source).await;
        self.answer(context, &answer).await
    }

    async fn answer(&mut self, context: u8, answer: &Command) -> Result<(), End> {
        self.association.send(context, &answer.encode(), None).await.map_err(End::Failed)
    }

    /// Of an accepted context that is for this SOP class.
    fn transfer_syntax(&self, context: u8, sop_class_uid: &Uid) -> Option<Uid> {
        let accepted = self.association.contexts().iter().find(|accepted| {
            accepted.id == context && accepted.abstract_syntax == sop_class_uid.as_str()
        })?;
        Uid::parse(&accepted.transfer_syntax).ok()
    }
}

impl Data {
    fn refuse(&mut self, source: &Source, refusal: &Refusal) {
        let Source { association, address: peer, calling } = source;
        tracing::warn!(association, %peer, %calling, reason = %refusal, "object refused");
        if let Request::Store(object) = &self.request {
            let answer = object.received.answer(self.message_id, refusal.status());
            self.request = Request::Refused(answer);
        }
    }

    async fn finish(mut self, sink: &Arc<dyn Sink>, source: &Source) -> Command {
        if let Request::Store(object) = &mut self.request {
            let received = object.received.clone();
            match object.store(sink).await {
                Ok(()) => return received.answer(self.message_id, status::SUCCESS),
                Err(refusal) => self.refuse(source, &refusal),
            }
        }
        match self.request {
            Request::Refused(answer) => answer,
            Request::Note(note) => note.hand_over(self.message_id, sink, source.association).await,
            Request::Store(_) => unreachable!("stored or refused above"),
        }
    }
}

impl Object {
    /// While the rest of an object is on its way, its series is not idle.
    fn look_for_series(&mut self, sink: &dyn Sink) {
        // A head that is not all there is looked through again when it has doubled, and no more once it is on the disk.
        if self.hold.is_none() && self.file.is_none() && self.buffer.len() >= self.next_look {
            self.next_look = 2 * self.buffer.len();
            let series = series_in(&self.buffer, &self.received.transfer_syntax);
            self.hold = series.and_then(|series| sink.receiving(&series));
        }
    }

    /// Moves the buffer to the disk.
    async fn write(&mut self, sink: &Arc<dyn Sink>) -> Result<(), Refusal> {
        let (sink, received) = (sink.clone(), self.received.clone());
        let (file, buffer) = (self.file.take(), std::mem::take(&mut self.buffer));
        let write = move || append(sink.as_ref(), &received, file, &buffer);
        self.file = Some(blocking(write).await?);
        Ok(())
    }

    async fn store(&mut self, sink: &Arc<dyn Sink>) -> Result<(), Refusal> {
        let (sink, received) = (sink.clone(), self.received.clone());
        let (file, buffer) = (self.file.take(), std::mem::take(&mut self.buffer));
        blocking(move || {
            let file = append(sink.as_ref(), &received, file, &buffer)?;
            failpoint::reach("ingest.written");
            let file = file.sync()?;
            failpoint::reach("ingest.synced");
            sink.store(&received, file)
        })
        .await
    }
}

impl Received {
    fn answer(&self, message_id: u16, status: u16) -> Command {
        Command::StoreResponse {
            message_id,
            status,
            sop_class_uid: self.sop_class_uid.clone(),
            sop_instance_uid: self.sop_instance_uid.clone(),
        }
    }
}

fn append(
    sink: &dyn Sink,
    received: &Received,
    file: Option<Incoming>,
    buffer: &[u8],
) -> Result<Incoming, Refusal> {
    let mut file = if let Some(file) = file {
        file
    } else {
        let Received { sop_class_uid, sop_instance_uid, transfer_syntax, .. } = received;
        let mut file = sink.begin()?;
        file.write(&part10::header(sop_class_uid, sop_instance_uid, transfer_syntax))?;
        file
    };
    file.write(buffer)?;
    Ok(file)
}

/// Runs `work` where it may block. A panic in it, as of a parser on hostile bytes, refuses the object.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(Refusal::NotUnderstood("reading it failed")),
    }
}
