//! Zero insertion by 2, then a blur with four taps along both axes: every output pixel is a mixture of the four input pixels
//! around it.

use multiversion::multiversion;

/// Input columns that are mixed at a time, in a buffer with one more at either side.
const COLUMNS: usize = 256;

/// One plane of rows of length `width`. Output row 2i mixes the input rows i and i-1, row 2i+1 the rows i and i+1; what
/// lies beyond the edge is zero. Columns alike.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
pub(super) fn up(x: &[f32], width: usize, taps: &[f32; 4], y: &mut [f32]) {
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
