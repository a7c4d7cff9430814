//! What the network should say of labels: the decision of `assemble`, reversed.

use ndarray::{Array3, ArrayView2};

use super::{Decision, Manifest, Polarity};

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
