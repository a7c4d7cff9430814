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
        Ok(GroupNormKernel { groups, epsilon, offset: self.offset, silu: self.silu })
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
                if self.silu {
                    line_silu(x, slope as f32, intercept as f32, y);
                } else {
                    line(x, slope as f32, intercept as f32, y);
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

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn line_silu(x: &[f32], slope: f32, intercept: f32, y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        let v = x * slope + intercept;
        *y = v / (1.0 + exp(-v));
    }
}

/// e^x within 2 units in the last place; saturates near the ends of the range of f32 instead of overflowing.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 7, 2^n by the exponent's bits.
#[inline(always)]
#[allow(clippy::inline_always)] // Inlined into each of its callers' versions, or it would be none of them.
pub(super) fn exp(x: f32) -> f32 {
    /// Adding and subtracting 1.5 x 2^23 rounds to the nearest whole number.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 87.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + coefficient;
    }
    // The low bits of `rounded` are n; those of ROUND itself leave at the upper end.
    p * f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0f32.to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_right_to_two_units_in_the_last_place() {
        for i in -87_000..87_000i32 {
            let x = i as f32 / 1000.0;
            let (found, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found / exact - 1.0).abs() < 2.0 * f64::from(f32::EPSILON), "{x}: {found}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) > 0.0 && exp(f32::INFINITY).is_finite());
    }

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
