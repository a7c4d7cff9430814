//! The outer shell of a DICOM file (PS3.10 section 7): preamble, `DICM`, File Meta Information.
//!
//! The dataset behind it is passed on as it is, byte for byte.

use crate::domain::Uid;

/// This implementation (PS3.7 section D.3.3.2). Constant over versions, so that the same object received
/// twice makes the same file.
pub const IMPLEMENTATION_CLASS_UID: &str = "2.25.213094820395786015447331025461378126013";
pub const IMPLEMENTATION_VERSION_NAME: &str = "CDAL";

const PREAMBLE: usize = 128;
/// Preamble, `DICM`, and the element File Meta Information Group Length.
const FIXED: usize = PREAMBLE + 4 + 12;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a DICOM file: no File Meta Information at its start")]
pub struct NotPart10;

/// Preamble to File Meta Information, to be followed by the dataset in `transfer_syntax`.
#[must_use]
pub fn header(sop_class_uid: &Uid, sop_instance_uid: &Uid, transfer_syntax: &Uid) -> Vec<u8> {
    let mut meta = Vec::new();
    // FileMetaInformationVersion, the only element here with a long length field
    meta.extend_from_slice(&[0x02, 0x00, 0x01, 0x00, b'O', b'B', 0, 0, 2, 0, 0, 0, 0x00, 0x01]);
    element(&mut meta, 0x0002, *b"UI", sop_class_uid.as_str(), 0);
    element(&mut meta, 0x0003, *b"UI", sop_instance_uid.as_str(), 0);
    element(&mut meta, 0x0010, *b"UI", transfer_syntax.as_str(), 0);
    element(&mut meta, 0x0012, *b"UI", IMPLEMENTATION_CLASS_UID, 0);
    element(&mut meta, 0x0013, *b"SH", IMPLEMENTATION_VERSION_NAME, b' ');

    let mut out = vec![0; PREAMBLE];
    out.extend_from_slice(b"DICM");
    out.extend_from_slice(&[0x02, 0x00, 0x00, 0x00, b'U', b'L', 4, 0]);
    out.extend_from_slice(&(meta.len() as u32).to_le_bytes());
    out.extend_from_slice(&meta);
    out
}

/// The dataset of a file held in memory.
///
/// # Errors
/// If there is no File Meta Information with a group length in front of it.
pub fn dataset(file: &[u8]) -> Result<&[u8], NotPart10> {
    let fixed = file.get(..FIXED).ok_or(NotPart10)?;
    if &fixed[PREAMBLE..PREAMBLE + 4] != b"DICM"
        || fixed[PREAMBLE + 4..PREAMBLE + 12] != [0x02, 0x00, 0x00, 0x00, b'U', b'L', 4, 0]
    {
        return Err(NotPart10);
    }
    let length = u32::from_le_bytes([fixed[140], fixed[141], fixed[142], fixed[143]]) as usize;
    file[FIXED..].get(length..).ok_or(NotPart10)
}

fn element(out: &mut Vec<u8>, element: u16, vr: [u8; 2], text: &str, pad: u8) {
    let padded = text.len().next_multiple_of(2);
    out.extend_from_slice(&[0x02, 0x00]);
    out.extend_from_slice(&element.to_le_bytes());
    out.extend_from_slice(&vr);
    out.extend_from_slice(&(padded as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
    out.resize(out.len() + padded - text.len(), pad);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_header_is_read_by_the_dicom_library_and_the_dataset_follows() {
        let uid = |text| Uid::parse(text).unwrap();
        let mut file = header(
            &uid("1.2.840.10008.5.1.4.1.1.7"),
            &uid("1.2.3.45"),
            &uid("1.2.840.10008.1.2.1"),
        );
        file.extend_from_slice(&[0x08, 0x00, 0x60, 0x00, b'C', b'S', 2, 0, b'O', b'T']);
        let object = dicom_object::from_reader(file.as_slice()).unwrap();
        assert_eq!(object.meta().media_storage_sop_instance_uid(), "1.2.3.45");
        assert_eq!(object.element_by_name("Modality").unwrap().to_str().unwrap(), "OT");
        assert_eq!(dataset(&file).unwrap().len(), 10);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = dataset(&bytes);
        }
    }
}
