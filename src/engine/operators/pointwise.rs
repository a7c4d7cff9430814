//! A 1 x 1 convolution: a product of matrices (outputs x inputs, inputs x pixels) that writes its sums with bias and
//! residual.
//!
//! Pixels lie side by side in a register, whatever images they are of. A block of them is gathered from all planes before it
//! is multiplied: planes lie a power of two apart, so that their lines would contend for the same places of the first cache.

// As in `lanes`.
#![allow(clippy::inline_always)]

use std::ops::Range;

use super::{
    Parts,
    convolution::{Filters, Maps, Share},
    lanes::{LANES, Lanes, Line},
    product::{GROUPS, ROWS, deposit, flat, flat_mut, sums},
};

/// Pixels that are multiplied together.
const PIXELS: usize = GROUPS * LANES;
/// Pixels of a block.
const BLOCK: usize = 8 * PIXELS;

/// Rows of the matrix in groups, and the bias.
#[derive(Debug)]
pub(super) struct Pointwise {
    inputs: usize,
    outputs: usize,
    /// [outputs / ROWS, inputs, ROWS], with zeros for outputs that are not there.
    rows: Vec<f32>,
    bias: Vec<f32>,
}

impl Filters for Pointwise {
    const SIDE: usize = 1;

    fn new(weights: &[f32], bias: &[f32], inputs: usize) -> Self {
        let outputs = bias.len();
        assert_eq!(weights.len(), outputs * inputs);
        let mut rows = vec![0.0; outputs.div_ceil(ROWS) * inputs * ROWS];
        for (index, &weight) in weights.iter().enumerate() {
            let (output, input) = (index / inputs, index % inputs);
            rows[(output / ROWS * inputs + input) * ROWS + output % ROWS] = weight;
        }
        Self { inputs, outputs, rows, bias: bias.to_vec() }
    }

    fn inputs(&self) -> usize {
        self.inputs
    }

    fn outputs(&self) -> usize {
        self.outputs
    }

    fn scratch(&self) -> usize {
        BLOCK / LANES * self.inputs
    }

    fn blocks(maps: &Maps<'_>) -> usize {
        (maps.batch * maps.height * maps.width).div_ceil(BLOCK)
    }

    #[inline(always)]
    unsafe fn convolve<L: Lanes>(
        &self,
        maps: &Maps<'_>,
        share: Share,
        y: &Parts,
        scratch: &mut [Line],
    ) {
        let Maps { batch, height, width, .. } = *maps;
        let (plane, first) = (height * width, share.block * BLOCK);
        let pixels = first..(batch * plane).min(first + BLOCK);
        self.gather::<L>(maps.x, Runs { rest: pixels.clone(), plane }, scratch);
        let of_group = self.inputs * ROWS;
        let gathered = scratch.chunks_exact(self.inputs * GROUPS);
        for (first, lines) in pixels.clone().step_by(PIXELS).zip(gathered) {
            let pixels = first..pixels.end.min(first + PIXELS);
            for group in share.groups.clone() {
                let sums = sums::<L>(&self.rows[group * of_group..][..of_group], lines);
                let outputs = group * ROWS..self.outputs.min((group + 1) * ROWS);
                let runs = Runs { rest: pixels.clone(), plane };
                // SAFETY: as the caller promises.
                unsafe { self.write(outputs, maps, runs, &sums, y) };
            }
        }
    }
}

impl Pointwise {
    /// `to` [pixels / PIXELS, inputs, GROUPS] of the planes of `x`.
    #[inline(always)]
    fn gather<L: Lanes>(&self, x: &[f32], runs: Runs, to: &mut [Line]) {
        let to = flat_mut(to);
        let (first, plane) = (runs.rest.start, runs.plane);
        for run in runs {
            for input in 0..self.inputs {
                let from = (run.image * self.inputs + input) * plane + run.first;
                let from = &x[from..from + run.count];
                let mut done = 0;
                while done < run.count {
                    let at = run.pixel - first + done;
                    let count = (PIXELS - at % PIXELS).min(LANES).min(run.count - done);
                    let line = (at / PIXELS * self.inputs + input) * PIXELS + at % PIXELS;
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
        &self,
        outputs: Range<usize>,
        maps: &Maps<'_>,
        runs: Runs,
        sums: &[[L; GROUPS]; ROWS],
        y: &Parts,
    ) {
        let (first, plane) = (runs.rest.start, runs.plane);
        let mut found = [[Line::ZERO; GROUPS]; ROWS];
        for ((found, sums), output) in found.iter_mut().zip(sums).zip(outputs.clone()) {
            let bias = L::splat(self.bias[output]);
            for (found, sum) in found.iter_mut().zip(sums) {
                sum.add(bias).store(&mut found.0);
            }
        }
        for run in runs {
            let lane = run.pixel - first;
            for (found, output) in found.iter().zip(outputs.clone()) {
                let at = (run.image * self.outputs + output) * plane + run.first;
                let residual = maps.residual.map(|residual| &residual[at..at + run.count]);
                let found = &flat(found)[lane..lane + run.count];
                // SAFETY: as the caller promises.
                deposit::<L>(found, residual, unsafe { y.range(at, run.count) });
            }
        }
    }
}

/// Pixels in a row that are of one image.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// The first, among all pixels of the batch.
    pixel: usize,
    count: usize,
    image: usize,
    /// The first, in the image's plane.
    first: usize,
}

/// What is left of some pixels, image by image.
#[derive(Debug, Clone)]
struct Runs {
    rest: Range<usize>,
    /// Pixels of an image.
    plane: usize,
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
