//! Products of matrices over [`Lanes`]: what a convolution's outputs are summed up by.

// As in `lanes`.
#![allow(clippy::inline_always)]

use std::f32::consts::FRAC_1_SQRT_2;

use super::lanes::{LANES, Lanes, Line};

/// Outputs whose sums are computed together: 8 x 2 registers of them.
pub(super) const ROWS: usize = 8;
/// Registers that lie side by side.
pub(super) const GROUPS: usize = 2;

/// `ROWS` rows of a matrix times lines of another: `rows` [terms, ROWS], `lines` [terms, GROUPS].
#[inline(always)]
pub(super) fn sums<L: Lanes>(rows: &[f32], lines: &[Line]) -> [[L; GROUPS]; ROWS] {
    let mut sums = [[L::splat(0.0); GROUPS]; ROWS];
    let terms = rows.as_chunks::<ROWS>().0.iter().zip(lines.as_chunks::<GROUPS>().0);
    for (factors, lines) in terms {
        let lines = [L::load(&lines[0].0), L::load(&lines[1].0)];
        for (sums, &factor) in sums.iter_mut().zip(factors) {
            let factor = L::splat(factor);
            for (sum, line) in sums.iter_mut().zip(lines) {
                *sum = line.fma(factor, *sum);
            }
        }
    }
    sums
}

/// Writes `values`, or their rescaled sum with a residual, (residual + values)/√2.
#[inline(always)]
pub(super) fn deposit<L: Lanes>(values: &[f32], residual: Option<&[f32]>, to: &mut [f32]) {
    let half_power = L::splat(FRAC_1_SQRT_2);
    for (index, to) in to.chunks_mut(LANES).enumerate() {
        let here = index * LANES..index * LANES + to.len();
        let mut sum = L::load_some(&values[here.clone()]);
        if let Some(residual) = residual {
            sum = L::load_some(&residual[here]).add(sum).mul(half_power);
        }
        sum.store_some(to);
    }
}

pub(super) fn flat(lines: &[Line]) -> &[f32] {
    // SAFETY: a line is sixteen numbers and nothing else.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * LANES) }
}

pub(super) fn flat_mut(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: as in `flat`.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LANES) }
}
