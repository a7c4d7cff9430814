//! From votes on crops to a mask on the source's grid.

use std::cmp::Ordering;

use ndarray::{Array3, Array4, ArrayView1, ArrayView3, Axis, Zip, s};

use super::{Crop, Decision, Grid, Manifest, Polarity, Rounding};
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
    pub fn finish(&self, manifest: &Manifest, grid: &Grid) -> Segmentation {
        let means = self.average(&self.means, grid);
        let shares =
            |label: usize| grid.shares_to_source(&means.index_axis(Axis(0), label).to_owned());
        let (mask, agreement) = match manifest.decision {
            Decision::Argmax if grid.is_resampled() => {
                let shares: Vec<_> = (0..means.dim().0).map(shares).collect();
                let winner = stack(&shares).map_axis(Axis(0), largest);
                (grid.mask_to_source(winner), shares.into_iter().skip(1).collect())
            }
            Decision::Argmax => {
                let winner = self.average(&self.rounded, grid).map_axis(Axis(0), largest);
                (grid.mask_to_source(winner), (1..means.dim().0).map(shares).collect())
            }
            Decision::Threshold { foreground, rounded: at } => {
                let flip = foreground == Polarity::Negative;
                let toward = |share: f32| if flip { 1.0 - share } else { share };
                // 1 - rounded mean, so that a tie falls to where the published polarity puts it
                let decide = |share: f32| u8::from(toward(share.round_ties_even()) > 0.5);
                let share = shares(0);
                let mask = match at {
                    Rounding::Network if !grid.is_resampled() => {
                        let rounded = self.average(&self.rounded, grid);
                        grid.mask_to_source(rounded.index_axis(Axis(0), 0).mapv(decide))
                    }
                    _ => share.mapv(decide),
                };
                (mask, vec![share.mapv(toward)])
            }
        };
        Segmentation { mask, agreement: stack(&agreement) }
    }

    /// The mask [D, H, W] on the source's grid, and which of its voxels may still become another label, given
    /// assemblies of the smallest and of the largest means that the vote can still come to.
    #[must_use]
    pub fn open_voxels(
        &self,
        [lowest, highest]: [&Self; 2],
        manifest: &Manifest,
        grid: &Grid,
    ) -> (Array3<u8>, Array3<bool>) {
        let mask = self.finish(manifest, grid).mask;
        let open = match manifest.decision {
            // All that is done to a mean is monotone, so that the extremes show whether it can turn over.
            Decision::Threshold { .. } => {
                let [low, high] = [lowest, highest].map(|bound| bound.finish(manifest, grid).mask);
                Zip::from(&low).and(&high).map_collect(|low, high| low != high)
            }
            Decision::Argmax => {
                let [now, low, high] =
                    [self, lowest, highest].map(|assembly| assembly.votes_where_decided(grid));
                let open = Zip::from(now.lanes(Axis(0)))
                    .and(low.lanes(Axis(0)))
                    .and(high.lanes(Axis(0)))
                    .map_collect(|now, low, high| {
                        let winner = usize::from(largest(now));
                        let beaten = |label: usize| match label.cmp(&winner) {
                            Ordering::Less => high[label] < low[winner],
                            Ordering::Equal => true,
                            Ordering::Greater => high[label] <= low[winner],
                        };
                        u8::from(!(0..now.len()).all(beaten))
                    });
                grid.mask_to_source(open).mapv(|open| open > 0)
            }
        };
        (mask, open)
    }

    /// What the largest of labels is taken of, [L, D, H, W]: on the source's grid, the means where the case was resampled;
    /// otherwise on the model's, the rounded means.
    fn votes_where_decided(&self, grid: &Grid) -> Array4<f32> {
        if !grid.is_resampled() {
            return self.average(&self.rounded, grid);
        }
        let means = self.average(&self.means, grid);
        let shares: Vec<_> =
            means.axis_iter(Axis(0)).map(|mean| grid.shares_to_source(&mean.to_owned())).collect();
        stack(&shares)
    }

    /// Sums on the working grid as averages over the samples that covered a voxel, padding cut off.
    fn average(&self, sums: &Array4<f32>, grid: &Grid) -> Array4<f32> {
        let [d, h, w] = grid.inner();
        let [a, b, c] = grid.offset;
        let covered = self.covered.slice(s![a..a + d, b..b + h, c..c + w]);
        let mut average = sums.slice(s![.., a..a + d, b..b + h, c..c + w]).to_owned();
        for mut channel in average.axis_iter_mut(Axis(0)) {
            // What nothing covered yet is 0, background.
            Zip::from(&mut channel).and(&covered).for_each(|sum, &n| *sum /= n.max(1.0));
        }
        average
    }
}

/// [D, H, W] of each label as [L, D, H, W].
fn stack(labels: &[Array3<f32>]) -> Array4<f32> {
    let views: Vec<_> = labels.iter().map(|label| label.view()).collect();
    ndarray::stack(Axis(0), &views).expect("all labels share one grid")
}

/// The channel with the largest value, the first where several are.
fn largest(votes: ArrayView1<'_, f32>) -> u8 {
    let mut best = 0;
    for label in 1..votes.len() {
        if votes[label] > votes[best] {
            best = label;
        }
    }
    best as u8
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ndarray::{Array3, array};

    use super::*;
    use crate::{
        bundle::prepare,
        domain::{Geometry, Volume},
    };

    const REST: &str = "
diffusion = { steps = 2, variance = \"preserving\", beta_min = 0.1, beta_max = 20.0 }
network = { label_channels = LABELS, features = 32, latent = 10 }
";

    /// A preset for crops of `size`, with the line `from` replaced by `to`.
    fn preset(text: &str, size: usize, labels: usize, from: &str, to: &str) -> Manifest {
        assert!(text.contains(from), "{from}");
        let text = text.replace(from, to).replace("$size", &size.to_string());
        let text = text.replace("$name", "a").replace("$version", "1");
        // Tables follow keys in TOML.
        let rest = REST.replace("LABELS", &labels.to_string());
        Manifest::parse(
            &text.replacen("schema = 1", &format!("schema = 1{rest}"), 1),
            Path::new("p"),
        )
        .unwrap()
    }

    fn volume([d, h, w]: [usize; 3]) -> Volume {
        let samples = Array4::from_shape_fn((1, d, h, w), |(_, k, j, i)| (k + j * i) as f32);
        let geometry = Some(Geometry {
            origin: [0.0; 3],
            direction: [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]],
            spacing: [1.0; 3],
        });
        Volume { samples, geometry, nominal_range: Some((0.0, 255.0)) }
    }

    #[test]
    fn a_mean_rounded_on_the_image_draws_an_outline_between_the_networks_pixels() {
        let mask = |to: &str| {
            let text = include_str!("../../onnx/cdal_onnx/presets/lung.toml");
            let manifest = preset(text, 2, 1, "foreground = \"negative\"", to);
            let grid = prepare(&manifest, &volume([1, 2, 8])).unwrap().grid;
            let mut assembly = Assembly::new(1, &grid);
            let mean = array![[[0.0, 0.8], [0.0, 0.8]]];
            let crop = Crop { slice: 0, row: 0, column: 0 };
            assembly.add(crop, mean.view(), mean.mapv(f32::round_ties_even).view());
            assembly.finish(&manifest, &grid).mask.into_raw_vec_and_offset().0[..8].to_vec()
        };
        assert_eq!(mask("foreground = \"negative\""), [1, 1, 1, 1, 0, 0, 0, 0]);
        let fine = "foreground = \"negative\"\nrounded = \"image\"";
        assert_eq!(mask(fine), [1, 1, 1, 1, 1, 0, 0, 0]);
    }

    #[test]
    fn each_slice_once_keeps_every_crop_and_drops_the_overlap_in_depth() {
        let text = include_str!("../../onnx/cdal_onnx/presets/hippocampus.toml");
        let of = |to: &str| {
            let manifest = preset(text, 32, 3, "overlap = 0.75", to);
            prepare(&manifest, &volume([36, 35, 50])).unwrap()
        };
        let literal = of("overlap = 0.75");
        let once = of("overlap = 0.75\nplan = \"each-slice-once\"");
        assert_eq!(literal.crops, once.crops);
        assert_eq!(once.crops.len(), 36 * 2 * 4);
        assert_eq!(literal.samples.len(), 64 * 2 * 4);
        let seen: Vec<usize> = once.samples.iter().map(|sample| sample.crop).collect();
        assert_eq!(seen, (0..once.crops.len()).collect::<Vec<_>>());
    }

    #[test]
    fn the_first_of_equal_channels_wins() {
        assert_eq!(largest(array![0.5, 0.5, 0.2].view()), 0);
        assert_eq!(largest(array![0.1, 0.4, 0.4].view()), 1);
        let votes = Array3::<f32>::zeros((3, 1, 1));
        assert_eq!(votes.map_axis(Axis(0), largest)[[0, 0]], 0);
    }
}
