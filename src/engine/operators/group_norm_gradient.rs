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
    dimensions,
    group_norm::{Moments, PerChannel, RUN, attributes},
    infer,
    lanes::{LANES, Lanes},
    machine::{Machine, Work},
};

/// Gradients of `GroupNorm` by X, scale, shift and offset, from dY [N, C, H, W] and what that was given. Each has the shape
/// of its input. The first pass takes the moments anew, which is cheaper than to keep them, and sums up over each channel; the
/// second writes, while the group is in the cache.
pub struct GroupNormGradient {
    pub name: &'static str,
    pub offset: bool,
    pub silu: bool,
}

#[derive(Debug)]
pub struct GroupNormGradientKernel {
    machine: Machine,
    groups: usize,
    epsilon: f32,
    offset: bool,
    silu: bool,
}

impl Operator for GroupNormGradient {
    type Kernel<'a> = GroupNormGradientKernel;

    fn name(&self) -> &str {
        self.name
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let count = if self.offset { 5 } else { 4 };
        (0..count).map(|_| OperatorInput::required(Float32))
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        let count = if self.offset { 4 } else { 3 };
        (0..count).map(|_| OperatorOutput::optional(Float32))
    }

    fn create_kernel(&self, context: &KernelContext<'_>) -> Result<GroupNormGradientKernel> {
        let (groups, epsilon) = attributes(self.name, context)?;
        let machine = Machine::all().next().expect("one needs nothing");
        let (offset, silu) = (self.offset, self.silu);
        Ok(GroupNormGradientKernel { machine, groups, epsilon, offset, silu })
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> Result<()> {
        let dy = context.inputs().remove(0);
        infer(context, 0, &dy, |_, size| size)
    }
}

impl Kernel for GroupNormGradientKernel {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        let ((shape, dy), (other, x)) = (input(context, 0)?, input(context, 1)?);
        let [n, c, h, w] = dimensions(&shape)?;
        if c % self.groups != 0 || shape != other {
            let groups = self.groups;
            return Err(ort::Error::new(format!(
                "gradient {shape:?} of {other:?} in {groups} groups"
            )));
        }
        let given = |index| input(context, index);
        let per_channel = |index| PerChannel::new(given(index)?.1, c, n);
        let (scale, shift) = (per_channel(2)?, per_channel(3)?);
        let offset = if self.offset { Some(per_channel(4)?) } else { None };
        let mut room = Vec::new();
        let by_x = match output(context, 0, &shape)? {
            by_x if by_x.len() == x.len() => by_x,
            _ => {
                room.resize(x.len(), 0.0);
                &mut room[..]
            }
        };

        let (plane, channels) = (h * w, c / self.groups);
        let size = channels * plane;
        // Gradients by scale, shift and offset of each channel of each image.
        let mut found = vec![[0.0; 3]; n * c];
        let by_x = Parts::new(by_x);
        let of_channels = Parts::new(found.as_flattened_mut());
        par_for(context, n * self.groups, |index| {
            let (n, group) = (index / self.groups, index % self.groups);
            let here = group * channels..(group + 1) * channels;
            let part = Group {
                machine: self.machine,
                dy: &dy[index * size..(index + 1) * size],
                x: &x[index * size..(index + 1) * size],
                plane,
                scale: &scale.of(n)[here.clone()],
                shift: &shift.of(n)[here.clone()],
                offset: offset.map(|offset| &offset.of(n)[here]),
                epsilon: self.epsilon,
                silu: self.silu,
            };
            // SAFETY: one call a group.
            let by_x = unsafe { by_x.part(index, size) };
            // SAFETY: likewise.
            let found = unsafe { of_channels.part(index, 3 * channels) };
            part.gradient(by_x, found.as_chunks_mut().0);
        })?;
        for index in 0..if self.offset { 3 } else { 2 } {
            let to = output(context, index + 1, &given(index + 2)?.0)?;
            to.fill(0.0);
            if !to.is_empty() {
                for (at, found) in found.iter().enumerate() {
                    to[at % to.len()] += found[index];
                }
            }
        }
        Ok(())
    }
}

/// A group of one image, and what concerns its channels.
struct Group<'a> {
    machine: Machine,
    dy: &'a [f32],
    x: &'a [f32],
    plane: usize,
    scale: &'a [f32],
    shift: &'a [f32],
    offset: Option<&'a [f32]>,
    epsilon: f32,
    silu: bool,
}

impl Group<'_> {
    /// Gradient by x, and those by scale, shift and offset of each channel.
    ///
    /// With x̂ = (x + offset - mean)/deviation, v = scale·x̂ + shift and dv the gradient by v, that by x is
    /// (scale·dv - mean(scale·dv) - x̂·mean(scale·dv·x̂))/deviation, with means over the group.
    fn gradient(&self, by_x: &mut [f32], found: &mut [[f32; 3]]) {
        let moments = Moments::of(self.x, self.plane, self.offset);
        let slope = 1.0 / (moments.variance() + f64::from(self.epsilon)).sqrt();
        let intercept = |channel: usize| {
            let moved = self.offset.map_or(0.0, |offset| f64::from(offset[channel]));
            (moved - moments.mean) * slope
        };
        let planes =
            self.x.chunks_exact(self.plane).zip(self.dy.chunks_exact(self.plane)).enumerate();
        let (mut mean, mut mean_of_products) = (0.0, 0.0);
        let mut sums = Vec::with_capacity(self.scale.len());
        for ((channel, (x, dy)), dv) in planes.clone().zip(by_x.chunks_exact_mut(self.plane)) {
            let [scale, shift] = [self.scale[channel], self.shift[channel]];
            let line =
                Line { slope: slope as f32, intercept: intercept(channel) as f32, scale, shift };
            let mut sum = Sums::default();
            let first = First { x, dy, line, silu: self.silu, dv, sums: &mut sum };
            // SAFETY: the machine is one that was found.
            unsafe { self.machine.run(first) };
            mean += f64::from(scale) * sum.gradient;
            mean_of_products += f64::from(scale) * sum.product;
            sums.push(sum);
        }
        let size = self.x.len() as f64;
        (mean, mean_of_products) = (mean / size, mean_of_products / size);
        for (((channel, (x, _)), by_x), found) in
            planes.zip(by_x.chunks_exact_mut(self.plane)).zip(found)
        {
            let (sum, scale) = (&sums[channel], f64::from(self.scale[channel]));
            let of_x = -slope * mean_of_products;
            let factors = [slope * scale, slope * of_x, of_x * intercept(channel) - slope * mean];
            mix(x, factors.map(|factor| factor as f32), by_x);
            let by_offset =
                slope * (scale * sum.gradient - self.plane as f64 * mean) + of_x * sum.normal;
            *found = [sum.product, sum.gradient, by_offset].map(|value| value as f32);
        }
    }
}

/// x̂ = slope·x + intercept, v = scale·x̂ + shift.
#[derive(Clone, Copy)]
struct Line {
    slope: f32,
    intercept: f32,
    scale: f32,
    shift: f32,
}

/// Sums over the pixels of a channel.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    /// Of dv.
    gradient: f64,
    /// Of dv·x̂.
    product: f64,
    /// Of x̂.
    normal: f64,
}

impl Sums {
    fn add(&mut self, [gradient, product, normal]: [f32; 3]) {
        self.gradient += f64::from(gradient);
        self.product += f64::from(product);
        self.normal += f64::from(normal);
    }
}

/// Writes dv of y = v·logistic(v), or of y = v, and finds its sums.
struct First<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    line: Line,
    silu: bool,
    dv: &'a mut [f32],
    sums: &'a mut Sums,
}

impl Work for First<'_> {
    #[allow(clippy::inline_always)] // As in `lanes`.
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { x, dy, line, silu, dv, sums } = self;
        let [slope, intercept] = [L::splat(line.slope), L::splat(line.intercept)];
        let [scale, shift, one] = [L::splat(line.scale), L::splat(line.shift), L::splat(1.0)];
        let pieces = x.chunks(RUN).zip(dy.chunks(RUN)).zip(dv.chunks_mut(RUN));
        for ((x, dy), dv) in pieces {
            let [mut gradients, mut products, mut normals] = [L::splat(0.0); 3];
            let lines = x.chunks(LANES).zip(dy.chunks(LANES)).zip(dv.chunks_mut(LANES));
            for ((x, dy), dv) in lines {
                let normal = L::load_some(x).fma(slope, intercept);
                let mut gradient = L::load_some(dy);
                if silu {
                    let v = normal.fma(scale, shift);
                    let gate = v.logistic();
                    // gate + v·gate·(1 - gate).
                    let bend = v.fma(one.sub(gate), one);
                    gradient = gradient.mul(gate.mul(bend));
                }
                gradient.store_some(dv);
                gradients = gradients.add(gradient);
                products = gradient.fma(normal, products);
                // Lanes beyond the last pixel hold the intercept.
                normals =
                    normals.add(if x.len() == LANES { normal } else { some(normal, x.len()) });
            }
            sums.add([total(gradients), total(products), total(normals)]);
        }
    }
}

/// The first `count` lanes, and zeros.
#[allow(clippy::inline_always)] // As in `lanes`.
#[inline(always)]
fn some<L: Lanes>(value: L, count: usize) -> L {
    let mut line = [0.0; LANES];
    value.store_some(&mut line[..count]);
    L::load(&line)
}

#[allow(clippy::inline_always)] // As in `lanes`.
#[inline(always)]
fn total<L: Lanes>(value: L) -> f32 {
    let mut line = [0.0; LANES];
    value.store(&mut line);
    line.iter().sum()
}

/// y becomes a·y + b·x + c.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn mix(x: &[f32], factors: [f32; 3], y: &mut [f32]) {
    let [a, b, c] = factors;
    for (y, x) in y.iter_mut().zip(x) {
        *y = a * *y + (b * x + c);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::convolution::tests::spread, *};

    /// y·dy of GroupNorm, in float64.
    fn by_definition(group: &Group<'_>, x: &[f64], [scale, shift, offset]: [&[f64]; 3]) -> f64 {
        let plane = group.plane;
        let moved: Vec<f64> = x.iter().enumerate().map(|(i, x)| x + offset[i / plane]).collect();
        let mean = moved.iter().sum::<f64>() / moved.len() as f64;
        let variance = moved.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / moved.len() as f64;
        let deviation = (variance + f64::from(group.epsilon)).sqrt();
        let y = moved.iter().enumerate().map(|(i, moved)| {
            let v = (moved - mean) / deviation * scale[i / plane] + shift[i / plane];
            if group.silu { v / (1.0 + (-v).exp()) } else { v }
        });
        y.zip(group.dy).map(|(y, &dy)| y * f64::from(dy)).sum()
    }

    /// Pixels of a plane, channels of a group, whether SiLU follows.
    const CASES: [(usize, usize, bool); 4] =
        [(1, 5, true), (9, 3, true), (70, 2, false), (RUN + 9, 1, true)];

    #[test]
    fn gradients_are_the_slopes_of_the_definition() {
        let cases = Machine::all().flat_map(|machine| CASES.map(|case| (machine, case)));
        for (machine, (plane, channels, silu)) in cases {
            let x = spread(plane * channels, 1);
            let (dy, more) = (spread(x.len(), 2), spread(3 * channels, 3));
            let [scale, shift, offset] = [0, 1, 2].map(|i| &more[i * channels..(i + 1) * channels]);
            let (epsilon, offset) = (1e-5, Some(offset));
            let group =
                Group { machine, dy: &dy, x: &x, plane, scale, shift, offset, epsilon, silu };
            let mut by_x = vec![f32::NAN; x.len()];
            let mut found = vec![[f32::NAN; 3]; channels];
            group.gradient(&mut by_x, &mut found);

            let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
            let given = [wide(&x), wide(scale), wide(shift), wide(offset.unwrap())];
            let slope = |which: usize, index: usize| {
                let value = |step: f64| {
                    let mut given = given.clone();
                    given[which][index] += step;
                    let [x, scale, shift, offset] = &given;
                    by_definition(&group, x, [scale, shift, offset])
                };
                (value(1e-5) - value(-1e-5)) / 2e-5
            };
            let scale_of_x = x.len() as f64;
            for index in (0..x.len()).step_by(1 + x.len() / 20) {
                let (found, wanted) = (f64::from(by_x[index]), slope(0, index));
                assert!((found - wanted).abs() < 2e-5, "{plane}, x {index}: {found}, {wanted}");
            }
            for (index, found) in found.iter().enumerate() {
                for (which, &found) in found.iter().enumerate() {
                    let (found, wanted) = (f64::from(found), slope(which + 1, index));
                    let off = (found - wanted).abs() / scale_of_x;
                    assert!(off < 1e-5, "{plane}, {which} of {index}: {found}, {wanted}");
                }
            }
        }
    }
}
