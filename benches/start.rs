//! `cargo bench --bench start`: what lies between the start of a program and its first mask.
//!
//! The lung preset at its full size with drawn weights, and bundles that come along; one vote, medians of
//! `CDAL_BENCH_ROUNDS`.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Instant,
};

use cdal::{
    bundle::Bundle,
    domain::Volume,
    engine::{Options, Purpose, Runtime},
    phantom::phantom,
    segmenter::{Request, Segmenter},
};
use ndarray::Array4;

const STAGES: [&str; 5] =
    ["read, digests", "sessions", "golden case", "first mask", "another mask"];

fn main() {
    let rounds = std::env::var("CDAL_BENCH_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(5);
    let scratch = tempfile::tempdir().expect("a temporary folder can be made");
    let started = Instant::now();
    let runtime = Runtime::load(Purpose::Inference, None).expect("run `make runtime`");
    let runtime = Arc::new(runtime);
    println!("the runtime's library: {:.3} s", started.elapsed().as_secs_f64());
    let picture = Volume {
        samples: Array4::from_shape_fn((1, 1, 256, 256), |(_, _, y, x)| ((x * y) % 251) as f32),
        geometry: None,
        nominal_range: Some((0.0, 255.0)),
    };
    let shipped = |name: &str| root().join("onnx").join(name);
    for (name, bundle, volume) in [
        ("lung preset, 256 x 256, drawn weights", drawn(scratch.path()), picture.clone()),
        ("onnx/lung", shipped("lung"), picture),
        ("onnx/phantom", shipped("phantom"), phantom(1).volume),
    ] {
        let mut times = [const { Vec::new() }; STAGES.len()];
        for round in 0..=rounds {
            let taken = start(&runtime, &bundle, &volume);
            if round > 0 {
                times.iter_mut().zip(taken).for_each(|(times, taken)| times.push(taken));
            }
        }
        let medians = times.map(median);
        let over = medians[..4].iter().sum::<f64>() - medians[4];
        println!("{name}, one vote; medians of {rounds} rounds");
        for (stage, seconds) in STAGES.iter().zip(medians) {
            println!("  {stage:<16} {seconds:>6.3} s");
        }
        println!("  start to first mask, over compute: {over:.3} s");
    }
}

/// Seconds of each stage.
fn start(runtime: &Arc<Runtime>, bundle: &Path, volume: &Volume) -> [f64; STAGES.len()] {
    let mut taken = [0.0; STAGES.len()];
    let mut started = Instant::now();
    let mut lap = |stage: usize| {
        taken[stage] = started.elapsed().as_secs_f64();
        started = Instant::now();
    };
    let bundle = Bundle::open(bundle).expect("the bundle is sound");
    lap(0);
    let segmenter = Segmenter::load(Arc::clone(runtime), bundle, Options::default());
    let segmenter = segmenter.expect("the bundle loads");
    lap(1);
    segmenter.check_golden().expect("the golden case is right");
    lap(2);
    let request = Request { votes: Some(1), ..Request::default() };
    for stage in [3, 4] {
        segmenter.segment(volume, &request).expect("the case runs");
        lap(stage);
    }
    taken
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A bundle of the lung preset at full size.
fn drawn(scratch: &Path) -> PathBuf {
    let parameters = root().join("benches/lung.parameters.json");
    let [weights, bundle] = ["w.safetensors", "bundle"].map(|name| scratch.join(name));
    let (p, w) = (&parameters, &weights);
    cdal_onnx(&[&"initial", &"--parameters", p, &"--out", w]);
    let preset: [&dyn AsRef<Path>; 9] = [
        &"export",
        &"--preset",
        &"lung",
        &"--checkpoint",
        w,
        &"--parameters",
        p,
        &"--out",
        &bundle,
    ];
    cdal_onnx(&preset);
    bundle
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn cdal_onnx(arguments: &[&dyn AsRef<Path>]) {
    let status = Command::new(root().join(".venv/bin/python"))
        .args(["-m", "cdal_onnx"])
        .args(arguments.iter().map(AsRef::as_ref))
        .env("PYTHONPATH", root().join("onnx"))
        .stdout(Stdio::null())
        .status()
        .expect("the project's Python starts; run `make python`");
    assert!(status.success(), "cdal_onnx failed");
}
