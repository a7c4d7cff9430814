//! `cargo bench --bench training`: slices a second that a step of the full hippocampus generator learns from, and of its
//! discriminator, by batch and threads, by two sessions of one thread side by side, by graphs of ONNX's own operators alone, and
//! by eager PyTorch where CDAL_BENCH_TORCH names an interpreter that has it (`training_torch.py`).
//!
//! Weights are drawn and batches made up: what is measured does not depend on them. All ways of running take turns in one run, and
//! the ratio to the first is what counts, since the machine may be shared. `CDAL_BENCH_ROUNDS` says how many turns.

use std::{
    ffi::OsString,
    io::{BufRead, BufReader, Write},
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
use ndarray::{Array1, Array2, Array4, aview1};

/// Who learns from what: sessions at the same time, the threads of each, slices in a batch.
#[derive(Debug, Clone, Copy)]
struct How {
    network: Network,
    is_standard: bool,
    sessions: usize,
    threads: usize,
    batch: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    Generator,
    /// The same network, loss and optimizer elsewhere.
    GeneratorInTorch,
    /// With or without the exact penalty.
    Discriminator {
        is_penalised: bool,
    },
}

/// All ways of running; `CDAL_BENCH_WAYS` chooses some by their numbers, the first of which is what they are measured by.
const WAYS: [How; 12] = [
    generator(true, 1, 2, 16),
    generator(false, 1, 2, 16),
    How { network: Network::GeneratorInTorch, ..generator(false, 1, 2, 16) },
    generator(false, 1, 1, 16),
    generator(false, 2, 1, 16),
    generator(true, 1, 2, 4),
    generator(false, 1, 2, 4),
    generator(false, 1, 1, 4),
    discriminator(true, false),
    discriminator(false, false),
    discriminator(true, true),
    discriminator(false, true),
];

const fn generator(is_standard: bool, sessions: usize, threads: usize, batch: usize) -> How {
    How { network: Network::Generator, is_standard, sessions, threads, batch }
}

const fn discriminator(is_standard: bool, is_penalised: bool) -> How {
    let network = Network::Discriminator { is_penalised };
    How { network, is_standard, sessions: 1, threads: 2, batch: 16 }
}

const LATENT: usize = 50;
const SIDE: usize = 32;

fn main() {
    let rounds = std::env::var("CDAL_BENCH_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(5);
    let chosen = std::env::var("CDAL_BENCH_WAYS").unwrap_or_default();
    let chosen: Vec<usize> = chosen.split(',').filter_map(|way| way.parse().ok()).collect();
    let scratch = tempfile::tempdir().expect("a temporary folder can be made");
    let artifacts = [false, true].map(|is_standard| artifacts(scratch.path(), is_standard));
    let runtime = Arc::new(Runtime::load(Purpose::Training, None).expect("run `make runtime`"));
    let mut ways: Vec<Way> = (0..WAYS.len())
        .filter(|way| chosen.is_empty() || chosen.contains(way))
        .filter(|&way| WAYS[way].network != Network::GeneratorInTorch || torch().is_some())
        .map(|way| Way::load(&runtime, &artifacts[usize::from(WAYS[way].is_standard)], WAYS[way]))
        .collect();
    for round in 0..=rounds {
        for way in &mut ways {
            let rate = way.turn();
            if round > 0 {
                way.rates.push(rate);
            }
        }
    }
    println!("hippocampus preset, {SIDE} x {SIDE}, medians of {rounds} interleaved steps");
    println!(
        "  network, operators, sessions x threads, batch: slices/s, ratio to the standard operators alike"
    );
    let mut standard = 0.0;
    for way in &mut ways {
        let How { network, is_standard, sessions, threads, batch } = way.how;
        let rate = way.median();
        let operators = match network {
            Network::GeneratorInTorch => "eager",
            _ if is_standard => "standard",
            _ => "cdal",
        };
        if is_standard {
            standard = rate;
        }
        let ratio = if standard > 0.0 { rate / standard } else { 1.0 };
        println!(
            "  {network:?}, {operators}, {sessions} x {threads}, {batch:>2}: {rate:>6.1}, {ratio:.2}"
        );
    }
}

struct Way {
    how: How,
    learners: Vec<Learner>,
    rates: Vec<f64>,
}

impl Way {
    fn load(runtime: &Arc<Runtime>, artifacts: &Path, how: How) -> Self {
        let learner = |_| match how.network {
            Network::GeneratorInTorch => Learner::torch(how),
            _ => Learner::start(runtime, artifacts, how),
        };
        let learners = (0..how.sessions).map(learner).collect();
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
        (self.learners.len() * self.how.batch) as f64 / started.elapsed().as_secs_f64()
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
    fn start(runtime: &Arc<Runtime>, artifacts: &Path, how: How) -> Self {
        let (go, turns) = channel();
        let (finished, done) = channel();
        let artifacts = match how.network {
            Network::Discriminator { .. } => artifacts.join("discriminator"),
            _ => artifacts.to_owned(),
        };
        let runtime = Arc::clone(runtime);
        thread::spawn(move || {
            let checkpoint = artifacts.join("checkpoint");
            let mut session = TrainingSession::load(&runtime, &artifacts, &checkpoint, how.threads)
                .expect("the artifacts were just made");
            let batch = Batch::made(how.batch);
            for () in turns {
                let weight = [if how.network == PENALISED { 0.5 } else { 0.0 }];
                let inputs = batch.inputs().floats("r1_weight", aview1(&weight));
                session.step(&inputs, 1e-4).expect("a step runs");
                if finished.send(()).is_err() {
                    break;
                }
            }
        });
        Self { go, done }
    }

    /// A process that takes a step for each line that it is sent.
    fn torch(how: How) -> Self {
        let (go, turns) = channel::<()>();
        let (finished, done) = channel();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut process = Command::new(torch().expect("asked for"))
            .arg(root.join("benches/training_torch.py"))
            .arg(root.join("configs/hippocampus.parameters.json"))
            .args([how.batch, how.threads].map(|number| number.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("CDAL_BENCH_TORCH starts");
        let mut stdin = process.stdin.take().expect("piped");
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        lines.next().expect("CDAL_BENCH_TORCH has PyTorch").expect("a line");
        thread::spawn(move || {
            for () in turns {
                stdin.write_all(b"\n").expect("it reads");
                lines.next().expect("a step runs").expect("a line");
                if finished.send(()).is_err() {
                    break;
                }
            }
            drop(stdin);
            let _ = process.wait();
        });
        Self { go, done }
    }
}

/// An interpreter that has PyTorch.
fn torch() -> Option<OsString> {
    std::env::var_os("CDAL_BENCH_TORCH")
}

const PENALISED: Network = Network::Discriminator { is_penalised: true };

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
            .floats("x_t", self.x.view())
            .floats("x_tp1", self.x.view())
            .floats("x_pos", self.target.view())
    }
}

/// Training graphs of the full network and its discriminator with drawn weights.
fn artifacts(folder: &Path, is_standard: bool) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = folder.join(if is_standard { "standard" } else { "cdal" });
    let more: &[&str] = if is_standard { &["--standard-operators"] } else { &[] };
    let status = Command::new(root.join(".venv/bin/python"))
        .args(["-m", "cdal_onnx", "artifacts", "--preset", "hippocampus", "--parameters"])
        .arg(root.join("configs/hippocampus.parameters.json"))
        .arg("--out")
        .arg(&out)
        .arg("--adversary")
        .args(more)
        .env("PYTHONPATH", root.join("onnx"))
        .stdout(Stdio::null())
        .status()
        .expect("the project's Python starts; run `make python`");
    assert!(status.success(), "cdal_onnx artifacts");
    out
}
