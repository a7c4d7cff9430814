use std::{fmt, marker::PhantomData, ops::Range, sync::Arc};

use ort::{
    Result,
    operator::{
        ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput,
        ShapeInferenceContext,
    },
    value::{TensorElementType::Float32, ValueType},
};

use super::{
    Parts, Size,
    context::{constant, input, output, par_for},
    dimensions, infer,
    lanes::{Lanes, Line},
    machine::{Machine, Work},
    product::{ROWS, flat_mut},
    scratch::Scratch,
};

/// One way to compute a convolution with stride 1 that keeps the size of the map.
pub(super) trait Method: fmt::Debug + Send + Sync + 'static {
    /// Of a filter.
    const SIDE: usize;

    /// Numbers that the filters of a group of outputs are prepared into.
    fn prepared(inputs: usize) -> usize;

    /// Prepares the filters of a group of outputs; every number of `to` is written.
    ///
    /// # Safety
    /// The machine has the instructions of `L`.
    unsafe fn prepare<L: Lanes>(weights: &Weights<'_>, group: usize, to: &mut [f32]);

    /// Lines of scratch that a block needs, of any content.
    fn scratch(inputs: usize) -> usize;

    /// Parts of the maps that can be computed each for itself.
    fn blocks(size: Size) -> usize;

    /// Computes a share of a convolution. `y`: [N, outputs, H, W]. To be inlined into a function that has the instructions.
    ///
    /// # Safety
    /// The machine has the instructions of `L`; no two calls at a time share an output of a block.
    unsafe fn convolve<L: Lanes>(
        filters: &Filters<'_>,
        maps: &Maps<'_>,
        share: Share,
        y: &Parts,
        scratch: &mut [Line],
    );
}

/// Weights as a model holds them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weights<'a> {
    /// [outputs, inputs, SIDE, SIDE], or where `is_turned` [inputs, outputs, SIDE, SIDE] with every filter read backwards:
    /// what the gradient of a convolution by its input convolves with.
    pub values: &'a [f32],
    pub outputs: usize,
    pub inputs: usize,
    pub is_turned: bool,
}

impl Weights<'_> {
    /// Groups of outputs that are computed together.
    pub fn groups(&self) -> usize {
        self.outputs.div_ceil(ROWS)
    }

    /// The filter from an input to an output.
    pub fn filter<const TAPS: usize>(&self, output: usize, input: usize) -> [f32; TAPS] {
        let (row, column, columns) = if self.is_turned {
            (input, output, self.outputs)
        } else {
            (output, input, self.inputs)
        };
        let stored = self.values[(row * columns + column) * TAPS..].first_chunk();
        let mut filter: [f32; TAPS] = *stored.expect("a filter for each pair of channels");
        if self.is_turned {
            filter.reverse();
        }
        filter
    }
}

/// Filters prepared by a method, and the bias of each output, if there is one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Filters<'a> {
    pub inputs: usize,
    pub outputs: usize,
    /// By groups of outputs.
    pub prepared: &'a [f32],
    pub bias: Option<&'a [f32]>,
}

impl Filters<'_> {
    pub fn bias(&self, output: usize) -> f32 {
        self.bias.map_or(0.0, |bias| bias[output])
    }

    fn groups(&self) -> usize {
        self.outputs.div_ceil(ROWS)
    }
}

/// What a convolution reads.
#[derive(Clone, Copy)]
pub(super) struct Maps<'a> {
    /// [N, inputs, H, W].
    pub x: &'a [f32],
    /// [N, outputs, H, W]: y becomes (residual + convolution)/√2.
    pub residual: Option<&'a [f32]>,
    pub size: Size,
}

/// A block and the groups of outputs that are wanted of it.
#[derive(Debug, Clone)]
pub(super) struct Share {
    pub block: usize,
    pub groups: Range<usize>,
}

struct Task<'a, M> {
    filters: &'a Filters<'a>,
    maps: &'a Maps<'a>,
    share: Share,
    y: &'a Parts,
    scratch: &'a mut [Line],
    method: PhantomData<M>,
}

impl<M: Method> Work for Task<'_, M> {
    #[allow(clippy::inline_always)] // As in `lanes`.
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: as the caller promises, and whoever made the task.
        unsafe { M::convolve::<L>(self.filters, self.maps, self.share, self.y, self.scratch) }
    }
}

struct Preparation<'a, M> {
    weights: &'a Weights<'a>,
    group: usize,
    to: &'a mut [f32],
    method: PhantomData<M>,
}

impl<M: Method> Work for Preparation<'_, M> {
    #[allow(clippy::inline_always)] // As in `lanes`.
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: as the caller promises.
        unsafe { M::prepare::<L>(self.weights, self.group, self.to) }
    }
}

/// What a convolution is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Convolution of X [N, C, H, W] with W [K, C, SIDE, SIDE], stride 1, padding SIDE/2, plus B [K].
    Plain,
    /// That without B.
    Linear,
    /// The rescaled sum of `Plain` and R [N, K, H, W], (R + Y)/√2.
    Mean,
    /// The gradient of `Plain` by X, from dY [N, K, H, W] and W.
    InputGradient,
}

pub struct Convolution<M> {
    name: &'static str,
    kind: Kind,
    scratch: Arc<Scratch>,
    method: PhantomData<M>,
}

impl<M> Convolution<M> {
    pub(super) fn new(name: &'static str, kind: Kind, scratch: &Arc<Scratch>) -> Self {
        Self { name, kind, scratch: Arc::clone(scratch), method: PhantomData }
    }
}

#[derive(Debug)]
pub struct ConvolutionKernel<M> {
    kind: Kind,
    machine: Machine,
    scratch: Arc<Scratch>,
    /// Filters that are those of every run.
    fixed: Option<Fixed>,
    method: PhantomData<M>,
}

#[derive(Debug)]
struct Fixed {
    inputs: usize,
    outputs: usize,
    prepared: Vec<f32>,
    bias: Vec<f32>,
}

impl<M: Method> Operator for Convolution<M> {
    type Kernel<'a> = ConvolutionKernel<M>;

    fn name(&self) -> &str {
        self.name
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let count = match self.kind {
            Kind::Plain => 3,
            Kind::Mean => 4,
            Kind::Linear | Kind::InputGradient => 2,
        };
        (0..count).map(|_| OperatorInput::required(Float32))
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Float32)]
    }

    fn create_kernel(&self, context: &KernelContext<'_>) -> Result<ConvolutionKernel<M>> {
        let machine = Machine::all().next().expect("one needs nothing");
        let (scratch, kind) = (Arc::clone(&self.scratch), self.kind);
        let known = match kind {
            Kind::Linear | Kind::InputGradient => None,
            Kind::Plain | Kind::Mean => constant(context, 1)?.zip(constant(context, 2)?),
        };
        let fixed = match known {
            Some(((shape, weights), (_, bias))) => {
                let weights = checked::<M>(&shape, weights, Some(bias), false)?;
                let Weights { inputs, outputs, .. } = weights;
                let prepared = prepared::<M>(machine, &weights);
                Some(Fixed { inputs, outputs, prepared, bias: bias.to_vec() })
            }
            None => None,
        };
        Ok(ConvolutionKernel { kind, machine, scratch, fixed, method: PhantomData })
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> Result<()> {
        let inputs = context.inputs();
        let axis = usize::from(self.kind == Kind::InputGradient);
        let outputs = match &inputs[1] {
            ValueType::Tensor { shape, .. } => shape.get(axis).copied(),
            _ => None,
        };
        let Some(outputs) = outputs else {
            return Ok(());
        };
        infer(context, 0, &inputs[0], |axis, size| if axis == 1 { outputs } else { size })
    }
}

/// Weights whose shape is that of a convolution, with one value of a bias for each of its outputs.
fn checked<'a, M: Method>(
    shape: &[i64],
    values: &'a [f32],
    bias: Option<&[f32]>,
    is_turned: bool,
) -> Result<Weights<'a>> {
    match dimensions(shape)? {
        [k, c, height, width]
            if c > 0
                && [height, width] == [M::SIDE, M::SIDE]
                && bias.is_none_or(|bias| bias.len() == k) =>
        {
            let (outputs, inputs) = if is_turned { (c, k) } else { (k, c) };
            Ok(Weights { values, outputs, inputs, is_turned })
        }
        _ => {
            let bias = bias.map_or(0, <[f32]>::len);
            Err(ort::Error::new(format!("filters {shape:?} with a bias of {bias} values")))
        }
    }
}

/// Filters of all groups, by one thread.
fn prepared<M: Method>(machine: Machine, weights: &Weights<'_>) -> Vec<f32> {
    let size = M::prepared(weights.inputs);
    let mut all = vec![0.0; weights.groups() * size];
    for group in 0..weights.groups() {
        let to = &mut all[group * size..(group + 1) * size];
        let work = Preparation::<M> { weights, group, to, method: PhantomData };
        // SAFETY: the machine was found to be this one.
        unsafe { machine.run(work) };
    }
    all
}

impl<M: Method> Kernel for ConvolutionKernel<M> {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        if let Some(fixed) = &self.fixed {
            let Fixed { inputs, outputs, prepared, bias } = fixed;
            let (inputs, outputs) = (*inputs, *outputs);
            let filters = Filters { inputs, outputs, prepared, bias: Some(bias) };
            return self.convolve(context, &filters);
        }
        let (shape, values) = input(context, 1)?;
        let bias = match self.kind {
            Kind::Linear | Kind::InputGradient => None,
            Kind::Plain | Kind::Mean => Some(input(context, 2)?.1),
        };
        let is_turned = self.kind == Kind::InputGradient;
        let weights = checked::<M>(&shape, values, bias, is_turned)?;
        let size = M::prepared(weights.inputs);
        let mut shared = self.scratch.shared(weights.groups() * size);
        let parts = Parts::new(flat_mut(&mut shared));
        par_for(context, weights.groups(), |group| {
            // SAFETY: one call a group.
            let to = unsafe { parts.part(group, size) };
            let work = Preparation::<M> { weights: &weights, group, to, method: PhantomData };
            // SAFETY: the machine was found to be this one.
            unsafe { self.machine.run(work) };
        })?;
        let Weights { inputs, outputs, .. } = weights;
        let prepared = &flat_mut(&mut shared)[..weights.groups() * size];
        self.convolve(context, &Filters { inputs, outputs, prepared, bias })
    }
}

impl<M: Method> ConvolutionKernel<M> {
    fn convolve(&self, context: &ComputeContext, filters: &Filters<'_>) -> Result<()> {
        let (shape, x) = input(context, 0)?;
        let [batch, inputs, height, width] = dimensions(&shape)?;
        if inputs != filters.inputs {
            let wanted = filters.inputs;
            return Err(ort::Error::new(format!("{inputs} channels where filters take {wanted}")));
        }
        let shape = [batch, filters.outputs, height, width].map(|d| d as i64);
        let residual = if self.kind == Kind::Mean {
            let (other, residual) = input(context, 3)?;
            if other[..] != shape {
                return Err(ort::Error::new(format!("{shape:?} and {other:?} are added")));
            }
            Some(residual)
        } else {
            None
        };
        let y = Parts::new(output(context, 0, &shape)?);

        let maps = Maps { x, residual, size: Size { batch, height, width } };
        let (blocks, groups) = (M::blocks(maps.size), filters.groups());
        // Where there are fewer blocks than threads, these share the outputs of one.
        let parts = self.scratch.threads().div_ceil(blocks.max(1)).min(groups);
        self.scratch.reserve(M::scratch(inputs));
        par_for(context, blocks * parts, |index| {
            let (block, part) = (index / parts, index % parts);
            let share = Share { block, groups: part * groups / parts..(part + 1) * groups / parts };
            let mut scratch = self.scratch.take();
            let (scratch, method) = (&mut scratch[..], PhantomData::<M>);
            let task = Task { filters, maps: &maps, share, y: &y, scratch, method };
            // SAFETY: the machine was found to be this one; one call a share.
            unsafe { self.machine.run(task) };
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{
        super::{lanes::LANES, pointwise::Pointwise, winograd::Winograd},
        *,
    };

    /// Evenly spread over [-1, 1).
    pub fn spread(count: usize, seed: u64) -> Vec<f32> {
        let number = |index: u64| {
            let mixed = (index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
                ^ seed.wrapping_mul(0xD1B5_4A32_D192_ED03);
            let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            ((mixed ^ mixed >> 32) >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count as u64).map(number).collect()
    }

    /// Distance of what was found from what is wanted, in relative L2.
    pub fn relative(found: &[f32], wanted: &[f64]) -> f64 {
        assert_eq!(found.len(), wanted.len());
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
        let error = square(&mut found.iter().zip(wanted).map(|(&f, w)| f64::from(f) - w));
        (error / square(&mut wanted.iter().copied())).sqrt()
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
        fn new<M: Method>(shape: [usize; 5], residual: bool) -> Self {
            let [batch, inputs, outputs, height, width] = shape;
            let maps = |channels| batch * channels * height * width;
            Self {
                batch,
                inputs,
                outputs,
                height,
                width,
                x: spread(maps(inputs), 1),
                weights: spread(outputs * inputs * M::SIDE * M::SIDE, 2),
                bias: spread(outputs, 3),
                residual: residual.then(|| spread(maps(outputs), 4)),
            }
        }

        fn found<M: Method>(&self, machine: Machine, parts: usize) -> Vec<f32> {
            let Self { batch, inputs, outputs, height, width, .. } = *self;
            let weights = Weights { values: &self.weights, outputs, inputs, is_turned: false };
            let prepared = prepared::<M>(machine, &weights);
            let filters = Filters { inputs, outputs, prepared: &prepared, bias: Some(&self.bias) };
            let size = Size { batch, height, width };
            let maps = Maps { x: &self.x, residual: self.residual.as_deref(), size };
            let mut y = vec![f32::NAN; batch * self.outputs * height * width];
            let parts_of_y = Parts::new(&mut y);
            // What was left behind by others is of no account.
            let mut scratch = vec![Line([f32::NAN; LANES]); M::scratch(inputs)];
            for block in 0..M::blocks(size) {
                let bound = |part| part * filters.groups() / parts;
                for part in 0..parts {
                    let share = Share { block, groups: bound(part)..bound(part + 1) };
                    let (y, scratch) = (&parts_of_y, &mut scratch[..]);
                    let (filters, maps, method) = (&filters, &maps, PhantomData::<M>);
                    // SAFETY: one call at a time.
                    unsafe { machine.run(Task { filters, maps, share, y, scratch, method }) };
                }
            }
            y
        }

        /// As it is written down, in float64.
        fn by_definition<M: Method>(&self) -> Vec<f64> {
            let Self { batch, inputs, outputs, height: h, width: w, .. } = *self;
            let mut y = Vec::with_capacity(batch * outputs * h * w);
            for index in 0..batch * outputs * h * w {
                let (column, row) = (index % w, index / w % h);
                let (output, image) = (index / w / h % outputs, index / w / h / outputs);
                let mut sum = f64::from(self.bias[output]);
                for input in 0..inputs {
                    let (taps, edge) = (M::SIDE * M::SIDE, M::SIDE / 2);
                    let filter = &self.weights[(output * inputs + input) * taps..][..taps];
                    for (at, &weight) in filter.iter().enumerate() {
                        let (r, c) = (row + at / M::SIDE, column + at % M::SIDE);
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
    fn check<M: Method>(shapes: &[[usize; 5]]) {
        for machine in Machine::all() {
            for (&shape, residual) in shapes.iter().zip([false, true].into_iter().cycle()) {
                let case = Case::new::<M>(shape, residual);
                let (found, wanted) = (case.found::<M>(machine, 1), case.by_definition::<M>());
                let relative = relative(&found, &wanted);
                // Ten units in the last place.
                assert!(relative < 1e-6, "{machine:?}, {shape:?}: {relative:.1e}");
                assert_eq!(found, case.found::<M>(machine, 2), "{machine:?}, {shape:?}: in parts");
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

    /// The gradient by the input is a convolution with filters that go from outputs to inputs and are read backwards.
    #[test]
    fn turned_filters_are_those_of_the_transposed_convolution() {
        fn check<M: Method>(machine: Machine) {
            let (outputs, inputs, taps) = (5, 19, M::SIDE * M::SIDE);
            let stored = spread(outputs * inputs * taps, 5);
            let mut turned = vec![0.0; stored.len()];
            for (index, &value) in stored.iter().enumerate() {
                let (output, input, tap) =
                    (index / taps / inputs, index / taps % inputs, index % taps);
                turned[(input * outputs + output) * taps + taps - 1 - tap] = value;
            }
            let of =
                |values, is_turned| Weights { values, outputs: inputs, inputs: outputs, is_turned };
            let written_out = prepared::<M>(machine, &of(&turned, false));
            assert_eq!(prepared::<M>(machine, &of(&stored, true)), written_out, "{machine:?}");
        }
        for machine in Machine::all() {
            check::<Winograd>(machine);
            check::<Pointwise>(machine);
        }
    }

    #[test]
    fn an_image_comes_out_the_same_whatever_is_computed_beside_it() {
        fn check<M: Method>(machine: Machine) {
            let [batch, inputs, outputs, side] = [5, 3, 9, 10];
            let mut case = Case::new::<M>([batch, inputs, outputs, side, side], true);
            let all = case.found::<M>(machine, 1);
            let (of_x, of_y) = (inputs * side * side, outputs * side * side);
            let residual = case.residual.take().unwrap();
            let alone = |image: usize| {
                let of = |maps: &[f32], size: usize| maps[image * size..][..size].to_vec();
                let (x, residual) = (of(&case.x, of_x), Some(of(&residual, of_y)));
                let (weights, bias) = (case.weights.clone(), case.bias.clone());
                Case { batch: 1, x, weights, bias, residual, ..case }.found::<M>(machine, 1)
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
