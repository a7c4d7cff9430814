//! From votes on crops to a mask on the source's grid.

use ndarray::{Array3, Array4, ArrayView3, Axis, Zip, s};

use super::{Crop, Decision, Grid, Manifest, Polarity};
use crate::domain::Segmentation;

/// Sums of what the votes said, on the working grid.
#[derive(Debug, Clone)]
pub struct Assembly {
    /// [L, D, H, W]: rounded means, added up where windows overlap.
    rounded: Array4<f32>,
    /// [L, D, H, W]: means, likewise.
    means: Array4<f32>,
    /// [D, H, W]: samples that covered a voxel.
    covered: Array3<f32>,
}

impl Assembly {
    #[must_use]
    pub fn new(label_channels: usize, grid: &Grid) -> Self {
        let [d, h, w] = grid.working;
        let shape = (label_channels, d, h, w);
        Self {
            rounded: Array4::zeros(shape),
            means: Array4::zeros(shape),
            covered: Array3::zeros((d, h, w)),
        }
    }

    /// Adds the mean of the votes [L, H, W] on one sample of `crop` and its rounding.
    pub fn add(&mut self, crop: Crop, mean: ArrayView3<'_, f32>, rounded: ArrayView3<'_, f32>) {
        let Crop { slice, row, column } = crop;
        let (_, height, width) = mean.dim();
        let area = s![.., slice, row..row + height, column..column + width];
        let mut target = self.rounded.slice_mut(area);
        target += &rounded;
        let mut target = self.means.slice_mut(area);
        target += &mean;
        let mut count =
            self.covered.slice_mut(s![slice, row..row + height, column..column + width]);
        count += 1.0;
    }

    /// Decides every voxel and carries mask and agreement back to the source's grid.
    #[must_use]
    pub fn finish(self, manifest: &Manifest, grid: &Grid) -> Segmentation {
        let [d, h, w] = grid.inner();
        let [a, b, c] = grid.offset;
        let inner = s![.., a..a + d, b..b + h, c..c + w];
        let covered = self.covered.slice(s![a..a + d, b..b + h, c..c + w]);
        let average = |sums: &Array4<f32>| {
            let mut average = sums.slice(inner).to_owned();
            for mut channel in average.axis_iter_mut(Axis(0)) {
                channel /= &covered;
            }
            average
        };
        let rounded = average(&self.rounded);
        let means = average(&self.means);

        let mut mask = Array3::<u8>::zeros((d, h, w));
        let mut agreement = Vec::new();
        match manifest.decision {
            Decision::Argmax => {
                Zip::indexed(&mut mask).for_each(|(k, j, i), value| {
                    let votes = rounded.slice(s![.., k, j, i]);
                    let mut best = 0;
                    for label in 1..votes.len() {
                        if votes[label] > votes[best] {
                            best = label;
                        }
                    }
                    *value = best as u8;
                });
                agreement.extend(means.axis_iter(Axis(0)).skip(1).map(|share| share.to_owned()));
            }
            Decision::Threshold { foreground } => {
                let flip = foreground == Polarity::Negative;
                let toward = |share: f32| if flip { 1.0 - share } else { share };
                Zip::from(&mut mask).and(rounded.index_axis(Axis(0), 0)).for_each(|value, &share| {
                    // 1 - rounded mean, so that a tie falls to where the published polarity puts it
                    *value = u8::from(toward(share.round_ties_even()) > 0.5);
                });
                agreement.push(means.index_axis(Axis(0), 0).mapv(toward));
            }
        }
        let on_source: Vec<Array3<f32>> = agreement.iter().map(|share| grid.to_source(share)).collect();
        let views: Vec<_> = on_source.iter().map(|share| share.view()).collect();
        Segmentation {
            mask: grid.to_source(&mask),
            agreement: ndarray::stack(Axis(0), &views).expect("all labels share one grid"),
        }
    }
}
