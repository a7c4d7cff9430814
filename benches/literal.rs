//! `cargo bench --bench literal`: whole cases against the literal procedure, which is the method as it is written down: one
//! unsplit graph, FIR by zero insertion, every window, vote and step, nothing reused.
//!
//! * lung preset at its full size with drawn weights, 30 votes. As drawn, its samples are noise of which no vote could be
//!   foretold; so the last layer is enlarged and the first ones that see the noise are reduced, until samples agree as those
//!   of a trained network do. The share of pixels in which they do is printed;
//! * hippocampus preset with the weights of `onnx/hippocampus`, 5 votes, on an MR where `CDAL_BENCH_MR` names one (DICOM
//!   folder or NIfTI), on a phantom otherwise, which is not deeper than one window.
//!
//! Each rule of ending takes turns with the literal procedure in one run, and the medians' ratio is what counts, since the
//! machine may be shared. `CDAL_BENCH_ROUNDS` and `CDAL_BENCH_PRESET` change how much is measured.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Instant,
};

use cdal::{
    bundle::{Bundle, Prepared, prepare},
    codec,
    domain::{Segmentation, Volume},
    engine::{EngineError, Literal, Options, Purpose, Runtime},
    phantom::phantom,
    sampler::{Ballot, Denoiser, Philox, Shape, Stopping, Tally, sample},
    segmenter::{Outcome, Request, Segmenter, interface},
};
use ndarray::{Array3, Array4, ArrayView2, ArrayView4, ArrayViewMut4, Axis, concatenate};

/// Samples that the literal procedure takes in one call of its graph.
const BATCH: usize = 32;

fn main() {
    let setting = |name: &str| std::env::var(name).ok();
    let rounds = setting("CDAL_BENCH_ROUNDS").and_then(|v| v.parse().ok()).unwrap_or(3);
    let only = setting("CDAL_BENCH_PRESET");
    let runtime = Arc::new(Runtime::load(Purpose::Inference, None).expect("run `make runtime`"));
    for (preset, case) in [("lung", lung as fn(&Path) -> Case), ("hippocampus", hippocampus)] {
        if only.as_ref().is_none_or(|only| only == preset) {
            let scratch = tempfile::tempdir().expect("a temporary folder can be made");
            case(scratch.path()).measure(&runtime, rounds);
        }
    }
}

/// What is measured: one image, by the literal procedure and in other ways.
struct Case {
    name: &'static str,
    literal: PathBuf,
    /// Bundles and rules of ending; the first bundle lays windows out as published.
    ways: Vec<(&'static str, PathBuf, Stopping)>,
    volume: Volume,
}

fn lung(scratch: &Path) -> Case {
    let parameters = root().join("benches/lung.parameters.json");
    let [weights, bundle, literal] =
        ["w.safetensors", "bundle", "literal.onnx"].map(|n| scratch.join(n));
    let (p, w) = (&parameters, &weights);
    let decided = DECIDED.iter().flat_map(|scale| [&"--scale" as &dyn AsRef<Path>, scale]);
    let initial: [&dyn AsRef<Path>; 5] = [&"initial", &"--parameters", p, &"--out", w];
    cdal_onnx(&initial.into_iter().chain(decided).collect::<Vec<_>>());
    cdal_onnx(&[
        &"export",
        &"--preset",
        &"lung",
        &"--checkpoint",
        w,
        &"--parameters",
        p,
        &"--out",
        &bundle,
    ]);
    cdal_onnx(&[&"literal", &"--checkpoint", w, &"--parameters", p, &"--out", &literal]);
    let phantom = phantom(1).volume;
    let (_, slices, rows, columns) = phantom.samples.dim();
    let samples = Array4::from_shape_fn((1, 1, 256, 256), |(_, _, y, x)| {
        phantom.samples[[0, slices / 2, y * rows / 256, x * columns / 256]]
    });
    let ways = RULES.map(|(name, rule)| (name, bundle.clone(), rule)).into();
    let volume = Volume { samples, geometry: None, ..phantom };
    Case { name: "lung preset, 256 x 256, drawn weights", literal, ways, volume }
}

/// The last convolution; the stem and the first convolution of the input pyramid.
const DECIDED: [&str; 3] =
    ["all_modules.49.weight=20", "all_modules.9.weight=0.1", "all_modules.12.Conv2d_0.weight=0.1"];

fn hippocampus(scratch: &Path) -> Case {
    let (parameters, shipped) =
        (root().join("configs/hippocampus.parameters.json"), root().join("onnx/hippocampus"));
    let [weights, literal] = ["w.safetensors", "literal.onnx"].map(|n| scratch.join(n));
    cdal_onnx(&[
        &"weights",
        &"--bundle",
        &shipped,
        &"--parameters",
        &parameters,
        &"--out",
        &weights,
    ]);
    cdal_onnx(&[
        &"literal",
        &"--checkpoint",
        &weights,
        &"--parameters",
        &parameters,
        &"--out",
        &literal,
    ]);
    let planned = |plan: &str| {
        let folder = scratch.join(plan);
        std::fs::create_dir(&folder).expect("the scratch folder is ours");
        for file in std::fs::read_dir(&shipped).expect("the bundle is part of the project") {
            let file = file.expect("the bundle is part of the project");
            std::fs::copy(file.path(), folder.join(file.file_name())).expect("a copy");
        }
        let manifest = folder.join("bundle.toml");
        let text = std::fs::read_to_string(&manifest).expect("a manifest");
        let text = text.replace("plan = \"each-slice-once\"\n", "");
        let with = format!("kind = \"sliding\"\nplan = \"{plan}\"\n");
        std::fs::write(&manifest, text.replace("kind = \"sliding\"\n", &with)).expect("a manifest");
        folder
    };
    let (literal_plan, each_once) = (planned("literal"), planned("each-slice-once"));
    let ways = RULES.map(|(name, rule)| (name, literal_plan.clone(), rule)).into_iter();
    let once = [
        ("each slice once", Stopping::Never),
        ("each slice once, adaptive:0.005", Stopping::Adaptive { error: 0.005 }),
        ("each slice once, adaptive:0.03", Stopping::Adaptive { error: 0.03 }),
    ]
    .map(|(name, rule)| (name, each_once.clone(), rule));
    let volume = match std::env::var_os("CDAL_BENCH_MR") {
        Some(path) => codec::read(Path::new(&path)).expect("an image").remove(0).volume,
        None => phantom(1).volume,
    };
    Case { name: "hippocampus preset", literal, ways: ways.chain(once).collect(), volume }
}

const RULES: [(&str, Stopping); 4] = [
    ("every vote", Stopping::Never),
    ("exact", Stopping::Exact),
    ("certified:0.995", Stopping::Certified { dice: 0.995 }),
    ("adaptive:0.005", Stopping::Adaptive { error: 0.005 }),
];

impl Case {
    fn measure(&self, runtime: &Arc<Runtime>, rounds: usize) {
        let options = Options::default();
        let graph = std::fs::read(&self.literal).expect("the graph was just made");
        let mut literal = Literal::load(runtime, &graph, &options).expect("the graph loads");
        let segmenters: Vec<Segmenter> = self
            .ways
            .iter()
            .map(|(_, bundle, _)| {
                let bundle = Bundle::open(bundle).expect("the bundle is sound");
                Segmenter::load(Arc::clone(runtime), bundle, options).expect("the bundle loads")
            })
            .collect();
        let mut as_written = Vec::new();
        let mut times = vec![Vec::new(); self.ways.len()];
        let mut outcomes: Vec<Option<Outcome>> = vec![None; self.ways.len()];
        for _ in 0..rounds {
            let started = Instant::now();
            as_written_down(&mut literal, segmenters[0].bundle(), &self.volume);
            as_written.push(started.elapsed().as_secs_f64());
            for (way, (_, _, stopping)) in self.ways.iter().enumerate() {
                let request = Request { seed: 1, stopping: *stopping, ..Request::default() };
                let started = Instant::now();
                let outcome =
                    segmenters[way].segment(&self.volume, &request).expect("the case runs");
                times[way].push(started.elapsed().as_secs_f64());
                outcomes[way] = Some(outcome);
            }
        }
        let [_, d, h, w] = <[usize; 4]>::try_from(self.volume.samples.shape()).expect("four axes");
        let literal = median(as_written);
        println!("{}, image of {d} x {h} x {w}; medians of {rounds} interleaved rounds", self.name);
        println!("  {:<31} {literal:>8.2} s", "literal procedure");
        let full = outcomes[0].as_ref().map(|o| o.segmentation.clone()).expect("it ran");
        println!("  all but 1 in 100 votes agree in {:.1} % of the pixels", 100.0 * agreed(&full));
        let masks: Vec<_> =
            outcomes.iter().flatten().map(|outcome| outcome.segmentation.mask.clone()).collect();
        for ((name, bundle, _), (times, outcome)) in
            self.ways.iter().zip(times.into_iter().zip(outcomes))
        {
            let (seconds, outcome) = (median(times), outcome.expect("it ran"));
            // The first way of a bundle draws every vote.
            let full = self.ways.iter().position(|(_, other, _)| other == bundle);
            println!(
                "  {name:<31} {seconds:>8.2} s, {:>6.2} times as fast; {:.2} of {} votes, Dice {:.4} with every vote's",
                literal / seconds,
                outcome.ending.votes_drawn,
                outcome.votes,
                dice(&outcome.segmentation.mask, &masks[full.expect("its own")]),
            );
        }
    }
}

/// Share of pixels whose votes for the first label, or against it, are 99 in 100.
fn agreed(vote: &Segmentation) -> f64 {
    let first = vote.agreement.index_axis(Axis(0), 0);
    let same = first.iter().filter(|&&share| !(0.01..=0.99).contains(&share)).count();
    same as f64 / first.len() as f64
}

/// Every window, vote and step, in the order in which the method names them.
fn as_written_down(literal: &mut Literal, bundle: &Bundle, volume: &Volume) {
    let manifest = &bundle.manifest;
    let prepared = prepare(manifest, volume).expect("the model takes the image");
    let label = interface(manifest).label();
    let shape = Shape { label, latent: manifest.network.latent };
    let schedule = manifest.diffusion.schedule();
    let noise = Philox::new(1, prepared.case_key);
    let images: Vec<usize> = (0..prepared.samples.len()).collect();
    for images in images.chunks(BATCH) {
        let mut tallies: Vec<Tally> = images.iter().map(|_| Tally::new(label)).collect();
        for vote in 0..manifest.votes {
            let ballots: Vec<Ballot> = images.iter().map(|&image| Ballot { image, vote }).collect();
            let mut unsplit = Unsplit { literal, prepared: &prepared };
            let x0 = sample(&mut unsplit, &schedule, shape, &noise, &ballots, |_, _, _| ())
                .expect("the literal procedure runs");
            for (tally, x0) in tallies.iter_mut().zip(x0.axis_iter(Axis(0))) {
                tally.add(x0);
            }
        }
        std::hint::black_box(tallies.iter().map(Tally::mask).collect::<Vec<_>>());
    }
}

/// The literal generator bound to the crops of a case.
struct Unsplit<'a> {
    literal: &'a mut Literal,
    prepared: &'a Prepared,
}

impl Denoiser for Unsplit<'_> {
    type Error = EngineError;

    fn denoise(
        &mut self,
        images: &[usize],
        step: usize,
        x: ArrayView4<'_, f32>,
        z: ArrayView2<'_, f32>,
        mut x0: ArrayViewMut4<'_, f32>,
    ) -> Result<(), Self::Error> {
        let Prepared { crops, samples, .. } = self.prepared;
        let pixels: Vec<_> =
            images.iter().map(|&image| self.prepared.pixels(crops[samples[image].crop])).collect();
        let pixels = concatenate(Axis(0), &pixels).expect("crops share one shape");
        x0.assign(&self.literal.denoise(step, x, pixels.view(), z)?);
        Ok(())
    }
}

/// Of all that is marked, whatever its label.
fn dice(a: &Array3<u8>, b: &Array3<u8>) -> f64 {
    let marked = |mask: &Array3<u8>| mask.iter().filter(|&&value| value > 0).count();
    let both = a.iter().zip(b).filter(|&(&a, &b)| a > 0 && a == b).count();
    let sum = marked(a) + marked(b);
    if sum == 0 { 1.0 } else { 2.0 * both as f64 / sum as f64 }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
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
