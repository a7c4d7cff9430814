//! A frame's bytes as modality values: PS3.3 C.7.6.3 and C.11.1.

use std::path::Path;

use super::frames::RawFrame;
use super::image::{FrameInfo, Image, Photometric};
use crate::codec::CodecError;

/// Values of one frame: [C, H, W] in row-major order.
pub(super) fn decode(
    path: &Path,
    image: &Image,
    info: &FrameInfo,
    raw: &RawFrame<'_>,
) -> Result<Vec<f32>, CodecError> {
    let pixels = image.pixels();
    let needed = match raw.photometric {
        Photometric::YbrFull422 => 2 * pixels,
        _ => pixels * image.samples_per_pixel,
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
    let stored = (0..needed).map(|index| stored_value(image, raw, index));
    Ok(match raw.photometric {
        Photometric::Monochrome1 | Photometric::Monochrome2 => {
            stored.map(|value| modality(image, info, value)).collect()
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

/// The stored value, its unused bits dropped and its sign extended.
fn stored_value(image: &Image, raw: &RawFrame<'_>, index: usize) -> i64 {
    let word = match raw.allocated {
        8 => u32::from(raw.bytes[index]),
        16 => u32::from(u16::from_le_bytes([raw.bytes[2 * index], raw.bytes[2 * index + 1]])),
        _ => u32::from_le_bytes(std::array::from_fn(|byte| raw.bytes[4 * index + byte])),
    };
    // A decompressed frame can be narrower than BitsAllocated; its samples then start at bit 0.
    let stored = image.bits_stored.min(raw.allocated);
    let shift = if raw.allocated == image.bits_allocated { image.high_bit + 1 - stored } else { 0 };
    let value = i64::from(word >> shift) & ((1 << stored) - 1);
    if image.signed && value >> (stored - 1) == 1 { value - (1 << stored) } else { value }
}

fn modality(image: &Image, info: &FrameInfo, stored: i64) -> f32 {
    let (lowest, highest) = image.stored_range();
    let stored = stored as f64;
    // MONOCHROME1 shows the lowest value white: mirrored, so that brighter is larger everywhere.
    let stored = if image.photometric == Photometric::Monochrome1 {
        lowest + highest - stored
    } else {
        stored
    };
    match &image.modality_lut {
        Some(lut) => lut.map(stored as i64),
        None => (stored * info.slope + info.intercept) as f32,
    }
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
pub(super) fn nominal_range(image: &Image, info: &FrameInfo) -> (f32, f32) {
    if let Some(palette) = &image.palette {
        return (0.0, palette[0].maximum);
    }
    let (lowest, highest) = image.stored_range();
    if image.channels() == 3 {
        return (lowest as f32, highest as f32);
    }
    let (a, b) = match &image.modality_lut {
        Some(lut) => (0.0, f64::from(lut.maximum)),
        None => (lowest * info.slope + info.intercept, highest * info.slope + info.intercept),
    };
    let (black, white) = match info.window {
        Some((low, high)) if image.photometric == Photometric::Monochrome1 => {
            (a + b - high, a + b - low)
        }
        Some(window) => window,
        None => (a.min(b), a.max(b)),
    };
    (black as f32, white as f32)
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

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
        }
    }

    fn values(image: &Image, bytes: &[u8]) -> Vec<f32> {
        let info = FrameInfo { plane: None, slope: 2.0, intercept: -10.0, window: None };
        let raw = RawFrame {
            bytes: Cow::Borrowed(bytes),
            allocated: image.bits_allocated,
            planar: false,
            photometric: image.photometric,
        };
        decode(Path::new("x"), image, &info, &raw).unwrap()
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
        let info =
            FrameInfo { plane: None, slope: 1.0, intercept: 0.0, window: Some((95.0, 4095.0)) };
        assert_eq!(nominal_range(&inverse, &info), (0.0, 4000.0));
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
