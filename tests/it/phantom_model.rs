//! The shipped phantom bundle on cases that it was not trained on, through DICOM files as a scanner sends them.

use cdal::{
    codec::{self, dicom},
    engine::Options,
    phantom::phantom,
    segmenter::{Request, Segmenter},
};
use ndarray::Array3;

use crate::project::{root, runtime};

fn dice(a: &Array3<u8>, b: &Array3<u8>, label: u8) -> f64 {
    let count = |mask: &Array3<u8>| mask.iter().filter(|&&v| v == label).count();
    let both = a.iter().zip(b).filter(|&(&a, &b)| a == label && b == label).count();
    2.0 * both as f64 / (count(a) + count(b)) as f64
}

#[test]
fn both_labels_reach_090_on_twenty_seeds_with_a_single_vote() {
    let segmenter =
        Segmenter::open(runtime(), &root().join("onnx/phantom"), Options::default()).unwrap();
    let mut sums = [0.0; 2];
    for seed in 1..=20 {
        let case = phantom(seed);
        let folder = tempfile::tempdir().unwrap();
        // File names run against the slices: order must come from geometry.
        let series = dicom::encode_mr_series(&case.volume, seed).unwrap();
        for (number, bytes) in series.iter().rev().enumerate() {
            std::fs::write(folder.path().join(format!("{number:03}.dcm")), bytes).unwrap();
        }
        let cases = codec::read(folder.path()).unwrap();
        let request = Request { votes: Some(1), seed: 0, ..Request::default() };
        let outcome = segmenter.segment(&cases[0].volume, &request).unwrap();
        for label in [1, 2] {
            sums[usize::from(label) - 1] +=
                dice(&outcome.segmentation.mask, &case.truth, label) / 20.0;
        }
    }
    println!("mean Dice over 20 seeds, one vote: {:.4} {:.4}", sums[0], sums[1]);
    assert!(sums.iter().all(|&mean| mean >= 0.90), "{sums:?}");
}

#[test]
fn a_case_in_another_orientation_is_segmented_alike() {
    let segmenter =
        Segmenter::open(runtime(), &root().join("onnx/phantom"), Options::default()).unwrap();
    let case = phantom(3);
    let request = Request { votes: Some(1), seed: 0, ..Request::default() };
    let axial = segmenter.segment(&case.volume, &request).unwrap().segmentation.mask;

    // The same voxels stored as a sagittal stack: slices run along x, rows along z, columns along y.
    let mut turned = case.volume.clone();
    turned.samples = case.volume.samples.clone().permuted_axes([0, 3, 1, 2]);
    turned.samples = turned.samples.as_standard_layout().into_owned();
    let grid = case.volume.geometry.unwrap();
    let mut geometry = grid;
    geometry.direction = [grid.direction[1], grid.direction[2], grid.direction[0]];
    geometry.spacing = [grid.spacing[1], grid.spacing[2], grid.spacing[0]];
    turned.geometry = Some(geometry);
    let sagittal = segmenter.segment(&turned, &request).unwrap().segmentation.mask;
    let back = sagittal.permuted_axes([1, 2, 0]);

    // Other noise (the case's bytes differ), same structure.
    let back = back.as_standard_layout().into_owned();
    for label in [1, 2] {
        let agreement = dice(&axial, &back, label);
        assert!(agreement > 0.95, "label {label}: {agreement}");
    }
}

#[test]
fn every_shipped_bundle_is_sound_and_small() {
    for name in ["phantom", "hippocampus", "lung"] {
        let folder = root().join("onnx").join(name);
        Segmenter::open(runtime(), &folder, Options::default()).unwrap(); // runs the golden case
        let files = std::fs::read_dir(&folder).unwrap();
        let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes <= 10_000_000, "{name}: {bytes} bytes");
    }
}
