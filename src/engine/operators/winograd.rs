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

use super::{
    Parts, Size,
    convolution::{Filters, Maps, Method, Share, Weights},
    lanes::{LANES, Lanes, Line},
    product::{GROUPS, ROWS, deposit, flat, flat_mut, sums},
};

/// Outputs of a tile along an axis, and the inputs that they see.
pub(super) const TILE: usize = 4;
pub(super) const SEEN: usize = 6;
/// Places of a transformed tile.
pub(super) const PLACES: usize = SEEN * SEEN;
/// Tiles that are taken through all stages together.
pub(super) const BLOCK: usize = GROUPS * LANES;

// The points are 0, ±P, ±Q and infinity.
pub(super) const P: f32 = 0.625;
pub(super) const Q: f32 = 1.5;

/// Lines from one place to the next among transformed inputs, and among products. One more than they need: were it a power
/// of two, as channels are, all places would contend for the same few lines of the first cache.
const fn seen_apart(inputs: usize) -> usize {
    inputs * GROUPS + 1
}
const PRODUCTS_APART: usize = ROWS * GROUPS + 1;

/// Lines of pixels of a block side by side, with a register of neighbours at either end.
const SPAN: usize = TILE * GROUPS + 2;

/// Filters are prepared as [PLACES, inputs, ROWS] of each group of outputs, with zeros for outputs that are not there.
#[derive(Debug)]
pub(super) struct Winograd;

impl Method for Winograd {
    const SIDE: usize = 3;

    fn prepared(inputs: usize) -> usize {
        PLACES * inputs * ROWS
    }

    /// Two inputs of all rows of the group lie side by side in a register, as they are stored.
    #[inline(always)]
    unsafe fn prepare<L: Lanes>(weights: &Weights<'_>, group: usize, to: &mut [f32]) {
        let Weights { inputs, outputs, .. } = *weights;
        let rows = group * ROWS..outputs.min((group + 1) * ROWS);
        let matrix = filter_matrix::<3>();
        for first in (0..inputs).step_by(2) {
            let pair = first..inputs.min(first + 2);
            let mut taps = [[0.0; LANES]; 9];
            for (half, input) in pair.clone().enumerate() {
                for (row, output) in rows.clone().enumerate() {
                    for (tap, value) in taps.iter_mut().zip(weights.filter::<9>(output, input)) {
                        tap[half * ROWS + row] = value;
                    }
                }
            }
            for (i, left) in matrix.iter().enumerate() {
                let mut mixed = [L::splat(0.0); 3];
                for (k, mixed) in mixed.iter_mut().enumerate() {
                    for (row, &factor) in left.iter().enumerate() {
                        *mixed = L::load(&taps[3 * row + k]).fma(L::splat(factor), *mixed);
                    }
                }
                for (j, right) in matrix.iter().enumerate() {
                    let mut value = L::splat(0.0);
                    for (mixed, &factor) in mixed.iter().zip(right) {
                        value = mixed.fma(L::splat(factor), value);
                    }
                    let at = ((i * SEEN + j) * inputs + first) * ROWS;
                    value.store_some(&mut to[at..at + pair.len() * ROWS]);
                }
            }
        }
    }

    fn scratch(inputs: usize) -> usize {
        PLACES * (seen_apart(inputs) + PRODUCTS_APART)
    }

    fn blocks(size: Size) -> usize {
        tiles(size).div_ceil(BLOCK)
    }

    /// Takes the block through all stages.
    #[inline(always)]
    unsafe fn convolve<L: Lanes>(
        filters: &Filters<'_>,
        maps: &Maps<'_>,
        share: Share,
        y: &Parts,
        scratch: &mut [Line],
    ) {
        let inputs = filters.inputs;
        let runs = Runs::new(maps.size, share.block);
        let (seen, products) = scratch.split_at_mut(PLACES * seen_apart(inputs));
        let products = &mut products[..PLACES * PRODUCTS_APART];
        look::<L>(inputs, maps, &runs, seen);
        let of_group = Self::prepared(inputs);
        for group in share.groups {
            let transformed = &filters.prepared[group * of_group..][..of_group];
            multiply::<L>(inputs, transformed, seen, products);
            let outputs = group * ROWS..filters.outputs.min((group + 1) * ROWS);
            // SAFETY: as the caller promises.
            unsafe { write::<L>(filters, outputs, maps, &runs, products, y) };
        }
    }
}

/// Transform of a filter along one axis: its polynomial at the points, over the product of their distances.
pub(super) fn filter_matrix<const TAPS: usize>() -> [[f32; TAPS]; SEEN] {
    let (p, q) = (f64::from(P), f64::from(Q));
    let points = [0.0, p, -p, q, -q];
    let mut matrix = [[0.0; TAPS]; SEEN];
    for (row, &point) in matrix.iter_mut().zip(&points) {
        let others = points.iter().filter(|&&other| other != point);
        let mut power = 1.0 / others.map(|other| point - other).product::<f64>();
        for value in row {
            *value = power as f32;
            power *= point;
        }
    }
    // At infinity the highest power alone counts.
    matrix[SEEN - 1][TAPS - 1] = 1.0;
    matrix
}

/// Transform of the inputs along one axis.
#[inline(always)]
pub(super) fn forth<L: Lanes>(d: [L; SEEN]) -> [L; SEEN] {
    const P2: f32 = P * P;
    const Q2: f32 = Q * Q;
    let (minus_p2, minus_q2) = (L::splat(-P2), L::splat(-Q2));
    let (p2q2, minus_sum) = (L::splat(P2 * Q2), L::splat(-(P2 + Q2)));
    let (p, minus_p, q, minus_q) = (L::splat(P), L::splat(-P), L::splat(Q), L::splat(-Q));
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
    let (p, p2, p3) = (L::splat(P), L::splat(P * P), L::splat(P * P * P));
    let (q, q2, q3) = (L::splat(Q), L::splat(Q * Q), L::splat(Q * Q * Q));
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

pub(super) fn tiles(size: Size) -> usize {
    size.batch * size.height.div_ceil(TILE) * size.width.div_ceil(TILE)
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Run {
    /// Where it begins in the block.
    pub lane: usize,
    pub count: usize,
    pub image: usize,
    /// Of its first output.
    pub top: usize,
    pub left: usize,
}

/// Tiles of a block that lie in one row of one image, by rows.
pub(super) struct Runs {
    list: [Run; BLOCK],
    count: usize,
    /// A bit for each tile that is the first, or the last, of its row.
    starts: u32,
    ends: u32,
}

impl Runs {
    pub fn new(size: Size, block: usize) -> Self {
        let (down, across) = (size.height.div_ceil(TILE), size.width.div_ceil(TILE));
        let (mut tile, end) = (block * BLOCK, tiles(size).min((block + 1) * BLOCK));
        let mut runs = Self { list: [Run::default(); BLOCK], count: 0, starts: 0, ends: 0 };
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

    pub fn list(&self) -> &[Run] {
        &self.list[..self.count]
    }
}

/// Transforms the inputs of a block: `seen` [PLACES, inputs, GROUPS].
#[inline(always)]
fn look<L: Lanes>(inputs: usize, maps: &Maps<'_>, runs: &Runs, seen: &mut [Line]) {
    let Size { height, width, .. } = maps.size;
    let mut rows = [[Line::ZERO; SPAN]; SEEN];
    let runs_here = runs.list();
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
            for group in 0..GROUPS {
                let lines: &[Line; SEEN] =
                    row[TILE * group..].first_chunk().expect("a line at either end");
                let [before, first, second, third, fourth, after] = lines;
                let [b, c, d, e] = L::apart([
                    L::load(&first.0),
                    L::load(&second.0),
                    L::load(&third.0),
                    L::load(&fourth.0),
                ]);
                let (starts, ends) = (runs.starts >> (LANES * group), runs.ends >> (LANES * group));
                let a = e.moved_up(L::load(&before.0), !starts as u16);
                let f = b.moved_down(L::load(&after.0), !ends as u16);
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
        let sums = sums::<L>(filters, tiles);
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
    filters: &Filters<'_>,
    outputs: Range<usize>,
    maps: &Maps<'_>,
    runs: &Runs,
    products: &[Line],
    y: &Parts,
) {
    let Size { height, width, .. } = maps.size;
    let mut pixels = [[Line::ZERO; TILE * GROUPS]; TILE];
    for (row, output) in outputs.enumerate() {
        let bias = L::splat(filters.bias(output));
        for group in 0..GROUPS {
            let mut half = [[L::splat(0.0); SEEN]; TILE];
            for j in 0..SEEN {
                let mut column = [L::splat(0.0); SEEN];
                for (i, value) in column.iter_mut().enumerate() {
                    let place = i * SEEN + j;
                    *value = L::load(&products[place * PRODUCTS_APART + row * GROUPS + group].0);
                }
                for (half, value) in half.iter_mut().zip(back(column)) {
                    half[j] = value;
                }
            }
            for (half, pixels) in half.into_iter().zip(&mut pixels) {
                let [a, b, c, d] = back(half);
                let parts = [a.add(bias), b.add(bias), c.add(bias), d.add(bias)];
                let lines = pixels[TILE * group..].iter_mut();
                for (line, value) in lines.zip(L::together(parts)) {
                    value.store(&mut line.0);
                }
            }
        }
        for run in runs.list() {
            let plane = (run.image * filters.outputs + output) * height * width;
            let count = (TILE * run.count).min(width - run.left);
            for (down, pixels) in pixels.iter().enumerate().take(height - run.top) {
                let pixels = &flat(pixels)[TILE * run.lane..][..count];
                let start = plane + (run.top + down) * width + run.left;
                let residual = maps.residual.map(|residual| &residual[start..start + count]);
                // SAFETY: these pixels are of this call alone.
                deposit::<L>(pixels, residual, unsafe { y.range(start, count) });
            }
        }
    }
}
