//! Cases by HTTP: taken, kept, answered, refused.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use cdal::daemon::{Claim, JobError, Product, Settings, Worker};
use cdal::deliver::Config;
use cdal::domain::Uid;
use cdal::{codec, http};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::daemon::{Running, settings};
use crate::support::dicom::{SEGMENTATION_STORAGE, image, series, uid};
use crate::support::http::{Answer, get, picture, post, post_files, read, request};
use crate::support::wait_for;
use crate::support::worker::{Stand, product};

const QUICK: Stand = Stand { compute: Duration::ZERO };

/// Makes a mask for a file that is no DICOM, a segmentation for a series.
struct InKind;

impl Worker for InKind {
    fn process(&mut self, claim: &Claim) -> Result<Vec<Product>, JobError> {
        let files = &claim.files;
        let failed = |error: codec::CodecError| JobError::Permanent(error.to_string());
        if codec::sniff(&files[0]).map_err(failed)? == Some(codec::Format::Dicom) {
            return Ok(vec![product("seg", files.len() as u16)]);
        }
        let case = &codec::read_files(files).map_err(failed)?[0];
        let name = format!("{}.mask.png", case.name);
        Ok(vec![Product {
            name,
            dicom: None,
            bytes: b"mask".to_vec(),
            summary: String::new(),
            warning: String::new(),
        }])
    }
}

fn address(daemon: &Running) -> SocketAddr {
    daemon.daemon().http_address().expect("HTTP is on")
}

fn only_job(answer: &Answer) -> String {
    assert_eq!(answer.status, 202, "{}", answer.text());
    let jobs = answer.json()["jobs"].as_array().unwrap().clone();
    assert_eq!(jobs.len(), 1, "{jobs:?}");
    let href = format!("/v1/jobs/{}", jobs[0]["id"].as_str().unwrap());
    assert_eq!(jobs[0]["href"], href);
    assert_eq!(answer.header("location"), Some(href.as_str()));
    href
}

fn ended(to: SocketAddr, job: &str) -> Value {
    wait_for("the job to end", || {
        let job = get(to, job).json();
        matches!(job["state"].as_str(), Some("done" | "failed")).then_some(job)
    })
}

#[test]
fn a_picture_goes_in_and_its_mask_comes_out_by_http_and_to_the_folder_alone() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let destinations =
        vec![Config::dicom("pacs", "127.0.0.1:9", "PACS"), Config::folder("disk", &out)];
    let daemon = Running::start(settings(&folder.path().join("spool"), destinations), InKind);
    let to = address(&daemon);
    let first = picture(1);
    let job = only_job(&post(to, "/v1/cases", &first));
    let report = ended(to, &job);
    assert_eq!(report["state"], "done", "{report}");
    let mask = get(to, &format!("{job}/mask"));
    assert_eq!((mask.status, mask.body.as_slice()), (200, b"mask".as_slice()));
    assert_eq!(mask.header("content-type"), Some("image/png"));
    let result = &report["results"][0];
    assert_eq!(result["sha256"], cdal::durable::hex(&Sha256::digest(b"mask")));
    assert_eq!(get(to, result["href"].as_str().unwrap()).body, b"mask");

    let name = result["name"].as_str().unwrap();
    wait_for("the mask in the folder", || {
        std::fs::read(out.join(name)).is_ok_and(|bytes| bytes == b"mask").then_some(())
    });
    let report = wait_for("the delivery to be recorded", || {
        let report = get(to, &job).json();
        (report["deliveries"][0]["state"] == "sent").then_some(report)
    });
    assert_eq!(report["deliveries"].as_array().unwrap().len(), 1, "none for the DICOM peer");

    // The same picture again is the same job.
    let again = post(to, "/v1/cases", &first);
    assert_eq!(only_job(&again), job);
    assert_eq!(again.json()["jobs"][0]["new_files"], 0);
    assert_ne!(only_job(&post(to, "/v1/cases", &picture(2))), job);
}

#[test]
fn the_files_of_a_series_are_one_job_however_they_are_wrapped() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Running::start(settings(&folder.path().join("spool"), vec![]), InKind);
    let to = address(&daemon);
    let files = series(folder.path(), "a", 3);
    let job = only_job(&post_files(to, "related", &files));
    let report = ended(to, &job);
    assert_eq!((&report["state"], &report["objects"]), (&"done".into(), &3.into()), "{report}");
    assert_eq!(only_job(&post_files(to, "form-data", &files)), job);
    // Without a destination the result stays in the spool, through a restart too.
    let mask = get(to, &format!("{job}/mask"));
    assert_eq!(mask.header("content-type"), Some("application/dicom"));
    daemon.stop();
    let daemon = Running::start(settings(&folder.path().join("spool"), vec![]), InKind);
    assert_eq!(get(address(&daemon), &format!("{job}/mask")).body, mask.body);
}

#[test]
fn every_refusal_has_a_status_a_code_and_a_sentence_and_keeps_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool");
    let mut settings = settings(&spool, vec![]);
    settings.http.max_body_bytes = 4096;
    settings.http.body_timeout = Duration::from_millis(200);
    let daemon = Running::start(settings, QUICK);
    let to = address(&daemon);
    let sop = Uid::derived(&["x"]);
    let seg = image(SEGMENTATION_STORAGE, &sop, &sop, 1, 8);
    let mut damaged = image("1.2.840.10008.5.1.4.1.1.4", &uid("1.2.3"), &sop, 1, 8);
    damaged.truncate(300);
    let mixed = [folder.path().join("good.png"), folder.path().join("bad.png")];
    std::fs::write(&mixed[0], picture(3)).unwrap();
    std::fs::write(&mixed[1], b"not a picture").unwrap();
    let chunked = [b"1400\r\n".as_slice(), &[7; 0x1400], b"\r\n0\r\n\r\n"].concat();
    let multipart = "Content-Type: multipart/form-data";
    let cases = [
        ("empty", post(to, "/v1/cases", b""), 400, "bad_request"),
        ("garbage", post(to, "/v1/cases", b"hello"), 415, "unsupported"),
        ("segmentation", post(to, "/v1/cases", &seg), 415, "unsupported"),
        ("damaged", post(to, "/v1/cases", &damaged), 422, "unreadable"),
        ("too large", post(to, "/v1/cases", &[0; 5000]), 413, "too_large"),
        (
            "too large, undeclared",
            request(to, "POST", "/v1/cases", &["Transfer-Encoding: chunked"], &chunked),
            413,
            "too_large",
        ),
        ("one of two", post_files(to, "form-data", &mixed), 415, "unsupported"),
        ("no boundary", request(to, "POST", "/v1/cases", &[multipart], b"x"), 400, "bad_request"),
        ("no parts", post_files(to, "form-data", &[] as &[&Path]), 400, "bad_request"),
        ("no such job", get(to, "/v1/jobs/0123456789abcdef"), 404, "not_found"),
        ("no job's name", get(to, "/v1/jobs/..%2f..%2fetc"), 404, "not_found"),
        ("no such path", get(to, "/v3"), 404, "not_found"),
        ("no such method", get(to, "/v1/cases"), 405, "method_not_allowed"),
        (
            "foreign host",
            request(to, "GET", "/openapi.json", &["Host: evil.example"], b""),
            421,
            "misdirected",
        ),
    ];
    for (what, answer, status, code) in cases {
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
        let problem = answer.json();
        assert_eq!(problem["code"], code, "{what}");
        assert!(problem["error"].as_str().unwrap().len() > 15, "{what}: {problem}");
    }
    // Silence in the middle of a body.
    let mut stream = TcpStream::connect(to).unwrap();
    stream
        .write_all(b"POST /v1/cases HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf")
        .unwrap();
    assert_eq!(read(&mut stream).status, 408);
    for kept in ["incoming", "instances"] {
        assert_eq!(std::fs::read_dir(spool.join(kept)).unwrap().count(), 0, "{kept}");
    }
}

#[test]
fn a_mask_that_is_not_there_yet_or_never_will_be_is_a_conflict() {
    /// Fails once it is let go.
    struct Fails(Receiver<()>);
    impl Worker for Fails {
        fn process(&mut self, _: &Claim) -> Result<Vec<Product>, JobError> {
            let _ = self.0.recv();
            Err(JobError::Permanent("the model takes no such image".into()))
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let (let_go, held) = channel();
    let daemon = Running::start(settings(folder.path(), vec![]), Fails(held));
    let to = address(&daemon);
    let job = only_job(&post(to, "/v1/cases", &picture(1)));
    let early = get(to, &format!("{job}/mask"));
    assert_eq!((early.status, early.json()["code"].as_str()), (409, Some("not_ready")));
    assert!(early.header("retry-after").is_some());
    let_go.send(()).unwrap();
    assert_eq!(ended(to, &job)["reason"], "the model takes no such image");
    let late = get(to, &format!("{job}/mask"));
    assert_eq!((late.status, late.json()["code"].as_str()), (409, Some("failed")));
}

fn with_token(settings: Settings, folder: &Path) -> Settings {
    let tokens = folder.join("tokens");
    let hash = cdal::durable::hex(&Sha256::digest("open sesame"));
    std::fs::write(&tokens, format!("scanner {hash}\n")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&tokens, mode).unwrap();
    let http = http::Config { tokens: Some(tokens), ..settings.http };
    Settings { http, ..settings }
}

#[test]
fn where_tokens_are_set_only_who_shows_one_is_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let settings = with_token(settings(&folder.path().join("spool"), vec![]), folder.path());
    let daemon = Running::start(settings, InKind);
    let to = address(&daemon);
    for header in ["X: y", "Authorization: Bearer wrong", "Authorization: Basic open sesame"] {
        let refused = request(to, "POST", "/v1/cases", &[header], &picture(1));
        assert_eq!(refused.status, 401, "{header}");
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    }
    assert_eq!(get(to, "/openapi.json").status, 200);
    let shown = ["Authorization: Bearer open sesame"];
    assert_eq!(request(to, "POST", "/v1/cases", &shown, &picture(1)).status, 202);
    daemon.stop();
}

/// Paths with their methods, as the document has them.
fn documented() -> BTreeSet<(String, String)> {
    let document: Value = serde_json::from_str(http::OPENAPI).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    paths
        .iter()
        .flat_map(|(path, item)| {
            item.as_object().unwrap().keys().map(move |method| (method.clone(), path.clone()))
        })
        .collect()
}

#[test]
fn the_openapi_document_and_the_routes_say_the_same() {
    let routes = http::routes().into_iter().map(|(m, p)| (m.to_owned(), p.to_owned())).collect();
    assert_eq!(documented(), routes);

    // Every reference leads somewhere, every operation has a name of its own, and a parameter for each brace.
    let document: Value = serde_json::from_str(http::OPENAPI).unwrap();
    for reference in http::OPENAPI.split("\"$ref\": \"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
    let mut names = BTreeSet::new();
    for (method, path) in documented() {
        let operation = &document["paths"][&path][&method];
        assert!(names.insert(operation["operationId"].as_str().unwrap().to_owned()), "{path}");
        let parameters = operation["parameters"].as_array().map_or(0, Vec::len);
        assert_eq!(path.matches('{').count(), parameters, "{path}");
        assert!(operation["responses"].as_object().is_some_and(|r| !r.is_empty()), "{path}");
    }

    // What is documented is answered, and with a documented status.
    let folder = tempfile::tempdir().unwrap();
    let daemon = Running::start(settings(folder.path(), vec![]), InKind);
    for (method, path) in documented() {
        let filled = path.replace("{id}", "0123456789abcdef").replace("{name}", "x");
        let answer = request(address(&daemon), &method.to_uppercase(), &filled, &[], b"");
        let responses = &document["paths"][&path][&method]["responses"];
        assert!(!responses[answer.status.to_string()].is_null(), "{path}: {}", answer.status);
        assert_ne!(answer.json_code(), Some("method_not_allowed".to_owned()), "{path}");
    }
}
