//! Clients that take nothing, send little, or are many: whoever else asks is answered.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use cdal::daemon::{Claim, JobError, Product, Worker};
use cdal::http;
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

use crate::support::PATIENCE;
use crate::support::daemon::{Running, settings};
use crate::support::http::{get, picture, post, read, request};
use crate::support::wait_for;

/// More than the kernel holds of an answer.
const LARGE: usize = 16 << 20;

/// What every watcher of a device asks for.
const WATCHED: [&str; 5] =
    ["/v1/status", "/metrics", "/v2/health/live", "/v2/health/ready", "/openapi.json"];

/// Makes a large result.
struct Lavish;

impl Worker for Lavish {
    fn process(&mut self, _: &Claim) -> Result<Vec<Product>, JobError> {
        let name = "large.mask.png".to_owned();
        Ok(vec![Product {
            name,
            dicom: None,
            bytes: vec![7; LARGE],
            summary: String::new(),
            warning: String::new(),
        }])
    }
}

struct Site {
    daemon: Running,
    to: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Site {
    fn open(change: impl FnOnce(&mut http::Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = settings(&folder.path().join("spool"), vec![]);
        change(&mut settings.http);
        let daemon = Running::start(settings, Lavish);
        let to = daemon.daemon().http_address().unwrap();
        Self { daemon, to, _folder: folder }
    }

    /// A job with a large result.
    fn job(&self) -> String {
        let answer = post(self.to, "/v1/cases", &picture(1));
        let job = answer.json()["jobs"][0]["href"].as_str().unwrap().to_owned();
        wait_for("the job", || (get(self.to, &job).json()["state"] == "done").then_some(()));
        job
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.to).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends `requests` as far as they are taken, and reads nothing.
    fn send(&self, requests: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        stream.set_nonblocking(true).unwrap();
        let _ = stream.write(requests);
        stream.set_nonblocking(false).unwrap();
        stream
    }

    fn asking(path: &str) -> Vec<u8> {
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes()
    }

    /// How long the slowest of what is watched took.
    fn watch(&self) -> Duration {
        let times = WATCHED.map(|path| {
            let begun = Instant::now();
            let status = get(self.to, path).status;
            assert!(status == 200 || path == "/v2/health/ready", "{path}: {status}");
            begun.elapsed()
        });
        times.into_iter().max().unwrap()
    }
}

fn clients_that_do_not_read(count: usize, path: &str) {
    let site = Site::open(|_| ());
    let requests = Site::asking(path).repeat(80);
    let held: Vec<_> = (0..count).map(|_| site.send(&requests)).collect();
    println!("{count} clients that do not read {path}: answered within {:?}", site.watch());
    drop(held);
    site.daemon.stop();
}

#[test]
fn sixty_four_clients_that_do_not_read_keep_nobody_from_status_and_metrics() {
    clients_that_do_not_read(64, "/openapi.json");
}

#[test]
fn sixty_four_clients_that_do_not_read_the_status_keep_nobody_from_it() {
    clients_that_do_not_read(64, "/v1/status");
}

#[test]
fn more_clients_that_do_not_read_than_there_are_places_keep_nobody_from_status_and_metrics() {
    clients_that_do_not_read(300, "/openapi.json");
}

#[test]
fn clients_that_never_end_a_request_keep_nobody_from_status_and_metrics() {
    let site = Site::open(|_| ());
    let held: Vec<_> = (0..300).map(|_| site.send(b"GET /v1/status HTTP/1.1\r\nHo")).collect();
    println!("300 half heads: answered within {:?}", site.watch());
    drop(held);
    let half = b"POST /v1/cases HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf";
    let held: Vec<_> = (0..300).map(|_| site.send(half)).collect();
    println!("300 half bodies: answered within {:?}", site.watch());
    drop(held);
    site.daemon.stop();
}

#[test]
fn clients_that_do_not_read_their_results_lose_their_places_to_a_case() {
    let site = Site::open(|_| ());
    let mask = Site::asking(&format!("{}/mask", site.job()));
    let held: Vec<_> = (0..100).map(|_| site.send(&mask)).collect();
    let begun = Instant::now();
    let answer = post(site.to, "/v1/cases", &picture(2));
    assert_eq!(answer.status, 202, "{}", answer.text());
    println!("a case beside 100 clients that do not read: taken after {:?}", begun.elapsed());
    drop(held);
    site.daemon.stop();
}

#[test]
fn a_client_that_takes_nothing_of_its_answer_is_cut_off() {
    let site = Site::open(|http| http.body_timeout = Duration::from_millis(300));
    let mut stream = site.send(&Site::asking(&format!("{}/mask", site.job())));
    // It reads nothing. Once the server has closed the connection, nothing more can be sent over it.
    wait_for("the server to give it up", || stream.write_all(b"\r\n").is_err().then_some(()));
    let (mut taken, mut piece) = (0, vec![0; 1 << 20]);
    while let Ok(count) = stream.read(&mut piece)
        && count > 0
    {
        taken += count;
    }
    assert!(taken < LARGE, "{taken}");
    site.daemon.stop();
}

#[test]
fn a_slow_reader_that_keeps_the_least_rate_gets_its_whole_answer() {
    let site = Site::open(|http| http.body_timeout = Duration::from_secs(5));
    let mut stream = site.send(&Site::asking(&format!("{}/mask", site.job())));
    let (mut taken, mut piece) = (0, vec![0; 256 << 10]);
    while taken < LARGE {
        match stream.read(&mut piece).unwrap() {
            0 => break,
            count => taken += count,
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(taken >= LARGE, "{taken}");
    site.daemon.stop();
}

#[test]
fn a_body_that_comes_a_byte_at_a_time_is_given_up() {
    let site = Site::open(|http| {
        http.body_timeout = Duration::from_millis(500);
        http.min_bytes_per_second = 1 << 20;
    });
    for path in ["/v1/cases", "/v2/models/none/infer"] {
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n");
        let mut stream = site.send(head.as_bytes());
        let mut dripping = stream.try_clone().unwrap();
        let drip = std::thread::spawn(move || {
            while dripping.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        // There is no model here: that is told without reading the body.
        let expected = if path == "/v1/cases" { 408 } else { 404 };
        assert_eq!(read(&mut stream).status, expected, "{path}");
        drop(stream);
        drip.join().unwrap();
    }
    site.daemon.stop();
}

/// A connection from another address of this machine.
fn connect_from(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddrV4::new(from, 0)).unwrap();
    connect(&socket, &to).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn an_address_that_has_its_share_waits_and_others_go_before_it() {
    let site = Site::open(|http| {
        http.max_connections = 4;
        http.max_connections_per_address = 2;
        http.head_timeout = Duration::from_millis(500);
    });
    let half = b"POST /v1/cases HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf";
    let held: Vec<_> = (0..2).map(|_| site.send(half)).collect();
    let refused = wait_for("the share to be used up", || {
        let answer = request(site.to, "POST", "/v1/cases", &[], b"no image");
        (answer.status == 503).then_some(answer)
    });
    assert_eq!(refused.json_code().as_deref(), Some("busy"));
    assert!(refused.header("retry-after").is_some());
    let mut other = connect_from(Ipv4Addr::new(127, 0, 0, 2), site.to);
    let head = "POST /v1/cases HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 8\r\n\r\n";
    other.write_all(format!("{head}no image").as_bytes()).unwrap();
    assert_eq!(read(&mut other).status, 415, "it was read");
    drop(held);
    wait_for("the places to be free again", || {
        (request(site.to, "POST", "/v1/cases", &[], b"no image").status == 415).then_some(())
    });
    site.daemon.stop();
}

#[test]
fn requests_in_a_row_on_one_connection_are_answered_in_their_order() {
    let site = Site::open(|_| ());
    let mut requests = Vec::new();
    for number in 0..500 {
        requests.extend(Site::asking(&format!("/v1/jobs/{number:016x}")));
        requests.extend(Site::asking("/v2/health/live"));
    }
    requests.extend(b"GET /v3 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let mut stream = site.connect();
    let mut sending = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || sending.write_all(&requests));
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    sender.join().unwrap().unwrap();
    let statuses: Vec<_> =
        text.split("HTTP/1.1 ").skip(1).map(|answer| answer[..3].to_owned()).collect();
    assert_eq!(statuses.len(), 1001);
    assert!(statuses[..1000].chunks(2).all(|pair| pair == ["404", "200"]));
    site.daemon.stop();
}
