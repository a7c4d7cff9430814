//! Folders as training data: pictures with masks, resized, in the model's polarity; faults of all cases at once.

use std::{
    fs::{self, File},
    path::Path,
};

use cdal::{
    bundle::Manifest,
    codec::{self, Source, dicom, seg},
    domain::{Provenance, Segmentation},
    phantom::phantom,
    train::{Batches, Config, TrainError, Validator},
    truth::Dataset,
};
use ndarray::{Array3, Array4, Axis, s};
use png::ColorType;

use crate::project::root;

/// The recipe of a preset with one label channel, at network size `size`.
fn recipe(preset: &str, size: usize) -> Manifest {
    let template = root().join(format!("onnx/cdal_onnx/presets/{preset}.toml"));
    let text = fs::read_to_string(template).unwrap().replace("$name", "m").replace("$version", "1");
    let text = text.replace("$size", &size.to_string()).replace("$double", &(2 * size).to_string());
    let rest = "
[diffusion]
steps = 2
variance = \"preserving\"
beta_min = 0.1
beta_max = 20.0
[network]
label_channels = 1
features = 32
latent = 4
";
    Manifest::parse(&(text + rest), Path::new("recipe.toml")).unwrap()
}

/// A run over `folder` that trains on `train` and validates on `val`, with `more` in the configuration.
fn configuration(folder: &Path, train: &[&str], val: &[&str], more: &str) -> Config {
    let split = serde_json::json!({ "train": train, "val": val });
    fs::write(folder.join("splits.json"), split.to_string()).unwrap();
    let text = format!(
        r#"
run_folder = "run"
[model]
preset = "lung"
parameters = "p.json"
seed = 3
[data]
kind = "pairs"
folder = "."
split = "splits.json"
validation_cases = {}
[optimiser]
steps = 4
batch = 3
learning_rate = 1e-3
final_learning_rate = 1e-5
betas = [0.5, 0.9]
ema_decay = 0.9
checkpoint_every = 2
intra_threads = 1
[card]
name = "m"
version = "1"
weights = "w"
data = "d"
licence = "l"
{more}
"#,
        val.len()
    );
    let path = folder.join("train.toml");
    fs::write(&path, text).unwrap();
    Config::read(&path).unwrap()
}

fn dataset() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for kind in ["images", "labels"] {
        fs::create_dir(folder.path().join(kind)).unwrap();
    }
    folder
}

/// A picture [H, W, samples].
fn write_png(path: &Path, colour: ColorType, pixels: &Array3<u8>) {
    let (rows, columns, _) = pixels.dim();
    let mut encoder = png::Encoder::new(File::create(path).unwrap(), columns as u32, rows as u32);
    encoder.set_color(colour);
    let bytes: Vec<u8> = pixels.iter().copied().collect();
    encoder.write_header().unwrap().write_image_data(&bytes).unwrap();
}

/// Bright where `inside`, which is also what the mask marks.
fn write_case(folder: &Path, stem: &str, mask: &str, size: [usize; 2], left: bool) {
    let [rows, columns] = size;
    let inside = |column: usize| (column < columns / 2) == left;
    let image = Array3::from_shape_fn(
        (rows, columns, 1),
        |(_, column, _)| {
            if inside(column) { 200 } else { 100 }
        },
    );
    let label = image.mapv(|value| if value == 200 { 255 } else { 0 });
    write_png(&folder.join(format!("images/{stem}.png")), ColorType::Grayscale, &image);
    write_png(&folder.join(format!("labels/{mask}.png")), ColorType::Grayscale, &label);
}

fn open(config: &Config, manifest: &Manifest) -> Result<(Batches, Validator), TrainError> {
    Batches::open(config, manifest.clone())
}

#[test]
fn radiographs_are_learned_at_the_networks_size_and_in_its_inverted_polarity() {
    let folder = dataset();
    write_case(folder.path(), "a", "a", [48, 40], true);
    write_case(folder.path(), "b", "b_mask", [24, 28], true);
    write_case(folder.path(), "v", "v_mask", [48, 56], false);
    let config = configuration(folder.path(), &["a", "b"], &["v"], "");
    let manifest = recipe("lung", 32);
    let (batches, validator) = open(&config, &manifest).unwrap();
    let held = &validator.cases;
    let batch = batches.batch(&manifest.diffusion.schedule(), 0).unwrap();
    assert_eq!(batch.image.dim(), (3, 1, 32, 32));
    assert_eq!(batch.target.dim(), (3, 1, 32, 32));
    // -1 is lung, on the left, where the image is bright.
    assert!(batch.target.slice(s![.., .., .., ..16]).iter().all(|&v| v == -1.0));
    assert!(batch.target.slice(s![.., .., .., 16..]).iter().all(|&v| v == 1.0));
    let middle = |columns: std::ops::Range<usize>| {
        batch.image.slice(s![.., .., .., columns]).mean().unwrap()
    };
    assert!((middle(0..12) - (200.0 / 127.5 - 1.0)).abs() < 1e-4);
    assert!((middle(20..32) - (100.0 / 127.5 - 1.0)).abs() < 1e-4);

    assert_eq!(held.len(), 1);
    assert_eq!(held[0].name, "v");
    assert_eq!(held[0].truth.dim(), (1, 48, 56), "validation measures on the case's own grid");
    assert!(held[0].truth.slice(s![.., .., 28..]).iter().all(|&value| value == 1));
}

#[test]
fn tissue_in_colour_is_learned_from_tiles_with_masks_that_carry_alpha() {
    let folder = dataset();
    let (rows, columns) = (80, 100);
    let file = File::create(folder.path().join("images/t.1.tif")).unwrap();
    let colour = [142.07_f32, 98.48, 132.96].map(|mean| mean.round() as u8);
    let pixels: Vec<u8> = colour.into_iter().cycle().take(rows * columns * 3).collect();
    tiff::encoder::TiffEncoder::new(file)
        .unwrap()
        .write_image::<tiff::encoder::colortype::RGB8>(columns as u32, rows as u32, &pixels)
        .unwrap();
    // Nuclei fill the lower half; alpha is 255 everywhere and means nothing.
    let mask = Array3::from_shape_fn((rows, columns, 2), |(row, _, sample)| {
        if sample == 1 || row >= rows / 2 { 255 } else { 0 }
    });
    write_png(&folder.path().join("labels/t.1.png"), ColorType::GrayscaleAlpha, &mask);
    let config = configuration(folder.path(), &["t.1"], &[], "");
    let manifest = recipe("nuclei", 32);
    let (batches, _) = open(&config, &manifest).unwrap();
    let batch = batches.batch(&manifest.diffusion.schedule(), 0).unwrap();
    assert_eq!(batch.image.dim(), (3, 3, 32, 32));
    assert!(batch.image.iter().all(|v| v.abs() < 0.01), "the mean colour is 0");
    // Every tile of 64 x 64 lies in one half; most that are drawn show nuclei, which are +1.
    let means: Vec<f32> =
        batch.target.axis_iter(Axis(0)).map(|target| target.mean().unwrap()).collect();
    assert!(means.iter().all(|mean| mean.abs() == 1.0), "{means:?}");
    assert!(means.contains(&1.0), "{means:?}");
}

const EVERYTHING: &str = "
[augmentation]
crops = \"anywhere\"
flip_rows = true
flip_columns = true
rotation_degrees = 22
scale = 0.25
stretch = 0.1
shift_pixels = 8
elastic_pixels = 4
elastic_spacing = 32
bias = 0.2
gamma = 0.3
contrast = 0.2
brightness = 0.1
colour = 0.1
noise = 0.03
";

#[test]
fn augmented_batches_are_a_function_of_seed_and_step_on_any_number_of_threads() {
    let folder = dataset();
    for (stem, left) in [("a", true), ("b", false)] {
        write_case(folder.path(), stem, stem, [300, 280], left);
    }
    let config = configuration(folder.path(), &["a", "b"], &[], EVERYTHING);
    // 128 x 128 is made by several threads, 120 x 120 by one.
    for side in [128, 120] {
        let manifest = recipe("lung", side);
        let schedule = manifest.diffusion.schedule();
        let (batches, _) = open(&config, &manifest).unwrap();
        let batch = batches.batch(&schedule, 5).unwrap();
        assert!(batch.image.iter().chain(&batch.x).all(|v| v.is_finite()));
        assert!(batch.target.iter().all(|v| v.abs() == 1.0));
        assert_eq!(batch, batches.batch(&schedule, 5).unwrap());
        assert_ne!(batch, batches.batch(&schedule, 6).unwrap());
        // A larger batch begins with the same slices.
        let mut wider = config.clone();
        wider.optimiser.batch = 7;
        let wide = open(&wider, &manifest).unwrap().0.batch(&schedule, 5).unwrap();
        assert_eq!(batch.image, wide.image.slice(s![..3, .., .., ..]));
        assert_eq!(batch.x, wide.x.slice(s![..3, .., .., ..]));
    }
}

/// Not a check: `cargo test --release augmentation_speed -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn augmentation_speed() {
    let folder = dataset();
    write_case(folder.path(), "a", "a", [256, 256], true);
    for (name, more) in [("none", ""), ("all", EVERYTHING)] {
        let mut config = configuration(folder.path(), &["a"], &[], more);
        config.optimiser.batch = 8;
        let manifest = recipe("lung", 256);
        let schedule = manifest.diffusion.schedule();
        let (batches, _) = open(&config, &manifest).unwrap();
        let started = std::time::Instant::now();
        for step in 0..20 {
            batches.batch(&schedule, step).unwrap();
        }
        println!("{name}: {:.0} images/s", 160.0 / started.elapsed().as_secs_f64());
    }
}

#[test]
fn a_series_is_paired_with_its_segmentation() {
    let folder = dataset();
    let case = phantom(5);
    let images = folder.path().join("images/a");
    fs::create_dir(&images).unwrap();
    for (number, bytes) in dicom::encode_mr_series(&case.volume, 5).unwrap().iter().enumerate() {
        fs::write(images.join(format!("{number:03}.dcm")), bytes).unwrap();
    }
    let series = codec::read(&images).unwrap().remove(0);
    let Source::Dicom(source) = &series.source else { panic!("a DICOM series") };
    let (d, h, w) = case.truth.dim();
    let truth = Segmentation { mask: case.truth.clone(), agreement: Array4::zeros((2, d, h, w)) };
    let labels = Manifest::read(&root().join("onnx/phantom/bundle.toml")).unwrap().labels;
    let made = Provenance {
        model: "m".into(),
        model_version: "1".into(),
        model_digest: "0".into(),
        precision: cdal::domain::Precision::Fp32,
        steps: 1,
        votes: 1,
        ending: String::new(),
        seed: 1,
        software_version: "1".into(),
        configuration: String::new(),
    };
    let geometry = series.volume.geometry.as_ref();
    let bytes =
        seg::encode(seg::Form::default(), source, geometry, &truth, &labels, &made).unwrap().bytes;
    fs::write(folder.path().join("labels/a.seg"), bytes).unwrap();
    let dataset = Dataset::open(folder.path(), None, None).unwrap();
    let (_, read) = dataset.pairs[0].read(&labels).unwrap();
    assert!(read.iter().any(|&value| value == 2));
    assert_eq!(read, case.truth);
}

#[test]
fn the_faults_of_all_cases_are_told_at_once() {
    let folder = dataset();
    for (stem, size) in [("a", [32, 32]), ("b", [32, 32]), ("c", [32, 32])] {
        write_case(folder.path(), stem, stem, size, true);
    }
    let small = Array3::zeros((8, 9, 1));
    write_png(&folder.path().join("labels/a.png"), ColorType::Grayscale, &small);
    fs::write(folder.path().join("labels/b.png"), b"no picture").unwrap();
    let config = configuration(folder.path(), &["a", "b", "c"], &["v", "w"], "");
    let fault = open(&config, &recipe("lung", 32)).unwrap_err().to_string();
    assert!(fault.starts_with("3 of the cases cannot be used: "), "{fault}");
    assert!(fault.contains("; a: the label is [1, 8, 9]"), "{fault}");
    assert!(fault.contains("b.png") && fault.contains("(v, w)"), "{fault}");
    assert!(!fault.contains("c: ") && fault.lines().count() == 1, "{fault}");

    // A grey picture where the network takes colour.
    write_case(folder.path(), "a", "a", [32, 32], true);
    let config = configuration(folder.path(), &["a"], &["c"], "");
    let fault = open(&config, &recipe("nuclei", 32)).unwrap_err().to_string();
    assert!(fault.contains("a: the image has 1 colour channels"), "{fault}");
    assert!(fault.contains("c: the image has 1 colour channels"), "{fault}");
}
