//! The gradient of 1 x 1 filters: one product of matrices, summed over all pixels.

// As in `lanes`.
#![allow(clippy::inline_always)]

use super::{
    Size,
    lanes::{LANES, Lanes, Line},
    pointwise::Runs,
    weight_gradient::{Channels, Correlation, Layout},
};

/// Pixels of a block.
const PIXELS: usize = 128;

#[derive(Debug)]
pub(super) struct PointwiseGradient;

impl Correlation for PointwiseGradient {
    const SIDE: usize = 1;
    const PLACES: usize = 1;
    const TERMS: usize = PIXELS;
    const BAND: usize = 0;

    fn blocks(size: Size) -> usize {
        size.pixels().div_ceil(PIXELS)
    }

    #[inline(always)]
    unsafe fn inputs<L: Lanes>(
        channels: &Channels<'_>,
        block: usize,
        _: &mut [Line],
        to: &mut Layout<'_>,
    ) -> usize {
        gather::<L>(channels, block, to).0
    }

    #[inline(always)]
    unsafe fn outputs<L: Lanes>(
        channels: &Channels<'_>,
        block: usize,
        _: &mut [Line],
        to: &mut Layout<'_>,
    ) -> L {
        gather::<L>(channels, block, to).1
    }

    #[inline(always)]
    unsafe fn taps<L: Lanes>(sums: &[Line], taps: &mut [[f32; LANES]]) {
        taps[0] = sums[0].0;
    }
}

/// Lays out the pixels of a block; gives their number and sum.
#[inline(always)]
fn gather<L: Lanes>(channels: &Channels<'_>, block: usize, to: &mut Layout<'_>) -> (usize, L) {
    let first = block * PIXELS;
    let last = channels.size.pixels().min(first + PIXELS);
    let plane = channels.size.height * channels.size.width;
    let mut sum = L::splat(0.0);
    for run in (Runs { rest: first..last, plane }) {
        for done in (0..run.count).step_by(LANES) {
            let some = LANES.min(run.count - done);
            let values = channels.pixels::<L>(run.image, run.first + done, some);
            let at = run.pixel - first + done;
            // Told apart as in `Channels::pixels`.
            if some == LANES {
                for (index, value) in values.into_iter().enumerate() {
                    sum = sum.add(value);
                    to.put(0, at + index, value);
                }
            } else {
                for (index, value) in values.into_iter().enumerate().take(some) {
                    sum = sum.add(value);
                    to.put(0, at + index, value);
                }
            }
        }
    }
    (last - first, sum)
}
