//! Protocol data units of the DICOM Upper Layer (PS3.8 section 9.3), as bytes.
//!
//! Reading is lenient where peers are known to differ and nothing is lost by it: items and sub-items of unknown type are
//! passed over, as section 9.3.1 demands; AE titles and UIDs may be padded with spaces or NUL at either end; codes of
//! rejections and aborts may have any value. Writing is exact. Lengths are checked before anything is taken by them.
//!
//! Called by `upper_layer`, which reads and writes these on a connection.

use std::fmt;

use bytes::{Buf, BufMut, Bytes};

use super::part10::{IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME};

/// Type and length in front of every PDU.
pub const HEADER_BYTES: usize = 6;

/// In front of every presentation data value: its length, presentation context and message control header.
pub const VALUE_HEADER_BYTES: usize = 6;

/// The DICOM application context (PS3.7 annex A.2.1).
pub const APPLICATION_CONTEXT: &str = "1.2.840.10008.3.1.1.1";

/// Bit 0 stands for version 1, the only one; others are not looked at (PS3.8 section 9.3.2).
pub const PROTOCOL_VERSION: u16 = 1;

/// PDU types (PS3.8 section 9.3).
pub mod kind {
    pub const ASSOCIATE_RQ: u8 = 0x01;
    pub const ASSOCIATE_AC: u8 = 0x02;
    pub const ASSOCIATE_RJ: u8 = 0x03;
    pub const DATA: u8 = 0x04;
    pub const RELEASE_RQ: u8 = 0x05;
    pub const RELEASE_RP: u8 = 0x06;
    pub const ABORT: u8 = 0x07;
}

const APPLICATION_CONTEXT_ITEM: u8 = 0x10;
const PROPOSED_CONTEXT_ITEM: u8 = 0x20;
const CONTEXT_RESULT_ITEM: u8 = 0x21;
const ABSTRACT_SYNTAX_ITEM: u8 = 0x30;
const TRANSFER_SYNTAX_ITEM: u8 = 0x40;
const USER_INFORMATION_ITEM: u8 = 0x50;
const MAXIMUM_LENGTH_ITEM: u8 = 0x51;
const IMPLEMENTATION_CLASS_ITEM: u8 = 0x52;
const ROLE_SELECTION_ITEM: u8 = 0x54;
const IMPLEMENTATION_VERSION_ITEM: u8 = 0x55;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pdu {
    AssociateRequest(AssociateRequest),
    AssociateAccept(AssociateAccept),
    AssociateReject(Rejection),
    Data(Vec<Value>),
    ReleaseRequest,
    ReleaseResponse,
    /// Source and reason (PS3.8 section 9.3.8).
    Abort {
        source: u8,
        reason: u8,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssociateRequest {
    pub protocol_version: u16,
    pub called: AeTitle,
    pub calling: AeTitle,
    /// Empty where the request names none.
    pub application_context: String,
    pub contexts: Vec<ProposedContext>,
    pub user: UserInformation,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssociateAccept {
    /// As they stood in the request; they mean nothing here (PS3.8 section 9.3.3).
    pub called: AeTitle,
    pub calling: AeTitle,
    pub contexts: Vec<ContextResult>,
    pub user: UserInformation,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProposedContext {
    pub id: u8,
    pub abstract_syntax: String,
    pub transfer_syntaxes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextResult {
    pub id: u8,
    /// One of [`context_result`].
    pub result: u8,
    /// Means nothing where the context is not accepted; may then be empty.
    pub transfer_syntax: String,
}

/// What became of a proposed presentation context (PS3.8 table 9-18).
pub mod context_result {
    pub const ACCEPTANCE: u8 = 0;
    pub const ABSTRACT_SYNTAX_NOT_SUPPORTED: u8 = 3;
    pub const TRANSFER_SYNTAXES_NOT_SUPPORTED: u8 = 4;
}

/// Of the user information (PS3.7 annex D) what this program looks at. All else is passed over: user identity,
/// asynchronous operations and extended negotiation are thereby declined, as their sections have it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserInformation {
    /// The longest P-DATA-TF PDU that its sender takes, without [`HEADER_BYTES`]; 0 is no limit.
    pub max_length: u32,
    pub roles: Vec<Role>,
}

/// SCP/SCU role selection (PS3.7 section D.3.3.4): what the requestor of the association may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    pub sop_class: String,
    pub scu: bool,
    pub scp: bool,
}

/// Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 section 9.3.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejection {
    pub result: u8,
    pub source: u8,
    pub reason: u8,
}

impl Rejection {
    pub const PERMANENT: u8 = 1;
    pub const TRANSIENT: u8 = 2;
}

/// One fragment of a message (PS3.8 annex E).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    pub context: u8,
    pub part: Part,
    pub is_last: bool,
    pub data: Bytes,
}

/// Of which part of a message a fragment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Command,
    Data,
}

/// An application entity's title as it stands in an association request. Its padding has no meaning.
///
/// Displays for logs: what is not printable ASCII is escaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AeTitle {
    raw: [u8; 16],
    text: String,
}

impl AeTitle {
    /// The first 16 bytes of `text` count.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut raw = [b' '; 16];
        let bytes = text.as_bytes();
        let length = bytes.len().min(16);
        raw[..length].copy_from_slice(&bytes[..length]);
        Self::from(raw)
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl From<[u8; 16]> for AeTitle {
    fn from(raw: [u8; 16]) -> Self {
        Self { raw, text: unpadded(&raw) }
    }
}

impl fmt::Display for AeTitle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.text.escape_default())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PduError {
    #[error("PDU type {0:#04X} is not one of PS3.8")]
    UnknownType(u8),
    #[error("{0} ends before its length")]
    Truncated(&'static str),
    #[error("presentation context {0} has no abstract syntax")]
    NoAbstractSyntax(u8),
}

/// Splits type and length off the front of a PDU.
#[must_use]
pub fn header(bytes: &[u8]) -> Option<(u8, usize)> {
    let [kind, _, l0, l1, l2, l3] = *bytes.first_chunk::<HEADER_BYTES>()?;
    Some((kind, u32::from_be_bytes([l0, l1, l2, l3]) as usize))
}

impl Pdu {
    /// `body` is what follows the header of a PDU of type `kind`.
    ///
    /// # Errors
    /// If it is not such a PDU.
    pub fn parse(kind: u8, body: impl Into<Bytes>) -> Result<Self, PduError> {
        let mut body = body.into();
        let short = |name| PduError::Truncated(name);
        let head = body.first_chunk::<4>().copied();
        let fixed = |name| head.ok_or(short(name));
        Ok(match kind {
            kind::ASSOCIATE_RQ => Self::AssociateRequest(AssociateRequest::parse(&body)?),
            kind::ASSOCIATE_AC => Self::AssociateAccept(AssociateAccept::parse(&body)?),
            kind::ASSOCIATE_RJ => {
                let [_, result, source, reason] = fixed("A-ASSOCIATE-RJ")?;
                Self::AssociateReject(Rejection { result, source, reason })
            }
            kind::DATA => {
                let mut values = Vec::new();
                while body.has_remaining() {
                    values.push(Value::take(&mut body).ok_or(short("P-DATA-TF"))?);
                }
                Self::Data(values)
            }
            kind::RELEASE_RQ => Self::ReleaseRequest,
            kind::RELEASE_RP => Self::ReleaseResponse,
            kind::ABORT => {
                let [_, _, source, reason] = fixed("A-ABORT")?;
                Self::Abort { source, reason }
            }
            kind => return Err(PduError::UnknownType(kind)),
        })
    }

    /// Header and body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Self::AssociateRequest(request) => (kind::ASSOCIATE_RQ, request.encode()),
            Self::AssociateAccept(accept) => (kind::ASSOCIATE_AC, accept.encode()),
            Self::AssociateReject(Rejection { result, source, reason }) => {
                (kind::ASSOCIATE_RJ, vec![0, *result, *source, *reason])
            }
            Self::Data(values) => {
                let mut body = Vec::new();
                for Value { context, part, is_last, data } in values {
                    put_value(&mut body, *context, *part, *is_last, data);
                }
                (kind::DATA, body)
            }
            Self::ReleaseRequest => (kind::RELEASE_RQ, vec![0; 4]),
            Self::ReleaseResponse => (kind::RELEASE_RP, vec![0; 4]),
            Self::Abort { source, reason } => (kind::ABORT, vec![0, 0, *source, *reason]),
        };
        let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
        put_header(&mut out, kind, body.len());
        out.extend_from_slice(&body);
        out
    }
}

/// Appends a P-DATA-TF PDU with one fragment of a message to `out`.
pub fn put_fragment(out: &mut Vec<u8>, context: u8, part: Part, is_last: bool, fragment: &[u8]) {
    put_header(out, kind::DATA, VALUE_HEADER_BYTES + fragment.len());
    put_value(out, context, part, is_last, fragment);
}

fn put_header(out: &mut Vec<u8>, kind: u8, length: usize) {
    out.extend_from_slice(&[kind, 0]);
    out.put_u32(length as u32);
}

fn put_value(out: &mut Vec<u8>, context: u8, part: Part, is_last: bool, data: &[u8]) {
    out.put_u32(data.len() as u32 + 2);
    let control = u8::from(part == Part::Command) | u8::from(is_last) << 1;
    out.extend_from_slice(&[context, control]);
    out.extend_from_slice(data);
}

impl Value {
    fn take(body: &mut Bytes) -> Option<Self> {
        let length = body.try_get_u32().ok()? as usize;
        if length < 2 || length > body.remaining() {
            return None;
        }
        let (context, control) = (body.get_u8(), body.get_u8());
        let part = if control & 1 == 1 { Part::Command } else { Part::Data };
        let data = body.split_to(length - 2);
        Some(Self { context, part, is_last: control & 2 == 2, data })
    }
}

/// What stands before the items of an association request or its acceptance: version and titles.
struct Head {
    protocol_version: u16,
    called: AeTitle,
    calling: AeTitle,
}

impl Head {
    fn take<'a>(body: &'a [u8], name: &'static str) -> Result<(Self, &'a [u8]), PduError> {
        let (head, items) = body.split_first_chunk::<68>().ok_or(PduError::Truncated(name))?;
        let title = |at: usize| {
            let mut raw = [0; 16];
            raw.copy_from_slice(&head[at..at + 16]);
            AeTitle::from(raw)
        };
        let protocol_version = u16::from_be_bytes([head[0], head[1]]);
        Ok((Self { protocol_version, called: title(4), calling: title(20) }, items))
    }

    fn put(out: &mut Vec<u8>, protocol_version: u16, called: &AeTitle, calling: &AeTitle) {
        out.put_u16(protocol_version);
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&called.raw);
        out.extend_from_slice(&calling.raw);
        out.extend_from_slice(&[0; 32]);
    }
}

impl AssociateRequest {
    fn parse(body: &[u8]) -> Result<Self, PduError> {
        let (head, items) = Head::take(body, "A-ASSOCIATE-RQ")?;
        let Head { protocol_version, called, calling } = head;
        let (mut contexts, mut user) = (Vec::new(), UserInformation::default());
        let mut application_context = String::new();
        for item in Items(items) {
            match item? {
                (APPLICATION_CONTEXT_ITEM, name) => application_context = unpadded(name),
                (PROPOSED_CONTEXT_ITEM, item) => contexts.push(ProposedContext::parse(item)?),
                (USER_INFORMATION_ITEM, item) => user = UserInformation::parse(item)?,
                _ => {}
            }
        }
        Ok(Self { protocol_version, called, calling, application_context, contexts, user })
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        Head::put(&mut out, self.protocol_version, &self.called, &self.calling);
        put_item(&mut out, APPLICATION_CONTEXT_ITEM, self.application_context.as_bytes());
        for ProposedContext { id, abstract_syntax, transfer_syntaxes } in &self.contexts {
            let mut item = vec![*id, 0, 0, 0];
            put_item(&mut item, ABSTRACT_SYNTAX_ITEM, abstract_syntax.as_bytes());
            for syntax in transfer_syntaxes {
                put_item(&mut item, TRANSFER_SYNTAX_ITEM, syntax.as_bytes());
            }
            put_item(&mut out, PROPOSED_CONTEXT_ITEM, &item);
        }
        put_item(&mut out, USER_INFORMATION_ITEM, &self.user.encode());
        out
    }
}

impl ProposedContext {
    fn parse(item: &[u8]) -> Result<Self, PduError> {
        let (head, items) =
            item.split_first_chunk::<4>().ok_or(PduError::Truncated("presentation context"))?;
        let (mut abstract_syntax, mut transfer_syntaxes) = (None, Vec::new());
        for item in Items(items) {
            match item? {
                (ABSTRACT_SYNTAX_ITEM, name) => abstract_syntax = Some(unpadded(name)),
                (TRANSFER_SYNTAX_ITEM, name) => transfer_syntaxes.push(unpadded(name)),
                _ => {}
            }
        }
        let abstract_syntax = abstract_syntax.ok_or(PduError::NoAbstractSyntax(head[0]))?;
        Ok(Self { id: head[0], abstract_syntax, transfer_syntaxes })
    }
}

impl AssociateAccept {
    fn parse(body: &[u8]) -> Result<Self, PduError> {
        let (Head { called, calling, .. }, items) = Head::take(body, "A-ASSOCIATE-AC")?;
        let (mut contexts, mut user) = (Vec::new(), UserInformation::default());
        for item in Items(items) {
            match item? {
                (CONTEXT_RESULT_ITEM, item) => contexts.push(ContextResult::parse(item)?),
                (USER_INFORMATION_ITEM, item) => user = UserInformation::parse(item)?,
                _ => {}
            }
        }
        Ok(Self { called, calling, contexts, user })
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        Head::put(&mut out, PROTOCOL_VERSION, &self.called, &self.calling);
        put_item(&mut out, APPLICATION_CONTEXT_ITEM, APPLICATION_CONTEXT.as_bytes());
        for ContextResult { id, result, transfer_syntax } in &self.contexts {
            let mut item = vec![*id, 0, *result, 0];
            put_item(&mut item, TRANSFER_SYNTAX_ITEM, transfer_syntax.as_bytes());
            put_item(&mut out, CONTEXT_RESULT_ITEM, &item);
        }
        put_item(&mut out, USER_INFORMATION_ITEM, &self.user.encode());
        out
    }
}

impl ContextResult {
    fn parse(item: &[u8]) -> Result<Self, PduError> {
        let (head, items) =
            item.split_first_chunk::<4>().ok_or(PduError::Truncated("presentation context"))?;
        let mut transfer_syntax = String::new();
        for item in Items(items) {
            if let (TRANSFER_SYNTAX_ITEM, name) = item? {
                transfer_syntax = unpadded(name);
            }
        }
        Ok(Self { id: head[0], result: head[2], transfer_syntax })
    }
}

impl UserInformation {
    fn parse(item: &[u8]) -> Result<Self, PduError> {
        let mut user = Self::default();
        for item in Items(item) {
            match item? {
                (MAXIMUM_LENGTH_ITEM, value) => {
                    let value = value.first_chunk().ok_or(PduError::Truncated("maximum length"))?;
                    user.max_length = u32::from_be_bytes(*value);
                }
                (ROLE_SELECTION_ITEM, value) => {
                    let role = Role::parse(value).ok_or(PduError::Truncated("role selection"))?;
                    user.roles.push(role);
                }
                _ => {}
            }
        }
        Ok(user)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_item(&mut out, MAXIMUM_LENGTH_ITEM, &self.max_length.to_be_bytes());
        put_item(&mut out, IMPLEMENTATION_CLASS_ITEM, IMPLEMENTATION_CLASS_UID.as_bytes());
        for Role { sop_class, scu, scp } in &self.roles {
            let mut item = Vec::new();
            item.put_u16(sop_class.len() as u16);
            item.extend_from_slice(sop_class.as_bytes());
            item.extend_from_slice(&[u8::from(*scu), u8::from(*scp)]);
            put_item(&mut out, ROLE_SELECTION_ITEM, &item);
        }
        put_item(&mut out, IMPLEMENTATION_VERSION_ITEM, IMPLEMENTATION_VERSION_NAME.as_bytes());
        out
    }
}

impl Role {
    fn parse(value: &[u8]) -> Option<Self> {
        let (length, rest) = value.split_first_chunk::<2>()?;
        let (sop_class, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
        let [scu, scp] = *rest.first_chunk()?;
        Some(Self { sop_class: unpadded(sop_class), scu: scu == 1, scp: scp == 1 })
    }
}

/// Items one after the other: type, a reserved byte, length, value.
struct Items<'a>(&'a [u8]);

impl<'a> Iterator for Items<'a> {
    type Item = Result<(u8, &'a [u8]), PduError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let item = self.0.split_first_chunk::<4>().and_then(|([kind, _, l0, l1], rest)| {
            let length = u16::from_be_bytes([*l0, *l1]);
            rest.split_at_checked(length.into()).map(|(value, rest)| (*kind, value, rest))
        });
        let Some((kind, value, rest)) = item else {
            self.0 = &[];
            return Some(Err(PduError::Truncated("an item")));
        };
        self.0 = rest;
        Some(Ok((kind, value)))
    }
}

fn put_item(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    out.extend_from_slice(&[kind, 0]);
    out.put_u16(value.len() as u16);
    out.extend_from_slice(value);
}

/// Text without the padding that has no meaning in it.
fn unpadded(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_matches(['\0', ' ']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERIFICATION: &str = "1.2.840.10008.1.1";
    const IMPLICIT: &str = "1.2.840.10008.1.2";

    fn parse(bytes: &[u8]) -> Result<Pdu, PduError> {
        let (kind, length) = header(bytes).unwrap();
        assert_eq!(bytes.len(), HEADER_BYTES + length);
        Pdu::parse(kind, Bytes::copy_from_slice(&bytes[HEADER_BYTES..]))
    }

    fn request() -> AssociateRequest {
        AssociateRequest {
            protocol_version: PROTOCOL_VERSION,
            called: AeTitle::new("CDAL"),
            calling: AeTitle::new("SCANNER"),
            application_context: APPLICATION_CONTEXT.to_owned(),
            contexts: vec![ProposedContext {
                id: 1,
                abstract_syntax: VERIFICATION.to_owned(),
                transfer_syntaxes: vec![IMPLICIT.to_owned()],
            }],
            user: UserInformation {
                max_length: 16_384,
                roles: vec![Role { sop_class: VERIFICATION.to_owned(), scu: true, scp: false }],
            },
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let (called, calling) = (AeTitle::new("CDAL"), AeTitle::new("SCANNER"));
        let result = ContextResult { id: 1, result: 0, transfer_syntax: IMPLICIT.to_owned() };
        let user = UserInformation { max_length: 0, roles: Vec::new() };
        let accept = AssociateAccept { called, calling, contexts: vec![result], user };
        let value = |part, is_last| Value { context: 3, part, is_last, data: Bytes::from("abcd") };
        for pdu in [
            Pdu::AssociateRequest(request()),
            Pdu::AssociateAccept(accept),
            Pdu::AssociateReject(Rejection { result: 1, source: 2, reason: 2 }),
            Pdu::Data(vec![value(Part::Command, true), value(Part::Data, false)]),
            Pdu::ReleaseRequest,
            Pdu::ReleaseResponse,
            Pdu::Abort { source: 2, reason: 6 },
        ] {
            assert_eq!(parse(&pdu.encode()), Ok(pdu));
        }
    }

    #[test]
    fn another_implementation_reads_what_is_written() {
        let bytes = Pdu::AssociateRequest(request()).encode();
        let read = dicom_ul::pdu::read_pdu(bytes.as_slice(), 16_384, true).unwrap();
        let Some(dicom_ul::Pdu::AssociationRQ(read)) = read else { panic!("{read:?}") };
        assert_eq!((read.protocol_version, read.called_ae_title.as_str()), (1, "CDAL"));
        assert_eq!(read.presentation_contexts[0].abstract_syntax, VERIFICATION);
        let roles = dicom_ul::pdu::RequestorRoles { scu: true, scp: false };
        let role = dicom_ul::pdu::UserVariableItem::ScuScpRoleSelectionSubItem(
            VERIFICATION.to_owned(),
            roles,
        );
        assert!(read.user_variables.contains(&role), "{:?}", read.user_variables);
    }

    #[test]
    fn unknown_items_are_passed_over_at_every_level() {
        let unknown = [0x7F, 0, 0, 2, 1, 2];
        let mut context = vec![1, 0, 0, 0];
        context.extend(unknown);
        put_item(&mut context, ABSTRACT_SYNTAX_ITEM, VERIFICATION.as_bytes());
        put_item(&mut context, TRANSFER_SYNTAX_ITEM, IMPLICIT.as_bytes());
        let mut user = unknown.to_vec();
        put_item(&mut user, MAXIMUM_LENGTH_ITEM, &7_u32.to_be_bytes());
        let mut body = Vec::new();
        Head::put(&mut body, 3, &AeTitle::new("CDAL"), &AeTitle::new(""));
        body.extend(unknown);
        put_item(&mut body, PROPOSED_CONTEXT_ITEM, &context);
        put_item(&mut body, USER_INFORMATION_ITEM, &user);
        let read = AssociateRequest::parse(&body).unwrap();
        assert_eq!(read.contexts, request().contexts);
        assert_eq!((read.user.max_length, read.protocol_version), (7, 3));
    }

    #[test]
    fn padding_of_titles_and_uids_has_no_meaning() {
        for title in [*b"CDAL            ", *b"CDAL\0\0\0\0\0\0\0\0\0\0\0\0", *b"  CDAL\0         "]
        {
            assert_eq!(AeTitle::from(title).as_str(), "CDAL");
        }
        let mut padded = request();
        padded.application_context.push('\0');
        padded.contexts[0].abstract_syntax.push('\0');
        padded.contexts[0].transfer_syntaxes[0].push(' ');
        let Ok(Pdu::AssociateRequest(read)) = parse(&Pdu::AssociateRequest(padded).encode()) else {
            panic!("it is one")
        };
        assert_eq!(
            (read.contexts, read.application_context.as_str()),
            (request().contexts, APPLICATION_CONTEXT)
        );
    }

    #[test]
    fn a_title_from_outside_cannot_forge_a_line_of_a_log() {
        let title = AeTitle::from(*b"A\nB \x1B[31m\xFFCDEFGH");
        assert_eq!(title.to_string(), "A\\nB \\u{1b}[31m\\u{fffd}CDEFGH");
    }

    #[test]
    fn a_context_that_was_not_accepted_may_lack_its_transfer_syntax() {
        assert_eq!(
            ContextResult::parse(&[5, 0, 3, 0]),
            Ok(ContextResult { id: 5, result: 3, transfer_syntax: String::new() })
        );
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(kind in 0_u8..9, bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..256)) {
            if let Ok(pdu) = Pdu::parse(kind, bytes) {
                let _ = pdu.encode();
            }
        }

        #[test]
        fn a_damaged_request_never_panics(at in 0_usize..200, byte: u8, cut in 0_usize..220) {
            let mut bytes = Pdu::AssociateRequest(request()).encode();
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(cut.max(HEADER_BYTES));
            let _ = Pdu::parse(kind::ASSOCIATE_RQ, bytes.split_off(HEADER_BYTES));
        }
    }
}
