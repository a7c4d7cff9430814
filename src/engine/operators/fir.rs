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
    dimensions,
    fir_down::down,
    fir_up::up,
    infer,
};

/// A FIR with four taps along both axes that doubles or halves the size of the map.
#[derive(Debug, Clone, Copy)]
pub enum Fir {
    Up,
    Down,
}

#[derive(Debug)]
pub struct FirKernel {
    fir: Fir,
    taps: [f32; 4],
}

impl Fir {
    fn resized(self, size: usize) -> usize {
        match self {
            Self::Up => 2 * size,
            Self::Down => size / 2,
        }
    }
}

impl Operator for Fir {
    type Kernel<'a> = FirKernel;

    fn name(&self) -> &'static str {
        match self {
            Self::Up => "FirUp",
            Self::Down => "FirDown",
        }
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::required(Float32)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Float32)]
    }

    fn create_kernel(&self, context: &KernelContext<'_>) -> Result<FirKernel> {
        let taps: Vec<f32> = context.get("taps").unwrap_or_default();
        let refused = |t| ort::Error::new(format!("{} has taps {t:?}, not 4", self.name()));
        Ok(FirKernel { fir: *self, taps: taps.try_into().map_err(refused)? })
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> Result<()> {
        let x = context.inputs().remove(0);
        infer(context, 0, &x, |axis, size| match usize::try_from(size) {
            Ok(size) if axis >= 2 => self.resized(size) as i64,
            _ => size,
        })
    }
}

impl Kernel for FirKernel {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        let (shape, x) = input(context, 0)?;
        let [n, c, h, w] = dimensions(&shape)?;
        let [height, width] = [h, w].map(|size| self.fir.resized(size));
        let parts = Parts::new(output(context, 0, &[n, c, height, width].map(|d| d as i64))?);
        let filter = match self.fir {
            Fir::Up => up,
            Fir::Down => down,
        };
        par_for(context, n * c, |plane| {
            let from = &x[plane * h * w..(plane + 1) * h * w];
            // SAFETY: one call a plane.
            filter(from, w, &self.taps, unsafe { parts.part(plane, height * width) });
        })
    }
}
