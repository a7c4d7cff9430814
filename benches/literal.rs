//! `cargo bench --bench literal`: condition encoder, denoiser step and a whole case against the literal
//! procedure (one unsplit graph, FIR by zero insertion, every vote and step, nothing reused).
//!
//! The lung preset at its full size with drawn weights; both sides take turns in one run and the medians'
//! ratio is what counts, since the machine may be shared. `CDAL_BENCH_VOTES` and `CDAL_BENCH_ROUNDS` change
//! how much is measured.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use cdal::{
    bundle::Bundle,
    domain::Volume,
    engine::{Literal, Options, Purpose, Runtime},
    sampler::{Ballot, Denoiser, Philox, Shape, Tally, sample},
    segmenter::{Request, Segmenter, interface},
};
use ndarray::{Array2, Array4, ArrayView2, ArrayView4, Axis};

fn main() {
    let setting = |name: &str, default: usize| {
        std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let (votes, rounds) = (setting("CDAL_BENCH_VOTES", 6), setting("CDAL_BENCH_ROUNDS", 3));
    let scratch = tempfile::tempdir().expect("a temporary folder can be made");
    let (bundle, literal) = models(scratch.path());
    let runtime = Arc::new(Runtime::load(Purpose::Inference, None).expect("run `make runtime`"));
    let options = Options::default();
    let bundle = Bundle::open(&bundle).expect("the bundle was just made");
    let manifest = bundle.manifest.clone();
    let graph = std::fs::read(literal).expect("the graph was just made");
    let mut literal = Literal::load(&runtime, &graph, &options).expect("the literal graph loads");
    let segmenter = Segmenter::load(runtime, bundle, options).expect("the bundle loads");

    let shape = interface(&manifest);
    let [c, h, w] = shape.image;
    let label = shape.label();
    let pixels = Array4::from_shape_fn((c, 1, h, w), |(_, _, y, x)| ((x * y) % 251) as f32);
    let volume = Volume { samples: pixels, geometry: None, nominal_range: Some((0.0, 255.0)) };
    let image = volume.samples.mapv(|v| v / 127.5 - 1.0).permuted_axes([1, 0, 2, 3]);
    let x = Array4::<f32>::from_elem((1, label[0], h, w), 0.3);
    let z = Array2::<f32>::from_elem((1, shape.latent), 0.5);
    let request = Request { votes: Some(votes), seed: 1, ..Request::default() };
    let schedule = manifest.diffusion.schedule();

    let mut encoder = Times::new("condition encoder");
    let mut step = Times::new("denoiser step");
    let mut whole = Times::new(format!("whole case, {votes} votes"));
    let mut literal_step = Times::new("literal step");
    let mut literal_whole = Times::new(format!("literal case, {votes} votes"));
    for round in 0..=rounds {
        let warm_up = round == 0;
        let given = (image.clone(), x.clone(), z.clone());
        let (encode, denoise) = segmenter
            .with_generator(move |generator| {
                let (image, x, z) = given;
                let started = Instant::now();
                let features = generator.condition(image.view()).expect("the encoder runs");
                let encode = started.elapsed();
                let started = Instant::now();
                generator.denoise(0, x.view(), features.view(), z.view()).expect("a step runs");
                (encode, started.elapsed())
            })
            .expect("the engine lives");
        encoder.add(warm_up, encode);
        step.add(warm_up, denoise);
        let started = Instant::now();
        literal.denoise(0, x.view(), image.view(), z.view()).expect("the literal step runs");
        literal_step.add(warm_up, started.elapsed());
        if warm_up {
            continue;
        }
        let started = Instant::now();
        segmenter.segment(&volume, &request).expect("the case runs");
        whole.add(false, started.elapsed());

        let started = Instant::now();
        let mut unsplit = Unsplit { literal: &mut literal, image: image.view() };
        let mut tally = Tally::new(label);
        for vote in 0..votes {
            let ballot = [Ballot { image: 0, vote }];
            let shape = Shape { label, latent: shape.latent };
            let noise = Philox::new(1, 0);
            let x0 = sample(&mut unsplit, &schedule, shape, &noise, &ballot, |_, _, _| ())
                .expect("the literal case runs");
            tally.add(x0.index_axis(Axis(0), 0));
        }
        std::hint::black_box(tally.mask());
        literal_whole.add(false, started.elapsed());
    }
    println!(
        "lung preset, {h} x {w}, T = {}, medians of {rounds} interleaved rounds",
        manifest.diffusion.steps
    );
    for times in [&encoder, &step, &literal_step, &whole, &literal_whole] {
        println!("  {:<28} {:>9.1} ms", times.name, times.median());
    }
    println!("  one step, literal : split    {:>6.2}", literal_step.median() / step.median());
    println!("  whole case, literal : split  {:>6.2}", literal_whole.median() / whole.median());
}

/// The literal generator bound to an image.
struct Unsplit<'a> {
    literal: &'a mut Literal,
    image: ArrayView4<'a, f32>,
}

impl Denoiser for Unsplit<'_> {
    type Error = cdal::engine::EngineError;

    fn denoise(
        &mut self,
        _: &[usize],
        step: usize,
        x: ArrayView4<'_, f32>,
        z: ArrayView2<'_, f32>,
    ) -> Result<Array4<f32>, Self::Error> {
        self.literal.denoise(step, x, self.image, z)
    }
}

struct Times {
    name: String,
    milliseconds: Vec<f64>,
}

impl Times {
    fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), milliseconds: Vec::new() }
    }

    fn add(&mut self, is_warm_up: bool, time: Duration) {
        if !is_warm_up {
            self.milliseconds.push(time.as_secs_f64() * 1e3);
        }
    }

    fn median(&self) -> f64 {
        let mut sorted = self.milliseconds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }
}

/// Split bundle and literal graph of the same drawn weights.
fn models(folder: &Path) -> (PathBuf, PathBuf) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let parameters = root.join("benches/lung.parameters.json");
    let (weights, bundle, literal) =
        (folder.join("w.safetensors"), folder.join("bundle"), folder.join("literal.onnx"));
    let run = |arguments: &[&str]| {
        let status = Command::new(root.join(".venv/bin/python"))
            .args(["-m", "cdal_onnx"])
            .args(arguments)
            .env("PYTHONPATH", root.join("onnx"))
            .stdout(std::process::Stdio::null())
            .status()
            .expect("the project's Python starts; run `make python`");
        assert!(status.success(), "cdal_onnx {arguments:?}");
    };
    let text = |path: &Path| path.to_str().expect("temporary paths are text").to_owned();
    let (p, w, b, l) = (text(&parameters), text(&weights), text(&bundle), text(&literal));
    run(&["initial", "--parameters", &p, "--out", &w]);
    run(&["export", "--checkpoint", &w, "--parameters", &p, "--preset", "lung", "--out", &b]);
    run(&["literal", "--checkpoint", &w, "--parameters", &p, "--out", &l]);
    (bundle, literal)
}
