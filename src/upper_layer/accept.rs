use std::fmt;

use dicom_dictionary_std::uids::IMPLICIT_VR_LITTLE_ENDIAN;

use super::association::{Abort, Association, Context, Framed, Limits, room};
use super::{Link, UpperLayerError};
use crate::codec::pdu::{
    APPLICATION_CONTEXT, AeTitle, AssociateAccept, AssociateRequest, ContextResult,
    PROTOCOL_VERSION, Pdu, PduError, ProposedContext, Rejection, Role, UserInformation,
    context_result,
};

/// First byte of a TLS record with a handshake message (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// What an acceptor agrees to.
pub trait Acceptor: Sync {
    /// Whether this caller may associate with the application entity that it calls.
    ///
    /// # Errors
    /// Why not.
    fn admit(&self, calling: &AeTitle, called: &AeTitle) -> Result<(), Refusal>;

    fn takes_class(&self, abstract_syntax: &str) -> bool;

    fn takes_syntax(&self, transfer_syntax: &str) -> bool;

    /// Which of the proposed roles the requestor may have; `None`: the usual ones.
    fn roles(&self, _proposed: &Role) -> Option<Role> {
        None
    }
}

/// Why an association request is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    CallingAeTitle,
    CalledAeTitle,
    ApplicationContext,
    ProtocolVersion(u16),
    /// The requestor's maximum length of PDUs leaves no room for a value.
    MaximumLength(u32),
    TooManyAssociations,
    LowDisk,
}

impl Refusal {
    /// PS3.8 table 9-21.
    fn rejection(self) -> Rejection {
        let (result, source, reason) = match self {
            Self::MaximumLength(_) => (Rejection::PERMANENT, 1, 1),
            Self::ApplicationContext => (Rejection::PERMANENT, 1, 2),
            Self::CallingAeTitle => (Rejection::PERMANENT, 1, 3),
            Self::CalledAeTitle => (Rejection::PERMANENT, 1, 7),
            Self::ProtocolVersion(_) => (Rejection::PERMANENT, 2, 2),
            Self::LowDisk => (Rejection::TRANSIENT, 3, 1),
            Self::TooManyAssociations => (Rejection::TRANSIENT, 3, 2),
        };
        Rejection { result, source, reason }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CallingAeTitle => f.write_str("the calling AE title is not allowed"),
            Self::CalledAeTitle => f.write_str("the called AE title is not this one"),
            Self::ApplicationContext => f.write_str("the application context is not that of DICOM"),
            Self::ProtocolVersion(version) => {
                write!(f, "protocol version {version:#06x} is not supported: bit 0 is not set")
            }
            Self::MaximumLength(bytes) => {
                write!(f, "PDUs of {bytes} bytes at most leave no room for a value")
            }
            Self::TooManyAssociations => f.write_str("there are max_associations already"),
            Self::LowDisk => f.write_str("too little is free on the disk"),
        }
    }
}

/// Why there is no association, and the connection, which is still open where the peer was told something.
pub struct Unmet {
    pub error: UpperLayerError,
    wire: Option<Framed>,
}

/// Before a byte of PS3.8 was read.
impl From<UpperLayerError> for Unmet {
    fn from(error: UpperLayerError) -> Self {
        Self { error, wire: None }
    }
}

impl Unmet {
    /// Lets the peer close the connection, so that the last word to it is not cut off. The caller bounds the wait.
    pub async fn part(self) {
        if let Some(mut wire) = self.wire {
            wire.wait_for_end().await;
        }
    }
}

/// Reads an association request and answers it.
///
/// # Errors
/// If there is no association then: the peer has been told why, where PS3.8 has a way to.
pub async fn accept(
    link: Box<dyn Link>,
    limits: Limits,
    acceptor: &dyn Acceptor,
) -> Result<Association, Unmet> {
    let mut wire = Framed::new(link, limits);
    let request = match wire.receive().await {
        Ok(Pdu::AssociateRequest(request)) => request,
        other => return Err(no_request(wire, other).await),
    };
    let (calling, called) = (request.calling.clone(), request.called.clone());
    match negotiate(request, limits, acceptor) {
        Ok((accept, contexts, room)) => {
            match wire.write(&Pdu::AssociateAccept(accept).encode()).await {
                Ok(()) => Ok(Association { wire, called, calling, contexts, room }),
                Err(error) => Err(error.into()),
            }
        }
        Err(refusal) => Err(reject(wire, calling, called, refusal).await),
    }
}

/// Reads an association request and rejects it.
pub async fn refuse(link: Box<dyn Link>, limits: Limits, refusal: Refusal) -> Unmet {
    let mut wire = Framed::new(link, limits);
    match wire.receive().await {
        Ok(Pdu::AssociateRequest(AssociateRequest { calling, called, .. })) => {
            reject(wire, calling, called, refusal).await
        }
        other => no_request(wire, other).await,
    }
}

async fn reject(wire: Framed, calling: AeTitle, called: AeTitle, refusal: Refusal) -> Unmet {
    let error = UpperLayerError::Refused { calling, called, refusal };
    last_word(wire, error, &Pdu::AssociateReject(refusal.rejection())).await
}

/// In state 2 of PS3.8 table 9-10: whatever is no request is answered with an A-ABORT (AA-1).
async fn no_request(wire: Framed, came: Result<Pdu, UpperLayerError>) -> Unmet {
    let error = match came {
        Ok(pdu) => UpperLayerError::NoRequest(name(&pdu)),
        Err(UpperLayerError::Pdu(PduError::UnknownType(TLS_HANDSHAKE))) => {
            return UpperLayerError::TlsExpected.into();
        }
        Err(error) => error,
    };
    let abort = Abort::from(&error).pdu();
    match error {
        UpperLayerError::NoRequest(_)
        | UpperLayerError::Pdu(_)
        | UpperLayerError::TooLong { .. } => last_word(wire, error, &abort).await,
        error => error.into(),
    }
}

async fn last_word(mut wire: Framed, error: UpperLayerError, word: &Pdu) -> Unmet {
    let is_told = wire.write(&word.encode()).await.is_ok();
    Unmet { error, wire: is_told.then_some(wire) }
}

fn name(pdu: &Pdu) -> &'static str {
    match pdu {
        Pdu::AssociateRequest(_) => "A-ASSOCIATE-RQ",
        Pdu::AssociateAccept(_) => "A-ASSOCIATE-AC",
        Pdu::AssociateReject(_) => "A-ASSOCIATE-RJ",
        Pdu::Data(_) => "P-DATA-TF",
        Pdu::ReleaseRequest => "A-RELEASE-RQ",
        Pdu::ReleaseResponse => "A-RELEASE-RP",
        Pdu::Abort { .. } => "A-ABORT",
    }
}

type Agreement = (AssociateAccept, Vec<Context>, usize);

fn negotiate(
    request: AssociateRequest,
    limits: Limits,
    acceptor: &dyn Acceptor,
) -> Result<Agreement, Refusal> {
    let AssociateRequest { protocol_version, called, calling, .. } = request;
    if protocol_version & PROTOCOL_VERSION == 0 {
        return Err(Refusal::ProtocolVersion(protocol_version));
    }
    if request.application_context != APPLICATION_CONTEXT {
        return Err(Refusal::ApplicationContext);
    }
    acceptor.admit(&calling, &called)?;
    let max_length = request.user.max_length;
    let room = room(max_length).map_err(|_| Refusal::MaximumLength(max_length))?;
    let (mut results, mut contexts) = (Vec::new(), Vec::new());
    for proposed in request.contexts {
        let (result, accepted) = judge(proposed, acceptor);
        results.push(result);
        contexts.extend(accepted);
    }
    let roles = request.user.roles.iter().filter_map(|role| acceptor.roles(role)).collect();
    let user = UserInformation { max_length: limits.max_pdu_bytes, roles };
    Ok((AssociateAccept { called, calling, contexts: results, user }, contexts, room))
}

/// Each context is judged for itself (PS3.8 section 9.3.3.2). The requestor's order of transfer syntaxes decides.
fn judge(proposed: ProposedContext, acceptor: &dyn Acceptor) -> (ContextResult, Option<Context>) {
    let ProposedContext { id, abstract_syntax, transfer_syntaxes } = proposed;
    let takes = |syntax: &String| acceptor.takes_syntax(syntax);
    // It means nothing then, but some peers want one.
    let syntax = || IMPLICIT_VR_LITTLE_ENDIAN.to_owned();
    let refused = |result| (ContextResult { id, result, transfer_syntax: syntax() }, None);
    if !acceptor.takes_class(&abstract_syntax) {
        return refused(context_result::ABSTRACT_SYNTAX_NOT_SUPPORTED);
    }
    let Some(transfer_syntax) = transfer_syntaxes.into_iter().find(takes) else {
        return refused(context_result::TRANSFER_SYNTAXES_NOT_SUPPORTED);
    };
    let result = context_result::ACCEPTANCE;
    let answer = ContextResult { id, result, transfer_syntax: transfer_syntax.clone() };
    (answer, Some(Context { id, abstract_syntax, transfer_syntax }))
}
