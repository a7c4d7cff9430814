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
mod group_norm_gradient;
mod lanes;
mod leaky;
mod machine;
mod pointwise;
mod pointwise_gradient;
mod product;
mod residual_mean;
mod scratch;
mod weight_gradient;
mod winograd;
mod winograd_gradient;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use ort::{
    Result,
    operator::{OperatorDomain, ShapeInferenceContext},
    value::{Shape, SymbolicDimensions, ValueType},
};

use self::{
    convolution::{Convolution, Kind},
    fir::Fir,
    group_norm_gradient::GroupNormGradient,
    leaky::Leaky,
    machine::Machine,
    pointwise::Pointwise,
    pointwise_gradient::PointwiseGradient,
    weight_gradient::WeightGradient,
    winograd::Winograd,
    winograd_gradient::WinogradGradient,
};

/// The domain and all its kernels, to be added to a session that runs on the CPU with this many threads inside an operator.
pub(super) fn domain(threads: Option<usize>) -> Result<OperatorDomain> {
    let domain = OperatorDomain::new("cdal")?
        .add(group_norm::GroupNorm { name: "GroupNorm", offset: false, silu: false })?
        .add(group_norm::GroupNorm { name: "GroupNormSiLU", offset: false, silu: true })?
        .add(group_norm::GroupNorm { name: "OffsetGroupNormSiLU", offset: true, silu: true })?
        .add(GroupNormGradient { name: "GroupNormGrad", offset: false, silu: false })?
        .add(GroupNormGradient { name: "GroupNormSiLUGrad", offset: false, silu: true })?
        .add(GroupNormGradient { name: "OffsetGroupNormSiLUGrad", offset: true, silu: true })?
        .add(Leaky::Value)?
        .add(Leaky::Gradient)?
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
        .add(Convolution::<Winograd>::new("Conv3x3", Kind::Plain, &scratch))?
        .add(Convolution::<Winograd>::new("Conv3x3Mean", Kind::Mean, &scratch))?
        .add(Convolution::<Winograd>::new("Conv3x3Linear", Kind::Linear, &scratch))?
        .add(Convolution::<Winograd>::new("Conv3x3InputGrad", Kind::InputGradient, &scratch))?
        .add(Convolution::<Pointwise>::new("Conv1x1", Kind::Plain, &scratch))?
        .add(Convolution::<Pointwise>::new("Conv1x1Mean", Kind::Mean, &scratch))?
        .add(Convolution::<Pointwise>::new("Conv1x1Linear", Kind::Linear, &scratch))?
        .add(Convolution::<Pointwise>::new("Conv1x1InputGrad", Kind::InputGradient, &scratch))?
        .add(WeightGradient::<WinogradGradient>::new("Conv3x3WeightGrad", &scratch))?
        .add(WeightGradient::<PointwiseGradient>::new("Conv1x1WeightGrad", &scratch))
}

/// [N, C, H, W] of a feature map.
fn dimensions(shape: &[i64]) -> Result<[usize; 4]> {
    match *shape {
        [n, c, h, w] => Ok([n, c, h, w].map(|d| d as usize)),
        _ => Err(ort::Error::new(format!("a feature map has four axes, not {shape:?}"))),
    }
}

/// Tells the runtime that an output is a tensor like another with other sizes.
///
/// A size that is neither known nor named gets a name that no other has: the runtime would take -1 for a size, and an output
/// that is not told of for a scalar.
fn infer(
    context: &mut ShapeInferenceContext,
    output: usize,
    like: &ValueType,
    size: impl Fn(usize, i64) -> i64,
) -> Result<()> {
    static NAMES: AtomicUsize = AtomicUsize::new(0);
    let ValueType::Tensor { ty, shape, dimension_symbols } = like else {
        return Ok(());
    };
    let sizes: Vec<i64> = shape.iter().enumerate().map(|(axis, &d)| size(axis, d)).collect();
    let names = sizes.iter().zip(dimension_symbols.iter()).map(|(&size, name)| match size {
        0.. => String::new(),
        _ if name.is_empty() => format!("cdal_{}", NAMES.fetch_add(1, Ordering::Relaxed)),
        _ => name.clone(),
    });
    let dimension_symbols = SymbolicDimensions::new(names);
    let shape = Shape::new(sizes);
    context.set_output(output, &ValueType::Tensor { ty: *ty, shape, dimension_symbols })
}

/// Of feature maps, whatever channels they have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    batch: usize,
    height: usize,
    width: usize,
}

impl Size {
    /// Of all images together.
    fn pixels(self) -> usize {
        self.batch * self.height * self.width
    }
}

/// A slice that threads write to in parts of their own.
struct Parts<T = f32> {
    start: *mut T,
    length: usize,
}

// SAFETY: only disjoint parts are handed out, as `part` asks of its callers.
unsafe impl<T: Send> Sync for Parts<T> {}

impl<T> Parts<T> {
    fn new(values: &mut [T]) -> Self {
        Self { start: values.as_mut_ptr(), length: values.len() }
    }

    /// Elements `index * size` to `(index + 1) * size`.
    ///
    /// # Safety
    /// No two calls with the same index may have their results alive together, nor calls of different `size`.
    #[allow(clippy::mut_from_ref)]
    unsafe fn part(&self, index: usize, size: usize) -> &mut [T] {
        // SAFETY: disjoint from other parts as the caller promises.
        unsafe { self.range(index * size, size) }
    }

    /// `count` elements from `start` on.
    ///
    /// # Safety
    /// No two results that overlap may be alive together.
    #[allow(clippy::mut_from_ref)]
    unsafe fn range(&self, start: usize, count: usize) -> &mut [T] {
        assert!(start + count <= self.length, "a part lies within the output");
        // SAFETY: within the slice, and disjoint from others as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), count) }
    }
}
