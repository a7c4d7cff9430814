use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use dicom_dictionary_std::uids;
use ndarray::Axis;
use tokio::sync::watch;

use super::{JobError, Worker};
use crate::codec::{self, Case, CodecError, Source, mask_png, nifti, overlay, seg};
use crate::domain::{Segmentation, Uid, Volume};
use crate::engine::EngineError;
use crate::http::{Ask, Description, Drawing, InferError, Model, Pictures};
use crate::segmenter::{Outcome, Request, Segmenter, SegmenterError};
use crate::spool::{DicomObject, Product};
use crate::telemetry::{Stage, metrics};

/// The worker of production: a DICOM series in, a DICOM SEG out; any other image in, a mask of its kind out (`NIfTI`
/// on the input's grid, PNG for a flat picture).
#[derive(Debug)]
pub struct SegmentWorker {
    segmenter: Arc<Segmenter>,
    choice: watch::Receiver<Choice>,
    /// The last case, until it is drawn.
    last: Option<(Case, Segmentation)>,
}

/// What may be changed while the worker runs.
#[derive(Debug, Clone)]
pub struct Choice {
    pub request: Request,
    /// Revision of the configuration in force, written into every result.
    pub revision: String,
}

impl SegmentWorker {
    #[must_use]
    pub fn new(segmenter: Segmenter, choice: watch::Receiver<Choice>) -> Self {
        Self { segmenter: Arc::new(segmenter), choice, last: None }
    }

    fn product(
        &self,
        case: &Case,
        outcome: &Outcome,
        choice: &Choice,
    ) -> Result<Product, JobError> {
        let started = Instant::now();
        let labels = &self.segmenter.bundle().manifest.labels;
        let geometry = case.volume.geometry.as_ref();
        let mask = &outcome.segmentation.mask;
        let (name, dicom, bytes) = match &case.source {
            Source::Dicom(source) => {
                let provenance =
                    self.segmenter.provenance(outcome, choice.request.seed, &choice.revision);
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
        metrics().stage(Stage::Encode, started.elapsed());
        let stages = outcome.stages;
        Ok(Product {
            name,
            dicom,
            bytes,
            summary: format!(
                "{} slices, {} votes, condition {} ms, denoise {} ms",
                mask.dim().0,
                outcome.votes,
                stages.condition.as_millis(),
                stages.denoise.as_millis()
            ),
        })
    }
}

impl Worker for SegmentWorker {
    fn process(&mut self, files: &[PathBuf]) -> Result<Vec<Product>, JobError> {
        let choice = self.choice.borrow().clone();
        let started = Instant::now();
        let cases = codec::read_files(files).map_err(refused)?;
        metrics().stage(Stage::Decode, started.elapsed());
        let mut products = Vec::with_capacity(cases.len());
        for case in cases {
            let outcome = self.segmenter.segment(&case.volume, &choice.request).map_err(failed)?;
            let stages = outcome.stages;
            for (stage, time) in [
                (Stage::Prepare, stages.prepare),
                (Stage::Condition, stages.condition),
                (Stage::Denoise, stages.denoise),
                (Stage::Assemble, stages.assemble),
            ] {
                metrics().stage(stage, time);
            }
            products.push(self.product(&case, &outcome, &choice)?);
            self.last = Some((case, outcome.segmentation));
        }
        Ok(products)
    }

    fn pictures(&mut self) -> Option<Drawing> {
        let (case, segmentation) = self.last.take()?;
        let segmenter = Arc::clone(&self.segmenter);
        Some(Box::new(move || {
            let labels = &segmenter.bundle().manifest.labels;
            let views = overlay::views(&case.volume, &segmentation, labels);
            let [image, mask, disagreement] =
                views.inspect_err(|error| tracing::warn!(%error, "a case cannot be drawn")).ok()?;
            Some(Pictures { image, mask, disagreement })
        }))
    }

    fn model(&self) -> Option<Arc<dyn Model>> {
        Some(Arc::new(Direct {
            segmenter: Arc::clone(&self.segmenter),
            choice: self.choice.clone(),
        }))
    }
}

/// The worker's model for inference requests.
struct Direct {
    segmenter: Arc<Segmenter>,
    choice: watch::Receiver<Choice>,
}

impl Model for Direct {
    fn describe(&self) -> Description {
        let bundle = self.segmenter.bundle();
        let manifest = &bundle.manifest;
        let choice = self.choice.borrow();
        Description {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            digest: bundle.digest.clone(),
            channels: manifest.input.channels,
            labels: manifest.labels.iter().map(|label| label.name.clone()).collect(),
            votes: choice.request.votes.unwrap_or(manifest.votes),
            revision: choice.revision.clone(),
        }
    }

    fn infer(&self, volume: &Volume, ask: Ask) -> Result<Segmentation, InferError> {
        let mut request = self.choice.borrow().request.clone();
        request.votes = ask.votes.or(request.votes);
        request.seed = ask.seed.unwrap_or(request.seed);
        let outcome = self.segmenter.segment(volume, &request).map_err(|error| match error {
            SegmenterError::Bundle(_) => InferError::Refused(error.to_string()),
            _ => InferError::Failed(error.to_string()),
        })?;
        Ok(outcome.segmentation)
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
