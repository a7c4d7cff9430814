//! A frame's bytes as modality values, or as shades where the image is a picture: PS3.3 C.7.6.3, C.11.1 and C.11.2.

use std::path::Path;

use super::frames::RawFrame;
use super::image::{FrameInfo, Image, Photometric};
use super::voi::Padding;
use crate::codec::CodecError;

/// What the values of grey images mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// As measured: Hounsfield units and their like.
    Modality,
    /// As shown: where a curve says how, its shades from 0 to [`SHADES`]; else as measured.
    Shown,
}

/// Stands where padding was, until the lowest value of the whole image is known.
pub(super) const PADDED: f32 = f32::NAN;

/// White of [`View::Shown`] where a curve makes the shades.
const SHADES: f64 = 65535.0;

/// Values of one frame: [C, H, W] in row-major order, [`PADDED`] where the image was padded.
pub(super) fn decode(
    path: &Path,
    image: &Image,
    info: &FrameInfo,
    raw: &RawFrame<'_>,
    view: View,
) -> Result<Vec<f32>, CodecError> {
    let pixels = image.pixels();
    let needed = count(path, image, raw)?;
    let stored = (0..needed).map(|index| stored_value(image, raw, index));
    Ok(match raw.photometric {
        Photometric::Monochrome1 | Photometric::Monochrome2 => {
            let padding = image.padding.map(|padding| padding.of_sign(image.signed));
            (0..needed)
                .map(|index| {
                    let value = stored_value(image, raw, index);
                    if padding.is_some_and(|padding| is_padded(padding, image, raw, index, value)) {
                        PADDED
                    } else {
                        grey(image, info, view, value)
                    }
                })
                .collect()
        }
        Photometric::Palette => {
            let palette = image.palette.as_ref().expect("a palette image was read with its tables");
            let values: Vec<i64> = stored.collect();
            palette.iter().flat_map(|lut| values.iter().map(|&v| lut.map(v))).collect()
        }
        Photometric::Rgb | Photometric::YbrFull | Photometric::YbrFull422 => {
            let values: Vec<f32> = stored.map(|v| v as f32).collect();
            colour(&values, pixels, raw)
        }
    })
}

/// Values of one frame as they are stored, colours as red, green and blue: what is the same in every lossless transfer
/// syntax.
pub(super) fn stored(
    path: &Path,
    image: &Image,
    raw: &RawFrame<'_>,
) -> Result<Vec<f32>, CodecError> {
    let values = (0..count(path, image, raw)?).map(|index| stored_value(image, raw, index) as f32);
    let values = values.collect::<Vec<_>>();
    Ok(match raw.photometric {
        Photometric::Monochrome1 | Photometric::Monochrome2 | Photometric::Palette => values,
        _ => colour(&values, image.pixels(), raw),
    })
}

/// How many samples a frame has.
fn count(path: &Path, image: &Image, raw: &RawFrame<'_>) -> Result<usize, CodecError> {
    let needed = match raw.photometric {
        Photometric::YbrFull422 => 2 * image.pixels(),
        _ => image.pixels() * image.samples_per_pixel,
    };
    let width = usize::from(raw.allocated / 8);
    if raw.bytes.len() < needed * width {
        return Err(CodecError::Truncated {
            path: path.to_owned(),
            what: "a frame".into(),
            needed: (needed * width) as u64,
            present: raw.bytes.len() as u64,
        });
    }
    Ok(needed)
}

fn word(raw: &RawFrame<'_>, index: usize) -> u32 {
    match raw.allocated {
        8 => u32::from(raw.bytes[index]),
        16 => u32::from(u16::from_le_bytes([raw.bytes[2 * index], raw.bytes[2 * index + 1]])),
        _ => u32::from_le_bytes(std::array::from_fn(|byte| raw.bytes[4 * index + byte])),
    }
}

/// The stored value, its unused bits dropped and its sign extended.
fn stored_value(image: &Image, raw: &RawFrame<'_>, index: usize) -> i64 {
    // A decompressed frame can be narrower than BitsAllocated; its samples then start at bit 0.
    let stored = image.bits_stored.min(raw.allocated);
    let shift = if raw.allocated == image.bits_allocated { image.high_bit + 1 - stored } else { 0 };
    let value = i64::from(word(raw, index) >> shift) & ((1 << stored) - 1);
    if image.signed && value >> (stored - 1) == 1 { value - (1 << stored) } else { value }
}

/// A padding value that `BitsStored` cannot hold is one of the whole word.
fn is_padded(
    padding: Padding,
    image: &Image,
    raw: &RawFrame<'_>,
    index: usize,
    stored: i64,
) -> bool {
    let (lowest, highest) = image.stored_range();
    if padding.is_within(lowest as i64, highest as i64) {
        return padding.covers(stored);
    }
    let word = i64::from(word(raw, index));
    let sign = 1_i64 << (raw.allocated - 1);
    let word = if image.signed && word & sign != 0 { word - 2 * sign } else { word };
    padding.covers(word)
}

fn grey(image: &Image, info: &FrameInfo, view: View, stored: i64) -> f32 {
    let value = match &image.modality_lut {
        Some(lut) => f64::from(lut.map(stored)),
        None => stored as f64 * info.slope + info.intercept,
    };
    let (value, (lowest, highest)) = match info.voi.curve(value) {
        Some(shade) if view == View::Shown => (shade * SHADES, (0.0, SHADES)),
        _ => (value, modality_range(image, info)),
    };
    // Mirrored where the lowest value is shown white, so that brighter is larger everywhere.
    let value = if image.inverse { lowest + highest - value } else { value };
    // A rescale beyond all numbers must not pass for padding.
    if value.is_nan() { f32::INFINITY } else { value as f32 }
}

/// Ends of the modality values that the stored ones can become.
fn modality_range(image: &Image, info: &FrameInfo) -> (f64, f64) {
    let (lowest, highest) = image.stored_range();
    if let Some(lut) = &image.modality_lut {
        return (0.0, f64::from(lut.maximum));
    }
    let (a, b) = (lowest * info.slope + info.intercept, highest * info.slope + info.intercept);
    (a.min(b), a.max(b))
}

/// Red, green, blue planes from RGB or YCbCr samples (full range, PS3.3 C.7.6.3.1.2).
fn colour(values: &[f32], pixels: usize, raw: &RawFrame<'_>) -> Vec<f32> {
    let sample = |pixel: usize| -> [f32; 3] {
        match raw.photometric {
            // Y1 Y2 Cb Cr for each pair of pixels.
            Photometric::YbrFull422 => {
                let pair = pixel / 2 * 4;
                let chroma = pair + 2;
                if chroma + 1 < values.len() {
                    [values[pair + pixel % 2], values[chroma], values[chroma + 1]]
                } else {
                    [values[pair], 128.0, 128.0]
                }
            }
            _ if raw.planar => std::array::from_fn(|c| values[c * pixels + pixel]),
            _ => std::array::from_fn(|c| values[3 * pixel + c]),
        }
    };
    let mut out = vec![0.0; 3 * pixels];
    for pixel in 0..pixels {
        let [a, b, c] = sample(pixel);
        let rgb = if raw.photometric == Photometric::Rgb {
            [a, b, c]
        } else {
            let (cb, cr) = (b - 128.0, c - 128.0);
            [a + 1.402 * cr, a - 0.344_136 * cb - 0.714_136 * cr, a + 1.772 * cb]
                .map(|v: f32| v.round().clamp(0.0, 255.0))
        };
        for (channel, value) in rgb.into_iter().enumerate() {
            out[channel * pixels + pixel] = value;
        }
    }
    out
}

/// Black and white of the values that [`decode`] gives.
pub(super) fn nominal_range(image: &Image, info: &FrameInfo, view: View) -> (f32, f32) {
    if let Some(palette) = &image.palette {
        return (0.0, palette[0].maximum);
    }
    let (lowest, highest) = image.stored_range();
    if image.channels() == 3 {
        return (lowest as f32, highest as f32);
    }
    if view == View::Shown && info.voi.is_curve() {
        return (0.0, SHADES as f32);
    }
    let (a, b) = modality_range(image, info);
    let (black, white) = match info.voi.range() {
        Some((low, high)) if image.inverse => (a + b - high, a + b - low),
        Some(range) => range,
        None => (a, b),
    };
    (black as f32, white as f32)
}

/// Black and white of a picture that declares 16 bits, uses fewer, and has nothing that says which: those of the bits
/// that it uses. `values`: as [`decode`] gives them. `None` where the declared range stands.
pub(super) fn used_range(
    image: &Image,
    info: &FrameInfo,
    values: impl Iterator<Item = f32>,
) -> Option<(f32, f32, u32)> {
    const DECLARED: u16 = 16;
    const LEAST_BITS: u32 = 8;
    let silent = info.voi.range().is_none() && image.modality_lut.is_none();
    if image.channels() != 1 || image.signed || image.bits_stored != DECLARED || !silent {
        return None;
    }
    let (a, b) = modality_range(image, info);
    let unmirrored = |value: f32| {
        let value = f64::from(value);
        if image.inverse { a + b - value } else { value }
    };
    let stored = |value: f32| ((unmirrored(value) - info.intercept) / info.slope).round();
    let largest = values.filter(|value| !value.is_nan()).map(stored).fold(0.0, f64::max);
    let bits = (f64::from(u16::MAX).min(largest) as u16 | 1).ilog2() + 1;
    let bits = bits.max(LEAST_BITS);
    if bits + 2 > u32::from(DECLARED) {
        return None;
    }
    let white = f64::from((1_u32 << bits) - 1) * info.slope + info.intercept;
    let (low, high) = (info.intercept.min(white), info.intercept.max(white));
    let (low, high) = if image.inverse { (a + b - high, a + b - low) } else { (low, high) };
    Some((low as f32, high as f32, bits))
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::super::composition::Place;
    use super::super::voi::Voi;
    use super::*;

    fn image(photometric: Photometric, signed: bool) -> Image {
        let colour = !matches!(photometric, Photometric::Monochrome1 | Photometric::Monochrome2);
        Image {
            rows: 1,
            columns: 2,
            frames: 1,
            samples_per_pixel: if colour { 3 } else { 1 },
            bits_allocated: if colour { 8 } else { 16 },
            bits_stored: if colour { 8 } else { 12 },
            high_bit: if colour { 7 } else { 11 },
            signed,
            planar: false,
            photometric,
            palette: None,
            modality_lut: None,
            padding: None,
            inverse: photometric == Photometric::Monochrome1,
        }
    }

    fn info(slope: f64, intercept: f64, voi: Voi) -> FrameInfo {
        FrameInfo { place: Place::Nowhere, slope, intercept, voi }
    }

    fn values(image: &Image, bytes: &[u8]) -> Vec<f32> {
        let info = info(2.0, -10.0, Voi::Absent);
        let raw = RawFrame {
            bytes: Cow::Borrowed(bytes),
            allocated: image.bits_allocated,
            planar: false,
            photometric: image.photometric,
        };
        decode(Path::new("x"), image, &info, &raw, View::Shown).unwrap()
    }

    #[test]
    fn bits_beyond_bits_stored_are_dropped_and_signs_extended() {
        let bytes = [0xff, 0xff, 0x01, 0x80];
        assert_eq!(values(&image(Photometric::Monochrome2, true), &bytes), [-12.0, -8.0]);
        assert_eq!(values(&image(Photometric::Monochrome2, false), &bytes), [8180.0, -8.0]);
    }

    #[test]
    fn monochrome1_is_mirrored_with_its_window() {
        let inverse = image(Photometric::Monochrome1, false);
        assert_eq!(values(&inverse, &[0, 0, 0xff, 0x0f]), [8180.0, -10.0]);
        let info = info(1.0, 0.0, Voi::Line { black: 95.0, white: 4095.0 });
        assert_eq!(nominal_range(&inverse, &info, View::Modality), (0.0, 4000.0));
    }

    #[test]
    fn ycbcr_becomes_red_green_and_blue_planes() {
        let bytes = [76, 85, 255, 128, 128, 128];
        let found = values(&image(Photometric::YbrFull, false), &bytes);
        assert_eq!(found, [254.0, 128.0, 0.0, 128.0, 0.0, 128.0]);
    }

    #[test]
    fn halved_chroma_serves_two_pixels() {
        let found = values(&image(Photometric::YbrFull422, false), &[76, 76, 85, 255]);
        assert_eq!(found, [254.0, 254.0, 0.0, 0.0, 0.0, 0.0]);
    }
}
