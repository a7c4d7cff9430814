use multiversion::multiversion;
use ort::{
    Result,
    operator::{
        ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput,
        ShapeInferenceContext,
    },
    value::{Shape, SymbolicDimensions, TensorElementType::Float32, ValueType},
};

use super::{
    Parts,
    context::{input, output, par_for},
    dimensions,
};

/// Zero insertion by 2, then a blur with four taps along both axes: every output pixel is a mixture of the four input
/// pixels around it.
pub struct FirUp;

#[derive(Debug)]
pub struct FirUpKernel {
    taps: [f32; 4],
}

impl Operator for FirUp {
    type Kernel<'a> = FirUpKernel;

    fn name(&self) -> &'static str {
        "FirUp"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::required(Float32)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Float32)]
    }

    fn create_kernel(&self, context: &KernelContext<'_>) -> Result<FirUpKernel> {
        let taps: Vec<f32> = context.get("taps").unwrap_or_default();
        let taps =
            taps.try_into().map_err(|t| ort::Error::new(format!("FirUp has taps {t:?}, not 4")))?;
        Ok(FirUpKernel { taps })
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> Result<()> {
        let mut y = context.inputs().remove(0);
        if let ValueType::Tensor { shape, dimension_symbols, .. } = &mut y {
            let doubled = shape.iter().enumerate();
            let doubled = doubled
                .map(|(axis, &d)| if axis >= 2 && d > 0 { 2 * d } else { d })
                .collect::<Vec<_>>();
            *dimension_symbols = SymbolicDimensions::empty(doubled.len());
            *shape = Shape::new(doubled);
        }
        context.set_output(0, &y)
    }
}

impl Kernel for FirUpKernel {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        let (shape, x) = input(context, 0)?;
        let [n, c, h, w] = dimensions(&shape)?;
        let doubled = [n, c, 2 * h, 2 * w];
        let parts = Parts::new(output(context, &doubled.map(|d| d as i64))?);
        par_for(context, n * c, |plane| {
            let from = &x[plane * h * w..(plane + 1) * h * w];
            // SAFETY: one call a plane.
            up(from, w, &self.taps, unsafe { parts.part(plane, 4 * h * w) });
        })
    }
}

/// Input columns that are mixed at a time, in a buffer with one more at either side.
const COLUMNS: usize = 256;

/// One plane of rows of length `width`. Output row 2i mixes the input rows i and i-1, row 2i+1 the rows i and i+1; what
/// lies beyond the edge is zero. Columns alike.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn up(x: &[f32], width: usize, taps: &[f32; 4], y: &mut [f32]) {
    let height = x.len() / width;
    let mut mixed = [0.0; COLUMNS + 2];
    for (row, out) in y.chunks_exact_mut(2 * width).enumerate() {
        let near = row / 2;
        let far =
            if row % 2 == 0 { near.checked_sub(1) } else { Some(near + 1).filter(|&r| r < height) };
        // The zeros between the input's pixels leave two taps for each parity: that of the near pixel, that of the far.
        let (near_tap, far_tap) =
            if row % 2 == 0 { (taps[1], taps[3]) } else { (taps[2], taps[0]) };
        let near = &x[near * width..][..width];
        // A row beyond the edge counts for nothing: any other stands in for it.
        let (far, far_tap) = far.map_or((near, 0.0), |far| (&x[far * width..][..width], far_tap));
        for (chunk, out) in out.chunks_mut(2 * COLUMNS).enumerate() {
            let (first, last) = (chunk * COLUMNS, chunk * COLUMNS + out.len() / 2);
            let (left, right) = (first.saturating_sub(1), (last + 1).min(width));
            let within = &mut mixed[left + 1 - first..=right - first];
            for ((m, near), far) in within.iter_mut().zip(&near[left..right]).zip(&far[left..right])
            {
                *m = near_tap * near + far_tap * far;
            }
            if first == 0 {
                mixed[0] = 0.0;
            }
            if last == width {
                mixed[last - first + 1] = 0.0;
            }
            let (before, here, after) = (&mixed[..], &mixed[1..], &mixed[2..]);
            for (((pair, b), m), a) in out.chunks_exact_mut(2).zip(before).zip(here).zip(after) {
                pair[0] = taps[1] * m + taps[3] * b;
                pair[1] = taps[2] * m + taps[0] * a;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As it is defined: zeros between the pixels, then the blur, with one zero before and two after.
    fn by_definition(x: &[f32], width: usize, taps: &[f32; 4]) -> Vec<f32> {
        let height = x.len() / width;
        let at = |row: usize, column: usize| {
            // Of the doubled grid, whose origin lies 2 before: even places hold pixels.
            let inside = |i: usize, n: usize| {
                (i >= 2 && i.is_multiple_of(2) && i / 2 - 1 < n).then(|| i / 2 - 1)
            };
            match (inside(row, height), inside(column, width)) {
                (Some(row), Some(column)) => x[row * width + column],
                _ => 0.0,
            }
        };
        let mut y = vec![0.0; 4 * x.len()];
        for (i, y) in y.iter_mut().enumerate() {
            let (row, column) = (i / (2 * width), i % (2 * width));
            for (a, down) in taps.iter().rev().enumerate() {
                for (b, right) in taps.iter().rev().enumerate() {
                    *y += down * right * at(row + a, column + b);
                }
            }
        }
        y
    }

    #[test]
    fn it_is_zero_insertion_and_a_blur_at_any_width() {
        let taps = [0.25, 0.75, 0.7, 0.3];
        for (height, width) in
            [(1, 1), (3, 2), (2, 5), (3, COLUMNS), (2, COLUMNS + 1), (2, 2 * COLUMNS + 7)]
        {
            let x: Vec<f32> = (0..height * width).map(|i| (i as f32 * 0.7).sin()).collect();
            let mut y = vec![f32::NAN; 4 * x.len()];
            up(&x, width, &taps, &mut y);
            for (i, (found, wanted)) in y.iter().zip(by_definition(&x, width, &taps)).enumerate() {
                assert!(
                    (found - wanted).abs() < 1e-6,
                    "{height} x {width} at {i}: {found}, {wanted}"
                );
            }
        }
    }
}
