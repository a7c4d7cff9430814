use std::path::Path;

use crate::codec::{self, Format};
use crate::spool::Content;

/// Reads objects for the spool.
#[derive(Debug, Clone, Copy)]
pub struct Reading;

impl Content for Reading {
    fn is_whole(&self, file: &Path) -> bool {
        let format = codec::sniff(file).ok().flatten();
        format.is_none_or(|format| codec::check_whole(file, format).is_ok())
    }

    fn differences(&self, known: &Path, other: &Path) -> Vec<String> {
        let is_dicom = |path| matches!(codec::sniff(path), Ok(Some(Format::Dicom)));
        if !is_dicom(known) || !is_dicom(other) {
            return vec!["content".to_owned()];
        }
        codec::dicom::differences(known, other).unwrap_or_else(|error| {
            let reason = error.reason(); // no path: it may name a patient
            tracing::debug!(reason, "two files under one SOP Instance UID cannot be compared");
            vec!["content that cannot be compared".to_owned()]
        })
    }
}
