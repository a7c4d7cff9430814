//! `cargo bench --bench graphs`: the denoiser's rate of arithmetic against the machine's own, and what its fused operators
//! give.
//!
//! The lung preset at its full size with drawn weights, one step of one sample. The same network as standard operators
//! alone, with each operator of the domain `cdal`, with all of them (what bundles hold), and the runtime's product of two
//! matrices take turns in one run; medians and their ratios count. `CDAL_BENCH_ROUNDS` says how many turns, `CDAL_BENCH_THREADS` with
//! how many threads.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Instant,
};

use cdal::domain::Precision;
use cdal::engine::{Generator, Graphs, Interface, Options, Product, Purpose, Runtime};
use ndarray::{Array2, Array4};

/// Of the matrices whose product is the measure.
const SIDE: usize = 2048;
/// Graphs and what is fused in them.
const WAYS: [(&str, &str); 7] = [
    ("standard", "standard operators"),
    ("norm", "GroupNorm, offset and SiLU fused"),
    ("mean", "residual sums fused"),
    ("fir", "FIR of its own"),
    ("chains", "all three"),
    ("spatial", "and 3x3 convolutions"),
    ("fused", "and 1x1 convolutions"),
];

fn main() {
    let setting = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let rounds = setting("CDAL_BENCH_ROUNDS").unwrap_or(15);
    let options = Options { intra_threads: setting("CDAL_BENCH_THREADS"), ..Options::default() };
    let scratch = tempfile::tempdir().expect("a temporary folder can be made");
    let made = make(scratch.path());
    let runtime = Arc::new(Runtime::load(Purpose::Inference, None).expect("run `make runtime`"));
    let read = |name: &str| fs::read(made.join(name)).expect("the graph was just made");
    let facts: serde_json::Value = serde_json::from_slice(&read("facts.json")).expect("JSON");
    let number = |name: &str| facts[name].as_u64().expect("a number") as usize;
    let (size, features, latent) = (number("size"), number("features"), number("latent"));
    let interface = Interface { image: [1, size, size], label_channels: 1, features, latent };
    let load = |denoiser: &str| {
        let graphs = Graphs {
            condition: read("condition.onnx"),
            denoiser: read(denoiser),
            precision: Precision::Fp32,
        };
        Generator::load(&runtime, &graphs, interface, &options).expect("the graphs load")
    };
    let mut ways = WAYS.map(|(name, _)| load(&format!("{name}.onnx")));
    let mut x0 = Array4::zeros((1, 1, size, size));
    let product = read("product.onnx");
    let mut product = Product::load(&runtime, &product, &options).expect("the product loads");

    let wave = |n: usize| (n as f32 * 0.37).sin();
    let x = Array4::from_shape_fn((1, 1, size, size), |(.., r, c)| wave(r * size + c));
    let condition =
        Array4::from_shape_fn((1, features, size, size), |(_, f, r, c)| wave(f + r * c));
    let z = Array2::from_shape_fn((1, latent), |(_, i)| wave(i));
    let a = Array2::from_shape_fn((SIDE, SIDE), |(r, c)| wave(r + 3 * c));
    for way in &mut ways {
        way.guide(condition.view(), &[0]).expect("there is memory for the features");
    }
    let mut times = [const { Vec::new() }; WAYS.len()];
    let (mut products, mut apart) = (Vec::new(), 0.0f32);
    for round in 0..=rounds {
        let mut standard = None;
        for (way, times) in ways.iter_mut().zip(&mut times) {
            let started = Instant::now();
            product.multiply(a.view(), a.view()).expect("a product runs");
            let between = Instant::now();
            way.denoise(0, x.view(), z.view(), x0.view_mut()).expect("a step runs");
            if round > 0 {
                products.push((between - started).as_secs_f64());
                times.push(between.elapsed().as_secs_f64());
            }
            let difference = &x0 - &*standard.get_or_insert_with(|| x0.clone());
            apart = difference.iter().fold(apart, |most, d| most.max(d.abs()));
        }
    }
    let flops = facts["flops"].as_f64().expect("a number");
    let own = 2.0 * (SIDE as f64).powi(3) / median(products) / 1e9;
    println!(
        "lung preset, {size} x {size}, one step of {:.1} GFLOP; medians of {rounds} rounds",
        flops / 1e9
    );
    println!("  {:<32} {own:>6.1} GFLOP/s", "matrix product");
    let medians = times.map(median);
    for ((_, name), seconds) in WAYS.iter().zip(medians) {
        let (rate, faster) = (flops / seconds / 1e9, medians[0] / seconds);
        let (milliseconds, share) = (seconds * 1e3, rate / own * 100.0);
        println!(
            "  {name:<32} {rate:>6.1} GFLOP/s, {share:>3.0} % of it; {milliseconds:>6.1} ms, {faster:.2} times as fast"
        );
    }
    println!("  outputs differ by {apart:.1e} at most");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Graphs and what is known of them, made by the project's Python.
fn make(folder: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let status = Command::new(root.join(".venv/bin/python"))
        .arg(root.join("benches/graphs.py"))
        .arg(root.join("benches/lung.parameters.json"))
        .arg(folder)
        .env("PYTHONPATH", root.join("onnx"))
        .stdout(Stdio::null())
        .status()
        .expect("the project's Python starts; run `make python`");
    assert!(status.success(), "benches/graphs.py");
    folder.to_owned()
}
