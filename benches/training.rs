//! `cargo bench --bench training`: slices a second that a step of the full hippocampus generator learns from, by batch
//! and threads, and by two sessions of one thread side by side.
//!
//! Weights are drawn and batches made up: what is measured does not depend on them. All ways of running take turns in one run, and
//! the ratio to the first is what counts, since the machine may be shared. `CDAL_BENCH_ROUNDS` says how many turns.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Instant,
};

use cdal::{
    engine::{Purpose, Runtime},
    train::{Inputs, TrainingSession},
};
use ndarray::{Array1, Array2, Array4};

/// Sessions that learn at the same time, the threads of each, slices in a batch.
const WAYS: [(usize, usize, usize); 5] = [(1, 2, 16), (1, 1, 16), (2, 1, 16), (1, 1, 4), (1, 2, 4)];
const LATENT: usize = 50;
const SIDE: usize = 32;

fn main() {
    let rounds = std::env::var("CDAL_BENCH_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(5);
    let scratch = tempfile::tempdir().expect("a temporary folder can be made");
    let artifacts = artifacts(scratch.path());
    let runtime = Arc::new(Runtime::load(Purpose::Training, None).expect("run `make runtime`"));
    let mut ways: Vec<Way> = WAYS.map(|way| Way::load(&runtime, &artifacts, way)).into();
    for round in 0..=rounds {
        for way in &mut ways {
            let rate = way.turn();
            if round > 0 {
                way.rates.push(rate);
            }
        }
    }
    println!("hippocampus preset, {SIDE} x {SIDE}, medians of {rounds} interleaved steps");
    let first = ways[0].median();
    for way in &mut ways {
        let (sessions, threads, batch) = way.how;
        let rate = way.median();
        let ratio = rate / first;
        println!(
            "  {sessions} session(s) of {threads} thread(s), batches of {batch:>2}: {rate:>6.1} slices/s, ratio {ratio:.2}"
        );
    }
}

struct Way {
    how: (usize, usize, usize),
    learners: Vec<Learner>,
    rates: Vec<f64>,
}

impl Way {
    fn load(runtime: &Arc<Runtime>, artifacts: &Path, how: (usize, usize, usize)) -> Self {
        let (sessions, threads, batch) = how;
        let learners =
            (0..sessions).map(|_| Learner::start(runtime, artifacts, threads, batch)).collect();
        Self { how, learners, rates: Vec::new() }
    }

    /// Slices a second of one step of every session.
    fn turn(&self) -> f64 {
        let started = Instant::now();
        for learner in &self.learners {
            learner.go.send(()).expect("it waits for its turns");
        }
        for learner in &self.learners {
            learner.done.recv().expect("a step runs");
        }
        (self.learners.len() * self.how.2) as f64 / started.elapsed().as_secs_f64()
    }

    fn median(&mut self) -> f64 {
        self.rates.sort_by(f64::total_cmp);
        self.rates[self.rates.len() / 2]
    }
}

/// A session on a thread of its own, which it cannot leave.
struct Learner {
    go: Sender<()>,
    done: Receiver<()>,
}

impl Learner {
    fn start(runtime: &Arc<Runtime>, artifacts: &Path, threads: usize, batch: usize) -> Self {
        let (go, turns) = channel();
        let (finished, done) = channel();
        let (runtime, artifacts) = (Arc::clone(runtime), artifacts.to_owned());
        thread::spawn(move || {
            let checkpoint = artifacts.join("checkpoint");
            let mut session = TrainingSession::load(&runtime, &artifacts, &checkpoint, threads)
                .expect("the artifacts were just made");
            let batch = Batch::made(batch);
            for () in turns {
                session.step(&batch.inputs(), 1e-4).expect("a step runs");
                if finished.send(()).is_err() {
                    break;
                }
            }
        });
        Self { go, done }
    }
}

struct Batch {
    x: Array4<f32>,
    image: Array4<f32>,
    target: Array4<f32>,
    t: Array1<i64>,
    z: Array2<f32>,
}

impl Batch {
    fn made(slices: usize) -> Self {
        let maps = |channels| {
            Array4::from_shape_fn((slices, channels, SIDE, SIDE), |(n, c, y, x)| {
                ((n + 3 * c + y * x) as f32).sin()
            })
        };
        Self {
            x: maps(3),
            image: maps(1),
            target: maps(3).mapv(f32::signum),
            t: Array1::from_shape_fn(slices, |n| (n % 2) as i64),
            z: Array2::from_shape_fn((slices, LATENT), |(n, i)| ((n * LATENT + i) as f32).cos()),
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs::new()
            .floats("x", self.x.view())
            .integers("t", self.t.view())
            .floats("image", self.image.view())
            .floats("z", self.z.view())
            .floats("target", self.target.view())
    }
}

/// Training graphs of the full network with drawn weights.
fn artifacts(folder: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = folder.join("artifacts");
    let status = Command::new(root.join(".venv/bin/python"))
        .args(["-m", "cdal_onnx", "artifacts", "--preset", "hippocampus", "--parameters"])
        .arg(root.join("configs/hippocampus.parameters.json"))
        .arg("--out")
        .arg(&out)
        .env("PYTHONPATH", root.join("onnx"))
        .stdout(Stdio::null())
        .status()
        .expect("the project's Python starts; run `make python`");
    assert!(status.success(), "cdal_onnx artifacts");
    out
}
