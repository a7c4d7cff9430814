//! A 2-D mask as a PNG that programs read back exactly and people can look at.

use std::{fs::File, io::BufReader, path::Path};

use ndarray::{Array2, ArrayView2};

use super::{CodecError, MAX_SAMPLES};
use crate::domain::Label;

const FORMAT: &str = "PNG mask";

/// `mask` [H, W] of label values: with one label 8-bit grey, 0 and 255, as published mask sets are; with
/// several an indexed image whose index is the label value and whose palette holds the labels' colours.
///
/// # Errors
/// If the encoder fails.
pub fn encode(mask: ArrayView2<'_, u8>, labels: &[Label]) -> Result<Vec<u8>, CodecError> {
    let (rows, columns) = mask.dim();
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, columns as u32, rows as u32);
    encoder.set_depth(png::BitDepth::Eight);
    let pixels: Vec<u8> = if labels.len() == 1 {
        encoder.set_color(png::ColorType::Grayscale);
        mask.iter().map(|&value| if value > 0 { 255 } else { 0 }).collect()
    } else {
        encoder.set_color(png::ColorType::Indexed);
        let colours = labels.iter().flat_map(|label| label.colour);
        encoder.set_palette([0; 3].into_iter().chain(colours).collect::<Vec<u8>>());
        mask.iter().copied().collect()
    };
    let mut writer =
        encoder.write_header().map_err(|e| CodecError::encode(FORMAT, e.to_string()))?;
    writer.write_image_data(&pixels).map_err(|e| CodecError::encode(FORMAT, e.to_string()))?;
    writer.finish().map_err(|e| CodecError::encode(FORMAT, e.to_string()))?;
    Ok(bytes)
}

/// The indices [H, W] of an indexed PNG, which [`super::read`] would turn into colours; `None` for a PNG of grey
/// or colour.
///
/// # Errors
/// If it is no readable PNG.
pub fn read_indices(path: &Path) -> Result<Option<Array2<u8>>, CodecError> {
    let malformed =
        |error: png::DecodingError| CodecError::malformed(path, FORMAT, error.to_string());
    let file =
        File::open(path).map_err(|source| CodecError::Read { path: path.to_owned(), source })?;
    let mut reader = png::Decoder::new(BufReader::new(file)).read_info().map_err(malformed)?;
    let (colour, depth) = reader.output_color_type();
    if colour != png::ColorType::Indexed {
        return Ok(None);
    }
    let (columns, rows) = reader.info().size();
    let declared = u64::from(columns) * u64::from(rows);
    if declared > MAX_SAMPLES {
        return Err(CodecError::TooLarge { path: path.to_owned(), declared, limit: MAX_SAMPLES });
    }
    let mut packed = vec![0; reader.output_buffer_size().unwrap_or(0)];
    let frame = reader.next_frame(&mut packed).map_err(malformed)?;
    // Indices of 1, 2, 4 or 8 bits, the first in the highest; every row begins a new byte.
    let bits = depth as usize;
    let mask = u8::MAX >> (8 - bits);
    let index = |(row, column): (usize, usize)| {
        let byte = packed[row * frame.line_size + column * bits / 8];
        (byte >> (8 - bits - column * bits % 8)) & mask
    };
    Ok(Some(Array2::from_shape_fn((rows as usize, columns as usize), index)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_of_every_depth_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mask.png");
        for (depth, row) in [
            (png::BitDepth::One, &[0b1010_1010, 0b1000_0000][..]),
            (png::BitDepth::Four, &[0x10, 0x10, 0x10, 0x10, 0x10]),
            (png::BitDepth::Eight, &[1, 0, 1, 0, 1, 0, 1, 0, 1]),
        ] {
            let mut encoder = png::Encoder::new(File::create(&path).unwrap(), 9, 2);
            encoder.set_color(png::ColorType::Indexed);
            encoder.set_depth(depth);
            encoder.set_palette(vec![0, 0, 0, 255, 0, 0]);
            encoder.write_header().unwrap().write_image_data(&row.repeat(2)).unwrap();
            let found = read_indices(&path).unwrap().unwrap();
            assert_eq!(found, Array2::from_shape_fn((2, 9), |(_, column)| 1 - column as u8 % 2));
        }
    }
}
