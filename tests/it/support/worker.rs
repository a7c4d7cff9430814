//! A worker without a model.

use std::path::PathBuf;
use std::time::Duration;

use cdal::daemon::{Claim, JobError, Product, Worker};
use cdal::domain::Uid;
use cdal::spool::DicomObject;

use super::dicom::{EXPLICIT_VR_LITTLE_ENDIAN, SEGMENTATION_STORAGE, image, uid};

/// Makes one small object of the segmentation class per series; its UID and pixels follow from the files.
pub struct Stand {
    /// How long it pretends to compute.
    pub compute: Duration,
}

impl Worker for Stand {
    fn process(&mut self, claim: &Claim) -> Result<Vec<Product>, JobError> {
        std::thread::sleep(self.compute);
        let files = &claim.files;
        let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap_or_default()).collect();
        Ok(vec![product(&format!("{names:?}"), files.len() as u16)])
    }
}

pub fn product(seed: &str, instance: u16) -> Product {
    let sop = Uid::derived(&["product", seed]);
    Product {
        name: format!("{sop}.dcm"),
        bytes: image(SEGMENTATION_STORAGE, &sop, &Uid::derived(&["products"]), instance, 64),
        dicom: Some(DicomObject {
            sop_class_uid: uid(SEGMENTATION_STORAGE),
            sop_instance_uid: sop,
            transfer_syntax: uid(EXPLICIT_VR_LITTLE_ENDIAN),
        }),
        summary: format!("{instance} objects"),
        warning: String::new(),
    }
}

/// Its products are the objects that came in, byte for byte: what was acknowledged can be compared with what arrives.
pub struct Echo;

impl Worker for Echo {
    fn process(&mut self, claim: &Claim) -> Result<Vec<Product>, JobError> {
        let echo = |file: &PathBuf| {
            let bytes = std::fs::read(file).expect("a claimed file is there");
            let object = dicom_object::from_reader(bytes.as_slice()).expect("it is DICOM");
            let meta = object.meta();
            let sop = uid(meta.media_storage_sop_instance_uid());
            Product {
                name: format!("{sop}.dcm"),
                dicom: Some(DicomObject {
                    sop_class_uid: uid(meta.media_storage_sop_class_uid()),
                    sop_instance_uid: sop,
                    transfer_syntax: uid(meta.transfer_syntax()),
                }),
                bytes,
                summary: String::new(),
                warning: String::new(),
            }
        };
        Ok(claim.files.iter().map(echo).collect())
    }
}
