//! A 3 x 3 convolution by Winograd's minimal filtering F(4 x 4, 3 x 3): a quarter of the multiplications.
//!
//! The map is cut into tiles of 4 x 4 outputs, each of which sees 6 x 6 inputs. Inputs and filters are transformed, so that
//! each of the 36 places is a product of matrices (outputs x inputs, inputs x tiles) of its own, and the products are
//! transformed back. The transforms interpolate at 0, ±5/8, ±3/2 and infinity: the rounding error is half that of the usual
//! 0, ±1, ±2 and about twice that of the convolution as it is written down.
//!
//! Tiles lie side by side in a register, whatever rows or images they are of. A block of them is taken through all three
//! stages while it is in the second cache.

use super::lanes::{LANES, Lanes, Line};

/// Outputs of a tile along an axis, and the inputs that they see.
const TILE: usize = 4;
const SEEN: usize = 6;
/// Places of a transformed tile.
const PLACES: usize = SEEN * SEEN;
/// Registers of tiles in a block.
const GROUPS: usize = 2;
/// Tiles that are taken through all stages together.
pub(super) const BLOCK: usize = GROUPS * LANES;
/// Outputs whose products are computed together: 8 x 2 registers of sums.
const ROWS: usize = 8;

// The points are 0, ±P, ±Q and infinity.
const P: f32 = 0.625;
const Q: f32 = 1.5;

/// Pixels of a block side by side, with a register of neighbours at either end.
const SPAN: usize = TILE * BLOCK + 2 * LANES;

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
        let groups = outputs.div_ceil(ROWS);
        self.transformed.resize(groups * PLACES * inputs * ROWS, 0.0);
        self.bias.resize(groups * ROWS, 0.0);
        self.bias[..outputs].copy_from_slice(bias);
        let matrix = filter_matrix();
        for (index, filter) in weights.as_chunks::<9>().0.iter().enumerate() {
            let (output, input) = (index / inputs, index % inputs);
            let (group, row) = (output / ROWS, output % ROWS);
            for (i, left) in matrix.iter().enumerate() {
                for (j, right) in matrix.iter().enumerate() {
                    let product = |(at, &w): (usize, &f32)| left[at / 3] * right[at % 3] * f64::from(w);
                    let value: f64 = filter.iter().enumerate().map(product).sum();
                    let place = i * SEEN + j;
                    self.transformed[((group * PLACES + place) * inputs + input) * ROWS + row] = value as f32;
                }
            }
        }
    }

    /// Lines of scratch that a block needs.
    pub fn scratch(&self) -> usize {
        (PLACES * self.inputs + PLACES * ROWS) * GROUPS
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
        let mut runs = Runs { runs: [Run::default(); BLOCK], count: 0, starts: 0, ends: 0 };
        let mut lane = 0;
        while tile < end {
            let (row, column) = (tile / across, tile % across);
            let count = (across - column).min(end - tile);
            runs.runs[runs.count] = Run {
                lane,
                count,
                image: row / down,
                top: row % down * TILE,
                left: column * TILE,
            };
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
    runs: [Run; BLOCK],
    count: usize,
    /// A bit for each tile that is the first, or the last, of its row.
    starts: u32,
    ends: u32,
}

/// Where threads write, in places of their own.
#[derive(Clone, Copy)]
pub(super) struct Output {
    pub start: *mut f32,
    pub length: usize,
}

// SAFETY: blocks write to disjoint pixels.
unsafe impl Sync for Output {}
unsafe impl Send for Output {}

/// Takes one block through all stages.
///
/// # Safety
/// The machine has the instructions of `L`; no two calls with the same block run at a time.
#[inline(always)]
pub(super) unsafe fn block<L: Lanes>(
    filters: &Filters,
    maps: &Maps<'_>,
    number: usize,
    y: Output,
    scratch: &mut [Line],
) {
    let runs = maps.runs(number);
    let (seen, products) = scratch.split_at_mut(PLACES * filters.inputs * GROUPS);
    let products = &mut products[..PLACES * ROWS * GROUPS];
    look::<L>(filters.inputs, maps, &runs, seen);
    let of_group = PLACES * filters.inputs * ROWS;
    for (group, transformed) in filters.transformed.chunks_exact(of_group).enumerate() {
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
    let mut rows = [[0.0f32; SPAN]; SEEN];
    let runs_here = &runs.runs[..runs.count];
    for input in 0..inputs {
        for run in runs_here {
            let plane = &maps.x[(run.image * inputs + input) * height * width..][..height * width];
            let is_first = run.lane == 0;
            // Neighbours before the first run and after the last; those of others are beyond the edge.
            let first = if is_first && run.left > 0 { run.left - LANES.min(run.left) } else { run.left };
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
                    if let Some(line) = row[at + done..].first_chunk_mut() {
                        value.store(line);
                    }
                }
                done += LANES;
            }
        }
        for (i, row) in rows.iter().enumerate() {
            let line = |index: usize| {
                L::load(row[index * LANES..].first_chunk().expect("a span is whole lines"))
            };
            for group in 0..GROUPS {
                let start = TILE * group;
                let quads = [1, 2, 3, 4].map(|k| line(start + k));
                let [b, c, d, e] = L::apart(quads);
                let a = e.moved_up(line(start), !(runs.starts >> (LANES * group)) as u16);
                let f = b.moved_down(line(start + 5), !(runs.ends >> (LANES * group)) as u16);
                for (j, value) in forth([a, b, c, d, e, f]).into_iter().enumerate() {
                    let place = i * SEEN + j;
                    value.store(&mut seen[(place * inputs + input) * GROUPS + group].0);
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
        .zip(seen.chunks_exact(inputs * GROUPS))
        .zip(products.as_chunks_mut::<{ ROWS * GROUPS }>().0);
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
    outputs: std::ops::Range<usize>,
    maps: &Maps<'_>,
    runs: &Runs,
    products: &[Line],
    y: Output,
) {
    let Maps { height, width, .. } = *maps;
    let half_power = L::splat(std::f32::consts::FRAC_1_SQRT_2);
    for (row, output) in outputs.enumerate() {
        let bias = L::splat(filters.bias[output]);
        let mut pixels = [[0.0f32; TILE * BLOCK]; TILE];
        for group in 0..GROUPS {
            let at = |i: usize, j: usize| {
                L::load(&products[((i * SEEN + j) * ROWS + row) * GROUPS + group].0)
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
                let start = TILE * LANES * group;
                let lines = pixels[start..start + TILE * LANES].as_chunks_mut().0;
                for (line, value) in lines.iter_mut().zip(L::together(parts)) {
                    value.store(line);
                }
            }
        }
        for run in &runs.runs[..runs.count] {
            let plane = (run.image * filters.outputs + output) * height * width;
            let count = (TILE * run.count).min(width - run.left);
            for (down, pixels) in pixels.iter().enumerate().take(height - run.top) {
                let pixels = &pixels[TILE * run.lane..][..count];
                let start = plane + (run.top + down) * width + run.left;
                assert!(start + count <= y.length, "a block lies within the output");
                // SAFETY: within the output, and of this block alone.
                let to = unsafe { std::slice::from_raw_parts_mut(y.start.add(start), count) };
                let Some(residual) = maps.residual else {
                    to.copy_from_slice(pixels);
                    continue;
                };
                let residual = &residual[start..start + count];
                let (whole, rest) = to.as_chunks_mut::<LANES>();
                for (index, to) in whole.iter_mut().enumerate() {
                    let here = index * LANES..(index + 1) * LANES;
                    let sum = L::load_some(&pixels[here.clone()]).add(L::load_some(&residual[here]));
                    sum.mul(half_power).store(to);
                }
                let done = count - rest.len();
                for (to, (a, b)) in rest.iter_mut().zip(pixels[done..].iter().zip(&residual[done..])) {
                    *to = (a + b) * std::f32::consts::FRAC_1_SQRT_2;
                }
            }
        }
    }
}
