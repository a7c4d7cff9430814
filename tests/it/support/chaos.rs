//! Destinations that misbehave, and a daemon that is killed and started again.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cdal::codec::part10;
use cdal::durable::{DurableError, Incoming, Synced};
use cdal::ingest::dicom::{CalledAeTitle, Config, Scp, Storage, serve};
use cdal::ingest::{Received, Refusal, Sink};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::process::dcmtk;

/// The same numbers for the same seed: what a test did can be done again.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// From 0 to `sides` - 1 (xorshift64*).
    pub fn throw(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }
}

/// A DICOM receiver in this process: remembers the data set of every object that it acknowledges.
pub struct Station {
    pub address: SocketAddr,
    shelf: Arc<Shelf>,
    _runtime: Runtime,
}

struct Shelf {
    scratch: tempfile::TempDir,
    held: Mutex<BTreeMap<String, BTreeSet<Vec<u8>>>>,
    /// SOP Instance UID and association of each object, in order.
    arrivals: Mutex<Vec<(String, u64)>>,
    taken: AtomicU64,
    /// Of every so many objects one is refused as out of resources; 0 refuses none.
    refuse_every: u64,
    asked: AtomicU64,
}

impl Sink for Shelf {
    fn begin(&self) -> Result<Incoming, Refusal> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        if self.refuse_every > 0 && asked.is_multiple_of(self.refuse_every) {
            let full = std::io::ErrorKind::StorageFull.into();
            return Err(DurableError::of("write", "nothing")(full).into());
        }
        Ok(Incoming::create(self.scratch.path())?)
    }

    fn store(&self, received: &Received, file: Synced) -> Result<(), Refusal> {
        let bytes = std::fs::read(file.path()).expect("the file was written");
        let dataset = part10::dataset(&bytes).expect("the file has a header").to_vec();
        let arrival = (received.sop_instance_uid.to_string(), received.association);
        self.arrivals.lock().unwrap().push(arrival);
        let mut held = self.held.lock().unwrap();
        held.entry(received.sop_instance_uid.to_string()).or_default().insert(dataset);
        self.taken.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Station {
    pub fn start(refuse_every: u64) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let listener =
            runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (held, arrivals, taken, asked) = Default::default();
        let scratch = tempfile::tempdir().expect("a folder");
        let shelf = Arc::new(Shelf { scratch, held, arrivals, taken, refuse_every, asked });
        let config = Config {
            called_ae_title: CalledAeTitle::Any,
            storage: Storage::Any,
            ..Config::default()
        };
        let scp = Scp::new(config).expect("without TLS nothing is read");
        runtime.spawn(serve(listener, scp, shelf.clone(), CancellationToken::new()));
        Self { address, shelf, _runtime: runtime }
    }

    /// The data sets that came under each SOP Instance UID.
    pub fn held(&self) -> BTreeMap<String, BTreeSet<Vec<u8>>> {
        self.shelf.held.lock().unwrap().clone()
    }

    /// SOP Instance UID and association of each object, in order.
    pub fn arrivals(&self) -> Vec<(String, u64)> {
        self.shelf.arrivals.lock().unwrap().clone()
    }

    /// Objects acknowledged, those that came again included.
    pub fn taken(&self) -> u64 {
        self.shelf.taken.load(Ordering::Relaxed)
    }
}

/// What befalls one connection.
#[derive(Debug, Clone, Copy)]
pub enum Fate {
    Pass,
    /// Closed before a byte is read.
    Down,
    /// Cut after so many bytes towards the destination.
    CutRequest(u64),
    /// Cut after so many bytes of answers: the destination may have acknowledged, or acknowledge and die.
    CutAnswer(u64),
    /// Every piece waits so long.
    Slow(Duration),
}

impl Fate {
    pub fn thrown(dice: &mut Dice) -> Self {
        match dice.throw(8) {
            0 => Self::Down,
            1 | 2 => Self::CutRequest(dice.throw(4000)),
            // An answer to the association request takes some 200 bytes, one to C-STORE some 150.
            3 | 4 => Self::CutAnswer(dice.throw(1200)),
            5 => Self::Slow(Duration::from_millis(5 + dice.throw(20))),
            _ => Self::Pass,
        }
    }
}

/// Stands before `target` and lets each connection meet its fate. Ends with the process; once `calm` is set, all pass.
pub fn misfortune(target: SocketAddr, seed: u64, calm: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        let mut dice = Dice::new(seed);
        for client in listener.incoming().flatten() {
            let thrown = Fate::thrown(&mut dice);
            let fate = if calm.load(Ordering::Relaxed) { Fate::Pass } else { thrown };
            std::thread::spawn(move || carry(client, target, fate));
        }
    });
    address
}

fn carry(client: TcpStream, target: SocketAddr, fate: Fate) {
    let Ok(server) = TcpStream::connect(target) else { return };
    let (request, answer, pause) = match fate {
        Fate::Down => return,
        Fate::Pass => (u64::MAX, u64::MAX, Duration::ZERO),
        Fate::CutRequest(bytes) => (bytes, u64::MAX, Duration::ZERO),
        Fate::CutAnswer(bytes) => (u64::MAX, bytes, Duration::ZERO),
        Fate::Slow(pause) => (u64::MAX, u64::MAX, pause),
    };
    let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else { return };
    std::thread::spawn(move || pump(from, to, request, pause));
    pump(server, client, answer, pause);
}

/// Copies up to `limit` bytes, then cuts both directions.
fn pump(mut from: TcpStream, mut to: TcpStream, mut limit: u64, pause: Duration) {
    let mut buffer = [0; 4096];
    while let Ok(count) = from.read(&mut buffer) {
        let count = (count as u64).min(limit) as usize;
        std::thread::sleep(pause);
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            break;
        }
        limit -= count as u64;
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Sends with dcmtk until every file has got Success, whatever happens to the daemon. Returns how many tries it took.
pub fn send_until_taken(to: SocketAddr, files: &[PathBuf]) -> u64 {
    let mut waiting: Vec<PathBuf> = files.to_vec();
    let mut tries = 0;
    while !waiting.is_empty() {
        tries += 1;
        assert!(tries < 2000, "{} objects are never taken", waiting.len());
        let output = dcmtk("storescu", to, &["-R", "-nh", "-ta", "10", "-td", "10"], &waiting);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let taken = successes(&said);
        waiting.retain(|file| !taken.contains(file));
        if !waiting.is_empty() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    tries
}

/// Of dcmtk's words: the files whose C-STORE response said Success.
fn successes(said: &str) -> Vec<PathBuf> {
    let mut sending = None;
    let mut taken = Vec::new();
    for line in said.lines() {
        if let Some(file) = line.strip_prefix("I: Sending file: ") {
            sending = Some(PathBuf::from(file.trim()));
        } else if line.contains("Received Store Response (Success)") {
            taken.extend(sending.take());
        }
    }
    taken
}

/// A small file system of its own, where the machine lets us mount one.
pub struct SmallDisk {
    pub folder: PathBuf,
}

impl SmallDisk {
    pub fn mount(folder: &Path, bytes: u64) -> Option<Self> {
        std::fs::create_dir(folder).expect("a folder");
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(folder)
            .stderr(std::process::Stdio::null())
            .status();
        status.is_ok_and(|status| status.success()).then(|| Self { folder: folder.to_owned() })
    }

    /// Leaves not a byte. Returns the file that takes the room.
    pub fn fill(&self) -> PathBuf {
        let path = self.folder.join("ballast");
        let mut file = std::fs::File::create(&path).expect("room for a name");
        for piece in [1 << 20, 1 << 12, 1] {
            while file.write_all(&vec![0; piece]).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}
