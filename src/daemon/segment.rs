use std::path::PathBuf;

use dicom_dictionary_std::uids;
use ndarray::Axis;

use super::{JobError, Worker};
use crate::codec::{self, Case, CodecError, Source, mask_png, nifti, seg};
use crate::domain::Uid;
use crate::engine::EngineError;
use crate::segmenter::{Outcome, Request, Segmenter, SegmenterError};
use crate::spool::{DicomObject, Product};

/// The worker of production: a DICOM series in, a DICOM SEG out; any other image in, a mask of its kind out (`NIfTI`
/// on the input's grid, PNG for a flat picture).
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
        let labels = &self.segmenter.bundle().manifest.labels;
        let geometry = case.volume.geometry.as_ref();
        let mask = &outcome.segmentation.mask;
        let (name, dicom, bytes) = match &case.source {
            Source::Dicom(source) => {
                let provenance =
                    self.segmenter.provenance(outcome, self.request.seed, &self.configuration);
                let seg = seg::encode(source, geometry, &outcome.segmentation, labels, &provenance)
                    .map_err(refused)?;
                let uid = |text: &str| Uid::parse(text).expect("the standard's own UIDs are valid");
                let name = format!("{}.dcm", seg.sop_instance_uid);
                let object = DicomObject {
                    sop_class_uid: uid(uids::SEGMENTATION_STORAGE),
                    sop_instance_uid: seg.sop_instance_uid,
                    transfer_syntax: uid(uids::EXPLICIT_VR_LITTLE_ENDIAN),
                };
                (name, Some(object), seg.bytes)
            }
            Source::Raster if mask.dim().0 == 1 => {
                let flat = mask.index_axis(Axis(0), 0);
                let bytes = mask_png::encode(flat, labels).map_err(refused)?;
                (format!("{}.mask.png", case.name), None, bytes)
            }
            source => {
                let bytes = nifti::encode_mask(source, geometry, mask).map_err(refused)?;
                (format!("{}.mask.nii.gz", case.name), None, bytes)
            }
        };
        let stages = outcome.stages;
        Ok(Product {
            name,
            dicom,
            bytes,
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
        let cases = codec::read_files(files).map_err(refused)?;
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
