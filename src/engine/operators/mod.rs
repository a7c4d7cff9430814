//! CPU kernels for the operators of the domain `cdal`: the memory-bound chains between the generator's convolutions,
//! each in as few passes over memory as it can be done in; its 3 x 3 convolutions with a quarter of the multiplications, and
//! its 1 x 1 convolutions without rearranging what they read.
//!
//! `onnx/cdal_onnx/fused.py` defines the operators by standard ones, and a model carries these definitions; a session
//! without these kernels (on a GPU) runs them. Results do not depend on threads: each group or plane is one thread's.

mod context;
mod convolution;
mod fir;
mod fir_down;
mod fir_up;
mod group_norm;
mod lanes;
mod machine;
mod pointwise;
mod product;
mod residual_mean;
mod scratch;
mod winograd;

use std::{sync::Arc, thread};

use ort::{Result, operator::OperatorDomain};

use self::{
    convolution::Convolution, fir::Fir, machine::Machine, pointwise::Pointwise, winograd::Winograd,
};

/// The domain and all its kernels, to be added to a session that runs on the CPU with this many threads inside an operator.
pub(super) fn domain(threads: Option<usize>) -> Result<OperatorDomain> {
    let domain = OperatorDomain::new("cdal")?
        .add(group_norm::GroupNorm { name: "GroupNorm", offset: false, silu: false })?
        .add(group_norm::GroupNorm { name: "GroupNormSiLU", offset: false, silu: true })?
        .add(group_norm::GroupNorm { name: "OffsetGroupNormSiLU", offset: true, silu: true })?
        .add(residual_mean::ResidualMean)?
        .add(Fir::Down)?
        .add(Fir::Up)?;
    // Elsewhere the runtime's own convolution serves, by the model's definitions.
    if !Machine::all().any(Machine::pays) {
        return Ok(domain);
    }
    let available = || thread::available_parallelism().map_or(1, Into::into);
    let scratch = Arc::new(scratch::Scratch::new(threads.unwrap_or_else(available)));
    domain
        .add(Convolution::<Winograd>::new("Conv3x3", false, &scratch))?
        .add(Convolution::<Winograd>::new("Conv3x3Mean", true, &scratch))?
        .add(Convolution::<Pointwise>::new("Conv1x1", false, &scratch))?
        .add(Convolution::<Pointwise>::new("Conv1x1Mean", true, &scratch))
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
        // SAFETY: disjoint from other parts as the caller promises.
        unsafe { self.range(index * size, size) }
    }

    /// `count` elements from `start` on.
    ///
    /// # Safety
    /// No two results that overlap may be alive together.
    #[allow(clippy::mut_from_ref)]
    unsafe fn range(&self, start: usize, count: usize) -> &mut [f32] {
        assert!(start + count <= self.length, "a part lies within the output");
        // SAFETY: within the slice, and disjoint from others as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), count) }
    }
}
