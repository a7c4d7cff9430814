use multiversion::multiversion;
use ort::{
    Result,
    operator::{
        ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput,
        ShapeInferenceContext,
    },
    value::TensorElementType::Float32,
};

use super::{
    Parts,
    context::{input, output, par_for},
    dimensions, infer,
    lanes::{self, Lanes},
    machine::{Machine, Work},
};

/// GroupNorm of X [N, C, H, W] + offset, times scale, plus shift, then SiLU: those that the operator's name says. What is
/// given a channel is [1 or N, C]. Statistics are read in one pass, the rest is done in a second, while the group is in
/// the cache.
pub struct GroupNorm {
    pub name: &'static str,
    pub offset: bool,
    pub silu: bool,
}

#[derive(Debug)]
pub struct GroupNormKernel {
    machine: Machine,
    groups: usize,
    epsilon: f32,
    offset: bool,
    silu: bool,
}

impl Operator for GroupNorm {
    type Kernel<'a> = GroupNormKernel;

    fn name(&self) -> &str {
        self.name
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let count = if self.offset { 4 } else { 3 };
        (0..count).map(|_| OperatorInput::required(Float32))
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Float32)]
    }

    fn create_kernel(&self, context: &KernelContext<'_>) -> Result<GroupNormKernel> {
        let (groups, epsilon) = attributes(self.name, context)?;
        let machine = Machine::all().next().expect("one needs nothing");
        Ok(GroupNormKernel { machine, groups, epsilon, offset: self.offset, silu: self.silu })
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> Result<()> {
        let x = context.inputs().remove(0);
        infer(context, 0, &x, |_, size| size)
    }
}

/// Number of groups and epsilon of a node.
pub(super) fn attributes(operator: &str, context: &KernelContext<'_>) -> Result<(usize, f32)> {
    let missing = |what| ort::Error::new(format!("{operator} lacks {what}"));
    let groups: i64 = context.get("groups").ok_or_else(|| missing("groups"))?;
    let epsilon = context.get("epsilon").ok_or_else(|| missing("epsilon"))?;
    let groups = usize::try_from(groups).ok().filter(|&groups| groups > 0);
    Ok((groups.ok_or_else(|| missing("a positive number of groups"))?, epsilon))
}

/// Values of each channel, [1 or N, C].
#[derive(Clone, Copy)]
pub(super) struct PerChannel<'a> {
    values: &'a [f32],
    channels: usize,
}

impl<'a> PerChannel<'a> {
    pub fn new(values: &'a [f32], channels: usize, batch: usize) -> Result<Self> {
        if values.len() == channels || values.len() == channels * batch {
            Ok(Self { values, channels })
        } else {
            let length = values.len();
            Err(ort::Error::new(format!("{length} values for {batch} x {channels} channels")))
        }
    }

    pub fn of(&self, n: usize) -> &'a [f32] {
        let n = if self.values.len() == self.channels { 0 } else { n };
        &self.values[n * self.channels..(n + 1) * self.channels]
    }
}

impl Kernel for GroupNormKernel {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        let (shape, x) = input(context, 0)?;
        let [n, c, h, w] = dimensions(&shape)?;
        if c % self.groups != 0 {
            return Err(ort::Error::new(format!("{c} channels in {} groups", self.groups)));
        }
        let per_channel = |index| PerChannel::new(input(context, index)?.1, c, n);
        let (scale, shift) = (per_channel(1)?, per_channel(2)?);
        let offset = if self.offset { Some(per_channel(3)?) } else { None };
        let y = output(context, 0, &shape)?;

        let (plane, channels) = (h * w, c / self.groups);
        let size = channels * plane;
        let parts = Parts::new(y);
        par_for(context, n * self.groups, |index| {
            let (n, group) = (index / self.groups, index % self.groups);
            let here = group * channels..(group + 1) * channels;
            let offset = offset.map(|offset| &offset.of(n)[here.clone()]);
            let x = &x[index * size..(index + 1) * size];
            let moments = Moments::of(x, plane, offset);
            let deviation = (moments.variance() + f64::from(self.epsilon)).sqrt();
            // SAFETY: one call a group.
            let y = unsafe { parts.part(index, size) };
            let maps = x.chunks_exact(plane).zip(y.chunks_exact_mut(plane));
            for ((channel, (x, y)), number) in maps.enumerate().zip(here) {
                let moved = offset.map_or(0.0, |offset| f64::from(offset[channel]));
                let slope = f64::from(scale.of(n)[number]) / deviation;
                let intercept = f64::from(shift.of(n)[number]) + (moved - moments.mean) * slope;
                let (slope, intercept) = (slope as f32, intercept as f32);
                if self.silu {
                    // SAFETY: the machine was found to be this one.
                    unsafe { self.machine.run(Silu { x, slope, intercept, y }) };
                } else {
                    line(x, slope, intercept, y);
                }
            }
        })
    }
}

/// Number, mean and sum of squared deviations.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Moments {
    count: f64,
    pub mean: f64,
    squares: f64,
}

/// Pixels whose moments are taken at a time: few enough to stay in the first cache for the second look at them.
pub(super) const RUN: usize = 2048;

impl Moments {
    /// Of the channels of a group, each moved by its offset.
    pub fn of(x: &[f32], plane: usize, offset: Option<&[f32]>) -> Self {
        let mut all = Self::default();
        for (channel, x) in x.chunks_exact(plane).enumerate() {
            let moved = offset.map_or(0.0, |offset| f64::from(offset[channel]));
            for run in x.chunks(RUN) {
                let (mean, squares) = moments(run);
                all.join(Self {
                    count: run.len() as f64,
                    mean: f64::from(mean) + moved,
                    squares: f64::from(squares),
                });
            }
        }
        all
    }

    /// Of two sets together (Chan, Golub and LeVeque 1979).
    fn join(&mut self, other: Self) {
        let count = self.count + other.count;
        let apart = other.mean - self.mean;
        self.mean += apart * other.count / count;
        self.squares += other.squares + apart * apart * self.count * other.count / count;
        self.count = count;
    }

    pub fn variance(&self) -> f64 {
        self.squares / self.count
    }
}

/// Sums are kept in this many parts, as wide as the widest vector, so that their order does not depend on the machine.
pub(super) const LANES: usize = 32;

/// Mean and sum of squared deviations from it.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn moments(x: &[f32]) -> (f32, f32) {
    let mut sums = [0.0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for lanes in whole {
        for (sum, v) in sums.iter_mut().zip(lanes) {
            *sum += v;
        }
    }
    let mean = (sums.iter().sum::<f32>() + rest.iter().sum::<f32>()) / x.len() as f32;
    let mut squares = [0.0f32; LANES];
    for lanes in whole {
        for (square, v) in squares.iter_mut().zip(lanes) {
            *square += (v - mean) * (v - mean);
        }
    }
    let rest = rest.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>();
    (mean, squares.iter().sum::<f32>() + rest)
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn line(x: &[f32], slope: f32, intercept: f32, y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = x * slope + intercept;
    }
}

/// y = v·logistic(v) with v = slope·x + intercept.
struct Silu<'a> {
    x: &'a [f32],
    slope: f32,
    intercept: f32,
    y: &'a mut [f32],
}

impl Work for Silu<'_> {
    #[allow(clippy::inline_always)] // As in `lanes`.
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (slope, intercept) = (L::splat(self.slope), L::splat(self.intercept));
        let lines = self.x.chunks(lanes::LANES).zip(self.y.chunks_mut(lanes::LANES));
        for (x, y) in lines {
            let v = L::load_some(x).fma(slope, intercept);
            v.mul(v.logistic()).store_some(y);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_hold_far_from_zero_and_across_runs() {
        let x: Vec<f32> = (0..3 * RUN + 5).map(|i| 1e4 + (i % 7) as f32).collect();
        let plane = x.len();
        let found = Moments::of(&x, plane, Some(&[0.5]));
        let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / plane as f64;
        let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / plane as f64;
        assert!(((found.mean - 0.5) / mean - 1.0).abs() < 1e-6, "{found:?}");
        assert!((found.variance() / variance - 1.0).abs() < 1e-3, "{found:?} {variance}");
    }
}
