//! An image and its truth, read from files onto one grid.
//!
//! A truth is a NIfTI volume of label values, a DICOM Segmentation ([`seg::read`]), or a PNG or TIFF, whose values (or
//! indices, of an indexed PNG) are label values. Pictures for a model of one label may as well hold black and white, such
//! as 0 and 255. Any other value is an error: a threshold would take it for what it is not.

use std::collections::BTreeSet;
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
        let samples = &label.volume.samples;
        let is_raster = matches!(label.source, Source::Raster);
        let is_grey = samples.outer_iter().all(|channel| channel == samples.index_axis(Axis(0), 0));
        // The grey levels of a palette say more than its indices for black and white.
        let is_indexed = is_raster && (labels.len() > 1 || !is_grey) && is_png(&self.label);
        let indices = if is_indexed { mask_png::read_indices(&self.label)? } else { None };
        let values = match &indices {
            Some(indices) => indices.mapv(f32::from).insert_axis(Axis(0)),
            None if is_grey => samples.index_axis(Axis(0), 0).to_owned(),
            None => return Err(TruthError::ColouredLabel(self.label.clone())),
        };
        let is_label = |v: f32| v == 0.0 || labels.iter().any(|l| f32::from(l.value) == v);
        let unknown = values.iter().filter(|&&v| !is_label(v)).map(|v| v.to_bits());
        let unknown: BTreeSet<u32> = unknown.collect();
        if unknown.is_empty() {
            return Ok(values.mapv(|value| value as u8));
        }
        if let (true, [Label { value: foreground, .. }]) = (is_raster, labels) {
            let (_, white) = label.volume.nominal_range.unwrap_or((0.0, 1.0));
            let is_white = |white: f32| values.iter().all(|&v| v == 0.0 || v == white);
            if is_white(white) || is_white(1.0) || is_white(255.0) {
                return Ok(values.mapv(|v| if v > 0.0 { *foreground } else { 0 }));
            }
        }
        let mut values: Vec<f32> = unknown.into_iter().map(f32::from_bits).collect();
        values.sort_by(f32::total_cmp);
        let (path, accepted) = (self.label.clone(), accepted(labels, is_raster));
        Err(TruthError::LabelValue { path, values, accepted })
    }
}

/// The values of a truth, in words.
fn accepted(labels: &[Label], is_raster: bool) -> String {
    let named = |label: &Label| format!("{} ({})", label.value, label.name);
    let known: Vec<String> = labels.iter().map(named).collect();
    let white = if is_raster && labels.len() == 1 { ", or 0 and white" } else { "" };
    format!("0 and the model's labels: {}{white}", known.join(", "))
}

fn is_png(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"))
}

fn read_one(path: &Path) -> Result<Case, TruthError> {
    let mut cases = codec::read(path)?;
    match (cases.pop(), cases.len()) {
        (Some(case), 0) => {
            for warning in &case.warnings {
                tracing::warn!(case = case.name, warning, "a warning about an image");
            }
            Ok(case)
        }
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
        let error = read(&[0, 127, 128], 1).unwrap_err().to_string();
        assert!(error.contains("label.png: the label holds the values 127, 128;"), "{error}");
        assert!(error.contains("0 and the model's labels: 1 (label 1), or 0 and white"), "{error}");
        let error = read(&[3, 2, 1], 1).unwrap_err().to_string();
        assert!(error.contains("the values 2, 3;"), "{error}");
        assert_eq!(read(&[0, 0, 255], 1).unwrap(), [0, 0, 1]);
        assert_eq!(read(&[0, 1, 1], 1).unwrap(), [0, 1, 1]);
        assert_eq!(read(&[0, 2, 1], 2).unwrap(), [0, 2, 1]);
        let error = read(&[0, 3, 1], 2).unwrap_err().to_string();
        assert!(error.contains("the value 3; it may hold 0 and the model's labels: 1"), "{error}");
        assert!(read(&[0, 255, 255], 2).unwrap_err().to_string().contains("255"), "ambiguous");

        let ours = ndarray::array![[0_u8, 2, 1]];
        std::fs::write(&pair.label, mask_png::encode(ours.view(), &labels(2)).unwrap()).unwrap();
        let truth = pair.read(&labels(2)).unwrap().1;
        assert_eq!(truth, ours.insert_axis(Axis(0)), "an indexed mask, as segment writes it");
        write_png(&pair.label, 2, &[0, 1, 0, 0]);
        let error = pair.read(&labels(2)).unwrap_err().to_string();
        assert!(error.contains("[1, 2, 2]") && error.contains("[1, 1, 3]"), "{error}");
    }
}
