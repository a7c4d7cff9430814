//! The gradient of 3 x 3 filters by Winograd's minimal filtering F(3 x 3, 4 x 4): a quarter of the multiplications.
//!
//! A tile of 4 x 4 outputs and the 6 x 6 inputs that it sees give a 3 x 3 piece of the gradient. It interpolates at the same
//! points as the convolution, so that inputs are transformed alike; see `winograd`.

// As in `lanes`.
#![allow(clippy::inline_always)]

use super::{
    Size,
    lanes::{LANES, Lanes, Line},
    weight_gradient::{Channels, Correlation, Layout},
    winograd::{BLOCK, P, PLACES, Q, Run, Runs, SEEN, TILE, filter_matrix, forth, tiles},
};

/// Columns of pixels that a block sees, and some to be written beyond.
const COLUMNS: usize = TILE * BLOCK + 2 + LANES;

/// Rows of pixels that a run sees, channels side by side.
type Band = [[Line; COLUMNS]; SEEN];

#[derive(Debug)]
pub(super) struct WinogradGradient;

impl Correlation for WinogradGradient {
    const SIDE: usize = 3;
    const PLACES: usize = PLACES;
    const TERMS: usize = BLOCK;
    const BAND: usize = SEEN * COLUMNS;

    fn blocks(size: Size) -> usize {
        tiles(size).div_ceil(BLOCK)
    }

    #[inline(always)]
    unsafe fn inputs<L: Lanes>(
        channels: &Channels<'_>,
        block: usize,
        band: &mut [Line],
        to: &mut Layout<'_>,
    ) -> usize {
        let runs = Runs::new(channels.size, block);
        let band: &mut Band = band.as_chunks_mut().0.first_chunk_mut().expect("as many lines");
        let mut terms = 0;
        for run in runs.list() {
            gather::<L>(channels, run, SEEN, 1, band);
            for column in 0..TILE * run.count + 2 {
                let mut d = [L::splat(0.0); SEEN];
                for (d, row) in d.iter_mut().zip(&*band) {
                    *d = L::load(&row[column].0);
                }
                for (value, row) in forth(d).into_iter().zip(&mut *band) {
                    value.store(&mut row[column].0);
                }
            }
            // Row by row, so that few places are written to at a time.
            for (i, row) in band.iter().enumerate() {
                for tile in 0..run.count {
                    let mut d = [L::splat(0.0); SEEN];
                    for (d, line) in d.iter_mut().zip(&row[TILE * tile..]) {
                        *d = L::load(&line.0);
                    }
                    for (j, value) in forth(d).into_iter().enumerate() {
                        to.put(i * SEEN + j, run.lane + tile, value);
                    }
                }
            }
            terms = run.lane + run.count;
        }
        terms
    }

    #[inline(always)]
    unsafe fn outputs<L: Lanes>(
        channels: &Channels<'_>,
        block: usize,
        band: &mut [Line],
        to: &mut Layout<'_>,
    ) -> L {
        let runs = Runs::new(channels.size, block);
        let band: &mut Band = band.as_chunks_mut().0.first_chunk_mut().expect("as many lines");
        let matrix = filter_matrix::<TILE>();
        let mut sum = L::splat(0.0);
        for run in runs.list() {
            gather::<L>(channels, run, TILE, 0, band);
            for column in 0..TILE * run.count {
                let mut g = [L::splat(0.0); TILE];
                for (g, row) in g.iter_mut().zip(&*band) {
                    *g = L::load(&row[column].0);
                    sum = sum.add(*g);
                }
                for (value, row) in mix(&matrix, g).into_iter().zip(&mut *band) {
                    value.store(&mut row[column].0);
                }
            }
            for (i, row) in band.iter().enumerate() {
                for tile in 0..run.count {
                    let mut g = [L::splat(0.0); TILE];
                    for (g, line) in g.iter_mut().zip(&row[TILE * tile..]) {
                        *g = L::load(&line.0);
                    }
                    for (j, value) in mix(&matrix, g).into_iter().enumerate() {
                        to.put(i * SEEN + j, run.lane + tile, value);
                    }
                }
            }
        }
        sum
    }

    #[inline(always)]
    unsafe fn taps<L: Lanes>(sums: &[Line], taps: &mut [[f32; LANES]]) {
        let mut half = [[L::splat(0.0); SEEN]; 3];
        for j in 0..SEEN {
            let mut column = [L::splat(0.0); SEEN];
            for (i, value) in column.iter_mut().enumerate() {
                *value = L::load(&sums[i * SEEN + j].0);
            }
            for (half, value) in half.iter_mut().zip(back(column)) {
                half[j] = value;
            }
        }
        for (half, taps) in half.into_iter().zip(taps.as_chunks_mut::<3>().0) {
            for (value, tap) in back(half).into_iter().zip(taps) {
                value.store(tap);
            }
        }
    }
}

/// Pixels of some rows from `edge` above and left of a run on, as far as they lie in the image; the others are zero.
#[inline(always)]
fn gather<L: Lanes>(channels: &Channels<'_>, run: &Run, rows: usize, edge: usize, band: &mut Band) {
    let Size { height, width, .. } = channels.size;
    let count = TILE * run.count + 2 * edge;
    // Columns of the image that the band holds, and where the first of them stands in it.
    let (left, right) = (run.left.saturating_sub(edge), width.min(run.left + count - edge));
    let start = left + edge - run.left;
    for (offset, lines) in band.iter_mut().enumerate().take(rows) {
        let row = (run.top + offset).wrapping_sub(edge);
        lines[..start].fill(Line::ZERO);
        let inside = if row < height { right - left } else { 0 };
        for done in (0..inside).step_by(LANES) {
            let some = LANES.min(inside - done);
            let pixels = channels.pixels::<L>(run.image, row * width + left + done, some);
            let lines: &mut [Line; LANES] =
                lines[start + done..].first_chunk_mut().expect("room beyond the last column");
            for (line, pixel) in lines.iter_mut().zip(pixels) {
                pixel.store(&mut line.0);
            }
        }
        lines[start + inside..count].fill(Line::ZERO);
    }
}

/// Transform of the outputs along one axis.
#[inline(always)]
fn mix<L: Lanes>(matrix: &[[f32; TILE]; SEEN], g: [L; TILE]) -> [L; SEEN] {
    // Even and odd powers of a pair of opposite points.
    let mut mixed = [g[0].mul(L::splat(matrix[0][0])), g[0], g[0], g[0], g[0], g[TILE - 1]];
    for pair in [1, 3] {
        let row = &matrix[pair];
        let even = g[0].mul(L::splat(row[0])).fma_even(g[2], row[2]);
        let odd = g[1].mul(L::splat(row[1])).fma_even(g[3], row[3]);
        // The opposite point has the same distances' product, with even powers alike and odd ones opposite.
        (mixed[pair], mixed[pair + 1]) = (even.add(odd), even.sub(odd));
    }
    mixed
}

trait FmaEven: Lanes {
    /// self + value x factor.
    #[inline(always)]
    fn fma_even(self, value: Self, factor: f32) -> Self {
        value.fma(Self::splat(factor), self)
    }
}

impl<L: Lanes> FmaEven for L {}

/// Transform of the sums along one axis.
#[inline(always)]
fn back<L: Lanes>(m: [L; SEEN]) -> [L; 3] {
    let (near, near_odd) = (m[1].add(m[2]), m[1].sub(m[2]));
    let (far, far_odd) = (m[3].add(m[4]), m[3].sub(m[4]));
    [
        m[0].add(near).add(far),
        near_odd.mul(L::splat(P)).fma_even(far_odd, Q),
        m[5].fma_even(near, P * P).fma_even(far, Q * Q),
    ]
}
