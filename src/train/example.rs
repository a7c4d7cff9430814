use ndarray::{Array3, Axis, s};

use super::{TrainError, draws::index};
use crate::{
    bundle::{self, Manifest, Prepared},
    domain::Volume,
};

/// A case with its truth, as the network sees them.
#[derive(Debug, Clone)]
pub struct Example {
    pub volume: Volume,
    /// [D, H, W] on the volume's grid.
    pub truth: Array3<u8>,
    pub prepared: Prepared,
    /// [D, H, W] on the working grid; padding is background.
    pub working_truth: Array3<u8>,
    /// Numbers of the crops that show a label.
    telling: Vec<usize>,
}

impl Example {
    /// Prepares a case and lays its truth on the working grid.
    ///
    /// # Errors
    /// If the case does not suit the model.
    pub fn new(
        manifest: &Manifest,
        (volume, truth): (Volume, Array3<u8>),
    ) -> Result<Self, TrainError> {
        let prepared = bundle::prepare(manifest, &volume)?;
        let labels = truth.view().insert_axis(Axis(0)).to_owned();
        let (oriented, _) = bundle::to_canonical(manifest, &labels, volume.geometry.as_ref());
        let [d, h, w] = prepared.grid.working;
        let [a, b, c] = prepared.grid.offset;
        let mut working_truth = Array3::zeros((d, h, w));
        let (_, d, h, w) = oriented.dim();
        working_truth
            .slice_mut(s![a..a + d, b..b + h, c..c + w])
            .assign(&oriented.index_axis(Axis(0), 0));
        let crops = &prepared.crops;
        let size = prepared.size;
        let shows = |crop: &bundle::Crop| {
            let rows = crop.row..crop.row + size[0];
            let columns = crop.column..crop.column + size[1];
            working_truth.slice(s![crop.slice, rows, columns]).iter().any(|&value| value > 0)
        };
        let telling = (0..crops.len()).filter(|&n| shows(&crops[n])).collect();
        Ok(Self { volume, truth, prepared, working_truth, telling })
    }

    /// A crop by two uniform numbers: five in six show the structure, where there is one.
    pub(super) fn choose(&self, telling: f64, which: f64) -> bundle::Crop {
        let crops = &self.prepared.crops;
        if self.telling.is_empty() || telling < 1.0 / 6.0 {
            crops[index(which, crops.len())]
        } else {
            crops[self.telling[index(which, self.telling.len())]]
        }
    }
}

impl From<crate::phantom::Phantom> for (Volume, Array3<u8>) {
    fn from(phantom: crate::phantom::Phantom) -> Self {
        (phantom.volume, phantom.truth)
    }
}
