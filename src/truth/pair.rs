//! An image and its truth, read from files onto one grid.
//!
//! A truth is a NIfTI volume of label values, a DICOM Segmentation ([`seg::read`]), or a PNG or TIFF: with one label, what is brighter than half of the
//! value range is foreground (so are the ones of a mask of nothing but 0 and 1); with several, values (or the
//! indices of an indexed PNG) are label values. Of colour only the first channel counts.

use std::path::Path;

use ndarray::{Array3, Axis};

use super::{Pair, TruthError};
use crate::{
    codec::{self, Case, Source, mask_png, seg},
    domain::{Geometry, Label, Volume},
};

impl Pair {
    /// The image and its truth [D, H, W] on the same grid, of values that `labels` knows.
    ///
    /// # Errors
    /// If either cannot be read or they do not belong together.
    pub fn read(&self, labels: &[Label]) -> Result<(Volume, Array3<u8>), TruthError> {
        let image = read_one(&self.image)?;
        if self.label.is_file() && seg::is_segmentation(&self.label)? {
            let truth = seg::read(&self.label, &image, labels)?;
            return Ok((image.volume, truth));
        }
        let volume = image.volume;
        let label = read_one(&self.label)?;
        let (_, depth, rows, columns) = volume.samples.dim();
        let (_, found_depth, found_rows, found_columns) = label.volume.samples.dim();
        let (expected, found) = ([depth, rows, columns], [found_depth, found_rows, found_columns]);
        if expected != found {
            return Err(TruthError::Size { case: self.stem.clone(), found, expected });
        }
        if let (Some(image), Some(label)) = (volume.geometry, label.volume.geometry) {
            let distance = distance(&image, &label, expected);
            let smallest = image.spacing.into_iter().fold(f64::INFINITY, f64::min);
            if distance > smallest / 2.0 {
                return Err(TruthError::Place { case: self.stem.clone(), distance });
            }
        }
        let truth = self.truth(&label, labels)?;
        Ok((volume, truth))
    }

    fn truth(&self, label: &Case, labels: &[Label]) -> Result<Array3<u8>, TruthError> {
        let largest = labels.iter().map(|label| label.value).max().unwrap_or(0);
        let values = label.volume.samples.index_axis(Axis(0), 0);
        let raster = matches!(label.source, Source::Raster);
        if let (true, &[Label { value: foreground, .. }]) = (raster, labels) {
            let (black, white) = label.volume.nominal_range.unwrap_or((0.0, 1.0));
            let counts_up = values.iter().all(|&v| v == 0.0 || v == 1.0);
            let half = if counts_up { 0.5 } else { f32::midpoint(black, white) };
            return Ok(values.mapv(|v| if v > half { foreground } else { 0 }));
        }
        let indices =
            if raster && is_png(&self.label) { mask_png::read_indices(&self.label)? } else { None };
        let values = match &indices {
            Some(indices) => indices.mapv(f32::from).insert_axis(Axis(0)),
            None => values.to_owned(),
        };
        match values.iter().find(|&&v| v.fract() != 0.0 || !(0.0..=f32::from(largest)).contains(&v))
        {
            Some(&value) => Err(TruthError::LabelValue { case: self.stem.clone(), value, largest }),
            None => Ok(values.mapv(|value| value as u8)),
        }
    }
}

fn is_png(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"))
}

fn read_one(path: &Path) -> Result<Case, TruthError> {
    let mut cases = codec::read(path)?;
    match (cases.pop(), cases.len()) {
        (Some(case), 0) => Ok(case),
        (_, others) => Err(TruthError::NotOne { path: path.into(), cases: others + 1 }),
    }
}

/// How far apart the corners of two grids of one size are at most, mm.
fn distance(a: &Geometry, b: &Geometry, shape: [usize; 3]) -> f64 {
    let [depth, rows, columns] = shape.map(|n| n as f64 - 1.0);
    let corners = (0..8_u8).map(|corner| {
        let end = |bit: u8, last: f64| if corner & bit == 0 { 0.0 } else { last };
        let at = |grid: &Geometry| grid.position(end(1, depth), end(2, rows), end(4, columns));
        let (a, b) = (at(a), at(b));
        (0..3).map(|axis| (a[axis] - b[axis]).powi(2)).sum::<f64>().sqrt()
    });
    corners.fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Code;

    fn labels(count: u8) -> Vec<Label> {
        let code = Code { value: "1".into(), scheme: "99X".into(), meaning: "x".into() };
        (1..=count)
            .map(|value| Label {
                value,
                name: format!("label {value}"),
                colour: [value, 0, 0],
                category: code.clone(),
                kind: code.clone(),
            })
            .collect()
    }

    fn write_png(path: &Path, width: u32, pixels: &[u8]) {
        let file = std::fs::File::create(path).unwrap();
        let mut encoder = png::Encoder::new(file, width, pixels.len() as u32 / width);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.write_header().unwrap().write_image_data(pixels).unwrap();
    }

    #[test]
    fn pixels_are_foreground_for_one_label_and_label_values_for_several() {
        let folder = tempfile::tempdir().unwrap();
        let [image, label] = ["image.png", "label.png"].map(|name| folder.path().join(name));
        write_png(&image, 3, &[0, 200, 255]);
        let pair = &Pair { stem: "a".into(), image, label };
        let read = |pixels: &[u8], count| {
            write_png(&pair.label, 3, pixels);
            pair.read(&labels(count)).map(|(_, truth)| truth.into_raw_vec_and_offset().0)
        };
        assert_eq!(read(&[0, 127, 128], 1).unwrap(), [0, 0, 1]);
        assert_eq!(read(&[0, 0, 255], 1).unwrap(), [0, 0, 1]);
        assert_eq!(read(&[0, 1, 1], 1).unwrap(), [0, 1, 1]);
        assert_eq!(read(&[0, 2, 1], 2).unwrap(), [0, 2, 1]);
        let error = read(&[0, 3, 1], 2).unwrap_err().to_string();
        assert_eq!(error, "a: the label holds the value 3; the model knows 0 to 2");

        let ours = ndarray::array![[0_u8, 2, 1]];
        std::fs::write(&pair.label, mask_png::encode(ours.view(), &labels(2)).unwrap()).unwrap();
        let truth = pair.read(&labels(2)).unwrap().1;
        assert_eq!(truth, ours.insert_axis(Axis(0)), "an indexed mask, as segment writes it");
        write_png(&pair.label, 2, &[0, 1, 0, 0]);
        let error = pair.read(&labels(2)).unwrap_err().to_string();
        assert!(error.contains("[1, 2, 2]") && error.contains("[1, 1, 3]"), "{error}");
    }
}
