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
    Parts,
    convolution::{Filters, Maps, Share},
    lanes::{LANES, Lanes, Line},
    product::{GROUPS, ROWS, deposit, flat, flat_mut, sums},
};

/// Outputs of a tile along an axis, and the inputs that they see.
const TILE: usize = 4;
const SEEN: usize = 6;
/// Places of a transformed tile.
const PLACES: usize = SEEN * SEEN;
/// Tiles that are taken through all stages together.
const BLOCK: usize = GROUPS * LANES;

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
pub(super) struct Winograd {
    inputs: usize,
    outputs: usize,
    /// [outputs / ROWS, PLACES, inputs, ROWS], with zeros for outputs that are not there.
    transformed: Vec<f32>,
    bias: Vec<f32>,
}

impl Filters for Winograd {
    const SIDE: usize = 3;

    fn new(weights: &[f32], bias: &[f32], inputs: usize) -> Self {
        let outputs = bias.len();
        assert_eq!(weights.len(), outputs * inputs * 9);
        let mut transformed = vec![0.0; outputs.div_ceil(ROWS) * PLACES * inputs * ROWS];
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
                    transformed[place * ROWS + row] = value as f32;
                }
            }
        }
        Self { inputs, outputs, transformed, bias: bias.to_vec() }
    }

    fn inputs(&self) -> usize {
        self.inputs
    }

    fn outputs(&self) -> usize {
        self.outputs
    }

    fn scratch(&self) -> usize {
        PLACES * (seen_apart(self.inputs) + PRODUCTS_APART)
    }

    fn blocks(maps: &Maps<'_>) -> usize {
        tiles(maps).div_ceil(BLOCK)
    }

    /// Takes the block through all stages.
    #[inline(always)]
    unsafe fn convolve<L: Lanes>(
        &self,
        maps: &Maps<'_>,
        share: Share,
        y: &Parts,
        scratch: &mut [Line],
    ) {
        let runs = Runs::new(maps, share.block);
        let (seen, products) = scratch.split_at_mut(PLACES * seen_apart(self.inputs));
        let products = &mut products[..PLACES * PRODUCTS_APART];
        look::<L>(self.inputs, maps, &runs, seen);
        let of_group = PLACES * self.inputs * ROWS;
        for group in share.groups {
            let transformed = &self.transformed[group * of_group..][..of_group];
            multiply::<L>(self.inputs, transformed, seen, products);
            let outputs = group * ROWS..self.outputs.min((group + 1) * ROWS);
            // SAFETY: as the caller promises.
            unsafe { write::<L>(self, outputs, maps, &runs, products, y) };
        }
    }
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

fn tiles(maps: &Maps<'_>) -> usize {
    maps.batch * maps.height.div_ceil(TILE) * maps.width.div_ceil(TILE)
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

/// Tiles of a block that lie in one row of one image, by rows.
struct Runs {
    list: [Run; BLOCK],
    count: usize,
    /// A bit for each tile that is the first, or the last, of its row.
    starts: u32,
    ends: u32,
}

impl Runs {
    fn new(maps: &Maps<'_>, block: usize) -> Self {
        let (down, across) = (maps.height.div_ceil(TILE), maps.width.div_ceil(TILE));
        let (mut tile, end) = (block * BLOCK, tiles(maps).min((block + 1) * BLOCK));
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
    filters: &Winograd,
    outputs: Range<usize>,
    maps: &Maps<'_>,
    runs: &Runs,
    products: &[Line],
    y: &Parts,
) {
    let Maps { height, width, .. } = *maps;
    let mut pixels = [[Line::ZERO; TILE * GROUPS]; TILE];
    for (row, output) in outputs.enumerate() {
        let bias = L::splat(filters.bias[output]);
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
        for run in &runs.list[..runs.count] {
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
