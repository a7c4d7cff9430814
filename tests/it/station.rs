//! `cdal workstation --http`: what clients of STOW-RS and webhooks may send, and what becomes of it.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use cdal::domain::Uid;

use crate::scripts::run_python;
use crate::support::dicom::{Dataset, MR_IMAGE_STORAGE, dataset, files, image, series};
use crate::support::http::{Answer, read, request};
use crate::support::process::{Process, cdal, dcmtk, free_port, peer};

const RELATED: &str =
    "Content-Type: multipart/related; type=\"application/dicom\"; boundary=\"edge\"";
const JSON: &str = "Content-Type: application/json";

struct Station {
    process: Process,
    http: SocketAddr,
    dicom: SocketAddr,
    folder: tempfile::TempDir,
}

impl Station {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = cdal();
        command.args(["workstation", "--http", "127.0.0.1:0", "--dicom", "0", "--out"]);
        let process =
            Process::start(command.arg(folder.path().join("out")).args(["--log", "error"]));
        let ready = process.json();
        let address = |key: &str| ready[key].as_str().unwrap().parse().unwrap();
        let (http, dicom) = (address("http"), address("dicom"));
        Self { process, http, dicom, folder }
    }

    /// Names of everything in the folder.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.out()).unwrap().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    fn post(&self, path: &str, headers: &[&str], body: &[u8]) -> Answer {
        request(self.http, "POST", path, headers, body)
    }

    fn store(&self, parts: &[Vec<u8>]) -> Answer {
        self.post("/studies", &[RELATED], &related(parts))
    }

    fn stop(mut self) {
        self.process.signal("-TERM");
        assert!(self.process.wait().success());
    }
}

fn related(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut body = Vec::new();
    for part in parts {
        body.extend(b"--edge\r\nContent-Type: application/dicom\r\n\r\n");
        body.extend(part);
        body.extend(b"\r\n");
    }
    body.extend(b"--edge--\r\n");
    body
}

fn instance(name: &str, number: u16) -> Vec<u8> {
    let uid = |kind| Uid::derived(&[kind, name]);
    image(MR_IMAGE_STORAGE, &uid("instance"), &uid("series"), number, 16)
}

fn told(answer: &Answer) -> (u16, Option<String>) {
    (answer.status, answer.json_code())
}

#[test]
fn another_clients_instances_are_answered_one_by_one() {
    let station = Station::start();
    let images = series(station.folder.path(), "a", 2);
    let port = station.http.port().to_string();
    let arguments: Vec<&Path> =
        [Path::new(&port)].into_iter().chain(images.iter().map(PathBuf::as_path)).collect();
    run_python("stow.py", &arguments).expect("Python is there");
    // pydicom wrote a header of its own; what comes by C-STORE is the same object all the same.
    let sent = dcmtk("storescu", station.dicom, &["-R"], &images);
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    let held = files(&station.out());
    assert_eq!((held.len(), station.names().len()), (2, 2), "{:?}", station.names());
    for image in &images {
        assert!(held.iter().any(|held| dataset(held) == dataset(image)));
    }
    station.stop();
}

#[test]
fn every_instance_that_cannot_be_kept_has_a_reason_and_leaves_nothing() {
    let station = Station::start();
    // A UID that leads out of the folder.
    let mut evil = image(MR_IMAGE_STORAGE, &Uid::derived(&["x"]), &Uid::derived(&["s"]), 1, 4);
    let head: Vec<u8> = Dataset::default().text(0x0008, 0x0018, "UI", "../../../evil").into();
    let at = evil.windows(8).rposition(|w| w[..6] == [8, 0, 0x18, 0, b'U', b'I']).unwrap();
    let length = usize::from(u16::from_le_bytes([evil[at + 6], evil[at + 7]]));
    evil.splice(at..at + 8 + length, head);
    let good = instance("good", 1);
    let cut = good[..200].to_vec();
    for bad in [b"no DICOM".to_vec(), evil, cut] {
        let answer = station.store(&[bad]);
        assert_eq!(answer.status, 409, "{}", answer.text());
        assert_eq!(answer.json()["0008119A"]["Value"][0]["00081197"]["Value"][0], 0xC000);
        assert!(station.names().is_empty(), "{:?}", station.names());
    }
    let both = station.store(&[b"no DICOM".to_vec(), good.clone()]);
    assert_eq!(both.status, 202, "{}", both.text());
    let kept = both.json()["00081199"]["Value"][0]["00081155"]["Value"][0].clone();
    let name = format!("{}.dcm", kept.as_str().unwrap());
    assert_eq!(station.names(), std::slice::from_ref(&name));
    assert_eq!(std::fs::read(station.out().join(&name)).unwrap(), good);

    // Again, it changes nothing; other content under its UID is kept beside it.
    assert_eq!(station.store(std::slice::from_ref(&good)).status, 200);
    assert_eq!(station.names(), std::slice::from_ref(&name));
    assert_eq!(station.store(&[instance("good", 2)]).status, 200);
    assert_eq!(station.names().len(), 2);
    assert_eq!(std::fs::read(station.out().join(&name)).unwrap(), good);
    station.stop();
}

#[test]
fn every_request_that_cannot_be_read_is_refused_whole() {
    let station = Station::start();
    let good = related(&[instance("good", 1)]);
    let edge = b"--edge\r\n".as_slice();
    let text = [edge, b"Content-Type: text/plain\r\n\r\nhello\r\n--edge--\r\n"].concat();
    let unfinished = &good[..good.len() - 10];
    let two = [&good[..good.len() - 10], edge, b"\r\nhalf"].concat();
    let html = ["Accept: text/html", RELATED];
    let no_boundary = "Content-Type: multipart/related; type=\"application/dicom\"";
    let form = "Content-Type: multipart/form-data; boundary=\"edge\"";
    let metadata =
        "Content-Type: multipart/related; type=\"application/dicom+json\"; boundary=edge";
    let empty = related(&[Vec::new()]);
    for (expected, path, headers, body) in [
        ((404, "not_found"), "/instances", &[RELATED][..], &good[..]),
        ((415, "unsupported"), "/studies", &[JSON], b"{}"),
        ((415, "unsupported"), "/studies", &[form], &good),
        ((415, "unsupported"), "/studies", &[metadata], &good),
        ((415, "unsupported"), "/studies", &[], &good),
        ((415, "unsupported"), "/studies", &[RELATED], &text),
        ((400, "bad_request"), "/studies", &[no_boundary], &good),
        ((400, "bad_request"), "/studies", &[RELATED], b""),
        ((400, "bad_request"), "/studies", &[RELATED], b"--edge--\r\n"),
        ((400, "bad_request"), "/studies", &[RELATED], &empty),
        ((400, "bad_request"), "/studies", &[RELATED], unfinished),
        ((400, "bad_request"), "/studies", &[RELATED], &two),
        ((400, "bad_request"), "/studies/..%2F..%2Fetc", &[RELATED], &good),
        ((406, "not_acceptable"), "/studies", &html, &good),
        ((421, "misdirected"), "/studies", &["Host: evil.example", RELATED], &good),
        ((415, "unsupported"), "/events", &["Content-Type: text/plain"], b"{\"event\":\"result\"}"),
        ((422, "unreadable"), "/events", &[JSON], b"{\"event\":"),
        ((422, "unreadable"), "/events", &[JSON], b"[1]"),
        ((422, "unreadable"), "/events", &[JSON], b"{\"job\":\"a\"}"),
        ((413, "too_large"), "/events", &[JSON], &vec![b' '; 70_000]),
        (
            (400, "bad_request"),
            "/events",
            &[JSON, "Idempotency-Key: ../../x"],
            b"{\"event\":\"r\"}",
        ),
    ] {
        let answer = station.post(path, headers, body);
        let expected = (expected.0, Some(expected.1.to_owned()));
        assert_eq!(told(&answer), expected, "{path} {headers:?}: {}", answer.text());
        assert!(station.names().is_empty(), "{path} {headers:?}: {:?}", station.names());
    }
    let answer = request(station.http, "GET", "/studies", &[], &[]);
    assert_eq!(told(&answer), (405, Some("method_not_allowed".to_owned())));

    // One that says that it is too large, and one that breaks off.
    let begin = |length: u64| {
        let mut stream = TcpStream::connect(station.http).unwrap();
        let head = format!(
            "POST /studies HTTP/1.1\r\nHost: localhost\r\n{RELATED}\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(unfinished).unwrap();
        stream
    };
    assert_eq!(told(&read(&mut begin(1 << 40))), (413, Some("too_large".to_owned())));
    let mut broken = begin(good.len() as u64);
    broken.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read(&mut broken).status, 400);
    assert!(station.names().is_empty(), "{:?}", station.names());

    assert_eq!(station.store(&[instance("good", 1)]).status, 200, "it still serves");
    station.stop();
}

#[test]
fn an_event_is_kept_once_under_its_key() {
    let station = Station::start();
    let event = br#"{"event":"result","job":"a"}"#;
    for _ in 0..2 {
        let answer = station.post("/events", &[JSON, "Idempotency-Key: job-7"], event);
        assert_eq!(answer.status, 204, "{}", answer.text());
        assert_eq!(station.names(), ["event-job-7.json"]);
    }
    assert_eq!(std::fs::read(station.out().join("event-job-7.json")).unwrap(), event);
    for _ in 0..2 {
        assert_eq!(station.post("/events", &[JSON], event).status, 204, "without a key");
        assert_eq!(station.names().len(), 2);
    }
    station.stop();
}

#[test]
fn options_that_do_not_belong_together_are_named() {
    for (options, said) in [
        ("--http 0.0.0.0:0", "reachable from other machines"),
        ("--http 127.0.0.1:0 --commitment CDAL=127.0.0.1:1", "--dicom"),
        ("--dicom 0 --commitment CDAL", "AE=HOST:PORT"),
        ("--dicom 0 --commitment CDAL=nowhere", "requester[0].address"),
        ("--dicom 0 --tls-certificate c.pem", "--tls-key"),
        ("--dicom 0 --tokens t", "--http"),
        ("", "--dicom"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = cdal();
        command.args(["workstation", "--out"]).arg(folder.path());
        let output = command.args(options.split_whitespace()).output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{options}: {words}");
        assert!(words.contains(said), "{options}: {words}");
    }
}

#[test]
fn it_commits_to_what_it_holds_and_to_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut command = cdal();
    command.args(["workstation", "--dicom", "0", "--log", "error", "--out"]);
    command.arg(folder.path().join("out"));
    let requester = format!("MODALITY=127.0.0.1:{port}");
    let mut station = Process::start(command.args(["--commitment", &requester]));
    let to = station.dicom();
    let script = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        peer("commitment.py", &words)
    };
    let images = series(folder.path(), "a", 2);
    let paths: Vec<_> = images.iter().map(|image| image.to_str().unwrap()).collect();
    let ask = |title: &str, paths: &[&str]| {
        let to = to.port().to_string();
        script(&[&["ask", &to, title], paths].concat()).json()["status"].clone()
    };
    let uid = |image: &PathBuf| {
        let object = dicom_object::open_file(image).unwrap();
        object.meta().media_storage_sop_instance_uid().to_owned()
    };
    assert_eq!(ask("STRANGER", &paths), 0x0124, "not authorised");
    let listener = script(&["hear", &port.to_string(), "0"]);
    assert_eq!(listener.json()["ready"], true);

    // Beside the two, one that was never sent and one under another class.
    assert_eq!(ask("MODALITY", &paths), 0);
    let mut safe = [uid(&images[0]), uid(&images[1])];
    safe.sort();
    let mut failed = [("2.25.404".to_owned(), 0x0112), (uid(&images[0]), 0x0119)];
    failed.sort();
    let report = listener.json();
    assert_eq!(report["event"], 2);
    assert_eq!(report["safe"], serde_json::json!(safe));
    assert_eq!(report["failed"], serde_json::json!(failed));

    // Other content under the first one's UID: which of them is meant, nobody knows.
    let other = image(
        MR_IMAGE_STORAGE,
        &Uid::parse(&uid(&images[0])).unwrap(),
        &Uid::derived(&["series"]),
        9,
        16,
    );
    let path = folder.path().join("other.dcm");
    std::fs::write(&path, other).unwrap();
    assert_eq!(ask("MODALITY", &[path.to_str().unwrap(), "--known"]), 0);
    let report = listener.json();
    assert_eq!((&report["event"], &report["safe"]), (&2.into(), &serde_json::json!([])));
    assert_eq!(report["failed"], serde_json::json!([(uid(&images[0]), 0x0110)]));
    station.signal("-TERM");
    assert!(station.wait().success());
}
