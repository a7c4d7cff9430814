use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dicom_dictionary_std::uids;
use ndarray::Axis;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{JobError, Worker};
use crate::codec::{
    self, Case, CodecError, DicomSource, Source, capture, mask_png, nifti, overlay, seg,
};
use crate::domain::{Fault, Segmentation, Uid, Volume};
use crate::engine::{EngineError, Progress, Serving};
use crate::http::{self, Ask, Description, Drawing, Gallery, InferError, Model, Pictures};
use crate::segmenter::{Outcome, Preview, Request, Segmenter, SegmenterError};
use crate::spool::{Claim, DicomObject, Product};
use crate::telemetry::{Stage, metrics};

/// Section `[results]`: what is made of a DICOM series.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Extra {
    /// The votes' agreement as a fractional segmentation.
    Fractional,
    /// A picture with the labels drawn over it, as a secondary capture.
    Overlay,
}

/// The worker of production: a DICOM series in, a DICOM SEG out; any other image in, a mask of its kind out (`NIfTI`
/// on the input's grid, PNG for a flat picture).
pub struct SegmentWorker {
    segmenter: Arc<Segmenter>,
    choice: watch::Receiver<Choice>,
    /// The last case, until it is drawn.
    last: Option<(Arc<Case>, Segmentation)>,
    /// Where cases under way are shown, if anywhere.
    gallery: Option<Arc<Gallery>>,
}

/// A mask that will be there within this time is not shown before: drawing it would only hold it up.
const WORTH_A_PREVIEW: Duration = Duration::from_secs(3);

/// What may be changed while the worker runs.
#[derive(Debug, Clone)]
pub struct Choice {
    pub request: Request,
    pub results: Results,
    /// Revision of the configuration in force, written into every result.
    pub revision: String,
}

impl SegmentWorker {
    #[must_use]
    pub fn new(segmenter: Segmenter, choice: watch::Receiver<Choice>) -> Self {
        Self { segmenter: Arc::new(segmenter), choice, last: None, gallery: None }
    }

    /// The loaded model, for golden runs beside the jobs.
    #[must_use]
    pub fn segmenter(&self) -> Arc<Segmenter> {
        Arc::clone(&self.segmenter)
    }

    fn products(
        &self,
        case: &Case,
        outcome: &Outcome,
        choice: &Choice,
        revision: u32,
    ) -> Result<Vec<Product>, JobError> {
        let labels = &self.segmenter.bundle().manifest.labels;
        let geometry = case.volume.geometry.as_ref();
        let mask = &outcome.segmentation.mask;
        let summary = summary(outcome);
        let warning = case.warnings.join("; ");
        let file = |name, bytes| {
            let (summary, warning) = (summary.clone(), warning.clone());
            vec![Product { name, dicom: None, bytes, summary, warning }]
        };
        Ok(match &case.source {
            Source::Dicom(source) => {
                let form = |kind| seg::Form { kind, revision };
                let segmentation =
                    |kind| self.segmentation(case, source, outcome, choice, form(kind));
                let mut products = vec![segmentation(seg::Kind::Binary)?];
                for extra in &choice.results.also {
                    products.push(match extra {
                        Extra::Fractional => segmentation(seg::Kind::Fractional)?,
                        Extra::Overlay => self.overlay(case, source, outcome, choice, revision)?,
                    });
                }
                (products[0].summary, products[0].warning) = (summary, warning);
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

    /// Shows the case's mask as it grows.
    fn preview(&self, case: &Arc<Case>, claim: &Claim, gallery: &Arc<Gallery>) -> Preview {
        let (segmenter, case) = (Arc::clone(&self.segmenter), Arc::clone(case));
        let (job, gallery) = (claim.job.clone(), Arc::clone(gallery));
        Preview::new(WORTH_A_PREVIEW, move |segmentation, votes| {
            let (segmenter, case) = (Arc::clone(&segmenter), Arc::clone(&case));
            gallery.draw(job.clone(), drawing(segmenter, case, segmentation, Some(votes)));
        })
    }

    fn segmentation(
        &self,
        case: &Case,
        source: &DicomSource,
        outcome: &Outcome,
        choice: &Choice,
        form: seg::Form,
    ) -> Result<Product, JobError> {
        let seg = seg::encode(
            form,
            source,
            case.volume.geometry.as_ref(),
            &outcome.segmentation,
            &self.segmenter.bundle().manifest.labels,
            &self.segmenter.provenance(outcome, choice.request.seed, &choice.revision),
        )
        .map_err(refused)?;
        Ok(dicom_product(uids::SEGMENTATION_STORAGE, seg.sop_instance_uid, seg.bytes))
    }

    fn overlay(
        &self,
        case: &Case,
        source: &DicomSource,
        outcome: &Outcome,
        choice: &Choice,
        revision: u32,
    ) -> Result<Product, JobError> {
        let capture = capture::encode(
            revision,
            source,
            &case.volume,
            &outcome.segmentation,
            &self.segmenter.bundle().manifest.labels,
            &self.segmenter.provenance(outcome, choice.request.seed, &choice.revision),
        )
        .map_err(refused)?;
        let class = uids::SECONDARY_CAPTURE_IMAGE_STORAGE;
        Ok(dicom_product(class, capture.sop_instance_uid, capture.bytes))
    }
}

/// A payload is named by the digest of its content and, where that is known, by how its giver named it: that tells more.
fn input_name(payload: &str) -> &str {
    const DIGEST: usize = 64;
    let is_digest = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match payload.split_at_checked(DIGEST) {
        Some((digest, name)) if is_digest(digest) && name.len() > 1 => &name[1..],
        _ => payload,
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
        warning: String::new(),
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
        let choice = self.choice.borrow().clone();
        let started = Instant::now();
        let cases = codec::read_files(&claim.files).map_err(refused)?;
        metrics().stage(Stage::Decode, started.elapsed());
        let mut products = Vec::with_capacity(cases.len());
        for mut case in cases {
            if !matches!(case.source, Source::Dicom(_)) {
                case.name = input_name(&case.name).into();
            }
            for warning in &case.warnings {
                tracing::warn!(job = %claim.job, warning, "a warning about the images of a job");
            }
            let case = Arc::new(case);
            let preview = self.gallery.as_ref().map(|gallery| self.preview(&case, claim, gallery));
            let request = Request { preview, ..choice.request.clone() };
            let outcome = self.segmenter.segment(&case.volume, &request).map_err(failed)?;
            let stages = &outcome.stages;
            for (stage, time) in [
                (Stage::Prepare, stages.prepare),
                (Stage::Condition, stages.condition),
                (Stage::Denoise, stages.denoise),
                (Stage::Assemble, stages.assemble),
            ] {
                metrics().stage(stage, time);
            }
            let started = Instant::now();
            products.extend(self.products(&case, &outcome, &choice, claim.revision)?);
            metrics().stage(Stage::Encode, started.elapsed());
            self.last = Some((case, outcome.segmentation));
        }
        Ok(products)
    }

    fn pictures(&mut self) -> Option<Drawing> {
        let (case, segmentation) = self.last.take()?;
        Some(drawing(Arc::clone(&self.segmenter), case, segmentation, None))
    }

    fn show_previews(&mut self, gallery: &Arc<Gallery>) {
        self.gallery = Some(Arc::clone(gallery));
    }

    fn model(&self) -> Option<Arc<dyn Model>> {
        Some(Arc::new(Direct {
            segmenter: Arc::clone(&self.segmenter),
            choice: self.choice.clone(),
        }))
    }
}

/// `preview`: the votes so far, while more are to come.
fn drawing(
    segmenter: Arc<Segmenter>,
    case: Arc<Case>,
    segmentation: Segmentation,
    preview: Option<usize>,
) -> Drawing {
    Box::new(move || {
        let labels = &segmenter.bundle().manifest.labels;
        let views = overlay::views(&case.volume, &segmentation, labels);
        let [image, mask, disagreement] =
            views.inspect_err(|error| tracing::warn!(%error, "a case cannot be drawn")).ok()?;
        Some(Pictures { image, mask, disagreement, preview })
    })
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
            engine: engine(self.segmenter.serving()),
        }
    }

    fn infer(&self, volume: &Volume, ask: Ask) -> Result<Segmentation, InferError> {
        let mut request = self.choice.borrow().request.clone();
        request.votes = ask.votes.or(request.votes);
        request.seed = ask.seed.unwrap_or(request.seed);
        // A tensor says nothing of space.
        let placed = match (volume.geometry, self.segmenter.bundle().manifest.own_geometry()) {
            (None, Some(own)) => Cow::Owned(Volume { geometry: Some(own), ..volume.clone() }),
            _ => Cow::Borrowed(volume),
        };
        let outcome = self.segmenter.segment(&placed, &request).map_err(|error| match error {
            SegmenterError::Bundle(_) => InferError::Refused(error.to_string()),
            _ => InferError::Failed(error.to_string()),
        })?;
        Ok(outcome.segmentation)
    }
}

fn engine(Serving { provider, wanted, progress }: Serving) -> http::Engine {
    http::Engine {
        provider: provider.name().to_owned(),
        wanted: wanted.name().to_owned(),
        progress: progress.name(),
        reason: match progress {
            Progress::Failed { reason } => Some(reason),
            _ => None,
        },
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
        SegmenterError::Engine(EngineError::NotFinite { .. }) => JobError::Model(error.to_string()),
        _ => JobError::Permanent(error.to_string()),
    }
}
