//! What HTTP itself asks of a server (RFC 9110, RFC 9112), other sites' pages, and what clients of the Open Inference
//! Protocol and of Prometheus send.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use cdal::daemon::{Claim, JobError, Product, Worker};
use cdal::deliver;
use cdal::domain::{Segmentation, Volume};
use cdal::http::{self, Ask, Description, Engine, InferError, Model};
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use ndarray::{Array3, Array4};
use serde_json::{Value, json};

use crate::scripts::run_python;
use crate::support::PATIENCE;
use crate::support::daemon::{Running, settings};
use crate::support::dicom::{image, series, uid};
use crate::support::http::{Answer, get, picture, post, read, request};
use crate::support::process::{Process, cdal};
use crate::support::wait_for;

/// Makes a mask, and a mask of any image by inference: 1 where it is greater than 0.
struct Threshold;

impl Worker for Threshold {
    fn process(&mut self, _: &Claim) -> Result<Vec<Product>, JobError> {
        let name = "case.mask.png".to_owned();
        Ok(vec![Product {
            name,
            dicom: None,
            bytes: b"mask".to_vec(),
            summary: String::new(),
            warning: String::new(),
        }])
    }

    fn model(&self) -> Option<Arc<dyn Model>> {
        Some(Arc::new(Self))
    }
}

impl Model for Threshold {
    fn describe(&self) -> Description {
        Description {
            name: "threshold".into(),
            version: "1".into(),
            digest: "d".into(),
            channels: 1,
            labels: vec!["x".into()],
            votes: 1,
            revision: "r".into(),
            engine: Engine::default(),
        }
    }

    fn infer(&self, volume: &Volume, _: Ask) -> Result<Segmentation, InferError> {
        let (_, d, h, w) = volume.samples.dim();
        let of = |z, y, x| volume.samples[[0, z, y, x]];
        Ok(Segmentation {
            mask: Array3::from_shape_fn((d, h, w), |(z, y, x)| u8::from(of(z, y, x) > 0.0)),
            agreement: Array4::from_shape_fn((1, d, h, w), |(_, z, y, x)| of(z, y, x)),
        })
    }
}

struct Site {
    daemon: Running,
    to: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Site {
    fn open() -> Self {
        Self::with(|_| (), vec![])
    }

    fn with(change: impl FnOnce(&mut http::Config), to: Vec<deliver::Config>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = settings(&folder.path().join("spool"), to);
        change(&mut settings.http);
        let daemon = Running::start(settings, Threshold);
        let to = daemon.daemon().http_address().unwrap();
        Self { daemon, to, _folder: folder }
    }

    /// The answer to `head`, of which lines are separated by `\n`, and `body`.
    fn raw(&self, head: &str, body: &[u8]) -> Answer {
        raw(self.to, head, body)
    }

    fn infer(&self, headers: &[&str], body: &[u8]) -> Answer {
        request(self.to, "POST", "/v2/models/threshold/infer", headers, body)
    }

    fn finished_job(&self) -> String {
        let answer = post(self.to, "/v1/cases", &picture(1));
        let job = answer.json()["jobs"][0]["href"].as_str().unwrap().to_owned();
        wait_for("the job", || (get(self.to, &job).json()["state"] == "done").then_some(()));
        job
    }
}

fn raw(to: SocketAddr, head: &str, body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = head.replace('\n', "\r\n");
    stream.write_all(&[head.as_bytes(), b"\r\n\r\n", body].concat()).unwrap();
    read(&mut stream)
}

#[test]
fn a_request_without_exactly_one_host_is_refused() {
    let site = Site::open();
    for (hosts, status) in [
        ("", 400),
        ("\nHost: localhost\nHost: localhost", 400),
        ("\nHost: ", 400),
        ("\nHost: a b", 400),
        ("\nHost: user@localhost", 400),
        ("\nHost: localhost", 200),
        ("\nHost: LocalHost:8080", 200),
        ("\nHost: evil.example", 421),
    ] {
        let answer = site.raw(&format!("GET /v1/status HTTP/1.1\nConnection: close{hosts}"), b"");
        assert_eq!(answer.status, status, "{hosts:?}: {}", answer.text());
    }
    assert_eq!(site.raw("GET /v1/status HTTP/1.0", b"").status, 200);
    site.daemon.stop();
}

#[test]
fn a_target_of_another_server_is_refused() {
    let site = Site::open();
    for (target, host, status) in [
        ("http://localhost/v1/status", "localhost", 200),
        ("http://evil.example/v1/status", "localhost", 400),
        ("http://localhost/v1/status", "evil.example", 400),
        ("http://evil.example/v1/status", "evil.example", 421),
        ("ftp://localhost/v1/status", "localhost", 400),
    ] {
        let head = format!("GET {target} HTTP/1.1\nHost: {host}\nConnection: close");
        assert_eq!(site.raw(&head, b"").status, status, "{target} {host}");
    }
    site.daemon.stop();
}

#[test]
fn names_of_the_configuration_are_answered_and_others_are_not() {
    let site = Site::with(|http| http.names = vec!["seg.example".into()], vec![]);
    for (host, status) in [("seg.example", 200), ("localhost", 200), ("evil.example", 421)] {
        let answer = request(site.to, "GET", "/v1/status", &[&format!("Host: {host}")], b"");
        assert_eq!(answer.status, status, "{host}");
    }
    site.daemon.stop();
}

#[test]
fn a_page_of_another_site_changes_nothing() {
    let site = Site::open();
    let refused = |method: &str, path: &str, headers: &[&str]| {
        let answer = request(site.to, method, path, headers, &picture(1));
        assert_eq!(answer.status, 403, "{method} {path} {headers:?}: {}", answer.text());
        assert_eq!(answer.json_code().as_deref(), Some("cross_site"));
    };
    for path in ["/v1/cases", "/v2/models/threshold/infer", "/v3"] {
        for headers in [
            &["Origin: https://evil.example", "Content-Type: text/plain"][..],
            &["Origin: null"],
            &["Origin: http://localhost:3000"],
            &["Sec-Fetch-Site: cross-site", "Content-Type: text/plain"],
            &["Sec-Fetch-Site: same-site"],
        ] {
            refused("POST", path, headers);
        }
    }
    for method in ["PUT", "DELETE", "PATCH"] {
        refused(method, "/v1/cases", &["Origin: https://evil.example"]);
    }
    assert_eq!(get(site.to, "/v1/status").json()["jobs"], json!([]), "nothing was kept");
    site.daemon.stop();
}

#[test]
fn programs_and_the_servers_own_pages_are_heard() {
    let site = Site::open();
    let own = format!("Origin: http://{}", site.to);
    let host = format!("Host: {}", site.to);
    for headers in [
        &["Content-Type: text/plain"][..],
        &[&own, &host],
        &[&own, &host, "Sec-Fetch-Site: same-origin"],
        &["Sec-Fetch-Site: none"],
    ] {
        let answer = request(site.to, "POST", "/v1/cases", headers, &picture(1));
        assert_eq!(answer.status, 202, "{headers:?}: {}", answer.text());
    }
    site.daemon.stop();
}

#[test]
fn what_a_client_has_already_is_not_sent_again() {
    let site = Site::open();
    let mask = format!("{}/mask", site.finished_job());
    let whole = get(site.to, &mask);
    let tag = whole.header("etag").unwrap().to_owned();
    for (header, status) in [
        (format!("If-None-Match: {tag}"), 304),
        (format!("If-None-Match: \"other\", W/{tag}"), 304),
        ("If-None-Match: *".to_owned(), 304),
        ("If-None-Match: \"other\"".to_owned(), 200),
        (format!("If-Match: {tag}"), 200),
        ("If-Match: *".to_owned(), 200),
        ("If-Match: \"other\"".to_owned(), 412),
    ] {
        let answer = request(site.to, "GET", &mask, &[&header], b"");
        assert_eq!(answer.status, status, "{header}");
        if status == 304 {
            assert!(answer.body.is_empty());
            assert_eq!(answer.header("etag"), Some(tag.as_str()));
        }
    }
    // Ranges are not offered: a request for one gets the whole.
    assert_eq!(whole.header("accept-ranges"), Some("none"));
    let part = request(site.to, "GET", &mask, &["Range: bytes=0-1"], b"");
    assert_eq!((part.status, part.body.as_slice()), (200, b"mask".as_slice()));
    site.daemon.stop();
}

#[test]
fn answers_cannot_be_taken_for_something_else_or_shown_elsewhere() {
    let site = Site::open();
    let job = site.finished_job();
    for path in
        ["/", "/v1/status", "/metrics", "/openapi.json", &job, &format!("{job}/mask"), "/v3"]
    {
        let answer = get(site.to, path);
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        let policy = answer.header("cross-origin-resource-policy");
        assert_eq!(policy, Some("same-origin"), "{path}");
        assert!(answer.header("date").is_some(), "{path}");
    }
    let policy = get(site.to, "/").header("content-security-policy").unwrap().to_owned();
    for part in
        ["default-src 'none'", "form-action 'none'", "base-uri 'none'", "frame-ancestors 'none'"]
    {
        assert!(policy.contains(part), "{policy}");
    }
    let mask = get(site.to, &format!("{job}/mask"));
    let disposition = mask.header("content-disposition");
    assert_eq!(disposition, Some("attachment; filename=\"case.mask.png\""));
    site.daemon.stop();
}

#[test]
fn every_get_has_its_head_and_every_path_says_which_methods_it_takes() {
    let site = Site::open();
    let job = site.finished_job();
    for (method, path) in http::routes() {
        let path = path.replace("/{name}", "/case.mask.png").replace("/v1/jobs/{id}", &job);
        let path = path.replace("{model}", "threshold").replace("{version}", "1");
        let path = path.replace("{layer}", "mask");
        let options = request(site.to, "OPTIONS", &path, &[], b"");
        let allow = options.header("allow").unwrap_or_default().to_owned();
        assert_eq!(options.status, 204, "{path}");
        assert!(allow.split(',').any(|m| m == method.to_uppercase()), "{path}: {allow}");
        for other in ["DELETE", "TRACE", "PROPFIND"] {
            let refused = request(site.to, other, &path, &[], b"");
            assert_eq!(refused.status, 405, "{other} {path}");
            assert!(refused.header("allow").is_some(), "{other} {path}");
        }
        if method == "get" {
            let (whole, head) = (get(site.to, &path), request(site.to, "HEAD", &path, &[], b""));
            assert_eq!((head.status, head.body.len()), (whole.status, 0), "{path}");
            assert!(head.header("content-length").is_some(), "{path}");
            assert_eq!(head.header("content-type"), whole.header("content-type"), "{path}");
        }
    }
    assert_eq!(site.raw("OPTIONS * HTTP/1.1\nHost: localhost\nConnection: close", b"").status, 204);
    let tunnel = "CONNECT localhost:80 HTTP/1.1\nHost: localhost:80\nConnection: close";
    assert_eq!(site.raw(tunnel, b"").status, 501);
    site.daemon.stop();
}

#[test]
fn a_slash_at_the_end_of_a_path_does_not_matter() {
    let site = Site::open();
    assert_eq!(get(site.to, "/v2/").json(), get(site.to, "/v2").json());
    for path in ["/v2/health/live/", "/v2/models/threshold/", "/v1/status/", "/v2/?x=y"] {
        assert_eq!(get(site.to, path).status, 200, "{path}");
    }
    assert_eq!(get(site.to, "/").header("content-type"), Some("text/html; charset=utf-8"));
    site.daemon.stop();
}

#[test]
fn a_body_whose_length_is_told_in_two_ways_is_not_taken_for_two_requests() {
    let site = Site::open();
    let post = "POST /v1/cases HTTP/1.1\nHost: localhost\nConnection: close";
    for lengths in
        ["Content-Length: 5\nContent-Length: 6", "Content-Length: 5, 6", "Content-Length: -1"]
    {
        assert_eq!(site.raw(&format!("{post}\n{lengths}"), b"hello").status, 400, "{lengths}");
    }
    let unknown = format!("{post}\nTransfer-Encoding: gzip");
    assert_eq!(site.raw(&unknown, b"hello").status, 400);
    // Both: the chunks count, and nothing that follows them is another request (RFC 9112 section 6.1).
    for lengths in [
        "Content-Length: 4\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\nContent-Length: 4",
    ] {
        let hidden = "0\r\n\r\nGET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let head = format!("POST /v1/cases HTTP/1.1\nHost: localhost\n{lengths}");
        let answer = site.raw(&head, hidden.as_bytes());
        assert_eq!(answer.status, 400, "{lengths}: {}", answer.text());
        assert!(!answer.text().contains("HTTP/1.1"), "{lengths}: {}", answer.text());
    }
    site.daemon.stop();
}

#[test]
fn a_client_that_expects_100_continue_is_told_to_go_on_or_refused_at_once() {
    let site = Site::open();
    let body = picture(3);
    let mut stream = TcpStream::connect(site.to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = |length: u64, expected: &str| {
        format!(
            "POST /v1/cases HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\
             Expect: {expected}\r\n\r\n"
        )
    };
    stream.write_all(head(body.len() as u64, "100-continue").as_bytes()).unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(&body).unwrap();
    assert_eq!(read(&mut stream).status, 202);
    for (length, expected, status) in [(1 << 40, "100-continue", 413), (5, "200-ok", 417)] {
        let mut stream = TcpStream::connect(site.to).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(head(length, expected).as_bytes()).unwrap();
        assert_eq!(read(&mut stream).status, status, "without the body");
    }
    site.daemon.stop();
}

#[test]
fn a_refusal_is_read_by_a_client_that_sends_its_whole_body_first() {
    let site = Site::with(|http| http.max_body_bytes = 1 << 20, vec![]);
    for _ in 0..5 {
        let answer = post(site.to, "/v1/cases", &vec![1; 32 << 20]);
        assert_eq!((answer.status, answer.json_code().as_deref()), (413, Some("too_large")));
    }
    site.daemon.stop();
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn packed_cases_and_tensors_are_unpacked() {
    let site = Site::open();
    let plain = post(site.to, "/v1/cases", &picture(1)).json();
    for (coding, packed) in [("gzip", gzip(&picture(1))), ("deflate", zlib(&picture(1)))] {
        let header = format!("Content-Encoding: {coding}");
        let answer = request(site.to, "POST", "/v1/cases", &[&header], &packed);
        assert_eq!(answer.status, 202, "{}", answer.text());
        assert_eq!(answer.json()["jobs"][0]["id"], plain["jobs"][0]["id"], "the same picture");
    }
    let asked = json!({ "inputs": [{ "name": "image", "datatype": "FP32", "shape": [1, 1, 1, 2], "data": [0, 1] }] });
    for (coding, packed) in [
        ("gzip", gzip(asked.to_string().as_bytes())),
        ("deflate", zlib(asked.to_string().as_bytes())),
    ] {
        let answer = site.infer(&[&format!("Content-Encoding: {coding}")], &packed);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["outputs"][0]["data"], json!([0, 1]));
    }
    site.daemon.stop();
}

#[test]
fn packed_bodies_that_cannot_be_read_are_refused() {
    let site = Site::with(
        |http| {
            http.max_body_bytes = 1 << 20;
            http.max_tensor_bytes = 1 << 20;
        },
        vec![],
    );
    let bomb = gzip(&vec![0; 64 << 20]);
    assert!(bomb.len() < 1 << 17, "it looks small");
    let cut = &gzip(&picture(1))[..30];
    for path in ["/v1/cases", "/v2/models/threshold/infer"] {
        let send = |coding: &str, body: &[u8]| {
            let header = format!("Content-Encoding: {coding}");
            request(site.to, "POST", path, &[&header], body)
        };
        assert_eq!(send("gzip", &bomb).status, 413, "{path}");
        assert_eq!(send("gzip", cut).status, 400, "{path}");
        assert_eq!(send("gzip", b"not packed at all").status, 400, "{path}");
        assert_eq!(send("deflate", b"not packed at all").status, 400, "{path}");
        for coding in ["br", "zstd", "gzip, gzip", "aes128gcm"] {
            let answer = send(coding, b"x");
            assert_eq!(answer.status, 415, "{path} {coding}");
            assert_eq!(answer.header("accept-encoding"), Some("gzip, deflate"), "{path} {coding}");
        }
    }
    assert_eq!(get(site.to, "/v1/status").json()["jobs"], json!([]), "nothing was kept");
    site.daemon.stop();
}

#[test]
fn the_parts_of_a_body_need_no_headers() {
    let site = Site::open();
    let body = [b"--edge\r\n\r\n".as_slice(), &picture(1), b"\r\n--edge--\r\n"].concat();
    for kind in ["form-data", "related", "mixed"] {
        let header = format!("Content-Type: multipart/{kind}; boundary=edge");
        let answer = request(site.to, "POST", "/v1/cases", &[&header], &body);
        assert_eq!(answer.status, 202, "{kind}: {}", answer.text());
    }
    site.daemon.stop();
}

const ALL: [(&str, usize); 13] = [
    ("BOOL", 1),
    ("UINT8", 1),
    ("UINT16", 2),
    ("UINT32", 4),
    ("UINT64", 8),
    ("INT8", 1),
    ("INT16", 2),
    ("INT32", 4),
    ("INT64", 8),
    ("FP16", 2),
    ("FP32", 4),
    ("FP64", 8),
    ("BF16", 2),
];

fn tensor(datatype: &str, data: Value) -> Value {
    let shape = json!([1, 1, 1, data.as_array().map_or(2, Vec::len)]);
    json!({ "inputs": [{ "name": "image", "datatype": datatype, "shape": shape, "data": data }] })
}

#[test]
fn every_datatype_of_an_image_is_taken_in_json_and_as_bytes() {
    let site = Site::open();
    for (datatype, bytes) in ALL {
        let answer = site.infer(&[], tensor(datatype, json!([0, 1])).to_string().as_bytes());
        assert_eq!(answer.status, 200, "{datatype}: {}", answer.text());
        assert_eq!(answer.json()["outputs"][0]["data"], json!([0, 1]), "{datatype}");
        let one: &[u8] = match datatype {
            "FP16" => &[0, 0x3C],
            "BF16" => &[0x80, 0x3F],
            "FP32" => &[0, 0, 0x80, 0x3F],
            "FP64" => &[0, 0, 0, 0, 0, 0, 0xF0, 0x3F],
            _ => &[1, 0, 0, 0, 0, 0, 0, 0][..bytes],
        };
        // BF16's bytes are those of FP32 without the lower half.
        let head = json!({ "inputs": [{
            "name": "image", "datatype": datatype, "shape": [1, 1, 1, 2],
            "parameters": { "binary_data_size": 2 * bytes },
        }] })
        .to_string();
        let header = format!("Inference-Header-Content-Length: {}", head.len());
        let body = [head.as_bytes(), &vec![0; bytes], one].concat();
        let answer = site.infer(&[&header], &body);
        assert_eq!(answer.status, 200, "{datatype}: {}", answer.text());
        let outputs = &answer.json()["outputs"];
        assert_eq!(outputs[0]["data"], json!([0, 1]), "{datatype}");
        assert_eq!(outputs[1]["data"], json!([0.0, 1.0]), "{datatype}");
    }
    let answer = site.infer(&[], tensor("BYTES", json!(["x"])).to_string().as_bytes());
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("BYTES") && answer.text().contains("BF16"), "{}", answer.text());
    site.daemon.stop();
}

#[test]
fn a_value_that_its_datatype_cannot_have_is_refused_with_its_place() {
    let site = Site::open();
    for (datatype, data, told) in [
        ("UINT8", json!([0, 300]), "data[1] = 300 does not fit UINT8"),
        ("UINT8", json!([-1.5, 0]), "data[0] = -1.5 is no whole number"),
        ("INT8", json!([0, 0, -129]), "data[2] = -129 does not fit INT8"),
        ("UINT16", json!([-1]), "data[0] = -1 does not fit UINT16"),
        ("INT32", json!([2_147_483_648_u32]), "does not fit INT32"),
        ("BOOL", json!([2]), "data[0] = 2 does not fit BOOL"),
        ("FP16", json!([70000]), "data[0] = 70000 is no finite FP16"),
        ("FP32", json!([true]), "data[0] = true is no number"),
        ("FP32", json!(["1"]), "data[0] = a text is no number"),
        ("FP32", json!([null]), "data[0] = null is no number"),
    ] {
        let answer = site.infer(&[], tensor(datatype, data.clone()).to_string().as_bytes());
        assert_eq!(answer.status, 400, "{datatype} {data}");
        assert!(answer.text().contains(told), "{datatype} {data}: {}", answer.text());
    }
    site.daemon.stop();
}

#[test]
fn a_member_that_is_null_counts_as_not_given() {
    let site = Site::open();
    let mut asked = tensor("FP32", json!([0, 1]));
    asked["parameters"] = Value::Null;
    asked["id"] = Value::Null;
    asked["outputs"] = Value::Null;
    asked["inputs"][0]["parameters"] = Value::Null;
    let answer = site.infer(&[], asked.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    asked["outputs"] = json!([{ "name": "mask", "parameters": null }]);
    asked["parameters"] = json!({ "votes": null, "seed": null, "binary_data_output": null });
    let answer = site.infer(&[], asked.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    site.daemon.stop();
}

#[test]
fn metrics_are_classic_text_but_for_who_asks_for_open_metrics() {
    let site = Site::open();
    let ask =
        |accept: &str| request(site.to, "GET", "/metrics", &[&format!("Accept: {accept}")], b"");
    for answer in [get(site.to, "/metrics"), ask("*/*"), ask("text/plain;version=0.0.4")] {
        let kind = answer.header("content-type");
        assert_eq!(kind, Some("text/plain; version=0.0.4; charset=utf-8"));
        assert_eq!(answer.header("vary"), Some("Accept"));
        let text = answer.text();
        let kinds: BTreeSet<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').nth(1))
            .collect();
        assert_eq!(kinds, BTreeSet::from(["counter", "gauge", "histogram"]));
        assert!(!text.contains("# EOF") && !text.contains("# UNIT"), "{text}");
        assert!(text.contains("# TYPE cdal_build_info gauge\ncdal_build_info{"), "{text}");
    }
    let open = ask("application/openmetrics-text; version=1.0.0, text/plain; version=0.0.4; q=0.5");
    let kind = open.header("content-type");
    assert_eq!(kind, Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    assert!(open.text().ends_with("# EOF\n") && open.text().contains("# TYPE cdal_build info\n"));
    site.daemon.stop();
}

#[test]
fn every_outcome_is_counted_from_nought_and_labels_are_in_lower_case() {
    let folder = tempfile::tempdir().unwrap();
    let destinations = vec![deliver::Config::folder("disk_of_counts", folder.path())];
    let site = Site::with(|_| (), destinations);
    let text = get(site.to, "/metrics").text();
    let value = |series: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("{series} ")));
        line.unwrap_or_else(|| panic!("{series} is not in {text}"));
    };
    for outcome in ["done", "retried", "failed"] {
        value(&format!("cdal_jobs_total{{outcome=\"{outcome}\"}}"));
    }
    for way in ["dicom", "http", "folder"] {
        value(&format!("cdal_objects_total{{way=\"{way}\"}}"));
    }
    for stage in [
        "queue",
        "compute",
        "decode",
        "prepare",
        "condition",
        "denoise",
        "assemble",
        "encode",
        "deliver",
    ] {
        value(&format!("cdal_stage_seconds_count{{stage=\"{stage}\"}}"));
    }
    for outcome in ["sent", "taken", "later", "unreachable", "never"] {
        let labels = format!("destination=\"disk_of_counts\",outcome=\"{outcome}\"");
        value(&format!("cdal_deliveries_total{{{labels}}}"));
    }
    value("cdal_delivered_bytes_total{destination=\"disk_of_counts\"}");
    value("cdal_delivery_seconds_count{destination=\"disk_of_counts\"}");
    value("cdal_spool_deliveries{destination=\"disk_of_counts\",state=\"dead\"}");
    value("cdal_http_requests_total{status=\"503\"}");
    for (name, of) in [
        ("stage", "cdal_stage"),
        ("outcome", "cdal_"),
        ("way", "cdal_objects"),
        ("state", "cdal_spool"),
        ("sensor", "cdal_device"),
    ] {
        for line in text.lines().filter(|line| line.starts_with(of)) {
            let Some((_, rest)) = line.split_once(&format!("{name}=\"")) else { continue };
            let label = rest.split('"').next().unwrap();
            let is_snake = |c: char| !c.is_uppercase() && (c.is_alphanumeric() || c == '_');
            assert!(label.chars().all(is_snake), "{line}");
        }
    }
    site.daemon.stop();
}

#[test]
fn what_reads_metrics_reads_these_in_both_formats() {
    let site = Site::open();
    let address = site.to.to_string();
    run_python("check_exposition.py", &[Path::new(&address)]);
    site.daemon.stop();
}

#[test]
fn the_workstation_keeps_the_same_rules() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = cdal();
    command.args(["workstation", "--http", "127.0.0.1:0", "--log", "error", "--out"]);
    let mut station = Process::start(command.arg(folder.path().join("out")));
    let to: SocketAddr = station.json()["http"].as_str().unwrap().parse().unwrap();
    let related = "Content-Type: multipart/related; type=\"application/dicom\"; boundary=edge";
    let file = std::fs::read(&series(folder.path(), "a", 1)[0]).unwrap();
    let body = |file: &[u8]| [b"--edge\r\n\r\n", file, b"\r\n--edge--\r\n"].concat();
    let store = |path: &str, headers: &[&str], body: &[u8]| {
        request(to, "POST", path, &[&[related], headers].concat(), body)
    };
    assert_eq!(store("/studies", &["Origin: https://evil.example"], &body(&file)).status, 403);
    let event = ["Content-Type: application/json", "Sec-Fetch-Site: cross-site"];
    assert_eq!(request(to, "POST", "/events", &event, b"{\"event\":\"x\"}").status, 403);
    assert_eq!(store("/studies", &["Content-Encoding: br"], &body(&file)).status, 415);
    assert_eq!(raw(to, "POST /studies HTTP/1.1\nConnection: close", b"").status, 400);
    assert_eq!(request(to, "OPTIONS", "/studies", &[], b"").header("allow"), Some("POST,OPTIONS"));
    let stored = store("/studies/", &["Content-Encoding: gzip"], &gzip(&body(&file)));
    assert_eq!(stored.status, 200, "a part without headers, packed: {}", stored.text());
    assert_eq!(stored.header("x-content-type-options"), Some("nosniff"));

    // An instance that names no study.
    let sop = uid("2.25.99");
    let mut nameless = image("1.2.840.10008.5.1.4.1.1.4", &sop, &uid("2.25.98"), 1, 4);
    let at = nameless.windows(6).position(|w| w == [0x20, 0, 0x0D, 0, b'U', b'I']).unwrap();
    let length = usize::from(u16::from_le_bytes([nameless[at + 6], nameless[at + 7]]));
    nameless.drain(at..at + 8 + length);
    let refused = store("/studies", &[], &body(&nameless));
    assert_eq!(refused.status, 409, "{}", refused.text());
    let failed = &refused.json()["00081198"]["Value"][0];
    assert_eq!(failed["00081155"]["Value"][0], "2.25.99");
    assert_eq!(failed["00081197"]["Value"][0], 0xC000);
    station.signal("-TERM");
    assert!(station.wait().success());
}
