use std::path::PathBuf;

use dicom_dictionary_std::uids;

use super::{JobError, Worker};
use crate::codec::{Case, CodecError, Source, dicom, seg};
use crate::domain::Uid;
use crate::engine::EngineError;
use crate::segmenter::{Outcome, Request, Segmenter, SegmenterError};
use crate::spool::Product;

/// The worker of production: a DICOM series in, a DICOM SEG out.
#[derive(Debug)]
pub struct SegmentWorker {
    segmenter: Segmenter,
    request: Request,
    /// Revision of the configuration in force, written into every result.
    configuration: String,
}

impl SegmentWorker {
    #[must_use]
    pub fn new(segmenter: Segmenter, request: Request, configuration: String) -> Self {
        Self { segmenter, request, configuration }
    }

    fn product(&self, case: &Case, outcome: &Outcome) -> Result<Product, JobError> {
        let Source::Dicom(source) = &case.source else {
            return Err(JobError::Permanent("the job's files are no DICOM series".into()));
        };
        let provenance = self.segmenter.provenance(outcome, self.request.seed, &self.configuration);
        let labels = &self.segmenter.bundle().manifest.labels;
        let geometry = case.volume.geometry.as_ref();
        let seg = seg::encode(source, geometry, &outcome.segmentation, labels, &provenance)
            .map_err(refused)?;
        let stages = outcome.stages;
        let uid = |text: &str| Uid::parse(text).expect("the standard's own UIDs are valid");
        Ok(Product {
            name: format!("{}.dcm", seg.sop_instance_uid),
            sop_class_uid: uid(uids::SEGMENTATION_STORAGE),
            sop_instance_uid: seg.sop_instance_uid,
            transfer_syntax: uid(uids::EXPLICIT_VR_LITTLE_ENDIAN),
            bytes: seg.bytes,
            summary: format!(
                "{} slices, {} votes, condition {} ms, denoise {} ms",
                outcome.segmentation.mask.dim().0,
                outcome.votes,
                stages.condition.as_millis(),
                stages.denoise.as_millis()
            ),
        })
    }
}

impl Worker for SegmentWorker {
    fn process(&mut self, files: &[PathBuf]) -> Result<Vec<Product>, JobError> {
        let cases = dicom::read_files(files).map_err(refused)?;
        cases
            .iter()
            .map(|case| {
                let outcome =
                    self.segmenter.segment(&case.volume, &self.request).map_err(failed)?;
                self.product(case, &outcome)
            })
            .collect()
    }
}

/// The same bytes will be read the same way next time.
fn refused(error: CodecError) -> JobError {
    JobError::Permanent(error.to_string())
}

/// A run that failed may have lacked memory; everything else is about the case or the bundle.
fn failed(error: SegmenterError) -> JobError {
    match error {
        SegmenterError::Engine(EngineError::Run { .. }) => JobError::Transient(error.to_string()),
        _ => JobError::Permanent(error.to_string()),
    }
}
