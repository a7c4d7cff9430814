use std::{fmt, marker::PhantomData, ops::Range, sync::Arc};

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
    lanes::{Lanes, Line},
    machine::{Machine, Work},
    product::ROWS,
    scratch::Scratch,
};

/// Filters of a convolution with stride 1 that keeps the size of the map, prepared for one way to compute it.
pub(super) trait Filters: fmt::Debug + Send + Sync + 'static {
    /// Of a filter.
    const SIDE: usize;

    /// `weights`: [outputs, inputs, SIDE, SIDE]; `bias`: [outputs].
    fn new(weights: &[f32], bias: &[f32], inputs: usize) -> Self;

    fn inputs(&self) -> usize;

    fn outputs(&self) -> usize;

    /// Groups of outputs that are computed together.
    fn groups(&self) -> usize {
        self.outputs().div_ceil(ROWS)
    }

    /// Lines of scratch that a block needs, of any content.
    fn scratch(&self) -> usize;

    /// Parts of the maps that can be computed each for itself.
    fn blocks(maps: &Maps<'_>) -> usize;

    /// Computes a share of a convolution. `y`: [N, outputs, H, W]. To be inlined into a function that has the instructions.
    ///
    /// # Safety
    /// The machine has the instructions of `L`; no two calls at a time share an output of a block.
    unsafe fn convolve<L: Lanes>(
        &self,
        maps: &Maps<'_>,
        share: Share,
        y: &Parts,
        scratch: &mut [Line],
    );
}

/// What a convolution reads.
#[derive(Clone, Copy)]
pub(super) struct Maps<'a> {
    /// [N, inputs, H, W].
    pub x: &'a [f32],
    /// [N, outputs, H, W]: y becomes (residual + convolution)/√2.
    pub residual: Option<&'a [f32]>,
    pub batch: usize,
    pub height: usize,
    pub width: usize,
}

/// A block and the groups of outputs that are wanted of it.
#[derive(Debug, Clone)]
pub(super) struct Share {
    pub block: usize,
    pub groups: Range<usize>,
}

struct Task<'a, F> {
    filters: &'a F,
    maps: &'a Maps<'a>,
    share: Share,
    y: &'a Parts,
    scratch: &'a mut [Line],
}

impl<F: Filters> Work for Task<'_, F> {
    #[allow(clippy::inline_always)] // As in `lanes`.
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: as the caller promises, and whoever made the task.
        unsafe { self.filters.convolve::<L>(self.maps, self.share, self.y, self.scratch) }
    }
}

/// Convolution of X [N, C, H, W] with W [K, C, SIDE, SIDE], stride 1, padding SIDE/2, plus B [K]; with `mean` the rescaled
/// sum of it and R [N, K, H, W], (R + Y)/√2.
pub struct Convolution<F> {
    name: &'static str,
    mean: bool,
    scratch: Arc<Scratch>,
    filters: PhantomData<F>,
}

impl<F> Convolution<F> {
    pub(super) fn new(name: &'static str, mean: bool, scratch: &Arc<Scratch>) -> Self {
        Self { name, mean, scratch: Arc::clone(scratch), filters: PhantomData }
    }
}

#[derive(Debug)]
pub struct ConvolutionKernel<F> {
    mean: bool,
    machine: Machine,
    scratch: Arc<Scratch>,
    filters: Option<F>,
    /// Whether the filters are those of every run.
    is_fixed: bool,
}

impl<F: Filters> Operator for Convolution<F> {
    type Kernel<'a> = ConvolutionKernel<F>;

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

    fn create_kernel(&self, context: &KernelContext<'_>) -> Result<ConvolutionKernel<F>> {
        let machine = Machine::all().next().expect("one needs nothing");
        let (scratch, mean) = (Arc::clone(&self.scratch), self.mean);
        let filters = match (constant(context, 1)?, constant(context, 2)?) {
            (Some((shape, weights)), Some((_, bias))) => Some(filters(&shape, weights, bias)?),
            _ => None,
        };
        Ok(ConvolutionKernel { mean, machine, scratch, is_fixed: filters.is_some(), filters })
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

fn filters<F: Filters>(shape: &[i64], weights: &[f32], bias: &[f32]) -> Result<F> {
    match dimensions(shape)? {
        [k, inputs, height, width]
            if inputs > 0 && [k, height, width] == [bias.len(), F::SIDE, F::SIDE] =>
        {
            Ok(F::new(weights, bias, inputs))
        }
        _ => {
            Err(ort::Error::new(format!("filters {shape:?} with a bias of {} values", bias.len())))
        }
    }
}

impl<F: Filters> Kernel for ConvolutionKernel<F> {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        let (shape, x) = input(context, 0)?;
        let [batch, inputs, height, width] = dimensions(&shape)?;
        if !self.is_fixed {
            let ((shape, weights), (_, bias)) = (input(context, 1)?, input(context, 2)?);
            self.filters = Some(filters(&shape, weights, bias)?);
        }
        let filters = self.filters.as_ref().expect("fixed or just made");
        if inputs != filters.inputs() {
            let wanted = filters.inputs();
            return Err(ort::Error::new(format!("{inputs} channels where filters take {wanted}")));
        }
        let shape = [batch, filters.outputs(), height, width].map(|d| d as i64);
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
        let (blocks, groups) = (F::blocks(&maps), filters.groups());
        // Where there are fewer blocks than threads, these share the outputs of one.
        let parts = self.scratch.threads().div_ceil(blocks.max(1)).min(groups);
        self.scratch.reserve(filters.scratch());
        par_for(context, blocks * parts, |index| {
            let (block, part) = (index / parts, index % parts);
            let share = Share { block, groups: part * groups / parts..(part + 1) * groups / parts };
            let mut scratch = self.scratch.take();
            let task = Task { filters, maps: &maps, share, y: &y, scratch: &mut scratch };
            // SAFETY: the machine was found to be this one; one call a share.
            unsafe { self.machine.run(task) };
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{lanes::LANES, pointwise::Pointwise, winograd::Winograd},
        *,
    };

    /// Evenly spread over [-1, 1).
    fn spread(count: usize, seed: u64) -> Vec<f32> {
        let number = |index: u64| {
            let mixed = (index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
                ^ seed.wrapping_mul(0xD1B5_4A32_D192_ED03);
            let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            ((mixed ^ mixed >> 32) >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count as u64).map(number).collect()
    }

    struct Case {
        batch: usize,
        inputs: usize,
        outputs: usize,
        height: usize,
        width: usize,
        x: Vec<f32>,
        weights: Vec<f32>,
        bias: Vec<f32>,
        residual: Option<Vec<f32>>,
    }

    impl Case {
        fn new<F: Filters>(shape: [usize; 5], residual: bool) -> Self {
            let [batch, inputs, outputs, height, width] = shape;
            let maps = |channels| batch * channels * height * width;
            Self {
                batch,
                inputs,
                outputs,
                height,
                width,
                x: spread(maps(inputs), 1),
                weights: spread(outputs * inputs * F::SIDE * F::SIDE, 2),
                bias: spread(outputs, 3),
                residual: residual.then(|| spread(maps(outputs), 4)),
            }
        }

        fn found<F: Filters>(&self, machine: Machine, parts: usize) -> Vec<f32> {
            let filters = F::new(&self.weights, &self.bias, self.inputs);
            let Self { batch, height, width, .. } = *self;
            let maps =
                Maps { x: &self.x, residual: self.residual.as_deref(), batch, height, width };
            let mut y = vec![f32::NAN; batch * self.outputs * height * width];
            let parts_of_y = Parts::new(&mut y);
            // What was left behind by others is of no account.
            let mut scratch = vec![Line([f32::NAN; LANES]); filters.scratch()];
            for block in 0..F::blocks(&maps) {
                let bound = |part| part * filters.groups() / parts;
                for part in 0..parts {
                    let share = Share { block, groups: bound(part)..bound(part + 1) };
                    let (y, scratch) = (&parts_of_y, &mut scratch[..]);
                    // SAFETY: one call at a time.
                    unsafe {
                        machine.run(Task { filters: &filters, maps: &maps, share, y, scratch });
                    }
                }
            }
            y
        }

        /// As it is written down, in float64.
        fn by_definition<F: Filters>(&self) -> Vec<f64> {
            let Self { batch, inputs, outputs, height: h, width: w, .. } = *self;
            let mut y = Vec::with_capacity(batch * outputs * h * w);
            for index in 0..batch * outputs * h * w {
                let (column, row) = (index % w, index / w % h);
                let (output, image) = (index / w / h % outputs, index / w / h / outputs);
                let mut sum = f64::from(self.bias[output]);
                for input in 0..inputs {
                    let (taps, edge) = (F::SIDE * F::SIDE, F::SIDE / 2);
                    let filter = &self.weights[(output * inputs + input) * taps..][..taps];
                    for (at, &weight) in filter.iter().enumerate() {
                        let (r, c) = (row + at / F::SIDE, column + at % F::SIDE);
                        if (edge..h + edge).contains(&r) && (edge..w + edge).contains(&c) {
                            let plane = (image * inputs + input) * h;
                            let x = self.x[(plane + r - edge) * w + c - edge];
                            sum += f64::from(weight) * f64::from(x);
                        }
                    }
                }
                if let Some(residual) = &self.residual {
                    sum = (sum + f64::from(residual[index])) * std::f64::consts::FRAC_1_SQRT_2;
                }
                y.push(sum);
            }
            y
        }
    }

    /// On every machine, whole and in parts.
    fn check<F: Filters>(shapes: &[[usize; 5]]) {
        for machine in Machine::all() {
            for (&shape, residual) in shapes.iter().zip([false, true].into_iter().cycle()) {
                let case = Case::new::<F>(shape, residual);
                let (found, wanted) = (case.found::<F>(machine, 1), case.by_definition::<F>());
                let square =
                    |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
                let error = square(&mut found.iter().zip(&wanted).map(|(&f, w)| f64::from(f) - w));
                let relative = (error / square(&mut wanted.iter().copied())).sqrt();
                // Ten units in the last place.
                assert!(relative < 1e-6, "{machine:?}, {shape:?}: {relative:.1e}");
                assert_eq!(found, case.found::<F>(machine, 2), "{machine:?}, {shape:?}: in parts");
            }
        }
    }

    const SHAPES: [[usize; 5]; 12] = [
        [1, 1, 1, 1, 1],
        [1, 1, 8, 4, 4],
        [2, 3, 5, 7, 9],
        [1, 2, 3, 6, 64],
        [1, 4, 9, 5, 130],
        [3, 5, 8, 17, 33],
        [2, 2, 17, 9, 260],
        [5, 3, 4, 8, 8],
        [1, 32, 16, 16, 128],
        [7, 3, 8, 3, 3],
        [40, 2, 9, 1, 1],
        [3, 9, 12, 4, 4],
    ];

    #[test]
    fn winograd_gives_what_the_definition_gives() {
        check::<Winograd>(&SHAPES);
    }

    #[test]
    fn products_of_single_pixels_give_what_the_definition_gives() {
        check::<Pointwise>(&SHAPES);
    }

    #[test]
    fn an_image_comes_out_the_same_whatever_is_computed_beside_it() {
        fn check<F: Filters>(machine: Machine) {
            let [batch, inputs, outputs, side] = [5, 3, 9, 10];
            let mut case = Case::new::<F>([batch, inputs, outputs, side, side], true);
            let all = case.found::<F>(machine, 1);
            let (of_x, of_y) = (inputs * side * side, outputs * side * side);
            let residual = case.residual.take().unwrap();
            let alone = |image: usize| {
                let of = |maps: &[f32], size: usize| maps[image * size..][..size].to_vec();
                let (x, residual) = (of(&case.x, of_x), Some(of(&residual, of_y)));
                let (weights, bias) = (case.weights.clone(), case.bias.clone());
                Case { batch: 1, x, weights, bias, residual, ..case }.found::<F>(machine, 1)
            };
            let one_by_one: Vec<f32> = (0..batch).flat_map(alone).collect();
            assert_eq!(all, one_by_one, "{machine:?}");
        }
        for machine in Machine::all() {
            check::<Winograd>(machine);
            check::<Pointwise>(machine);
        }
    }
}
