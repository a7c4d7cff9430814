//! CPU kernels for the operators of the domain `cdal`: the memory-bound chains between the generator's convolutions,
//! each in as few passes over memory as it can be done in.
//!
//! `onnx/cdal_onnx/fused.py` defines the operators by standard ones, and a model carries these definitions; a session
//! without these kernels (on a GPU) runs them. Results do not depend on threads: each group or plane is one thread's.

mod context;
mod fir_up;
mod group_norm;
mod residual_mean;

use ort::{Result, operator::OperatorDomain};

/// The domain and all its kernels, to be added to a session that runs on the CPU.
pub(super) fn domain() -> Result<OperatorDomain> {
    OperatorDomain::new("cdal")?
        .add(group_norm::GroupNorm { name: "GroupNorm", offset: false, silu: false })?
        .add(group_norm::GroupNorm { name: "GroupNormSiLU", offset: false, silu: true })?
        .add(group_norm::GroupNorm { name: "OffsetGroupNormSiLU", offset: true, silu: true })?
        .add(residual_mean::ResidualMean)?
        .add(fir_up::FirUp)
}

/// [N, C, H, W] of a feature map.
fn dimensions(shape: &[i64]) -> Result<[usize; 4]> {
    match *shape {
        [n, c, h, w] => Ok([n, c, h, w].map(|d| d as usize)),
        _ => Err(ort::Error::new(format!("a feature map has four axes, not {shape:?}"))),
    }
}

/// A slice that threads write to in parts of their own.
struct Parts {
    start: *mut f32,
    length: usize,
}

// SAFETY: only disjoint parts are handed out, as `part` asks of its callers.
unsafe impl Sync for Parts {}

impl Parts {
    fn new(values: &mut [f32]) -> Self {
        Self { start: values.as_mut_ptr(), length: values.len() }
    }

    /// Elements `index * size` to `(index + 1) * size`.
    ///
    /// # Safety
    /// No two calls with the same index may have their results alive together, nor calls of different `size`.
    #[allow(clippy::mut_from_ref)]
    unsafe fn part(&self, index: usize, size: usize) -> &mut [f32] {
        assert!((index + 1) * size <= self.length, "a part lies within the output");
        // SAFETY: within the slice, and disjoint from other parts as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(index * size), size) }
    }
}
