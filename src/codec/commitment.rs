//! What is said in storage commitment (PS3.4 annex J, Push Model): which objects are asked about, and which of them
//! are safe. The data sets of N-ACTION and N-EVENT-REPORT; the commands are in `dimse`.

use std::sync::LazyLock;

use dicom_core::{Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_encoding::{TransferSyntax, TransferSyntaxIndex};
use dicom_object::InMemDicomObject;
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;

use super::dicom::{DataSet, read_data_set};
use super::dimse::status;
use super::seg::element::{put, put_items};
use crate::domain::{SopReference, Uid};

/// Longest data set that is read: some 30 000 objects.
pub const MAX_BYTES: usize = 4 << 20;

/// Action Type ID: request storage commitment.
pub const REQUEST: u16 = 1;
/// Event Type ID: all objects are safe.
pub const ALL_SAFE: u16 = 1;
/// Event Type ID: some objects are not.
pub const FAILURES_EXIST: u16 = 2;

/// What every N-ACTION and N-EVENT-REPORT of the service is about: the one well-known instance.
pub static PUSH_MODEL: LazyLock<SopReference> = LazyLock::new(|| SopReference {
    sop_class_uid: known(uids::STORAGE_COMMITMENT_PUSH_MODEL),
    sop_instance_uid: known("1.2.840.10008.1.20.1.1"),
});

/// Are these safe with you?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Names the question in its answer.
    pub transaction: Uid,
    pub objects: Vec<SopReference>,
}

/// These are safe, these are not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub transaction: Uid,
    pub safe: Vec<SopReference>,
    /// Each with its Failure Reason.
    pub failed: Vec<(SopReference, u16)>,
}

/// What is wrong with a data set. It quotes nothing: what came may be about a patient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommitmentError {
    #[error(
        "storage commitment is not read in this transfer syntax; use Explicit VR Little Endian"
    )]
    TransferSyntax,
    #[error("the data set of storage commitment is damaged")]
    Damaged,
    #[error("the data set of storage commitment lacks {0}, or it is no UID")]
    Missing(&'static str),
}

impl Request {
    /// # Errors
    /// If `data` is no such data set, or one of its UIDs is none.
    pub fn parse(data: Vec<u8>, transfer_syntax: &str) -> Result<Self, CommitmentError> {
        let object = read(data, transfer_syntax)?;
        let objects = references(&object, tags::REFERENCED_SOP_SEQUENCE)?;
        if objects.is_empty() {
            return Err(CommitmentError::Missing("ReferencedSOPSequence"));
        }
        Ok(Self { transaction: uid(&object, tags::TRANSACTION_UID, "TransactionUID")?, objects })
    }

    /// # Errors
    /// If the transfer syntax is not known.
    pub fn encode(&self, transfer_syntax: &str) -> Result<Vec<u8>, CommitmentError> {
        let mut object = InMemDicomObject::new_empty();
        put(&mut object, tags::TRANSACTION_UID, VR::UI, self.transaction.as_str());
        let objects: Vec<_> = self.objects.iter().map(reference).collect();
        put_items(&mut object, tags::REFERENCED_SOP_SEQUENCE, objects);
        write(&object, transfer_syntax)
    }
}

impl Report {
    /// # Errors
    /// If `data` is no such data set, or one of its UIDs is none.
    pub fn parse(data: Vec<u8>, transfer_syntax: &str) -> Result<Self, CommitmentError> {
        let object = read(data, transfer_syntax)?;
        let failed = items(&object, tags::FAILED_SOP_SEQUENCE)?
            .iter()
            .zip(references(&object, tags::FAILED_SOP_SEQUENCE)?)
            .map(|(item, failed)| {
                let reason = item.count(tags::FAILURE_REASON).ok().flatten();
                (failed, reason.map_or(status::PROCESSING_FAILURE, |reason| reason as u16))
            })
            .collect();
        Ok(Self {
            transaction: uid(&object, tags::TRANSACTION_UID, "TransactionUID")?,
            safe: references(&object, tags::REFERENCED_SOP_SEQUENCE)?,
            failed,
        })
    }

    /// # Errors
    /// If the transfer syntax is not known.
    pub fn encode(&self, transfer_syntax: &str) -> Result<Vec<u8>, CommitmentError> {
        let mut object = InMemDicomObject::new_empty();
        put(&mut object, tags::TRANSACTION_UID, VR::UI, self.transaction.as_str());
        // Present where it has items (PS3.4 table J.3-2).
        if !self.safe.is_empty() {
            let safe: Vec<_> = self.safe.iter().map(reference).collect();
            put_items(&mut object, tags::REFERENCED_SOP_SEQUENCE, safe);
        }
        if !self.failed.is_empty() {
            let failed = self.failed.iter().map(|(object, reason)| {
                let mut item = reference(object);
                put(&mut item, tags::FAILURE_REASON, VR::US, *reason);
                item
            });
            put_items(&mut object, tags::FAILED_SOP_SEQUENCE, failed.collect::<Vec<_>>());
        }
        write(&object, transfer_syntax)
    }

    /// Event Type ID.
    #[must_use]
    pub fn event_type(&self) -> u16 {
        if self.failed.is_empty() { ALL_SAFE } else { FAILURES_EXIST }
    }
}

fn known(text: &str) -> Uid {
    Uid::parse(text).expect("the standard's UIDs are valid")
}

fn syntax(uid: &str) -> Result<&'static TransferSyntax, CommitmentError> {
    let little_endian = [uids::IMPLICIT_VR_LITTLE_ENDIAN, uids::EXPLICIT_VR_LITTLE_ENDIAN];
    let syntax = TransferSyntaxRegistry.get(uid.trim_end_matches('\0'));
    syntax
        .filter(|syntax| little_endian.contains(&syntax.uid()))
        .ok_or(CommitmentError::TransferSyntax)
}

fn read(data: Vec<u8>, transfer_syntax: &str) -> Result<DataSet, CommitmentError> {
    let syntax = syntax(transfer_syntax)?;
    read_data_set("storage commitment", data, syntax.uid()).map_err(|_| CommitmentError::Damaged)
}

fn write(object: &InMemDicomObject, transfer_syntax: &str) -> Result<Vec<u8>, CommitmentError> {
    let mut bytes = Vec::new();
    object
        .write_dataset_with_ts(&mut bytes, syntax(transfer_syntax)?)
        .map_err(|_| CommitmentError::Damaged)?;
    Ok(bytes)
}

fn uid(object: &DataSet, tag: Tag, name: &'static str) -> Result<Uid, CommitmentError> {
    let text = object.text(tag).map_err(|_| CommitmentError::Damaged)?;
    text.and_then(|text| Uid::parse(&text).ok()).ok_or(CommitmentError::Missing(name))
}

fn items(object: &DataSet, tag: Tag) -> Result<&[DataSet], CommitmentError> {
    object.items(tag).map_err(|_| CommitmentError::Damaged)
}

fn references(object: &DataSet, tag: Tag) -> Result<Vec<SopReference>, CommitmentError> {
    let reference = |item| {
        let class = uid(item, tags::REFERENCED_SOP_CLASS_UID, "ReferencedSOPClassUID")?;
        let instance = uid(item, tags::REFERENCED_SOP_INSTANCE_UID, "ReferencedSOPInstanceUID")?;
        Ok(SopReference { sop_class_uid: class, sop_instance_uid: instance })
    };
    items(object, tag)?.iter().map(reference).collect()
}

fn reference(object: &SopReference) -> InMemDicomObject {
    let mut item = InMemDicomObject::new_empty();
    let SopReference { sop_class_uid, sop_instance_uid } = object;
    put(&mut item, tags::REFERENCED_SOP_CLASS_UID, VR::UI, sop_class_uid.as_str());
    put(&mut item, tags::REFERENCED_SOP_INSTANCE_UID, VR::UI, sop_instance_uid.as_str());
    item
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SYNTAXES: [&str; 2] = [uids::IMPLICIT_VR_LITTLE_ENDIAN, uids::EXPLICIT_VR_LITTLE_ENDIAN];

    fn objects() -> impl Strategy<Value = Vec<SopReference>> {
        let object = any::<u64>().prop_map(|n| SopReference {
            sop_class_uid: Uid::derived(&["class"]),
            sop_instance_uid: Uid::derived(&[&n.to_string()]),
        });
        prop::collection::vec(object, 1..5)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(safe in objects(), failed in objects(), reason: u16) {
            let transaction = Uid::derived(&["transaction"]);
            let failed: Vec<_> = failed.into_iter().map(|object| (object, reason)).collect();
            for syntax in SYNTAXES {
                let request = Request { transaction: transaction.clone(), objects: safe.clone() };
                let bytes = request.encode(syntax).unwrap();
                prop_assert_eq!(Request::parse(bytes, syntax), Ok(request));
                for failed in [&failed[..], &[]] {
                    let report = Report {
                        transaction: transaction.clone(),
                        safe: safe.clone(),
                        failed: failed.to_vec(),
                    };
                    let bytes = report.encode(syntax).unwrap();
                    prop_assert_eq!(Report::parse(bytes, syntax), Ok(report));
                }
            }
        }

        #[test]
        fn a_damaged_data_set_never_panics(at in 0_usize..200, byte: u8, cut in 0_usize..300) {
            let object = SopReference {
                sop_class_uid: Uid::derived(&["class"]),
                sop_instance_uid: Uid::derived(&["instance"]),
            };
            let transaction = Uid::derived(&["transaction"]);
            for syntax in SYNTAXES {
                let report = Report {
                    transaction: transaction.clone(),
                    safe: vec![object.clone()],
                    failed: vec![(object.clone(), 0x0112)],
                };
                let mut bytes = report.encode(syntax).unwrap();
                let at = at % bytes.len();
                bytes[at] = byte;
                bytes.truncate(cut);
                let _ = Report::parse(bytes.clone(), syntax);
                let _ = Request::parse(bytes, syntax);
            }
        }
    }

    #[test]
    fn what_is_missing_is_named_and_other_syntaxes_are_refused() {
        let empty = Request { transaction: Uid::derived(&["t"]), objects: Vec::new() };
        let bytes = empty.encode(SYNTAXES[0]).unwrap();
        let missing = CommitmentError::Missing("ReferencedSOPSequence");
        assert_eq!(Request::parse(bytes.clone(), SYNTAXES[0]), Err(missing));
        assert_eq!(Request::parse(bytes, uids::JPEG2000), Err(CommitmentError::TransferSyntax));
        let missing = CommitmentError::Missing("TransactionUID");
        assert_eq!(Report::parse(Vec::new(), SYNTAXES[1]), Err(missing));
    }
}
