//! A 1 x 1 convolution: a product of matrices (outputs x inputs, inputs x pixels) that writes its sums with bias and
//! residual.
//!
//! Pixels lie side by side in a register, whatever images they are of. A block of them is gathered from all planes before it
//! is multiplied: planes lie a power of two apart, so that their lines would contend for the same places of the first cache.

// As in `lanes`.
#![allow(clippy::inline_always)]

use std::ops::Range;

use super::{
    Parts, Size,
    convolution::{Filters, Maps, Method, Share, Weights},
    lanes::{LANES, Lanes, Line},
    product::{GROUPS, ROWS, deposit, flat, flat_mut, sums},
};

/// Pixels that are multiplied together.
const PIXELS: usize = GROUPS * LANES;
/// Pixels of a block.
const BLOCK: usize = 8 * PIXELS;

/// Rows of the matrix are prepared as [inputs, ROWS] of each group of outputs, with zeros for outputs that are not there.
#[derive(Debug)]
pub(super) struct Pointwise;

impl Method for Pointwise {
    const SIDE: usize = 1;

    fn prepared(inputs: usize) -> usize {
        inputs * ROWS
    }

    unsafe fn prepare<L: Lanes>(weights: &Weights<'_>, group: usize, to: &mut [f32]) {
        for (input, to) in to.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
            for (row, to) in to.iter_mut().enumerate() {
                let output = group * ROWS + row;
                *to = 0.0;
                if output < weights.outputs {
                    [*to] = weights.filter(output, input);
                }
            }
        }
    }

    fn scratch(inputs: usize) -> usize {
        BLOCK / LANES * inputs
    }

    fn blocks(size: Size) -> usize {
        size.pixels().div_ceil(BLOCK)
    }

    #[inline(always)]
    unsafe fn convolve<L: Lanes>(
        filters: &Filters<'_>,
        maps: &Maps<'_>,
        share: Share,
        y: &Parts,
        scratch: &mut [Line],
    ) {
        let (inputs, outputs) = (filters.inputs, filters.outputs);
        let Size { height, width, .. } = maps.size;
        let (plane, first) = (height * width, share.block * BLOCK);
        let pixels = first..maps.size.pixels().min(first + BLOCK);
        gather::<L>(inputs, maps.x, Runs { rest: pixels.clone(), plane }, scratch);
        let of_group = inputs * ROWS;
        let gathered = scratch.chunks_exact(inputs * GROUPS);
        for (first, lines) in pixels.clone().step_by(PIXELS).zip(gathered) {
            let pixels = first..pixels.end.min(first + PIXELS);
            for group in share.groups.clone() {
                let sums = sums::<L>(&filters.prepared[group * of_group..][..of_group], lines);
                let outputs = group * ROWS..outputs.min((group + 1) * ROWS);
                let runs = Runs { rest: pixels.clone(), plane };
                // SAFETY: as the caller promises.
                unsafe { write(filters, outputs, maps.residual, runs, &sums, y) };
            }
        }
    }
}

/// `to` [pixels / PIXELS, inputs, GROUPS] of the planes of `x`.
#[inline(always)]
fn gather<L: Lanes>(inputs: usize, x: &[f32], runs: Runs, to: &mut [Line]) {
    let to = flat_mut(to);
    let (first, plane) = (runs.rest.start, runs.plane);
    for run in runs {
        for input in 0..inputs {
            let from = (run.image * inputs + input) * plane + run.first;
            let from = &x[from..from + run.count];
            let mut done = 0;
            while done < run.count {
                let at = run.pixel - first + done;
                let count = (PIXELS - at % PIXELS).min(LANES).min(run.count - done);
                let line = (at / PIXELS * inputs + input) * PIXELS + at % PIXELS;
                let values = L::load_some(&from[done..done + count]);
                values.store_some(&mut to[line..line + count]);
                done += count;
            }
        }
    }
}

/// Adds the bias to sums of outputs and writes them.
///
/// # Safety
/// No other call writes to these pixels of the outputs.
#[inline(always)]
unsafe fn write<L: Lanes>(
    filters: &Filters<'_>,
    outputs: Range<usize>,
    residual: Option<&[f32]>,
    runs: Runs,
    sums: &[[L; GROUPS]; ROWS],
    y: &Parts,
) {
    let (first, plane) = (runs.rest.start, runs.plane);
    let mut found = [[Line::ZERO; GROUPS]; ROWS];
    for ((found, sums), output) in found.iter_mut().zip(sums).zip(outputs.clone()) {
        let bias = L::splat(filters.bias(output));
        for (found, sum) in found.iter_mut().zip(sums) {
            sum.add(bias).store(&mut found.0);
        }
    }
    for run in runs {
        let lane = run.pixel - first;
        for (found, output) in found.iter().zip(outputs.clone()) {
            let at = (run.image * filters.outputs + output) * plane + run.first;
            let residual = residual.map(|residual| &residual[at..at + run.count]);
            let found = &flat(found)[lane..lane + run.count];
            // SAFETY: as the caller promises.
            deposit::<L>(found, residual, unsafe { y.range(at, run.count) });
        }
    }
}

/// Pixels in a row that are of one image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// The first, among all pixels of the batch.
    pub pixel: usize,
    pub count: usize,
    pub image: usize,
    /// The first, in the image's plane.
    pub first: usize,
}

/// What is left of some pixels, image by image.
#[derive(Debug, Clone)]
pub(super) struct Runs {
    pub rest: Range<usize>,
    /// Pixels of an image.
    pub plane: usize,
}

impl Iterator for Runs {
    type Item = Run;

    #[inline(always)]
    fn next(&mut self) -> Option<Run> {
        let pixel = self.rest.start;
        if pixel >= self.rest.end {
            return None;
        }
        let (image, first) = (pixel / self.plane, pixel % self.plane);
        let count = (self.plane - first).min(self.rest.end - pixel);
        self.rest.start += count;
        Some(Run { pixel, count, image, first })
    }
}
