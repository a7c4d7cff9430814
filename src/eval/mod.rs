//! Evaluation: a bundle against a folder of images with truth. Overlap, surface distance, who did best and worst.
//!
//! [`crate::truth`] reads the cases and defines the metrics, [`summary`] the means and their intervals. Nothing
//! here prints or writes: the caller gets a [`Report`] (its type documents the JSON schema), a [`Gallery`] of
//! pictures and, from [`html::page`], one self-contained page. Called by `cli`.
//!
//! Invariants: a pair whose sizes or places differ, or whose label holds a value the model does not know, is never
//! compared, but reported as failed, and the other cases go on; every case counts once; the report names all that is
//! needed to compute it again.

mod error;
mod gallery;
pub mod html;
mod report;
pub mod summary;

pub use error::EvalError;
pub use gallery::{Gallery, Picture};
pub use report::{CaseReport, Failure, LabelReport, LabelSummary, Report, Summary, Unit};

use crate::{
    segmenter::{Request, Segmenter},
    truth::{Dataset, Pair, metrics},
};

/// Spacing that stands in where an image has none: HD95 is then in pixels.
const UNIT_SPACING: [f64; 3] = [1.0; 3];

/// How far an evaluation is.
#[derive(Debug)]
pub struct Progress<'a> {
    /// From 1.
    pub number: usize,
    pub of: usize,
    pub step: Step<'a>,
}

#[derive(Debug)]
pub enum Step<'a> {
    /// The case of this name is about to be segmented.
    Begun(&'a str),
    Measured(&'a CaseReport),
    Failed(&'a Failure),
}

/// Segments every case of `dataset` and compares the masks with their truth. A pair that cannot be read, does not fit
/// together or cannot be segmented is among the report's failures.
///
/// # Errors
/// If the engine has ended, so that no case can be segmented any more.
pub fn evaluate(
    segmenter: &Segmenter,
    dataset: &Dataset,
    request: &Request,
    mut progress: impl FnMut(&Progress<'_>),
) -> Result<(Report, Gallery), EvalError> {
    let manifest = &segmenter.bundle().manifest;
    let of = dataset.pairs.len();
    let (mut cases, mut failed) = (Vec::with_capacity(of), Vec::new());
    let mut gallery = Gallery::default();
    let mut drawn = (manifest.votes, manifest.diffusion.steps);
    for (index, pair) in dataset.pairs.iter().enumerate() {
        let mut tell = |step| progress(&Progress { number: index + 1, of, step });
        tell(Step::Begun(&pair.stem));
        match measure(segmenter, pair, request, &mut gallery) {
            Ok((case, counts)) => {
                drawn = counts;
                tell(Step::Measured(&case));
                cases.push(case);
            }
            Err(error) if error.is_final() => return Err(error),
            Err(error) => {
                let failure = Failure { case: pair.stem.clone(), reason: error.to_string() };
                tell(Step::Failed(&failure));
                failed.push(failure);
            }
        }
    }
    Ok((Report::new(segmenter, dataset, drawn, request.seed, (cases, failed)), gallery))
}

/// One case, and the votes and time-steps that were drawn for it.
fn measure(
    segmenter: &Segmenter,
    pair: &Pair,
    request: &Request,
    gallery: &mut Gallery,
) -> Result<(CaseReport, (usize, usize)), EvalError> {
    let labels = &segmenter.bundle().manifest.labels;
    let (volume, truth) = pair.read(labels)?;
    let outcome = segmenter
        .segment(&volume, request)
        .map_err(|source| EvalError::Case { case: pair.stem.clone(), source })?;
    let mask = &outcome.segmentation.mask;
    let spacing = volume.geometry.map(|geometry| {
        let [columns, rows, slices] = geometry.spacing;
        [slices, rows, columns]
    });
    let measured = labels.iter().map(|label| {
        let spacing = spacing.unwrap_or(UNIT_SPACING);
        let overlap = metrics::Overlap::count(mask.view(), truth.view(), label.value);
        let hd95 = metrics::hd95(mask.view(), truth.view(), label.value, spacing);
        LabelReport::new(label.value, overlap, hd95)
    });
    let stages = &outcome.stages;
    let time = stages.prepare + stages.condition + stages.denoise + stages.assemble;
    let case = CaseReport::new(
        pair.stem.clone(),
        mask.dim(),
        spacing,
        time.as_secs_f64() * 1e3,
        measured.collect(),
    );
    gallery.offer(&case, &volume, mask, &truth, labels)?;
    Ok((case, (outcome.votes, outcome.steps)))
}
