use std::sync::Arc;

use ort::{
    Result,
    operator::{
        ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput,
        ShapeInferenceContext,
    },
    value::{Shape, SymbolicDimensions, TensorElementType::Float32, ValueType},
};

use super::{
    Parts,
    context::{constant, input, output, par_for},
    dimensions,
    scratch::Scratch,
    winograd::{Filters, Machine, Maps, Share},
};

/// Convolution of X [N, C, H, W] with W [K, C, 3, 3], stride and padding 1, plus B [K]; with `mean` the rescaled sum of it
/// and R [N, K, H, W], (R + Y)/√2.
#[derive(Debug)]
pub struct Conv3x3 {
    pub name: &'static str,
    pub mean: bool,
    pub(super) scratch: Arc<Scratch>,
}

#[derive(Debug)]
pub struct Conv3x3Kernel {
    mean: bool,
    machine: Machine,
    scratch: Arc<Scratch>,
    filters: Option<Filters>,
    /// Whether the filters are those of every run.
    is_fixed: bool,
}

impl Operator for Conv3x3 {
    type Kernel<'a> = Conv3x3Kernel;

    fn name(&self) -> &str {
        self.name
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let count = if self.mean { 4 } else { 3 };
        (0..count).map(|_| OperatorInput::required(Float32))
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Float32)]
    }

    fn create_kernel(&self, context: &KernelContext<'_>) -> Result<Conv3x3Kernel> {
        let machine = Machine::all().next().expect("one needs nothing");
        let (scratch, mean) = (Arc::clone(&self.scratch), self.mean);
        let filters = match (constant(context, 1)?, constant(context, 2)?) {
            (Some((shape, weights)), Some((_, bias))) => {
                let inputs = channels(&shape, bias.len())?;
                Some(Filters::new(weights, bias, inputs))
            }
            _ => None,
        };
        Ok(Conv3x3Kernel { mean, machine, scratch, is_fixed: filters.is_some(), filters })
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> Result<()> {
        let mut inputs = context.inputs();
        let outputs = match &inputs[1] {
            ValueType::Tensor { shape, .. } => shape.first().copied(),
            _ => None,
        };
        let mut y = inputs.remove(0);
        if let (ValueType::Tensor { shape, dimension_symbols, .. }, Some(outputs)) =
            (&mut y, outputs)
        {
            let mut sizes = shape.to_vec();
            if let Some(channels) = sizes.get_mut(1) {
                *channels = outputs;
            }
            *dimension_symbols = SymbolicDimensions::empty(sizes.len());
            *shape = Shape::new(sizes);
        }
        context.set_output(0, &y)
    }
}

/// Input channels of filters [outputs, inputs, 3, 3].
fn channels(shape: &[i64], outputs: usize) -> Result<usize> {
    match dimensions(shape)? {
        [k, inputs, 3, 3] if k == outputs => Ok(inputs),
        _ => Err(ort::Error::new(format!("filters {shape:?} with a bias of {outputs} values"))),
    }
}

impl Kernel for Conv3x3Kernel {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        let (shape, x) = input(context, 0)?;
        let [batch, inputs, height, width] = dimensions(&shape)?;
        if !self.is_fixed {
            let ((shape, weights), (_, bias)) = (input(context, 1)?, input(context, 2)?);
            let inputs = channels(&shape, bias.len())?;
            self.filters = Some(Filters::new(weights, bias, inputs));
        }
        let filters = self.filters.as_ref().expect("fixed or just made");
        if inputs != filters.inputs {
            let wanted = filters.inputs;
            return Err(ort::Error::new(format!("{inputs} channels where filters take {wanted}")));
        }
        let shape = [batch, filters.outputs, height, width].map(|d| d as i64);
        let residual = if self.mean {
            let (other, residual) = input(context, 3)?;
            if other[..] != shape {
                return Err(ort::Error::new(format!("{shape:?} and {other:?} are added")));
            }
            Some(residual)
        } else {
            None
        };
        let y = Parts::new(output(context, &shape)?);

        let maps = Maps { x, residual, batch, height, width };
        let (blocks, groups) = (maps.blocks(), filters.groups());
        // Where there are fewer blocks than threads, these share the outputs of one.
        let parts = self.scratch.threads().div_ceil(blocks.max(1)).min(groups);
        self.scratch.reserve(filters.scratch());
        par_for(context, blocks * parts, |index| {
            let (block, part) = (index / parts, index % parts);
            let share = Share { block, groups: part * groups / parts..(part + 1) * groups / parts };
            let mut scratch = self.scratch.take();
            // SAFETY: the machine was found to be this one; one call a share.
            unsafe { self.machine.convolve(filters, &maps, share, &y, &mut scratch) };
        })
    }
}
