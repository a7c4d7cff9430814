//! From a mask on the source's grid to what the network should say of it: the way of `assemble`, reversed.

use ndarray::{Array3, ArrayView2, ArrayView3, Axis, Zip, s};

use super::{Decision, Grid, Manifest, Polarity, resize::resize_bilinear};

impl Grid {
    /// Lays a mask [D, H, W] of label values on the source's grid onto the working grid, turned, resized and padded
    /// as the image was. Where resizing mixes labels, the one with the largest share is taken; padding is
    /// background.
    #[must_use]
    pub fn to_working(&self, mask: ArrayView3<'_, u8>) -> Array3<u8> {
        let oriented = self.orient(mask);
        let [d, h, w] = self.inner;
        let inner = if oriented.shape() == self.inner {
            oriented.to_owned()
        } else {
            resize_labels(oriented, [h, w])
        };
        let mut working = Array3::zeros(self.working);
        let [a, b, c] = self.offset;
        working.slice_mut(s![a..a + d, b..b + h, c..c + w]).assign(&inner);
        working
    }
}

/// Every label's share of a pixel, by the filter that resizes images, and the largest of them; the lower label where
/// two are equal.
fn resize_labels(mask: ArrayView3<'_, u8>, size: [usize; 2]) -> Array3<u8> {
    let largest = mask.iter().copied().max().unwrap_or(0);
    let share = |label: u8| {
        let is_label = mask.mapv(|value| f32::from(u8::from(value == label)));
        resize_bilinear(is_label.insert_axis(Axis(0)).view(), size).remove_axis(Axis(0))
    };
    let mut best = share(0);
    let mut resized = Array3::zeros(best.raw_dim());
    for label in 1..=largest {
        Zip::from(&mut resized).and(&mut best).and(&share(label)).for_each(
            |value, best, &share| {
                if share > *best {
                    (*value, *best) = (label, share);
                }
            },
        );
    }
    resized
}

impl Manifest {
    /// What the network should say of a crop with the labels [H, W]: [L, H, W] of -1 and 1. One channel for each
    /// label value where the decision is by argmax; one channel in the model's polarity where it is by threshold.
    #[must_use]
    pub fn target(&self, labels: ArrayView2<'_, u8>) -> Array3<f32> {
        let (h, w) = labels.dim();
        let sign = |positive: bool| if positive { 1.0 } else { -1.0 };
        Array3::from_shape_fn((self.network.label_channels, h, w), |(channel, row, column)| {
            let label = labels[[row, column]];
            match self.decision {
                Decision::Argmax => sign(usize::from(label) == channel),
                Decision::Threshold { foreground, .. } => {
                    sign((label > 0) == (foreground == Polarity::Positive))
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shrunk_pixel_takes_the_label_that_covers_most_of_it() {
        let mask = Array3::from_shape_vec((1, 2, 6), [[0, 0, 0, 2, 2, 1]; 2].concat()).unwrap();
        assert_eq!(resize_labels(mask.view(), [1, 2]).into_raw_vec_and_offset().0, [0, 2]);
        assert_eq!(
            resize_labels(mask.view(), [1, 6]).into_raw_vec_and_offset().0,
            [0, 0, 0, 2, 2, 1]
        );
    }
}
