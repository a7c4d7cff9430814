//! `cargo bench --bench dimse` (`make dimse`): what it saves to acknowledge at once whatever a DICOM peer sends.
//!
//! 22 objects go from dcmtk's `storescu` to the SCP of this package, and from its SCU to dcmtk's `storescp`; each once as
//! the kernel acknowledges by itself and once at once. Medians of `CDAL_BENCH_ROUNDS`, which take turns. What is
//! received lies in memory where the system has a place for that: the disk is not what is measured.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cdal::codec::dicom::{encode_mr_series, identify};
use cdal::codec::dimse::Command;
use cdal::codec::part10;
use cdal::codec::pdu::Pdu;
use cdal::domain::Uid;
use cdal::durable::{Incoming, Synced};
use cdal::ingest::dicom::{Config, Scp, serve};
use cdal::ingest::{Received, Refusal, Sink};
use cdal::phantom::phantom;
use cdal::upper_layer::{Acknowledge, Limits, Proposal, Wire, request};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const OBJECTS: usize = 22;
const WAYS: [Acknowledge; 2] = [Acknowledge::Delayed, Acknowledge::AtOnce];
const LIMITS: Limits = Limits { max_pdu_bytes: 32 << 10, write_timeout: Duration::from_secs(30) };

fn main() {
    let rounds = std::env::var("CDAL_BENCH_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(9);
    let scratch = scratch();
    let files = objects(scratch.path());
    let runtime = Runtime::new().expect("a runtime");
    let receivers = WAYS.map(|acknowledge| start_scp(&runtime, acknowledge));
    let archive = Archive::start(scratch.path());
    let (mut whole, mut between) = ([const { Vec::new() }; 2], [const { Vec::new() }; 2]);
    let mut sent = [const { Vec::new() }; 2];
    for _ in 0..rounds {
        for (way, (address, shelf)) in receivers.iter().enumerate() {
            whole[way].push(storescu(*address, &files));
            between[way].push(shelf.take());
            sent[way].extend(runtime.block_on(store(archive.address, WAYS[way], &files)));
        }
    }
    println!(
        "{OBJECTS} objects, medians of {rounds} rounds; acknowledged by the kernel, then at once"
    );
    tell("storescu, from its start to its end", whole);
    tell("storescu, from the first object to the last", between);
    tell("an object to storescp", sent);
}

fn tell(what: &str, seconds: [Vec<f64>; 2]) {
    let [slow, fast] = seconds.map(median).map(|seconds| seconds * 1e3);
    println!("  {what:<44} {slow:>8.2} ms {fast:>8.2} ms  {:>6.1} times as fast", slow / fast);
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// In memory that looks like a disk, where there is one.
fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a temporary folder can be made")
}

fn objects(folder: &Path) -> Vec<PathBuf> {
    let series = encode_mr_series(&phantom(7).volume, 7).expect("a phantom can be written");
    assert!(series.len() >= OBJECTS, "a phantom has {} slices", series.len());
    let write = |(number, bytes): (usize, Vec<u8>)| {
        let path = folder.join(format!("{number:02}.dcm"));
        std::fs::write(&path, bytes).expect("the folder is writable");
        path
    };
    series.into_iter().take(OBJECTS).enumerate().map(write).collect()
}

/// Takes objects, keeps none, and notes when.
struct Shelf {
    scratch: TempDir,
    taken: Mutex<Vec<Instant>>,
}

impl Shelf {
    /// Seconds from the first object to the last since this was asked before.
    fn take(&self) -> f64 {
        let taken = std::mem::take(&mut *self.taken.lock().expect("no panic under it"));
        assert_eq!(taken.len(), OBJECTS);
        (taken[OBJECTS - 1] - taken[0]).as_secs_f64()
    }
}

impl Sink for Shelf {
    fn begin(&self) -> Result<Incoming, Refusal> {
        Ok(Incoming::create(self.scratch.path())?)
    }

    fn store(&self, _: &Received, _: Synced) -> Result<(), Refusal> {
        self.taken.lock().expect("no panic under it").push(Instant::now());
        Ok(())
    }
}

fn start_scp(runtime: &Runtime, acknowledge: Acknowledge) -> (SocketAddr, Arc<Shelf>) {
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let scp = Scp::new(Config::default()).expect("without TLS nothing is read");
    let scp = Scp { acknowledge, ..scp };
    let shelf = Arc::new(Shelf { scratch: scratch(), taken: Mutex::default() });
    runtime.spawn(serve(listener, scp, shelf.clone(), CancellationToken::new()));
    (address, shelf)
}

/// Seconds that dcmtk takes from its start to its end.
fn storescu(to: SocketAddr, files: &[PathBuf]) -> f64 {
    let started = Instant::now();
    let status = Program::new("storescu")
        .args(["-R", "-aec", "CDAL", &to.ip().to_string(), &to.port().to_string()])
        .args(files)
        .status()
        .expect("run `make peers`, which installs dcmtk");
    assert!(status.success(), "storescu: {status}");
    started.elapsed().as_secs_f64()
}

/// dcmtk's receiver, until it is dropped.
struct Archive {
    address: SocketAddr,
    process: Child,
}

impl Archive {
    fn start(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        drop(listener);
        let process = Program::new("storescp")
            .args(["--ignore", "-aet", "ARCHIVE", "-od"])
            .arg(folder)
            .arg(address.port().to_string())
            .stdout(Stdio::null())
            .spawn()
            .expect("run `make peers`, which installs dcmtk");
        while std::net::TcpStream::connect(address).is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { address, process }
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Seconds from each C-STORE request to its response, over one association.
async fn store(to: SocketAddr, acknowledge: Acknowledge, files: &[PathBuf]) -> Vec<f64> {
    let first = identify(&files[0]).expect("it was just written");
    let stream = TcpStream::connect(to).await.expect("storescp listens");
    let syntax = first.transfer_syntax.to_string();
    let proposal = Proposal {
        calling: "CDAL".to_owned(),
        called: "ARCHIVE".to_owned(),
        contexts: vec![(first.sop_class.to_string(), vec![syntax])],
        roles: Vec::new(),
    };
    let wire = Box::new(Wire::new(stream, acknowledge));
    let mut association = request(wire, LIMITS, proposal).await.expect("storescp associates");
    let mut times = Vec::new();
    for (message_id, file) in (1..).zip(files) {
        let bytes = std::fs::read(file).expect("it was just written");
        let sop_instance_uid: Uid = identify(file).expect("it was just written").sop_instance;
        let sop_class_uid = first.sop_class.clone();
        let command = Command::StoreRequest { message_id, sop_class_uid, sop_instance_uid };
        let dataset = part10::dataset(&bytes).expect("it has a header");
        let started = Instant::now();
        association.send(1, &command.encode(), Some(dataset)).await.expect("storescp reads");
        let answer = association.receive().await.expect("storescp answers");
        assert!(matches!(answer, Pdu::Data(_)), "{answer:?}");
        times.push(started.elapsed().as_secs_f64());
    }
    association.release().await.expect("storescp releases");
    times
}
