//! DIMSE command sets (PS3.7 section 6.3.1 and annex E): Implicit VR Little Endian, group 0000 only.
//!
//! Only the services this program speaks are given their own shape; everything else can still be answered.

use crate::domain::{SopReference, Uid};

/// Longest command set that is read. The longest legal one of C-STORE is a few hundred bytes.
pub const MAX_COMMAND_BYTES: usize = 16 << 10;

/// Status codes (PS3.7 annex C, PS3.4 table B.2-1), and failure reasons of storage commitment (PS3.3 section C.14.1.1).
pub mod status {
    pub const SUCCESS: u16 = 0x0000;
    pub const PROCESSING_FAILURE: u16 = 0x0110;
    pub const NO_SUCH_OBJECT_INSTANCE: u16 = 0x0112;
    pub const NO_SUCH_EVENT_TYPE: u16 = 0x0113;
    pub const INVALID_ARGUMENT_VALUE: u16 = 0x0115;
    pub const CLASS_INSTANCE_CONFLICT: u16 = 0x0119;
    pub const SOP_CLASS_NOT_SUPPORTED: u16 = 0x0122;
    pub const NO_SUCH_ACTION: u16 = 0x0123;
    pub const NOT_AUTHORIZED: u16 = 0x0124;
    pub const UNRECOGNIZED_OPERATION: u16 = 0x0211;
    pub const RESOURCE_LIMITATION: u16 = 0x0213;
    pub const OUT_OF_RESOURCES: u16 = 0xA700;
    pub const DATA_SET_MISMATCH: u16 = 0xA900;
    pub const CANNOT_UNDERSTAND: u16 = 0xC000;
}

/// SOP Class UID of C-ECHO.
pub const VERIFICATION: &str = "1.2.840.10008.1.1";

const AFFECTED_SOP_CLASS_UID: u16 = 0x0002;
const REQUESTED_SOP_CLASS_UID: u16 = 0x0003;
const COMMAND_FIELD: u16 = 0x0100;
const MESSAGE_ID: u16 = 0x0110;
const MESSAGE_ID_BEING_RESPONDED_TO: u16 = 0x0120;
const PRIORITY: u16 = 0x0700;
const COMMAND_DATA_SET_TYPE: u16 = 0x0800;
const STATUS: u16 = 0x0900;
const AFFECTED_SOP_INSTANCE_UID: u16 = 0x1000;
const REQUESTED_SOP_INSTANCE_UID: u16 = 0x1001;
const EVENT_TYPE_ID: u16 = 0x1002;
const ACTION_TYPE_ID: u16 = 0x1008;

const C_STORE_RQ: u16 = 0x0001;
const C_ECHO_RQ: u16 = 0x0030;
const N_EVENT_REPORT_RQ: u16 = 0x0100;
const N_ACTION_RQ: u16 = 0x0130;
const RESPONSE: u16 = 0x8000;
const NO_DATA_SET: u16 = 0x0101;
const DATA_SET: u16 = 0x0001;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    EchoRequest {
        message_id: u16,
    },
    EchoResponse {
        message_id: u16,
        status: u16,
    },
    /// A data set follows.
    StoreRequest {
        message_id: u16,
        sop_class_uid: Uid,
        sop_instance_uid: Uid,
    },
    StoreResponse {
        message_id: u16,
        status: u16,
        sop_class_uid: Uid,
        sop_instance_uid: Uid,
    },
    /// A data set follows.
    ActionRequest {
        message_id: u16,
        target: SopReference,
        action_type: u16,
    },
    ActionResponse {
        message_id: u16,
        status: u16,
        target: SopReference,
        action_type: u16,
    },
    /// A data set follows.
    EventReportRequest {
        message_id: u16,
        source: SopReference,
        event_type: u16,
    },
    EventReportResponse {
        message_id: u16,
        status: u16,
        source: SopReference,
        event_type: u16,
    },
    /// A request that is not understood, or not well enough: to be answered with a failure.
    UnknownRequest {
        field: u16,
        message_id: u16,
        data_set: bool,
    },
    /// A response nobody asked for, or a cancel: to be ignored.
    Other,
    /// Says that the request `field` failed.
    Failure {
        field: u16,
        message_id: u16,
        status: u16,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DimseError {
    #[error("command set ends inside element (0000,{0:04X})")]
    Truncated(u16),
    #[error("command set lacks element (0000,{0:04X}) or gives it the wrong length")]
    Missing(u16),
}

impl Command {
    /// # Errors
    /// If `bytes` is not a command set that can be answered.
    pub fn parse(bytes: &[u8]) -> Result<Self, DimseError> {
        let elements = Elements::parse(bytes)?;
        let field = elements.number(COMMAND_FIELD)?;
        let data_set = elements.number(COMMAND_DATA_SET_TYPE)? != NO_DATA_SET;
        let uids = || {
            Some((elements.uid(AFFECTED_SOP_CLASS_UID)?, elements.uid(AFFECTED_SOP_INSTANCE_UID)?))
        };
        let reference = |class, instance| {
            let (sop_class_uid, sop_instance_uid) = (elements.uid(class)?, elements.uid(instance)?);
            Some(SopReference { sop_class_uid, sop_instance_uid })
        };
        let responded_to = || elements.number(MESSAGE_ID_BEING_RESPONDED_TO);
        Ok(match field {
            C_ECHO_RQ if !data_set => {
                Self::EchoRequest { message_id: elements.number(MESSAGE_ID)? }
            }
            C_STORE_RQ if data_set => {
                let message_id = elements.number(MESSAGE_ID)?;
                match uids() {
                    Some((sop_class_uid, sop_instance_uid)) => {
                        Self::StoreRequest { message_id, sop_class_uid, sop_instance_uid }
                    }
                    None => Self::UnknownRequest { field, message_id, data_set },
                }
            }
            N_ACTION_RQ if data_set => {
                let message_id = elements.number(MESSAGE_ID)?;
                let target = reference(REQUESTED_SOP_CLASS_UID, REQUESTED_SOP_INSTANCE_UID);
                match (target, elements.number(ACTION_TYPE_ID)) {
                    (Some(target), Ok(action_type)) => {
                        Self::ActionRequest { message_id, target, action_type }
                    }
                    _ => Self::UnknownRequest { field, message_id, data_set },
                }
            }
            N_EVENT_REPORT_RQ if data_set => {
                let message_id = elements.number(MESSAGE_ID)?;
                let source = reference(AFFECTED_SOP_CLASS_UID, AFFECTED_SOP_INSTANCE_UID);
                match (source, elements.number(EVENT_TYPE_ID)) {
                    (Some(source), Ok(event_type)) => {
                        Self::EventReportRequest { message_id, source, event_type }
                    }
                    _ => Self::UnknownRequest { field, message_id, data_set },
                }
            }
            0x8130 | 0x8100 => {
                let (message_id, status) = (responded_to()?, elements.number(STATUS)?);
                let kind = if field == 0x8130 { ACTION_TYPE_ID } else { EVENT_TYPE_ID };
                let about = reference(AFFECTED_SOP_CLASS_UID, AFFECTED_SOP_INSTANCE_UID);
                match (about, elements.number(kind)) {
                    (Some(target), Ok(action_type)) if field == 0x8130 => {
                        Self::ActionResponse { message_id, status, target, action_type }
                    }
                    (Some(source), Ok(event_type)) => {
                        Self::EventReportResponse { message_id, status, source, event_type }
                    }
                    // All of them are optional in the response (PS3.7 tables 10.3-1 and 10.3-7).
                    _ => Self::Failure { field, message_id, status },
                }
            }
            0x8030 => {
                let status = elements.number(STATUS)?;
                Self::EchoResponse { message_id: responded_to()?, status }
            }
            0x8001 => match uids() {
                Some((sop_class_uid, sop_instance_uid)) => Self::StoreResponse {
                    message_id: responded_to()?,
                    status: elements.number(STATUS)?,
                    sop_class_uid,
                    sop_instance_uid,
                },
                // The UIDs are optional in the response (PS3.7 table 9.3-2).
                None => Self::Failure {
                    field,
                    message_id: responded_to()?,
                    status: elements.number(STATUS)?,
                },
            },
            C_CANCEL_RQ => Self::Other,
            field if field & RESPONSE != 0 => Self::Other,
            field => {
                Self::UnknownRequest { field, message_id: elements.number(MESSAGE_ID)?, data_set }
            }
        })
    }

    /// Whether a data set follows.
    #[must_use]
    pub fn has_data_set(&self) -> bool {
        match self {
            Self::StoreRequest { .. }
            | Self::ActionRequest { .. }
            | Self::EventReportRequest { .. } => true,
            Self::UnknownRequest { data_set, .. } => *data_set,
            _ => false,
        }
    }

    /// Of a response: to which message, and its status.
    #[must_use]
    pub fn response(&self) -> Option<(u16, u16)> {
        match self {
            Self::EchoResponse { message_id, status }
            | Self::StoreResponse { message_id, status, .. }
            | Self::ActionResponse { message_id, status, .. }
            | Self::EventReportResponse { message_id, status, .. }
            | Self::Failure { message_id, status, .. } => Some((*message_id, *status)),
            _ => None,
        }
    }

    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        match self {
            Self::EchoRequest { message_id } => {
                out.uid(AFFECTED_SOP_CLASS_UID, VERIFICATION);
                out.number(COMMAND_FIELD, C_ECHO_RQ);
                out.number(MESSAGE_ID, *message_id);
                out.number(COMMAND_DATA_SET_TYPE, NO_DATA_SET);
            }
            Self::EchoResponse { message_id, status } => {
                out.uid(AFFECTED_SOP_CLASS_UID, VERIFICATION);
                out.response(C_ECHO_RQ, *message_id, *status);
            }
            Self::StoreRequest { message_id, sop_class_uid, sop_instance_uid } => {
                out.uid(AFFECTED_SOP_CLASS_UID, sop_class_uid.as_str());
                out.number(COMMAND_FIELD, C_STORE_RQ);
                out.number(MESSAGE_ID, *message_id);
                out.number(PRIORITY, 0); // medium
                out.number(COMMAND_DATA_SET_TYPE, DATA_SET);
                out.uid(AFFECTED_SOP_INSTANCE_UID, sop_instance_uid.as_str());
            }
            Self::StoreResponse { message_id, status, sop_class_uid, sop_instance_uid } => {
                out.uid(AFFECTED_SOP_CLASS_UID, sop_class_uid.as_str());
                out.response(C_STORE_RQ, *message_id, *status);
                out.uid(AFFECTED_SOP_INSTANCE_UID, sop_instance_uid.as_str());
            }
            Self::ActionRequest { message_id, target, action_type } => {
                out.uid(REQUESTED_SOP_CLASS_UID, target.sop_class_uid.as_str());
                out.number(COMMAND_FIELD, N_ACTION_RQ);
                out.number(MESSAGE_ID, *message_id);
                out.number(COMMAND_DATA_SET_TYPE, DATA_SET);
                out.uid(REQUESTED_SOP_INSTANCE_UID, target.sop_instance_uid.as_str());
                out.number(ACTION_TYPE_ID, *action_type);
            }
            Self::ActionResponse { message_id, status, target, action_type } => {
                out.uid(AFFECTED_SOP_CLASS_UID, target.sop_class_uid.as_str());
                out.response(N_ACTION_RQ, *message_id, *status);
                out.uid(AFFECTED_SOP_INSTANCE_UID, target.sop_instance_uid.as_str());
                out.number(ACTION_TYPE_ID, *action_type);
            }
            Self::EventReportRequest { message_id, source, event_type } => {
                out.uid(AFFECTED_SOP_CLASS_UID, source.sop_class_uid.as_str());
                out.number(COMMAND_FIELD, N_EVENT_REPORT_RQ);
                out.number(MESSAGE_ID, *message_id);
                out.number(COMMAND_DATA_SET_TYPE, DATA_SET);
                out.uid(AFFECTED_SOP_INSTANCE_UID, source.sop_instance_uid.as_str());
                out.number(EVENT_TYPE_ID, *event_type);
            }
            Self::EventReportResponse { message_id, status, source, event_type } => {
                out.uid(AFFECTED_SOP_CLASS_UID, source.sop_class_uid.as_str());
                out.response(N_EVENT_REPORT_RQ, *message_id, *status);
                out.uid(AFFECTED_SOP_INSTANCE_UID, source.sop_instance_uid.as_str());
                out.number(EVENT_TYPE_ID, *event_type);
            }
            Self::UnknownRequest { field, message_id, data_set } => {
                out.number(COMMAND_FIELD, *field);
                out.number(MESSAGE_ID, *message_id);
                out.number(COMMAND_DATA_SET_TYPE, if *data_set { DATA_SET } else { NO_DATA_SET });
            }
            Self::Failure { field, message_id, status } => {
                out.response(field & !RESPONSE, *message_id, *status);
            }
            Self::Other => {}
        }
        out.finish()
    }
}

const C_CANCEL_RQ: u16 = 0x0FFF;

struct Elements<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Elements<'a> {
    fn parse(mut bytes: &'a [u8]) -> Result<Self, DimseError> {
        let mut elements = Vec::new();
        while let Some((header, rest)) = bytes.split_first_chunk::<8>() {
            let [g0, g1, e0, e1, l0, l1, l2, l3] = *header;
            let (group, element) = (u16::from_le_bytes([g0, g1]), u16::from_le_bytes([e0, e1]));
            let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
            let (value, rest) =
                rest.split_at_checked(length).ok_or(DimseError::Truncated(element))?;
            // Others have no place in a command (PS3.7 section 6.3.1) and no meaning, but some peers put them there.
            if group == 0 {
                elements.push((element, value));
            }
            bytes = rest;
        }
        if bytes.is_empty() { Ok(Self(elements)) } else { Err(DimseError::Truncated(0)) }
    }

    fn value(&self, element: u16) -> Option<&'a [u8]> {
        self.0.iter().find(|(found, _)| *found == element).map(|(_, value)| *value)
    }

    fn number(&self, element: u16) -> Result<u16, DimseError> {
        let value = self.value(element).and_then(|value| <[u8; 2]>::try_from(value).ok());
        value.map(u16::from_le_bytes).ok_or(DimseError::Missing(element))
    }

    fn uid(&self, element: u16) -> Option<Uid> {
        Uid::parse(std::str::from_utf8(self.value(element)?).ok()?).ok()
    }
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn element(&mut self, element: u16, value: &[u8]) {
        self.0.extend_from_slice(&[0, 0]);
        self.0.extend_from_slice(&element.to_le_bytes());
        self.0.extend_from_slice(&(value.len() as u32).to_le_bytes());
        self.0.extend_from_slice(value);
    }

    fn number(&mut self, element: u16, value: u16) {
        self.element(element, &value.to_le_bytes());
    }

    fn uid(&mut self, element: u16, uid: &str) {
        let mut value = uid.as_bytes().to_vec();
        if value.len() % 2 == 1 {
            value.push(0);
        }
        self.element(element, &value);
    }

    fn response(&mut self, request: u16, message_id: u16, status: u16) {
        self.number(COMMAND_FIELD, request | RESPONSE);
        self.number(MESSAGE_ID_BEING_RESPONDED_TO, message_id);
        self.number(COMMAND_DATA_SET_TYPE, NO_DATA_SET);
        self.number(STATUS, status);
    }

    /// Puts `CommandGroupLength` (0000,0000) in front.
    fn finish(self) -> Vec<u8> {
        let mut out = Self::default();
        out.element(0, &(self.0.len() as u32).to_le_bytes());
        out.0.extend_from_slice(&self.0);
        out.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn uid() -> impl Strategy<Value = Uid> {
        any::<u64>().prop_map(|n| Uid::derived(&[&n.to_string()]))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(message_id: u16, status: u16, class in uid(), instance in uid()) {
            let object =
                SopReference { sop_class_uid: class.clone(), sop_instance_uid: instance.clone() };
            let commands = [
                Command::EchoRequest { message_id },
                Command::EchoResponse { message_id, status },
                Command::StoreRequest {
                    message_id,
                    sop_class_uid: class.clone(),
                    sop_instance_uid: instance.clone(),
                },
                Command::StoreResponse {
                    message_id,
                    status,
                    sop_class_uid: class,
                    sop_instance_uid: instance,
                },
                Command::UnknownRequest { field: 0x0020, message_id, data_set: true },
                Command::ActionRequest { message_id, target: object.clone(), action_type: 1 },
                Command::ActionResponse {
                    message_id,
                    status,
                    target: object.clone(),
                    action_type: 1,
                },
                Command::EventReportRequest { message_id, source: object.clone(), event_type: 2 },
                Command::EventReportResponse { message_id, status, source: object, event_type: 2 },
            ];
            for command in commands {
                prop_assert_eq!(Command::parse(&command.encode()), Ok(command));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = Command::parse(&bytes);
        }

        #[test]
        fn a_damaged_command_never_panics(at in 0_usize..100, byte: u8, cut in 0_usize..120) {
            let mut bytes = Command::StoreRequest {
                message_id: 7,
                sop_class_uid: Uid::parse("1.2.840.10008.5.1.4.1.1.4").unwrap(),
                sop_instance_uid: Uid::parse("1.2.3").unwrap(),
            }
            .encode();
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(cut);
            let _ = Command::parse(&bytes);
        }
    }

    #[test]
    fn a_store_request_with_a_bad_uid_can_still_be_answered() {
        let mut out = Writer::default();
        out.uid(AFFECTED_SOP_CLASS_UID, "1.2.840.10008.5.1.4.1.1.4");
        out.number(COMMAND_FIELD, C_STORE_RQ);
        out.number(MESSAGE_ID, 5);
        out.number(COMMAND_DATA_SET_TYPE, 0x0102);
        out.uid(AFFECTED_SOP_INSTANCE_UID, "../../etc/passwd");
        assert_eq!(
            Command::parse(&out.finish()),
            Ok(Command::UnknownRequest { field: C_STORE_RQ, message_id: 5, data_set: true })
        );
    }
}
