use ndarray::{Array3, s};

use super::draws::index;
use crate::{
    bundle::{BundleError, Crop, Manifest, Prepared, prepare},
    domain::Volume,
};

/// A case with its truth, as the network sees them.
#[derive(Debug, Clone)]
pub struct Example {
    pub prepared: Prepared,
    /// [D, H, W] on the working grid; padding is background.
    pub working_truth: Array3<u8>,
    /// Numbers of the crops that show a label.
    telling: Vec<usize>,
}

impl Example {
    /// Prepares a case and lays its truth [D, H, W] on the working grid.
    ///
    /// # Errors
    /// If the case does not suit the model.
    pub fn new(
        manifest: &Manifest,
        volume: &Volume,
        truth: &Array3<u8>,
    ) -> Result<Self, BundleError> {
        let prepared = prepare(manifest, volume)?;
        let working_truth = prepared.grid.to_working(truth.view());
        let [height, width] = prepared.size;
        let shows = |crop: &Crop| {
            let rows = crop.row..crop.row + height;
            let columns = crop.column..crop.column + width;
            working_truth.slice(s![crop.slice, rows, columns]).iter().any(|&value| value > 0)
        };
        let crops = &prepared.crops;
        let telling = (0..crops.len()).filter(|&n| shows(&crops[n])).collect();
        Ok(Self { prepared, working_truth, telling })
    }

    /// A crop by two uniform numbers: five in six show the structure, where there is one.
    pub(super) fn choose(&self, telling: f64, which: f64) -> Crop {
        let crops = &self.prepared.crops;
        if self.telling.is_empty() || telling < 1.0 / 6.0 {
            crops[index(which, crops.len())]
        } else {
            crops[self.telling[index(which, self.telling.len())]]
        }
    }
}

/// A case held back to validate on: its truth stays on its own grid.
#[derive(Debug, Clone)]
pub struct Held {
    /// Its stem, or that of its seed.
    pub name: String,
    pub volume: Volume,
    /// [D, H, W] on the volume's grid.
    pub truth: Array3<u8>,
    pub prepared: Prepared,
}

impl Held {
    /// # Errors
    /// If the case does not suit the model.
    pub fn new(
        manifest: &Manifest,
        name: String,
        volume: Volume,
        truth: Array3<u8>,
    ) -> Result<Self, BundleError> {
        let prepared = prepare(manifest, &volume)?;
        Ok(Self { name, volume, truth, prepared })
    }
}
