use dicom_dictionary_std::uids;
use ndarray::Axis;
use serde::{Deserialize, Serialize};

use super::{JobError, Worker};
use crate::codec::{self, Case, CodecError, DicomSource, Source, capture, mask_png, nifti, seg};
use crate::domain::{Fault, Uid};
use crate::engine::EngineError;
use crate::segmenter::{Outcome, Request, Segmenter, SegmenterError};
use crate::spool::{Claim, DicomObject, Product};

/// Section `[results]`: what is made of a DICOM series.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Results {
    /// Beside the binary segmentation, which is always made.
    pub also: Vec<Extra>,
}

impl Results {
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let twice =
            |(index, extra): (usize, &Extra)| self.also[..index].contains(extra).then_some(index);
        let repeated = self.also.iter().enumerate().filter_map(twice);
        repeated.map(|index| Fault::new(format!("also[{index}]"), "is named twice")).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Extra {
    /// The votes' agreement as a fractional segmentation.
    Fractional,
    /// A picture with the labels drawn over it, as a secondary capture.
    Overlay,
}

/// The worker of production: a DICOM series in, a DICOM SEG out; any other image in, a mask of its kind out (`NIfTI`
/// on the input's grid, PNG for a flat picture).
#[derive(Debug)]
pub struct SegmentWorker {
    segmenter: Segmenter,
    request: Request,
    results: Results,
    /// Revision of the configuration in force, written into every result.
    configuration: String,
}

impl SegmentWorker {
    #[must_use]
    pub fn new(
        segmenter: Segmenter,
        request: Request,
        results: Results,
        configuration: String,
    ) -> Self {
        Self { segmenter, request, results, configuration }
    }

    fn products(
        &self,
        case: &Case,
        outcome: &Outcome,
        revision: u32,
    ) -> Result<Vec<Product>, JobError> {
        let labels = &self.segmenter.bundle().manifest.labels;
        let geometry = case.volume.geometry.as_ref();
        let mask = &outcome.segmentation.mask;
        let summary = summary(outcome);
        let file =
            |name, bytes| vec![Product { name, dicom: None, bytes, summary: summary.clone() }];
        Ok(match &case.source {
            Source::Dicom(source) => {
                let mut products =
                    vec![self.segmentation(case, source, outcome, seg::Kind::Binary, revision)?];
                for extra in &self.results.also {
                    products.push(match extra {
                        Extra::Fractional => self.segmentation(
                            case,
                            source,
                            outcome,
                            seg::Kind::Fractional,
                            revision,
                        )?,
                        Extra::Overlay => self.overlay(case, source, outcome, revision)?,
                    });
                }
                products[0].summary = summary;
                products
            }
            Source::Raster if mask.dim().0 == 1 => {
                let flat = mask.index_axis(Axis(0), 0);
                file(
                    format!("{}.mask.png", case.name),
                    mask_png::encode(flat, labels).map_err(refused)?,
                )
            }
            source => {
                let bytes = nifti::encode_mask(source, geometry, mask).map_err(refused)?;
                file(format!("{}.mask.nii.gz", case.name), bytes)
            }
        })
    }

    fn segmentation(
        &self,
        case: &Case,
        source: &DicomSource,
        outcome: &Outcome,
        kind: seg::Kind,
        revision: u32,
    ) -> Result<Product, JobError> {
        let seg = seg::encode(
            seg::Form { kind, revision },
            source,
            case.volume.geometry.as_ref(),
            &outcome.segmentation,
            &self.segmenter.bundle().manifest.labels,
            &self.segmenter.provenance(outcome, self.request.seed, &self.configuration),
        )
        .map_err(refused)?;
        Ok(dicom_product(uids::SEGMENTATION_STORAGE, seg.sop_instance_uid, seg.bytes))
    }

    fn overlay(
        &self,
        case: &Case,
        source: &DicomSource,
        outcome: &Outcome,
        revision: u32,
    ) -> Result<Product, JobError> {
        let capture = capture::encode(
            revision,
            source,
            &case.volume,
            &outcome.segmentation,
            &self.segmenter.bundle().manifest.labels,
            &self.segmenter.provenance(outcome, self.request.seed, &self.configuration),
        )
        .map_err(refused)?;
        let class = uids::SECONDARY_CAPTURE_IMAGE_STORAGE;
        Ok(dicom_product(class, capture.sop_instance_uid, capture.bytes))
    }
}

fn dicom_product(sop_class_uid: &str, sop_instance_uid: Uid, bytes: Vec<u8>) -> Product {
    let uid = |text: &str| Uid::parse(text).expect("the standard's own UIDs are valid");
    Product {
        name: format!("{sop_instance_uid}.dcm"),
        dicom: Some(DicomObject {
            sop_class_uid: uid(sop_class_uid),
            sop_instance_uid,
            transfer_syntax: uid(uids::EXPLICIT_VR_LITTLE_ENDIAN),
        }),
        bytes,
        summary: String::new(),
    }
}

fn summary(outcome: &Outcome) -> String {
    format!(
        "{} slices, {} votes, condition {} ms, denoise {} ms",
        outcome.segmentation.mask.dim().0,
        outcome.votes,
        outcome.stages.condition.as_millis(),
        outcome.stages.denoise.as_millis()
    )
}

impl Worker for SegmentWorker {
    fn process(&mut self, claim: &Claim) -> Result<Vec<Product>, JobError> {
        let cases = codec::read_files(&claim.files).map_err(refused)?;
        let mut products = Vec::new();
        for case in &cases {
            let outcome = self.segmenter.segment(&case.volume, &self.request).map_err(failed)?;
            products.extend(self.products(case, &outcome, claim.revision)?);
        }
        Ok(products)
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
