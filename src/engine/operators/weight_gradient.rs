//! Gradients of a convolution by its filters and its bias.
//!
//! A filter's gradient sums products of an input and an output over all pixels. Pixels are taken in blocks: of each, inputs and
//! outputs are laid out with their channels side by side in a register, transformed by the method, and multiplied as matrices
//! (outputs x pixels, pixels x inputs), one product for each of the method's places. Sums stay in the transformed domain until
//! all blocks are in.
//!
//! Which sums are made, and in which order, depends on shapes alone: results are the same with any number of threads.

// As in `lanes`.
#![allow(clippy::inline_always)]

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
    context::{input, output, par_for},
    dimensions, infer,
    lanes::{LANES, Lanes, Line},
    machine::{Machine, Work},
    product::{GROUPS, ROWS},
    scratch::Scratch,
};

/// Inputs whose sums are computed together: they lie side by side.
const ACROSS: usize = GROUPS * LANES;
/// Lines of the sums of `ROWS` outputs and `ACROSS` inputs.
const TILE: usize = ROWS * GROUPS;
/// Lines of sums that a task should not exceed, so that they stay in the second cache.
const LINES_OF_SUMS: usize = 10_000;

/// One way to sum up the gradient of a filter.
pub(super) trait Correlation: fmt::Debug + Send + Sync + 'static {
    /// Of a filter.
    const SIDE: usize;
    /// Products that are summed up apart.
    const PLACES: usize;
    /// Terms of each of them in a block, at most.
    const TERMS: usize;
    /// Lines of scratch for pixels on their way, of any content.
    const BAND: usize;

    /// Parts of the maps that are taken one after the other.
    fn blocks(size: Size) -> usize;

    /// Lays out some channels (`LANES` at most) of a block of x: term t of place p at `to(p, t)`. Gives the number of terms.
    ///
    /// # Safety
    /// The machine has the instructions of `L`.
    unsafe fn inputs<L: Lanes>(
        channels: &Channels<'_>,
        block: usize,
        band: &mut [Line],
        to: &mut Layout<'_>,
    ) -> usize;

    /// The same of dy; adds up its pixels as well.
    ///
    /// # Safety
    /// The machine has the instructions of `L`.
    unsafe fn outputs<L: Lanes>(
        channels: &Channels<'_>,
        block: usize,
        band: &mut [Line],
        to: &mut Layout<'_>,
    ) -> L;

    /// The filters of `LANES` inputs from their sums at each place: numbers of tap k of all of them at `taps[k]`.
    ///
    /// # Safety
    /// The machine has the instructions of `L`.
    unsafe fn taps<L: Lanes>(sums: &[Line], taps: &mut [[f32; LANES]]);
}

/// Some channels of feature maps.
#[derive(Debug, Clone)]
pub(super) struct Channels<'a> {
    /// [N, all, H, W].
    pub maps: &'a [f32],
    pub all: usize,
    pub chosen: Range<usize>,
    pub size: Size,
}

impl Channels<'_> {
    /// Up to sixteen pixels in a row of an image's planes, `first` on: one register for each pixel, a lane for each channel.
    #[inline(always)]
    pub fn pixels<L: Lanes>(&self, image: usize, first: usize, count: usize) -> [L; LANES] {
        let plane = self.size.height * self.size.width;
        let start = (image * self.all + self.chosen.start) * plane + first;
        let maps = &self.maps[start..];
        let mut rows = [L::splat(0.0); LANES];
        // Told apart, since the compiler keeps what it unrolls in registers.
        if self.chosen.len() == LANES {
            for (lane, row) in rows.iter_mut().enumerate() {
                *row = L::load_some(&maps[lane * plane..lane * plane + count]);
            }
        } else {
            for (lane, row) in rows.iter_mut().enumerate().take(self.chosen.len()) {
                *row = L::load_some(&maps[lane * plane..lane * plane + count]);
            }
        }
        L::transposed(rows)
    }
}

/// Where terms of products are laid out: `LANES` channels of them in a line.
pub(super) struct Layout<'a> {
    lines: &'a mut [Line],
    /// Lines from a place to the next, and from a term to the next.
    place: usize,
    term: usize,
}

impl Layout<'_> {
    #[inline(always)]
    pub fn put<L: Lanes>(&mut self, place: usize, term: usize, value: L) {
        value.store(&mut self.lines[place * self.place + term * self.term].0);
    }
}

/// Shapes of a convolution, and how the work of its gradient is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    inputs: usize,
    outputs: usize,
    size: Size,
    blocks: usize,
    /// Outputs of a task, a multiple of `LANES`.
    share: usize,
    /// Tasks that share the blocks of these outputs.
    parts: usize,
    places: usize,
    terms: usize,
}

impl Plan {
    fn new<C: Correlation>(inputs: usize, outputs: usize, size: Size) -> Self {
        let blocks = C::blocks(size);
        // A few parts with sums of their own, of some blocks each; where there is one, two halves of the outputs.
        let parts = (blocks / 4).clamp(blocks.clamp(1, 2), 4);
        let of_lanes = C::PLACES * (LANES / ROWS) * inputs.div_ceil(ACROSS) * TILE;
        let most = (LINES_OF_SUMS / of_lanes).max(1);
        let all = outputs.div_ceil(LANES);
        let shares = all.div_ceil(most).max(if parts == 1 { all.min(2) } else { 1 });
        let share = all.div_ceil(shares) * LANES;
        Self { inputs, outputs, size, blocks, share, parts, places: C::PLACES, terms: C::TERMS }
    }

    fn shares(&self) -> usize {
        self.outputs.div_ceil(self.share)
    }

    fn across(&self) -> usize {
        self.inputs.div_ceil(ACROSS)
    }

    /// Lines from one place to the next of inputs, and of outputs. One more than they need, as in `winograd`.
    fn inputs_apart(&self) -> usize {
        self.across() * self.terms * GROUPS + 1
    }

    fn outputs_apart(&self) -> usize {
        self.share / LANES * self.terms + 1
    }

    /// Lines of a task's sums, [places, share / ROWS, across, ROWS, GROUPS], and of its sums of pixels after them.
    fn products(&self) -> usize {
        self.places * (self.share / ROWS) * self.across() * TILE
    }

    fn sums(&self) -> usize {
        self.products() + self.share / LANES
    }

    fn scratch(&self) -> usize {
        self.places * (self.inputs_apart() + self.outputs_apart())
    }
}

/// What a gradient is made of: x [N, C, H, W] and dy [N, K, H, W].
#[derive(Clone, Copy)]
struct Pair<'a> {
    x: &'a [f32],
    dy: &'a [f32],
}

/// Sums up a part of the blocks for a share of the outputs.
struct Summing<'a, C> {
    plan: &'a Plan,
    pair: Pair<'a>,
    share: usize,
    part: usize,
    sums: &'a mut [Line],
    scratch: &'a mut [Line],
    method: PhantomData<C>,
}

impl<C: Correlation> Work for Summing<'_, C> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { plan, pair, share, part, sums, scratch, .. } = self;
        let (inputs_apart, outputs_apart) = (plan.inputs_apart(), plan.outputs_apart());
        let (inputs, rest) = scratch.split_at_mut(plan.places * inputs_apart);
        let (outputs, band) = rest.split_at_mut(plan.places * outputs_apart);
        let band = &mut band[..C::BAND];
        let (products, pixels) = sums.split_at_mut(plan.products());
        pixels.fill(Line::ZERO);
        // What no channel fills of the last group of inputs.
        inputs.fill(Line::ZERO);
        let first = share * plan.share;
        let last = plan.outputs.min(first + plan.share);
        let size = plan.size;
        let blocks = part * plan.blocks / plan.parts..(part + 1) * plan.blocks / plan.parts;
        if blocks.is_empty() {
            products.fill(Line::ZERO);
        }
        for block in blocks.clone() {
            let mut terms = 0;
            for (index, channel) in (0..plan.inputs).step_by(LANES).enumerate() {
                let chosen = channel..plan.inputs.min(channel + LANES);
                let x = Channels { maps: pair.x, all: plan.inputs, chosen, size };
                let start = index / GROUPS * plan.terms * GROUPS + index % GROUPS;
                let lines = &mut inputs[start..];
                let mut to = Layout { lines, place: inputs_apart, term: GROUPS };
                // SAFETY: as the caller promises.
                terms = unsafe { C::inputs::<L>(&x, block, band, &mut to) };
            }
            for (index, channel) in (first..last).step_by(LANES).enumerate() {
                let chosen = channel..last.min(channel + LANES);
                let dy = Channels { maps: pair.dy, all: plan.outputs, chosen, size };
                let lines = &mut outputs[index * plan.terms..];
                let mut to = Layout { lines, place: outputs_apart, term: 1 };
                // SAFETY: as the caller promises.
                let sum = unsafe { C::outputs::<L>(&dy, block, band, &mut to) };
                L::load(&pixels[index].0).add(sum).store(&mut pixels[index].0);
            }
            let is_first = block == blocks.start;
            multiply::<L>(plan, terms, (inputs, outputs), products, is_first);
        }
    }
}

/// Adds the products of a block's inputs and outputs to the sums, which begin with the first.
#[inline(always)]
fn multiply<L: Lanes>(
    plan: &Plan,
    terms: usize,
    (inputs, outputs): (&[Line], &[Line]),
    products: &mut [Line],
    is_first: bool,
) {
    let of_place = products.len() / plan.places;
    let places = inputs
        .chunks_exact(plan.inputs_apart())
        .zip(outputs.chunks_exact(plan.outputs_apart()))
        .zip(products.chunks_exact_mut(of_place));
    for ((inputs, outputs), products) in places {
        for across in 0..plan.across() {
            let lines = inputs[across * plan.terms * GROUPS..][..terms * GROUPS].as_chunks().0;
            for rows in 0..plan.share / ROWS {
                let factors = &outputs[rows / GROUPS * plan.terms..][..terms];
                let sums = &mut products[(rows * plan.across() + across) * TILE..][..TILE];
                let sums = sums.first_chunk_mut().expect("a tile");
                if rows % 2 == 0 {
                    add_products::<L, 0>(factors, lines, sums, is_first);
                } else {
                    add_products::<L, ROWS>(factors, lines, sums, is_first);
                }
            }
        }
    }
}

/// Adds to `sums` [ROWS, GROUPS], of any content where these are the first, the products of `ROWS` numbers of each line of
/// `factors`, `FIRST` on, and of `lines`.
#[inline(always)]
fn add_products<L: Lanes, const FIRST: usize>(
    factors: &[Line],
    lines: &[[Line; GROUPS]],
    sums: &mut [Line; TILE],
    is_first: bool,
) {
    let mut found = [[L::splat(0.0); GROUPS]; ROWS];
    if !is_first {
        for (found, sum) in found.as_flattened_mut().iter_mut().zip(sums.iter()) {
            *found = L::load(&sum.0);
        }
    }
    for (factors, lines) in factors.iter().zip(lines) {
        let lines = [L::load(&lines[0].0), L::load(&lines[1].0)];
        let factors: &[f32; ROWS] = factors.0[FIRST..].first_chunk().expect("half a line");
        for (found, &factor) in found.iter_mut().zip(factors) {
            let factor = L::splat(factor);
            for (found, line) in found.iter_mut().zip(lines) {
                *found = line.fma(factor, *found);
            }
        }
    }
    for (found, sum) in found.as_flattened().iter().zip(sums) {
        found.store(&mut sum.0);
    }
}

/// Makes the gradients of some outputs' filters, and of their bias, from the sums of all parts.
struct Finishing<'a, C> {
    plan: &'a Plan,
    /// [shares, parts, sums].
    sums: &'a [Line],
    outputs: Range<usize>,
    /// [outputs, C, SIDE, SIDE] and [outputs], of these alone; either may be empty.
    by_filters: &'a mut [f32],
    by_bias: &'a mut [f32],
    method: PhantomData<C>,
}

impl<C: Correlation> Work for Finishing<'_, C> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { plan, sums, outputs, by_filters, by_bias, .. } = self;
        let parts = |output: usize| {
            let of_share = plan.parts * plan.sums();
            sums[output / plan.share * of_share..][..of_share].chunks_exact(plan.sums())
        };
        for (by_bias, output) in by_bias.iter_mut().zip(outputs.clone()) {
            let within = output % plan.share;
            let sums = parts(output).map(|part| part[plan.products() + within / LANES].0);
            *by_bias = sums.map(|sums| sums[within % LANES]).sum();
        }
        let (mut summed, mut taps) = ([Line::ZERO; 36], [[0.0; LANES]; 9]);
        let count = C::SIDE * C::SIDE;
        let filters = by_filters.chunks_exact_mut(plan.inputs * count);
        for (filters, output) in filters.zip(outputs) {
            let within = output % plan.share;
            for (index, filters) in filters.chunks_mut(LANES * count).enumerate() {
                let tile = within / ROWS * plan.across() + index / GROUPS;
                let line = tile * TILE + within % ROWS * GROUPS + index % GROUPS;
                let of_place = plan.share / ROWS * plan.across() * TILE;
                for (place, summed) in summed.iter_mut().enumerate().take(C::PLACES) {
                    let mut sum = L::splat(0.0);
                    for part in parts(output) {
                        sum = sum.add(L::load(&part[place * of_place + line].0));
                    }
                    sum.store(&mut summed.0);
                }
                // SAFETY: as the caller promises.
                unsafe { C::taps::<L>(&summed[..C::PLACES], &mut taps[..count]) };
                for (lane, filter) in filters.chunks_exact_mut(count).enumerate() {
                    for (value, taps) in filter.iter_mut().zip(&taps) {
                        *value = taps[lane];
                    }
                }
            }
        }
    }
}

/// From dY [N, K, H, W] and X [N, C, H, W] the gradient [K, C, SIDE, SIDE] by the filters of a convolution with stride 1 and
/// padding SIDE/2, and that by its bias [K]; either may be left out.
pub struct WeightGradient<C> {
    name: &'static str,
    scratch: Arc<Scratch>,
    method: PhantomData<C>,
}

impl<C> WeightGradient<C> {
    pub(super) fn new(name: &'static str, scratch: &Arc<Scratch>) -> Self {
        Self { name, scratch: Arc::clone(scratch), method: PhantomData }
    }
}

#[derive(Debug)]
pub struct WeightGradientKernel<C> {
    machine: Machine,
    scratch: Arc<Scratch>,
    method: PhantomData<C>,
}

impl<C: Correlation> Operator for WeightGradient<C> {
    type Kernel<'a> = WeightGradientKernel<C>;

    fn name(&self) -> &str {
        self.name
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::required(Float32), OperatorInput::required(Float32)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::optional(Float32), OperatorOutput::optional(Float32)]
    }

    fn create_kernel(&self, _: &KernelContext<'_>) -> Result<WeightGradientKernel<C>> {
        let machine = Machine::all().next().expect("one needs nothing");
        let scratch = Arc::clone(&self.scratch);
        Ok(WeightGradientKernel { machine, scratch, method: PhantomData })
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> Result<()> {
        let channels = |value: &ValueType| match value {
            ValueType::Tensor { shape, .. } => shape.get(1).copied(),
            _ => None,
        };
        let inputs = context.inputs();
        if let (Some(k), Some(c)) = (channels(&inputs[0]), channels(&inputs[1])) {
            let side = C::SIDE as i64;
            infer(context, 0, &inputs[0], |axis, _| [k, c, side, side][axis])?;
        }
        Ok(())
    }
}

impl<C: Correlation> Kernel for WeightGradientKernel<C> {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        let ((shape, dy), (other, x)) = (input(context, 0)?, input(context, 1)?);
        let [batch, outputs, height, width] = dimensions(&shape)?;
        let [of_x, inputs, rows, columns] = dimensions(&other)?;
        if [batch, height, width] != [of_x, rows, columns] {
            return Err(ort::Error::new(format!(
                "gradient {shape:?} of a convolution of {other:?}"
            )));
        }
        let taps = C::SIDE * C::SIDE;
        let side = C::SIDE as i64;
        let by_filters = output(context, 0, &[outputs as i64, inputs as i64, side, side])?;
        let by_bias = output(context, 1, &[outputs as i64])?;

        let plan = &Plan::new::<C>(inputs, outputs, Size { batch, height, width });
        let tasks = plan.shares() * plan.parts;
        let mut sums = self.scratch.shared(tasks * plan.sums() * LANES);
        let parts_of_sums = Parts::new(&mut sums[..]);
        self.scratch.reserve(plan.scratch() + C::BAND);
        par_for(context, tasks, |task| {
            let mut scratch = self.scratch.take();
            // SAFETY: one call a task.
            let sums = unsafe { parts_of_sums.part(task, plan.sums()) };
            self.sum(plan, Pair { x, dy }, task, sums, &mut scratch);
        })?;

        let (has_filters, has_bias) = (!by_filters.is_empty(), !by_bias.is_empty());
        let (filters, bias) = (Parts::new(by_filters), Parts::new(by_bias));
        par_for(context, outputs.div_ceil(ROWS), |group| {
            let outputs = group * ROWS..outputs.min((group + 1) * ROWS);
            // What is left out has nothing in it.
            let range = |size: usize, is_there: bool| {
                if is_there { (outputs.start * size, outputs.len() * size) } else { (0, 0) }
            };
            let (of_filters, of_bias) = (range(inputs * taps, has_filters), range(1, has_bias));
            // SAFETY: one call a group.
            let by_filters = unsafe { filters.range(of_filters.0, of_filters.1) };
            // SAFETY: likewise.
            let by_bias = unsafe { bias.range(of_bias.0, of_bias.1) };
            let (sums, outputs, method) = (&sums[..], outputs.clone(), PhantomData::<C>);
            let work = Finishing { plan, sums, outputs, by_filters, by_bias, method };
            // SAFETY: the machine was found to be this one.
            unsafe { self.machine.run(work) };
        })
    }
}

impl<C: Correlation> WeightGradientKernel<C> {
    fn sum(
        &self,
        plan: &Plan,
        pair: Pair<'_>,
        task: usize,
        sums: &mut [Line],
        scratch: &mut [Line],
    ) {
        let (share, part) = (task / plan.parts, task % plan.parts);
        let method = PhantomData::<C>;
        let work = Summing { plan, pair, share, part, sums, scratch, method };
        // SAFETY: the machine was found to be this one.
        unsafe { self.machine.run(work) };
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            convolution::tests::{relative, spread},
            pointwise_gradient::PointwiseGradient,
            winograd_gradient::WinogradGradient,
        },
        *,
    };

    /// Gradients by the filters and by the bias, as a node finds them.
    fn found<C: Correlation>(
        machine: Machine,
        plan: &Plan,
        pair: Pair<'_>,
    ) -> (Vec<f32>, Vec<f32>) {
        // What was left behind by others is of no account.
        let left_behind = Line([f32::NAN; LANES]);
        let mut sums = vec![left_behind; plan.shares() * plan.parts * plan.sums()];
        let mut scratch = vec![left_behind; plan.scratch() + C::BAND];
        for (task, sums) in sums.chunks_exact_mut(plan.sums()).enumerate() {
            let (share, part) = (task / plan.parts, task % plan.parts);
            let (scratch, method) = (&mut scratch[..], PhantomData::<C>);
            let work = Summing { plan, pair, share, part, sums, scratch, method };
            // SAFETY: the machine is one that was found.
            unsafe { machine.run(work) };
        }
        let taps = C::SIDE * C::SIDE;
        let mut by_filters = vec![f32::NAN; plan.outputs * plan.inputs * taps];
        let mut by_bias = vec![f32::NAN; plan.outputs];
        let groups = by_filters
            .chunks_mut(ROWS * plan.inputs * taps)
            .zip(by_bias.chunks_mut(ROWS))
            .enumerate();
        for (group, (by_filters, by_bias)) in groups {
            let outputs = group * ROWS..group * ROWS + by_bias.len();
            let (sums, method) = (&sums[..], PhantomData::<C>);
            let work = Finishing { plan, sums, outputs, by_filters, by_bias, method };
            // SAFETY: likewise.
            unsafe { machine.run(work) };
        }
        (by_filters, by_bias)
    }

    /// As they are written down, in float64.
    fn by_definition<C: Correlation>(plan: &Plan, pair: Pair<'_>) -> (Vec<f64>, Vec<f64>) {
        let Size { batch, height, width } = plan.size;
        let (side, edge) = (C::SIDE, C::SIDE / 2);
        let mut by_filters = vec![0.0; plan.outputs * plan.inputs * side * side];
        let mut by_bias = vec![0.0; plan.outputs];
        let pixels = (0..batch * plan.outputs * height * width).zip(pair.dy);
        for (index, &dy) in pixels {
            let (column, row) = (index % width, index / width % height);
            let (output, image) =
                (index / width / height % plan.outputs, index / width / height / plan.outputs);
            by_bias[output] += f64::from(dy);
            for input in 0..plan.inputs {
                for tap in 0..side * side {
                    let (r, c) = (row + tap / side, column + tap % side);
                    if (edge..height + edge).contains(&r) && (edge..width + edge).contains(&c) {
                        let plane = (image * plan.inputs + input) * height;
                        let x = pair.x[(plane + r - edge) * width + c - edge];
                        by_filters[(output * plan.inputs + input) * side * side + tap] +=
                            f64::from(dy) * f64::from(x);
                    }
                }
            }
        }
        (by_filters, by_bias)
    }

    fn check<C: Correlation>() {
        let shapes = [
            [1, 1, 1, 1, 1],
            [1, 1, 8, 4, 4],
            [2, 3, 5, 7, 9],
            [1, 2, 3, 6, 64],
            [1, 4, 9, 5, 130],
            [3, 5, 8, 17, 33],
            [2, 2, 17, 9, 260],
            [5, 33, 40, 8, 8],
            [1, 70, 16, 16, 20],
            [7, 3, 8, 3, 3],
            [40, 2, 9, 1, 1],
            [3, 9, 37, 4, 4],
        ];
        for machine in Machine::all() {
            for [batch, inputs, outputs, height, width] in shapes {
                let size = Size { batch, height, width };
                let x = spread(size.pixels() * inputs, 1);
                let dy = spread(size.pixels() * outputs, 2);
                let (plan, pair) = (Plan::new::<C>(inputs, outputs, size), Pair { x: &x, dy: &dy });
                let (by_filters, by_bias) = found::<C>(machine, &plan, pair);
                let (filters, bias) = by_definition::<C>(&plan, pair);
                let off = relative(&by_filters, &filters).max(relative(&by_bias, &bias));
                assert!(off < 2e-6, "{machine:?}, {plan:?}: {off:.1e}");
            }
        }
    }

    #[test]
    fn winograd_gives_the_gradient_of_the_definition() {
        check::<WinogradGradient>();
    }

    #[test]
    fn products_of_single_pixels_give_the_gradient_of_the_definition() {
        check::<PointwiseGradient>();
    }

    #[test]
    fn sums_of_many_channels_are_divided_among_tasks() {
        let size = Size { batch: 1, height: 4, width: 4 };
        let plan = Plan::new::<WinogradGradient>(256, 100, size);
        assert!(plan.shares() > 1 && plan.products() <= 2 * LINES_OF_SUMS, "{plan:?}");
        let (x, dy) = (spread(256 * 16, 1), spread(100 * 16, 2));
        let pair = Pair { x: &x, dy: &dy };
        let machine = Machine::all().next().unwrap();
        let (by_filters, _) = found::<WinogradGradient>(machine, &plan, pair);
        let (filters, _) = by_definition::<WinogradGradient>(&plan, pair);
        assert!(relative(&by_filters, &filters) < 2e-6);
    }
}
