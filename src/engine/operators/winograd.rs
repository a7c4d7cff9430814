//! A 3 x 3 convolution by Winograd's minimal filtering F(4 x 4, 3 x 3): a quarter of the multiplications.
//!
//! The map is cut into tiles of 4 x 4 outputs, each of which sees 6 x 6 inputs. Inputs and filters are transformed, so that
//! each of the 36 places is a product of matrices (outputs x inputs, inputs x tiles) of its own, and the products are
//! transformed back. The transforms interpolate at 0, ±5/8, ±3/2 and infinity: the rounding error is half that of the usual
//! 0, ±1, ±2 and about twice that of the convolution as it is written down.
//!
//! Tiles lie side by side in a register, whatever rows or images they are of. A block of them is taken through all three
//! stages while it is in the second cache.

// As in `lanes`.
#![allow(clippy::inline_always)]

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::lanes::Wide;
use super::{
    Parts,
    lanes::{LANES, Lanes, Line, Portable},
};

/// Outputs of a tile along an axis, and the inputs that they see.
const TILE: usize = 4;
const SEEN: usize = 6;
/// Places of a transformed tile.
const PLACES: usize = SEEN * SEEN;
/// Registers of tiles in a block.
const GROUPS: usize = 2;
/// Tiles that are taken through all stages together.
const BLOCK: usize = GROUPS * LANES;
/// Outputs whose products are computed together: 8 x 2 registers of sums.
const ROWS: usize = 8;

// The points are 0, ±P, ±Q and infinity.
const P: f32 = 0.625;
const Q: f32 = 1.5;

/// Lines from one place to the next among transformed inputs, and among products. One more than they need: were it a power
/// of two, as channels are, all places would contend for the same few lines of the first cache.
const fn seen_apart(inputs: usize) -> usize {
    inputs * GROUPS + 1
}
const PRODUCTS_APART: usize = ROWS * GROUPS + 1;

/// Lines of pixels of a block side by side, with a register of neighbours at either end.
const SPAN: usize = TILE * GROUPS + 2;

/// Filters in the transformed domain, and the bias.
#[derive(Debug)]
pub(super) struct Filters {
    pub inputs: usize,
    pub outputs: usize,
    /// [outputs / ROWS, PLACES, inputs, ROWS], with zeros for outputs that are not there.
    transformed: Vec<f32>,
    bias: Vec<f32>,
}

impl Filters {
    /// `weights`: [outputs, inputs, 3, 3]; `bias`: [outputs].
    pub fn new(weights: &[f32], bias: &[f32], inputs: usize) -> Self {
        let outputs = bias.len();
        let mut filters = Self { inputs, outputs, transformed: Vec::new(), bias: Vec::new() };
        filters.set(weights, bias);
        filters
    }

    /// Other values of the same shape.
    pub fn set(&mut self, weights: &[f32], bias: &[f32]) {
        let Self { inputs, outputs, .. } = *self;
        assert_eq!((weights.len(), bias.len()), (outputs * inputs * 9, outputs));
        let groups = self.groups();
        self.transformed.resize(groups * PLACES * inputs * ROWS, 0.0);
        self.bias.resize(groups * ROWS, 0.0);
        self.bias[..outputs].copy_from_slice(bias);
        let matrix = filter_matrix();
        for (index, filter) in weights.as_chunks::<9>().0.iter().enumerate() {
            let (output, input) = (index / inputs, index % inputs);
            let (group, row) = (output / ROWS, output % ROWS);
            let filter = filter.map(f64::from);
            for (i, left) in matrix.iter().enumerate() {
                let mixed = [0, 1, 2].map(|k| {
                    left[0] * filter[k] + left[1] * filter[3 + k] + left[2] * filter[6 + k]
                });
                for (j, right) in matrix.iter().enumerate() {
                    let value = right[0] * mixed[0] + right[1] * mixed[1] + right[2] * mixed[2];
                    let place = (group * PLACES + i * SEEN + j) * inputs + input;
                    self.transformed[place * ROWS + row] = value as f32;
                }
            }
        }
    }

    /// Groups of outputs that are computed together.
    pub fn groups(&self) -> usize {
        self.outputs.div_ceil(ROWS)
    }

    /// Lines of scratch that a block needs.
    pub fn scratch(&self) -> usize {
        PLACES * (seen_apart(self.inputs) + PRODUCTS_APART)
    }
}

fn flat(lines: &[Line]) -> &[f32] {
    // SAFETY: a line is sixteen numbers and nothing else.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * LANES) }
}

fn flat_mut(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: as in `flat`.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LANES) }
}

/// Transform of a filter along one axis: its polynomial at the points, over the product of their distances.
fn filter_matrix() -> [[f64; 3]; SEEN] {
    let (p, q) = (f64::from(P), f64::from(Q));
    let points = [0.0, p, -p, q, -q];
    let mut matrix = [[0.0, 0.0, 1.0]; SEEN];
    for (row, &point) in matrix.iter_mut().zip(&points) {
        let others = points.iter().filter(|&&other| other != point);
        let distance: f64 = others.map(|other| point - other).product();
        *row = [1.0, point, point * point].map(|power| power / distance);
    }
    matrix
}

/// Transform of the inputs along one axis.
#[inline(always)]
fn forth<L: Lanes>(d: [L; SEEN]) -> [L; SEEN] {
    const P2: f32 = P * P;
    const Q2: f32 = Q * Q;
    let [minus_p2, minus_q2, p2q2, minus_sum] = [-P2, -Q2, P2 * Q2, -(P2 + Q2)].map(L::splat);
    let [p, minus_p, q, minus_q] = [P, -P, Q, -Q].map(L::splat);
    let (near, near_odd) = (d[2].fma(minus_q2, d[4]), d[1].fma(minus_q2, d[3]));
    let (far, far_odd) = (d[2].fma(minus_p2, d[4]), d[1].fma(minus_p2, d[3]));
    [
        d[0].fma(p2q2, d[2].fma(minus_sum, d[4])),
        near_odd.fma(p, near),
        near_odd.fma(minus_p, near),
        far_odd.fma(q, far),
        far_odd.fma(minus_q, far),
        d[1].fma(p2q2, d[3].fma(minus_sum, d[5])),
    ]
}

/// Transform of the products along one axis.
#[inline(always)]
fn back<L: Lanes>(m: [L; SEEN]) -> [L; TILE] {
    let [p, p2, p3, q, q2, q3] = [P, P * P, P * P * P, Q, Q * Q, Q * Q * Q].map(L::splat);
    let (near, near_odd) = (m[1].add(m[2]), m[1].sub(m[2]));
    let (far, far_odd) = (m[3].add(m[4]), m[3].sub(m[4]));
    [
        m[0].add(near).add(far),
        near_odd.mul(p).fma_of(far_odd, q),
        near.mul(p2).fma_of(far, q2),
        m[5].fma_of(near_odd, p3).fma_of(far_odd, q3),
    ]
}

trait FmaOf: Lanes {
    /// self + value x factor.
    #[inline(always)]
    fn fma_of(self, value: Self, factor: Self) -> Self {
        value.fma(factor, self)
    }
}

impl<L: Lanes> FmaOf for L {}

/// Input and output of one convolution.
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

impl Maps<'_> {
    pub fn blocks(&self) -> usize {
        self.tiles().div_ceil(BLOCK)
    }

    fn tiles(&self) -> usize {
        self.batch * self.height.div_ceil(TILE) * self.width.div_ceil(TILE)
    }

    /// Tiles of a block that lie in one row of one image, by rows.
    fn runs(&self, block: usize) -> Runs {
        let (down, across) = (self.height.div_ceil(TILE), self.width.div_ceil(TILE));
        let (mut tile, end) = (block * BLOCK, self.tiles().min((block + 1) * BLOCK));
        let mut runs = Runs { list: [Run::default(); BLOCK], count: 0, starts: 0, ends: 0 };
        let mut lane = 0;
        while tile < end {
            let (row, column) = (tile / across, tile % across);
            let count = (across - column).min(end - tile);
            runs.list[runs.count] =
                Run { lane, count, image: row / down, top: row % down * TILE, left: column * TILE };
            runs.count += 1;
            if column == 0 {
                runs.starts |= 1 << lane;
            }
            (tile, lane) = (tile + count, lane + count);
            if column + count == across {
                runs.ends |= 1 << (lane - 1);
            }
        }
        runs
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Run {
    /// Where it begins in the block.
    lane: usize,
    count: usize,
    image: usize,
    /// Of its first output.
    top: usize,
    left: usize,
}

struct Runs {
    list: [Run; BLOCK],
    count: usize,
    /// A bit for each tile that is the first, or the last, of its row.
    starts: u32,
    ends: u32,
}

/// A block of tiles and the groups of `ROWS` outputs that are wanted of it.
#[derive(Debug, Clone)]
pub(super) struct Share {
    pub block: usize,
    pub groups: Range<usize>,
}

/// Takes one block through all stages. `y`: [N, outputs, H, W].
///
/// # Safety
/// The machine has the instructions of `L`; no two calls share an output of a block.
#[inline(always)]
unsafe fn convolve<L: Lanes>(
    filters: &Filters,
    maps: &Maps<'_>,
    share: Share,
    y: &Parts,
    scratch: &mut [Line],
) {
    let runs = maps.runs(share.block);
    let (seen, products) = scratch.split_at_mut(PLACES * seen_apart(filters.inputs));
    let products = &mut products[..PLACES * PRODUCTS_APART];
    look::<L>(filters.inputs, maps, &runs, seen);
    let of_group = PLACES * filters.inputs * ROWS;
    for group in share.groups {
        let transformed = &filters.transformed[group * of_group..][..of_group];
        multiply::<L>(filters.inputs, transformed, seen, products);
        let outputs = group * ROWS..filters.outputs.min((group + 1) * ROWS);
        // SAFETY: as the caller promises.
        unsafe { write::<L>(filters, outputs, maps, &runs, products, y) };
    }
}

/// Transforms the inputs of a block: `seen` [PLACES, inputs, GROUPS].
#[inline(always)]
fn look<L: Lanes>(inputs: usize, maps: &Maps<'_>, runs: &Runs, seen: &mut [Line]) {
    let Maps { height, width, .. } = *maps;
    let mut rows = [[Line::ZERO; SPAN]; SEEN];
    let runs_here = &runs.list[..runs.count];
    for input in 0..inputs {
        for run in runs_here {
            let plane = &maps.x[(run.image * inputs + input) * height * width..][..height * width];
            let is_first = run.lane == 0;
            // Neighbours before the first run and after the last; those of others are beyond the edge.
            let first =
                if is_first && run.left > 0 { run.left - LANES.min(run.left) } else { run.left };
            let pixels = run.left - first + TILE * run.count + 1;
            let at = LANES + TILE * run.lane - (run.left - first);
            let mut done = 0;
            while done < pixels {
                let left = first + done;
                let mut d = [L::splat(0.0); SEEN];
                let to = width.min(left + LANES);
                if left < to {
                    for (offset, d) in d.iter_mut().enumerate() {
                        let row = (run.top + offset).wrapping_sub(1);
                        if row < height {
                            *d = L::load_some(&plane[row * width + left..row * width + to]);
                        }
                    }
                }
                for (row, value) in rows.iter_mut().zip(forth(d)) {
                    // What is written beyond the run is overwritten by the next.
                    if let Some(line) = flat_mut(row)[at + done..].first_chunk_mut() {
                        value.store(line);
                    }
                }
                done += LANES;
            }
        }
        for (i, row) in rows.iter().enumerate() {
            let line = |index: usize| L::load(&row[index].0);
            for group in 0..GROUPS {
                let start = TILE * group;
                let quads = [1, 2, 3, 4].map(|k| line(start + k));
                let [b, c, d, e] = L::apart(quads);
                let a = e.moved_up(line(start), !(runs.starts >> (LANES * group)) as u16);
                let f = b.moved_down(line(start + 5), !(runs.ends >> (LANES * group)) as u16);
                for (j, value) in forth([a, b, c, d, e, f]).into_iter().enumerate() {
                    let place = i * SEEN + j;
                    value.store(&mut seen[place * seen_apart(inputs) + input * GROUPS + group].0);
                }
            }
        }
    }
}

/// `products` [PLACES, ROWS, GROUPS] of `transformed` [PLACES, inputs, ROWS] and `seen`.
#[inline(always)]
fn multiply<L: Lanes>(inputs: usize, transformed: &[f32], seen: &[Line], products: &mut [Line]) {
    let places = transformed
        .chunks_exact(inputs * ROWS)
        .zip(seen.chunks_exact(seen_apart(inputs)))
        .zip(products.as_chunks_mut::<PRODUCTS_APART>().0);
    for ((filters, tiles), products) in places {
        let mut sums = [[L::splat(0.0); GROUPS]; ROWS];
        let terms = filters.as_chunks::<ROWS>().0.iter().zip(tiles.as_chunks::<GROUPS>().0);
        for (filter, tiles) in terms {
            let tiles = [L::load(&tiles[0].0), L::load(&tiles[1].0)];
            for (sums, &weight) in sums.iter_mut().zip(filter) {
                let weight = L::splat(weight);
                for (sum, tile) in sums.iter_mut().zip(tiles) {
                    *sum = tile.fma(weight, *sum);
                }
            }
        }
        for (product, sum) in products.iter_mut().zip(sums.as_flattened()) {
            sum.store(&mut product.0);
        }
    }
}

/// Transforms the products of some outputs back and writes them.
///
/// # Safety
/// No other call writes to the pixels of these runs.
#[inline(always)]
unsafe fn write<L: Lanes>(
    filters: &Filters,
    outputs: Range<usize>,
    maps: &Maps<'_>,
    runs: &Runs,
    products: &[Line],
    y: &Parts,
) {
    let Maps { height, width, .. } = *maps;
    let half_power = L::splat(std::f32::consts::FRAC_1_SQRT_2);
    for (row, output) in outputs.enumerate() {
        let bias = L::splat(filters.bias[output]);
        let mut pixels = [[Line::ZERO; TILE * GROUPS]; TILE];
        for group in 0..GROUPS {
            let at = |i: usize, j: usize| {
                L::load(&products[(i * SEEN + j) * PRODUCTS_APART + row * GROUPS + group].0)
            };
            let mut half = [[L::splat(0.0); SEEN]; TILE];
            for j in 0..SEEN {
                let column = back([0, 1, 2, 3, 4, 5].map(|i| at(i, j)));
                for (half, value) in half.iter_mut().zip(column) {
                    half[j] = value;
                }
            }
            for (half, pixels) in half.into_iter().zip(&mut pixels) {
                let parts = back(half).map(|part| part.add(bias));
                let lines = pixels[TILE * group..].iter_mut();
                for (line, value) in lines.zip(L::together(parts)) {
                    value.store(&mut line.0);
                }
            }
        }
        for run in &runs.list[..runs.count] {
            let plane = (run.image * filters.outputs + output) * height * width;
            let count = (TILE * run.count).min(width - run.left);
            for (down, pixels) in pixels.iter().enumerate().take(height - run.top) {
                let pixels = &flat(pixels)[TILE * run.lane..][..count];
                let start = plane + (run.top + down) * width + run.left;
                // SAFETY: these pixels are of this call alone.
                let to = unsafe { y.range(start, count) };
                let Some(residual) = maps.residual else {
                    to.copy_from_slice(pixels);
                    continue;
                };
                let residual = &residual[start..start + count];
                let (whole, rest) = to.as_chunks_mut::<LANES>();
                for (index, to) in whole.iter_mut().enumerate() {
                    let here = index * LANES..(index + 1) * LANES;
                    let sum =
                        L::load_some(&pixels[here.clone()]).add(L::load_some(&residual[here]));
                    sum.mul(half_power).store(to);
                }
                let done = count - rest.len();
                for (to, (a, b)) in
                    rest.iter_mut().zip(pixels[done..].iter().zip(&residual[done..]))
                {
                    *to = (a + b) * std::f32::consts::FRAC_1_SQRT_2;
                }
            }
        }
    }
}

/// What this machine computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Machine {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Any,
}

impl Machine {
    /// All that can be had here, the fastest first.
    pub fn all() -> impl Iterator<Item = Self> {
        let found = [
            #[cfg(target_arch = "x86_64")]
            (Self::Avx512, is_x86_feature_detected!("avx512f")),
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2, is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")),
            (Self::Any, true),
        ];
        found.into_iter().filter(|found| found.1).map(|found| found.0)
    }

    /// Whether this beats the runtime's own convolution. Without the registers of AVX-512 it is no faster than that.
    pub fn pays(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => true,
            _ => false,
        }
    }

    /// Computes a share of a convolution in `scratch`, [`Filters::scratch`] lines of any content. `y`: [N, outputs, H, W].
    ///
    /// # Safety
    /// The machine is one of [`Machine::all`]; no two calls at a time share an output of a block.
    pub unsafe fn convolve(
        self,
        filters: &Filters,
        maps: &Maps<'_>,
        share: Share,
        y: &Parts,
        scratch: &mut [Line],
    ) {
        // SAFETY: the instructions are there, and the rest is as the caller promises.
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { avx512(filters, maps, share, y, scratch) },
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2(filters, maps, share, y, scratch) },
            Self::Any => unsafe { any(filters, maps, share, y, scratch) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,fma")]
unsafe fn avx512(
    filters: &Filters,
    maps: &Maps<'_>,
    share: Share,
    y: &Parts,
    scratch: &mut [Line],
) {
    // SAFETY: as the caller promises.
    unsafe { convolve::<Wide>(filters, maps, share, y, scratch) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(filters: &Filters, maps: &Maps<'_>, share: Share, y: &Parts, scratch: &mut [Line]) {
    // SAFETY: as the caller promises.
    unsafe { convolve::<Portable<true>>(filters, maps, share, y, scratch) }
}

unsafe fn any(filters: &Filters, maps: &Maps<'_>, share: Share, y: &Parts, scratch: &mut [Line]) {
    const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
    // SAFETY: as the caller promises.
    unsafe { convolve::<Portable<FUSED>>(filters, maps, share, y, scratch) }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        fn new([batch, inputs, outputs, height, width]: [usize; 5], residual: bool) -> Self {
            let maps = |channels| batch * channels * height * width;
            Self {
                batch,
                inputs,
                outputs,
                height,
                width,
                x: spread(maps(inputs), 1),
                weights: spread(outputs * inputs * 9, 2),
                bias: spread(outputs, 3),
                residual: residual.then(|| spread(maps(outputs), 4)),
            }
        }

        fn found(&self, machine: Machine, parts: usize) -> Vec<f32> {
            let filters = Filters::new(&self.weights, &self.bias, self.inputs);
            let Self { batch, height, width, .. } = *self;
            let maps =
                Maps { x: &self.x, residual: self.residual.as_deref(), batch, height, width };
            let mut y = vec![f32::NAN; batch * self.outputs * height * width];
            let parts_of_y = Parts::new(&mut y);
            // What was left behind by others is of no account.
            let mut scratch = vec![Line([f32::NAN; LANES]); filters.scratch()];
            for block in 0..maps.blocks() {
                let bound = |part| part * filters.groups() / parts;
                for part in 0..parts {
                    let share = Share { block, groups: bound(part)..bound(part + 1) };
                    // SAFETY: one call at a time.
                    unsafe { machine.convolve(&filters, &maps, share, &parts_of_y, &mut scratch) };
                }
            }
            y
        }

        /// As it is written down, in float64.
        fn by_definition(&self) -> Vec<f64> {
            let Self { batch, inputs, outputs, height: h, width: w, .. } = *self;
            let mut y = Vec::with_capacity(batch * outputs * h * w);
            for index in 0..batch * outputs * h * w {
                let (column, row) = (index % w, index / w % h);
                let (output, image) = (index / w / h % outputs, index / w / h / outputs);
                let mut sum = f64::from(self.bias[output]);
                for input in 0..inputs {
                    for (at, &weight) in
                        self.weights[(output * inputs + input) * 9..][..9].iter().enumerate()
                    {
                        let (r, c) = (row + at / 3, column + at % 3);
                        if (1..=h).contains(&r) && (1..=w).contains(&c) {
                            let x = self.x[((image * inputs + input) * h + r - 1) * w + c - 1];
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

    #[test]
    fn any_shape_gives_what_the_definition_gives_on_every_machine() {
        let shapes = [
            [1, 1, 1, 1, 1],
            [1, 1, 8, 4, 4],
            [2, 3, 5, 7, 9],
            [1, 2, 3, 6, 64],
            [1, 4, 9, 5, 130],
            [3, 5, 8, 17, 33],
            [2, 2, 17, 9, 260],
            [5, 3, 4, 8, 8],
            [1, 32, 16, 16, 128],
        ];
        for machine in Machine::all() {
            for (shape, residual) in shapes.into_iter().zip([false, true].into_iter().cycle()) {
                let case = Case::new(shape, residual);
                let (found, wanted) = (case.found(machine, 1), case.by_definition());
                let square =
                    |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
                let error = square(&mut found.iter().zip(&wanted).map(|(&f, w)| f64::from(f) - w));
                let relative = (error / square(&mut wanted.iter().copied())).sqrt();
                // Ten units in the last place.
                assert!(relative < 1e-6, "{machine:?}, {shape:?}: {relative:.1e}");
                assert_eq!(found, case.found(machine, 2), "{machine:?}, {shape:?}: in parts");
            }
        }
    }
}
