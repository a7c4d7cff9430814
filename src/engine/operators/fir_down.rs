//! A blur with four taps along both axes, of which every second pixel is kept.

use multiversion::multiversion;

/// Output columns that are made at a time.
const COLUMNS: usize = 128;
/// Input columns that they see.
const SEEN: usize = 2 * COLUMNS + 2;

/// One plane of rows of length `width`. Output (i, j) mixes the 4 x 4 pixels from (2i - 1, 2j - 1) on; what lies beyond the
/// edge is zero.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
pub(super) fn down(x: &[f32], width: usize, taps: &[f32; 4], y: &mut [f32]) {
    let (height, across) = (x.len() / width.max(1), width / 2);
    if across == 0 {
        return;
    }
    let mut mixed = [0.0; SEEN];
    for (row, out) in y.chunks_exact_mut(across).enumerate() {
        // A row beyond the edge counts for nothing: any other stands in for it (all values are finite).
        let rows = [0, 1, 2, 3].map(|tap| match (2 * row + tap).checked_sub(1) {
            Some(row) if row < height => (&x[row * width..][..width], taps[tap]),
            _ => (&x[..width], 0.0),
        });
        for (chunk, out) in out.chunks_mut(COLUMNS).enumerate() {
            // The first of `mixed` is the column before that of the first output.
            let first = 2 * chunk * COLUMNS;
            let (left, right) = (first.saturating_sub(1), (first + 2 * out.len() + 1).min(width));
            let (start, end) = (left + 1 - first, right + 1 - first);
            mixed[..start].fill(0.0);
            mixed[end..2 * out.len() + 2].fill(0.0);
            let [a, b, c, d] = rows.map(|(row, tap)| (&row[left..right], tap));
            let columns = a.0.iter().zip(b.0).zip(c.0).zip(d.0);
            for (m, (((at_a, at_b), at_c), at_d)) in mixed[start..end].iter_mut().zip(columns) {
                *m = a.1 * at_a + b.1 * at_b + c.1 * at_c + d.1 * at_d;
            }
            let seen = mixed.chunks_exact(2).zip(mixed[2..].chunks_exact(2));
            for (y, (near, far)) in out.iter_mut().zip(seen) {
                *y = taps[0] * near[0] + taps[1] * near[1] + taps[2] * far[0] + taps[3] * far[1];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_blur_of_which_every_second_pixel_is_kept_at_any_width() {
        let taps = [0.25, 0.75, 0.7, 0.3];
        for (height, width) in
            [(2, 2), (4, 6), (5, 7), (3, 2 * COLUMNS), (2, 2 * COLUMNS + 3), (6, 4 * COLUMNS + 10)]
        {
            let x: Vec<f32> = (0..height * width).map(|i| (i as f32 * 0.7).sin()).collect();
            let at = |row: usize, column: usize| match (row.checked_sub(1), column.checked_sub(1)) {
                (Some(row), Some(column)) if row < height && column < width => {
                    x[row * width + column]
                }
                _ => 0.0,
            };
            let mut y = vec![f32::NAN; (height / 2) * (width / 2)];
            down(&x, width, &taps, &mut y);
            for (index, found) in y.iter().enumerate() {
                let (row, column) = (2 * (index / (width / 2)), 2 * (index % (width / 2)));
                let mut wanted = 0.0;
                for (a, down) in taps.iter().enumerate() {
                    for (b, right) in taps.iter().enumerate() {
                        wanted += down * right * at(row + a, column + b);
                    }
                }
                assert!(
                    (found - wanted).abs() < 1e-6,
                    "{height} x {width} at {index}: {found}, {wanted}"
                );
            }
        }
    }
}
