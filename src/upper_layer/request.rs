use super::association::{Association, Context, Framed, Limits, room};
use super::{Link, UpperLayerError};
use crate::codec::pdu::{
    APPLICATION_CONTEXT, AeTitle, AssociateAccept, AssociateRequest, PROTOCOL_VERSION, Pdu,
    ProposedContext, Role, UserInformation, context_result,
};

/// What a requestor proposes.
#[derive(Debug, Clone)]
pub struct Proposal {
    pub calling: String,
    pub called: String,
    /// Abstract syntax and transfer syntaxes of each presentation context; at most 128.
    pub contexts: Vec<(String, Vec<String>)>,
    pub roles: Vec<Role>,
}

/// Requests an association on a new connection.
///
/// # Errors
/// If the peer rejects it, accepts none of the contexts, or cannot be understood.
pub async fn request(
    link: Box<dyn Link>,
    limits: Limits,
    proposal: Proposal,
) -> Result<Association, UpperLayerError> {
    let mut wire = Framed::new(link, limits);
    let (calling, called) = (AeTitle::new(&proposal.calling), AeTitle::new(&proposal.called));
    // Presentation contexts have odd identifiers (PS3.8 section 9.3.2.2).
    let contexts: Vec<_> = (1..=u8::MAX)
        .step_by(2)
        .zip(proposal.contexts)
        .map(|(id, (abstract_syntax, transfer_syntaxes))| ProposedContext {
            id,
            abstract_syntax,
            transfer_syntaxes,
        })
        .collect();
    let request = AssociateRequest {
        protocol_version: PROTOCOL_VERSION,
        called: called.clone(),
        calling: calling.clone(),
        application_context: APPLICATION_CONTEXT.to_owned(),
        contexts: contexts.clone(),
        user: UserInformation { max_length: limits.max_pdu_bytes, roles: proposal.roles },
    };
    wire.write(&Pdu::AssociateRequest(request).encode()).await?;
    let accept = match wire.receive().await? {
        Pdu::AssociateAccept(accept) => accept,
        Pdu::AssociateReject(rejection) => return Err(UpperLayerError::Rejected(rejection)),
        Pdu::Abort { .. } => return Err(UpperLayerError::Aborted),
        _ => return Err(UpperLayerError::Unexpected),
    };
    let room = room(accept.user.max_length)?;
    let contexts = agreed(contexts, &accept);
    let association = Association { wire, called, calling, contexts, room };
    if association.contexts.is_empty() {
        association.abort().await;
        return Err(UpperLayerError::NoContext);
    }
    Ok(association)
}

/// The proposed contexts that were accepted, each in a transfer syntax that was proposed for it.
fn agreed(proposed: Vec<ProposedContext>, accept: &AssociateAccept) -> Vec<Context> {
    let accepted = |context: ProposedContext| {
        let answer = accept.contexts.iter().find(|answer| {
            answer.id == context.id && answer.result == context_result::ACCEPTANCE
        })?;
        let ProposedContext { id, abstract_syntax, mut transfer_syntaxes } = context;
        transfer_syntaxes.retain(|syntax| *syntax == answer.transfer_syntax);
        let transfer_syntax = transfer_syntaxes.pop()?;
        Some(Context { id, abstract_syntax, transfer_syntax })
    };
    proposed.into_iter().filter_map(accepted).collect()
}
