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

/// The value, or where X is not above 0 `alpha` times the value: of X itself LeakyReLU, of dY its gradient by X. Of an X with
/// more samples than dY the first count.
#[derive(Debug, Clone, Copy)]
pub enum Leaky {
    Value,
    Gradient,
}

#[derive(Debug)]
pub struct LeakyKernel {
    leaky: Leaky,
    alpha: f32,
}

/// Elements that one thread takes at a time.
const CHUNK: usize = 1 << 14;

impl Operator for Leaky {
    type Kernel<'a> = LeakyKernel;

    fn name(&self) -> &'static str {
        match self {
            Self::Value => "LeakyReLU",
            Self::Gradient => "LeakyReLUGrad",
        }
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let count = match self {
            Self::Value => 1,
            Self::Gradient => 2,
        };
        (0..count).map(|_| OperatorInput::required(Float32))
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Float32)]
    }

    fn create_kernel(&self, context: &KernelContext<'_>) -> Result<LeakyKernel> {
        let missing = || ort::Error::new(format!("{} lacks alpha", self.name()));
        Ok(LeakyKernel { leaky: *self, alpha: context.get("alpha").ok_or_else(missing)? })
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> Result<()> {
        let values = context.inputs().remove(0);
        infer(context, 0, &values, |_, size| size)
    }
}

impl Kernel for LeakyKernel {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        let (shape, values) = input(context, 0)?;
        let x = match self.leaky {
            Leaky::Value => values,
            Leaky::Gradient => input(context, 1)?.1,
        };
        if x.len() < values.len() {
            let count = x.len();
            return Err(ort::Error::new(format!("gradient {shape:?} by {count} values")));
        }
        let parts = Parts::new(output(context, 0, &shape)?);
        par_for(context, values.len().div_ceil(CHUNK), |index| {
            let here = index * CHUNK..values.len().min((index + 1) * CHUNK);
            // SAFETY: one call an index.
            let y = unsafe { parts.range(here.start, here.len()) };
            weaken(&values[here.clone()], &x[here], self.alpha, y);
        })
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn weaken(values: &[f32], x: &[f32], alpha: f32, y: &mut [f32]) {
    for ((y, value), &x) in y.iter_mut().zip(values).zip(x) {
        *y = if x > 0.0 { *value } else { alpha * value };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_above_zero_is_weakened() {
        let mut y = [f32::NAN; 4];
        weaken(&[5.0, 5.0, -5.0, -5.0], &[1.0, -1.0, 0.0, 2.0], 0.2, &mut y);
        assert_eq!(y, [5.0, 1.0, -1.0, -5.0]);
    }
}
