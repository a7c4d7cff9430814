//! Peers: dcmtk's and pynetdicom's programs, and this package's own.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};

use super::{PATIENCE, wait_for};

/// Ports for listeners that have to be told theirs beforehand.
const PORTS: Range<u16> = 20_000..32_000;

/// A child process that ends with its test.
pub struct Process {
    pub child: Child,
    /// Lines of its stdout.
    pub lines: Receiver<String>,
}

impl Process {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let stdout = child.stdout.take().expect("stdout is piped");
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// The next line of stdout that is a JSON object. The test harness of a child prints others.
    pub fn json(&self) -> serde_json::Value {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).expect("the process prints a line");
            if let Some(start) = line.find('{')
                && let Ok(value) = serde_json::from_str(&line[start..])
            {
                return value;
            }
        }
    }

    /// The address in its ready line.
    pub fn dicom(&self) -> SocketAddr {
        self.json()["dicom"].as_str().expect("the ready line has an address").parse().unwrap()
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()), "kill {name}");
    }

    pub fn wait(&mut self) -> std::process::ExitStatus {
        wait_for("the process to end", || self.child.try_wait().expect("the child is ours"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port nobody listens on, from below those that the kernel hands out itself: no connection out and no listener on
/// port 0 can take it before its user does, and no second call returns it.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(97);
    for _ in 0..PORTS.len() {
        let step = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + u16::try_from(step % u32::try_from(PORTS.len()).unwrap()).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("every port of {PORTS:?} is taken")
}

fn wait_for_port(port: u16) {
    wait_for("a peer to listen", || TcpStream::connect(("127.0.0.1", port)).ok());
}

/// dcmtk's receiver.
pub fn dcmtk_storescp(port: u16, folder: &Path, options: &[&str]) -> Process {
    let mut command = Command::new("storescp");
    command.args(["+xa", "-aet", "DCMTK", "-od"]).arg(folder).args(options).arg(port.to_string());
    let process = Process::start(&mut command);
    wait_for_port(port);
    process
}

/// pynetdicom's receiver.
pub fn pynetdicom_storescp(port: u16, folder: &Path) -> Process {
    let mut command = Command::new(python());
    command.args(["-m", "pynetdicom", "storescp", "-aet", "PYNET", "-od"]).arg(folder);
    let process = Process::start(command.arg(port.to_string()));
    wait_for_port(port);
    process
}

/// A script of `tests/python` that plays a peer.
pub fn peer(script: &str, arguments: &[String]) -> Process {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(script);
    Process::start(Command::new(python()).arg("-u").arg(script).args(arguments))
}

/// Orthanc with `settings` beside what every test wants. Its data lies in `folder`.
pub fn orthanc(folder: &Path, settings: serde_json::Value) -> Process {
    let mut all = serde_json::json!({
        "StorageDirectory": folder.join("orthanc"), "AuthenticationEnabled": false,
        "RemoteAccessAllowed": false,
    });
    if let (Some(all), serde_json::Value::Object(settings)) = (all.as_object_mut(), settings) {
        all.extend(settings);
    }
    let file = folder.join("orthanc.json");
    std::fs::write(&file, all.to_string()).expect("the test's folder is writable");
    Process::start(Command::new("/usr/sbin/Orthanc").arg(file).stderr(Stdio::null()))
}

fn python() -> PathBuf {
    let python = std::env::var_os("CDAL_PYTHON").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python"),
        PathBuf::from,
    );
    assert!(
        python.exists(),
        "{} is not there; make it with pydicom and pynetdicom, or set CDAL_PYTHON",
        python.display()
    );
    python
}

/// Two serial devices joined by a cable, until the process is dropped.
pub fn serial_cable(folder: &Path) -> (Process, PathBuf, PathBuf) {
    let ends = [folder.join("near"), folder.join("far")];
    let terminal = |end: &PathBuf| format!("pty,raw,echo=0,link={}", end.display());
    let process = Process::start(Command::new("socat").args(ends.iter().map(terminal)));
    wait_for("socat's terminals", || ends.iter().all(|end| end.exists()).then_some(()));
    let [near, far] = ends;
    (process, near, far)
}

/// Runs dcmtk's `storescu` or `echoscu`.
pub fn dcmtk(program: &str, to: SocketAddr, options: &[&str], files: &[PathBuf]) -> Output {
    Command::new(program)
        .args(["-v", "-aec", "CDAL"])
        .args(options)
        .args([to.ip().to_string(), to.port().to_string()])
        .args(files)
        .output()
        .unwrap_or_else(|error| panic!("start {program}; install dcmtk: {error}"))
}

pub fn store(to: SocketAddr, files: &[PathBuf]) {
    let output = dcmtk("storescu", to, &["-R"], files);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// This package's binary.
pub fn cdal() -> Command {
    Command::new(env!("CARGO_BIN_EXE_cdal"))
}

/// What stands in the page after its scripts have run.
pub fn rendered(url: &str) -> String {
    let mut browser = Command::new("chromium");
    browser.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
    browser.args(["--virtual-time-budget=8000", "--dump-dom", url]);
    let output = browser.output().expect("chromium starts; tests/peers.sh installs it");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
