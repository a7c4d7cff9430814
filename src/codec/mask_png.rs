//! A 2-D mask as a PNG that programs read back exactly and people can look at.

use ndarray::ArrayView2;

use super::CodecError;
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
