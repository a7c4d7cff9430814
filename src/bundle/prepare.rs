//! From an image as acquired to the crops that the network sees.

use ndarray::{Array3, Array4, ArrayView4, Axis, s};
use sha2::{Digest, Sha256};

use super::{BundleError, Grid, InputKind, Manifest, Normalisation, Plan, Windows, grid::Layout};
use crate::domain::Volume;

/// One image shown to the network: `slice` of the working grid, with its corner at (`row`, `column`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crop {
    pub slice: usize,
    pub row: usize,
    pub column: usize,
}

/// One mask to sample: of crop number `crop`. Overlap in depth samples a crop more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    pub crop: usize,
}

/// A case ready for the network.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// [C, D, H, W], normalised and padded.
    pub working: Array4<f32>,
    pub grid: Grid,
    /// [H, W] of a crop.
    pub size: [usize; 2],
    pub crops: Vec<Crop>,
    /// In window order; the position is the image number that noise is keyed by. Samples of one crop need
    /// not be neighbours.
    pub samples: Vec<Sample>,
    /// First 64 bits of the SHA-256 of the source's samples: what noise is keyed by.
    pub case_key: u64,
}

impl Prepared {
    /// Pixels of a crop, [1, C, H, W].
    #[must_use]
    pub fn pixels(&self, crop: Crop) -> ArrayView4<'_, f32> {
        let Crop { slice, row, column } = crop;
        let [height, width] = self.size;
        self.working
            .slice(s![.., slice, row..row + height, column..column + width])
            .insert_axis(Axis(0))
    }
}

/// Lays a case on the model's grid, normalises and pads it and lays out its windows as the manifest says.
///
/// # Errors
/// If the case is not of the kind that the model takes.
pub fn prepare(manifest: &Manifest, volume: &Volume) -> Result<Prepared, BundleError> {
    refuse_misfits(manifest, volume)?;
    let layout = Layout::new(manifest, volume)?;
    let (samples, range) = (volume.samples.view(), volume.nominal_range);
    let inner = match manifest.input.kind {
        // The range of a case is that of the samples that the network sees.
        InputKind::Volume => normalise(manifest, layout.lay(samples), range),
        InputKind::Image => layout.lay(normalise(manifest, samples.to_owned(), range).view()),
    };
    let (_, d, h, w) = inner.dim();
    let inner_shape = [d, h, w];
    let shown = layout.shown();
    let (working, offset) = match manifest.windows {
        Windows::Sliding { size: [rows, columns, slices], padding, .. } => {
            pad(inner, [slices, rows, columns], padding)
        }
        _ => (inner, [0; 3]),
    };
    let (_, d, h, w) = working.dim();
    let grid = Grid { layout, working: [d, h, w], offset, inner: inner_shape };
    let (crops, samples) = lay_out(manifest, &grid, shown.as_ref());
    let size = manifest.input.size;
    Ok(Prepared { working, grid, size, crops, samples, case_key: case_key(&volume.samples) })
}

fn refuse_misfits(manifest: &Manifest, volume: &Volume) -> Result<(), BundleError> {
    let model = || manifest.name.clone();
    let Manifest { input, .. } = manifest;
    let (channels, slices, ..) = volume.samples.dim();
    let averages = manifest.normalisation == Normalisation::NominalRange && input.channels == 1;
    if channels != input.channels && !averages {
        return Err(BundleError::Channels {
            model: model(),
            found: channels,
            expected: input.channels,
        });
    }
    if input.kind == InputKind::Image && slices != 1 {
        return Err(BundleError::Slices { model: model(), slices });
    }
    Ok(())
}

fn normalise(
    manifest: &Manifest,
    mut samples: Array4<f32>,
    nominal_range: Option<(f32, f32)>,
) -> Array4<f32> {
    let (black, white) = nominal_range.unwrap_or((0.0, 255.0));
    let unit = move |v: f32| ((v - black) / (white - black)).clamp(0.0, 1.0);
    match &manifest.normalisation {
        Normalisation::MinMax => {
            let (low, high) = samples
                .iter()
                .fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
            // In double precision: the span of two finite samples may be beyond single precision.
            let (low, high) = (f64::from(low), f64::from(high));
            let span = if high > low { high - low } else { 1.0 };
            samples.mapv_inplace(|v| ((f64::from(v) - low) / span * 2.0 - 1.0) as f32);
            samples
        }
        Normalisation::NominalRange => {
            if samples.dim().0 != manifest.input.channels {
                samples = samples
                    .mean_axis(Axis(0))
                    .expect("an image has at least one channel")
                    .insert_axis(Axis(0));
            }
            samples.mapv_inplace(|v| unit(v) * 2.0 - 1.0);
            samples
        }
        Normalisation::ZScore { mean, std } => {
            for (mut channel, (mean, std)) in
                samples.axis_iter_mut(Axis(0)).zip(mean.iter().zip(std))
            {
                channel.mapv_inplace(|v| (unit(v) * 255.0 - mean) / std);
            }
            samples
        }
    }
}

fn pad(samples: Array4<f32>, least: [usize; 3], padding: f32) -> (Array4<f32>, [usize; 3]) {
    let (channels, d, h, w) = samples.dim();
    let shape = [d.max(least[0]), h.max(least[1]), w.max(least[2])];
    let offset = [(shape[0] - d) / 2, (shape[1] - h) / 2, (shape[2] - w) / 2];
    if shape == [d, h, w] {
        return (samples, offset);
    }
    let mut padded = Array4::from_elem((channels, shape[0], shape[1], shape[2]), padding);
    let [a, b, c] = offset;
    padded.slice_mut(s![.., a..a + d, b..b + h, c..c + w]).assign(&samples);
    (padded, offset)
}

/// Crops, and the samples to draw of them, window by window. Slices of pure padding are left out, and so are crops that show
/// nothing of the source: slices do not see each other, and what falls outside the source is cut off again. `shown`:
/// [D, H, W] without padding.
fn lay_out(
    manifest: &Manifest,
    grid: &Grid,
    shown: Option<&Array3<bool>>,
) -> (Vec<Crop>, Vec<Sample>) {
    let [height, width] = manifest.input.size;
    let [depth, rows, columns] = grid.working;
    let (slice_starts, row_starts, column_starts, window_depth) = match manifest.windows {
        Windows::Sliding { size, overlap, .. } => (
            starts(depth, size[2], overlap),
            starts(rows, size[0], overlap),
            starts(columns, size[1], overlap),
            size[2],
        ),
        _ => (starts(depth, 1, 0.0), starts(rows, height, 0.0), starts(columns, width, 0.0), 1),
    };
    let real = grid.offset[0]..grid.offset[0] + grid.inner[0];
    let shows = |slice: usize, row: usize, column: usize| {
        shown.is_none_or(|shown| {
            let [_, top, left] = grid.offset;
            let within = |start: usize, size: usize, offset: usize, count: usize| {
                start.saturating_sub(offset).min(count)
                    ..(start + size).saturating_sub(offset).min(count)
            };
            let rows = within(row, height, top, grid.inner[1]);
            let columns = within(column, width, left, grid.inner[2]);
            shown.slice(s![slice - grid.offset[0], rows, columns]).iter().any(|&shown| shown)
        })
    };
    let mut crops = Vec::new();
    let mut number = std::collections::HashMap::new();
    let mut samples = Vec::new();
    for &first in &slice_starts {
        for &row in &row_starts {
            for &column in &column_starts {
                for slice in (first..first + window_depth).filter(|slice| real.contains(slice)) {
                    if !shows(slice, row, column) {
                        continue;
                    }
                    let crop = *number.entry((slice, row, column)).or_insert_with(|| {
                        crops.push(Crop { slice, row, column });
                        crops.len() - 1
                    });
                    samples.push(Sample { crop });
                }
            }
        }
    }
    if matches!(manifest.windows, Windows::Sliding { plan: Plan::EachSliceOnce, .. }) {
        samples = (0..crops.len()).map(|crop| Sample { crop }).collect();
    }
    (crops, samples)
}

/// Where windows of `size` begin along an axis: every size·(1 - overlap), the last flush with the end.
fn starts(length: usize, size: usize, overlap: f64) -> Vec<usize> {
    let stride = ((size as f64 * (1.0 - overlap)) as usize).max(1);
    let last = length - size;
    (0..=last.div_ceil(stride)).map(|n| (n * stride).min(last)).collect()
}

fn case_key(samples: &Array4<f32>) -> u64 {
    let mut hash = Sha256::new();
    for &size in samples.shape() {
        hash.update((size as u64).to_le_bytes());
    }
    let mut bytes = Vec::with_capacity(4 * samples.len());
    samples.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
    hash.update(&bytes);
    let digest = hash.finalize();
    u64::from_le_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_start_every_stride_and_end_flush() {
        assert_eq!(starts(36, 32, 0.75), [0, 4]);
        assert_eq!(starts(50, 32, 0.75), [0, 8, 16, 18]);
        assert_eq!(starts(32, 32, 0.75), [0]);
        assert_eq!(starts(512, 256, 0.0), [0, 256]);
    }
}
