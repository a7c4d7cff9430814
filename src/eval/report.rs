use serde::Serialize;

use super::summary::{Statistic, mean, summarise};
use crate::{
    segmenter::Segmenter,
    truth::{Dataset, metrics::Overlap},
};

/// The schema below; it changes when a field changes its meaning or goes.
const SCHEMA: u32 = 1;

/// An evaluation: the JSON document that `cdal eval --json` writes, field for field. A value that is not defined
/// (see [`crate::truth::metrics`]) is null.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub schema: u32,
    pub model: Model,
    pub data: Data,
    /// Time-steps of the diffusion that a vote took: all T of the model, unless cut short.
    pub steps: usize,
    pub votes: usize,
    pub seed: u64,
    /// Of this program.
    pub software_version: String,
    pub hd95_unit: Unit,
    pub summary: Summary,
    /// In the order of the data.
    pub cases: Vec<CaseReport>,
    /// Cases that could not be compared; they count in no mean.
    pub failed: Vec<Failure>,
}

/// A case that could not be read, did not fit together or could not be segmented.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    pub case: String,
    /// What is wrong and what to do.
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Model {
    pub name: String,
    pub version: String,
    /// SHA-256 of the bundle, hexadecimal.
    pub digest: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Data {
    pub folder: String,
    /// File and name of the part taken of it; null where everything was.
    pub split: Option<SplitName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SplitName {
    pub file: String,
    pub name: String,
}

/// What a distance is measured in: pixels where an image has no spacing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    Mm,
    Px,
    /// Of means over cases of both kinds, which then say little.
    Mixed,
}

impl Unit {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mm => "mm",
            Self::Px => "px",
            Self::Mixed => "mm or px",
        }
    }
}

/// Means over the cases, with their 95 % interval ([`super::summary`]).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    pub labels: Vec<LabelSummary>,
    /// Means of the labels' means.
    pub mean: Means,
    /// Of one case, from the decoded image to the mask, averaged.
    pub milliseconds: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LabelSummary {
    pub value: u8,
    pub name: String,
    #[serde(flatten)]
    pub means: Means,
    /// Cases whose truth holds the label and whose mask does not; their HD95 is not defined.
    pub missed: usize,
    /// Cases whose mask holds the label and whose truth does not; none of their metrics is defined.
    pub invented: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Means {
    pub dice: Statistic,
    pub iou: Statistic,
    pub hd95: Statistic,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CaseReport {
    pub case: String,
    /// Slices, rows, columns.
    pub shape: [usize; 3],
    /// mm between slices, rows, columns; null where the image says nothing about it and HD95 is in pixels.
    pub spacing: Option<[f64; 3]>,
    /// From the decoded image to the mask.
    pub milliseconds: f64,
    /// Dice, mean over the labels of the case: what best and worst go by.
    pub score: Option<f64>,
    pub labels: Vec<LabelReport>,
}

impl CaseReport {
    pub(super) fn new(
        case: String,
        (slices, rows, columns): (usize, usize, usize),
        spacing: Option<[f64; 3]>,
        milliseconds: f64,
        labels: Vec<LabelReport>,
    ) -> Self {
        let score = mean(labels.iter().map(|label| label.dice));
        Self { case, shape: [slices, rows, columns], spacing, milliseconds, score, labels }
    }

    #[must_use]
    pub fn unit(&self) -> Unit {
        if self.spacing.is_some() { Unit::Mm } else { Unit::Px }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LabelReport {
    pub value: u8,
    pub truth_voxels: usize,
    pub mask_voxels: usize,
    pub dice: Option<f64>,
    pub iou: Option<f64>,
    pub hd95: Option<f64>,
}

impl LabelReport {
    pub(super) fn new(value: u8, overlap: Overlap, hd95: Option<f64>) -> Self {
        Self {
            value,
            truth_voxels: overlap.truth,
            mask_voxels: overlap.predicted,
            dice: overlap.dice(),
            iou: overlap.iou(),
            hd95,
        }
    }
}

impl Report {
    pub(super) fn new(
        segmenter: &Segmenter,
        dataset: &Dataset,
        (votes, steps): (usize, usize),
        seed: u64,
        (cases, failed): (Vec<CaseReport>, Vec<Failure>),
    ) -> Self {
        let manifest = &segmenter.bundle().manifest;
        let names = manifest.labels.iter().map(|label| (label.value, label.name.clone()));
        let placed = cases.iter().filter(|case| case.spacing.is_some()).count();
        let hd95_unit = match placed {
            0 => Unit::Px,
            n if n == cases.len() => Unit::Mm,
            _ => Unit::Mixed,
        };
        Self {
            schema: SCHEMA,
            model: Model {
                name: manifest.name.clone(),
                version: manifest.version.clone(),
                digest: segmenter.bundle().digest.clone(),
            },
            data: Data {
                folder: dataset.folder.display().to_string(),
                split: dataset.split.as_ref().map(|split| SplitName {
                    file: split.file.display().to_string(),
                    name: split.name.clone(),
                }),
            },
            steps,
            votes,
            seed,
            software_version: env!("CARGO_PKG_VERSION").into(),
            hd95_unit,
            summary: Summary::of(names.collect(), &cases),
            cases,
            failed,
        }
    }
}

impl Summary {
    /// `names`: value and name of each label, in the order of the cases' labels.
    fn of(names: Vec<(u8, String)>, cases: &[CaseReport]) -> Self {
        let table = |value: fn(&LabelReport) -> Option<f64>| {
            let column =
                |label: usize| cases.iter().map(|case| value(&case.labels[label])).collect();
            summarise(&(0..names.len()).map(column).collect::<Vec<Vec<_>>>())
        };
        let (dice, mean_dice) = table(|label| label.dice);
        let (iou, mean_iou) = table(|label| label.iou);
        let (hd95, mean_hd95) = table(|label| label.hd95);
        let labels = names.iter().enumerate().map(|(at, (value, name))| {
            let count = |wanted: fn(&LabelReport) -> bool| {
                cases.iter().filter(|case| wanted(&case.labels[at])).count()
            };
            LabelSummary {
                value: *value,
                name: name.clone(),
                means: Means { dice: dice[at], iou: iou[at], hd95: hd95[at] },
                missed: count(|label| label.truth_voxels > 0 && label.mask_voxels == 0),
                invented: count(|label| label.truth_voxels == 0 && label.mask_voxels > 0),
            }
        });
        Self {
            labels: labels.collect(),
            mean: Means { dice: mean_dice, iou: mean_iou, hd95: mean_hd95 },
            milliseconds: mean(cases.iter().map(|case| Some(case.milliseconds))).unwrap_or(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missed_and_invented_labels_are_counted() {
        let case = |truth_voxels, mask_voxels| {
            let overlap = Overlap { truth: truth_voxels, predicted: mask_voxels, both: 0 };
            let label = LabelReport::new(1, overlap, None);
            CaseReport::new("x".into(), (1, 2, 3), None, 2.0, vec![label])
        };
        let cases = [case(5, 0), case(0, 5), case(0, 0), case(5, 5)];
        let summary = Summary::of(vec![(1, "lung".into())], &cases);
        let lung = &summary.labels[0];
        assert_eq!((lung.missed, lung.invented), (1, 1));
        assert_eq!((lung.means.dice.values, lung.means.dice.undefined), (2, 2));
        let json = serde_json::to_value(lung).unwrap();
        assert_eq!(json["dice"]["mean"], 0.0);
        assert!(json["hd95"]["mean"].is_null());
    }
}
