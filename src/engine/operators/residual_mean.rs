use std::f32::consts::FRAC_1_SQRT_2;

use multiversion::multiversion;
use ort::{
    Result,
    operator::{
        ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput,
        ShapeInferenceContext,
    },
    value::TensorElementType::Float32,
};

use super::{
    Parts,
    context::{input, output, par_for},
    infer,
};

/// (A + B)/√2, the rescaled sum of a residual connection.
pub struct ResidualMean;

/// Elements that one thread takes at a time.
const CHUNK: usize = 1 << 14;

impl Operator for ResidualMean {
    type Kernel<'a> = Self;

    fn name(&self) -> &'static str {
        "ResidualMean"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::required(Float32), OperatorInput::required(Float32)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Float32)]
    }

    fn create_kernel(&self, _: &KernelContext<'_>) -> Result<Self> {
        Ok(Self)
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> Result<()> {
        let a = context.inputs().remove(0);
        infer(context, 0, &a, |_, size| size)
    }
}

impl Kernel for ResidualMean {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        let ((shape, a), (other, b)) = (input(context, 0)?, input(context, 1)?);
        if shape != other {
            return Err(ort::Error::new(format!("{shape:?} and {other:?} are added")));
        }
        let y = output(context, 0, &shape)?;
        let whole = a.len() / CHUNK;
        let parts = Parts::new(y);
        par_for(context, whole, |index| {
            let here = index * CHUNK..(index + 1) * CHUNK;
            // SAFETY: one call an index.
            mean(&a[here.clone()], &b[here], unsafe { parts.part(index, CHUNK) });
        })?;
        let rest = whole * CHUNK;
        mean(&a[rest..], &b[rest..], &mut y[rest..]);
        Ok(())
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn mean(a: &[f32], b: &[f32], y: &mut [f32]) {
    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
        *y = (a + b) * FRAC_1_SQRT_2;
    }
}
