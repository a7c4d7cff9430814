use std::path::Path;

use ndarray::{Array3, Array4, Array5, ArrayD, IxDyn};
use safetensors::{Dtype, SafeTensors};

use super::SegmenterError;
use crate::{engine::Interface, sampler::Recorded};

/// The noise file of `--noise`: everything random of a run, recorded by any implementation.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedNoise {
    /// [V, L, H, W].
    pub x_init: Array4<f32>,
    /// [T, V, nz].
    pub z: Array3<f32>,
    /// [T, V, L, H, W].
    pub noise: Array5<f32>,
}

impl RecordedNoise {
    /// Reads `x_init`, `z` and `noise` (float32) from a safetensors file; other tensors in it are ignored.
    ///
    /// # Errors
    /// If the file cannot be read or a tensor is missing or of other rank.
    pub fn read(path: &Path) -> Result<Self, SegmenterError> {
        let wrong = |reason: String| SegmenterError::Noise(format!("{}: {reason}", path.display()));
        let bytes = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| wrong(e.to_string()))?;
        Ok(Self {
            x_init: tensor(&file, "x_init", "[V, L, H, W]").map_err(wrong)?,
            z: tensor(&file, "z", "[T, V, nz]").map_err(wrong)?,
            noise: tensor(&file, "noise", "[T, V, L, H, W]").map_err(wrong)?,
        })
    }

    /// Votes V that it holds.
    #[must_use]
    pub fn votes(&self) -> usize {
        self.x_init.dim().0
    }

    #[must_use]
    pub fn view(&self) -> Recorded<'_> {
        Recorded { x_init: self.x_init.view(), z: self.z.view(), noise: self.noise.view() }
    }

    /// # Errors
    /// If it does not fit the network, T or the number of votes.
    pub fn check(
        &self,
        interface: &Interface,
        steps: usize,
        votes: usize,
    ) -> Result<(), SegmenterError> {
        let held = self.votes();
        if held == 0 {
            return Err(SegmenterError::Noise("it holds no votes".into()));
        }
        if votes > held {
            return Err(SegmenterError::Noise(format!(
                "it holds {held} votes and {votes} are asked for; give --votes {held} or less"
            )));
        }
        let [l, h, w] = interface.label();
        let expected: [(&str, &[usize], Vec<usize>); 3] = [
            ("x_init", self.x_init.shape(), vec![held, l, h, w]),
            ("z", self.z.shape(), vec![steps, held, interface.latent]),
            ("noise", self.noise.shape(), vec![steps, held, l, h, w]),
        ];
        for (name, found, wanted) in expected {
            if found != wanted {
                return Err(SegmenterError::Noise(format!(
                    "{name} has shape {found:?}, the bundle needs {wanted:?}"
                )));
            }
        }
        Ok(())
    }
}

/// A float32 tensor of the rank that the target array has.
pub(super) fn tensor<D: ndarray::Dimension>(
    file: &SafeTensors<'_>,
    name: &str,
    form: &str,
) -> Result<ndarray::Array<f32, D>, String> {
    let view = file.tensor(name).map_err(|_| format!("tensor {name} {form} is missing"))?;
    if view.dtype() != Dtype::F32 {
        return Err(format!("tensor {name} is {:?}, not float32", view.dtype()));
    }
    let values: Vec<f32> = view
        .data()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().expect("chunks of four")))
        .collect();
    if values.iter().any(|value| !value.is_finite()) {
        return Err(format!("tensor {name} holds NaN or infinity"));
    }
    ArrayD::from_shape_vec(IxDyn(view.shape()), values)
        .and_then(ndarray::ArrayD::into_dimensionality)
        .map_err(|_| format!("tensor {name} has shape {:?}, needed is {form}", view.shape()))
}
