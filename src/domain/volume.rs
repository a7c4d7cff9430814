use ndarray::{Array3, Array4};

use super::{Geometry, Precision};

/// An image or a stack of slices as it was acquired: modality values, no normalisation.
#[derive(Debug, Clone, PartialEq)]
pub struct Volume {
    /// [C, D, H, W]: channels (1 grey, 3 RGB), slices, rows, columns. Finite.
    pub samples: Array4<f32>,
    /// `None` where the source says nothing about space (PNG, most 2-D X-rays).
    pub geometry: Option<Geometry>,
    /// Black and white of the source's value range, such as (0, 255) for 8-bit samples or the DICOM
    /// window; `None` where the format names none (float images).
    pub nominal_range: Option<(f32, f32)>,
}

/// What the sampler found in a volume, on the volume's own grid.
#[derive(Debug, Clone, PartialEq)]
pub struct Segmentation {
    /// [D, H, W]: label value per voxel, 0 for background.
    pub mask: Array3<u8>,
    /// [labels, D, H, W]: share of agreement of the votes for each label in label order, in [0, 1].
    pub agreement: Array4<f32>,
}

/// All that is needed to compute a result again; written into the result itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    pub model: String,
    pub model_version: String,
    /// SHA-256 of the model bundle, hexadecimal.
    pub model_digest: String,
    /// Of the denoiser; the golden case holds the others against the canonical one.
    pub precision: Precision,
    /// Diffusion time-steps T.
    pub steps: usize,
    pub votes: usize,
    /// How a vote that could end early did, such as "exact drawn=3.20 dice=1.0000"; empty where it could not.
    pub ending: String,
    pub seed: u64,
    /// Version of this program.
    pub software_version: String,
    /// Revision of the configuration in force; empty for one-shot runs.
    pub configuration: String,
}
