//! Products out by HTTP: STOW-RS to Orthanc, and a webhook.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use cdal::codec::part10;
use cdal::deliver::Config;
use serde_json::Value;

use crate::support::daemon::{Running, settings};
use crate::support::dicom::{dataset, files, series};
use crate::support::http::get;
use crate::support::process::{Process, free_port, orthanc, store};
use crate::support::wait_for;
use crate::support::worker::Stand;

const QUICK: Stand = Stand { compute: Duration::ZERO };
const PLUGIN: &str = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so";

fn archive(folder: &Path, port: u16) -> Process {
    orthanc(
        folder,
        serde_json::json!({
            "HttpPort": port, "DicomServerEnabled": false, "Plugins": [PLUGIN],
            "DicomWeb": { "Enable": true, "Root": "/dicom-web/" },
        }),
    )
}

#[test]
fn orthanc_gets_what_was_made_once_it_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}/dicom-web/studies");
    let spool = folder.path().join("spool");
    let daemon = Running::start(settings(&spool, vec![Config::stow("archive", &url)]), QUICK);
    store(daemon.address(), &series(folder.path(), "a", 2));
    let to = daemon.daemon().http_address().unwrap();
    wait_for("a failed attempt", || {
        let archive = get(to, "/v1/status").json()["destinations"][0].clone();
        (archive["pending"] == 1 && archive["reason"].is_string()).then_some(())
    });
    let _orthanc = archive(folder.path(), port);
    wait_for("the delivery", || {
        (get(to, "/v1/status").json()["destinations"][0]["sent"] == 1).then_some(())
    });
    let archive = ([127, 0, 0, 1], port).into();
    let instances = get(archive, "/instances").json();
    assert_eq!(instances.as_array().unwrap().len(), 1);
    let held = get(archive, &format!("/instances/{}/file", instances[0].as_str().unwrap())).body;
    let made = files(&spool.join("products"));
    assert_eq!(part10::dataset(&held).unwrap(), dataset(&made[0]), "the same data set");
    daemon.stop();
}

#[test]
fn a_webhook_is_told_until_it_answers_well() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook?x=1", listener.local_addr().unwrap());
    let (send, told) = channel();
    std::thread::spawn(move || {
        // Down, then well.
        for status in ["503 Service Unavailable", "204 No Content"] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut text = String::new();
            let mut buffer = [0; 4096];
            while !text.ends_with('}') {
                let count = stream.read(&mut buffer).unwrap();
                text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
            }
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
            send.send(text).unwrap();
        }
    });
    let destinations = vec![Config::webhook("ris", &url)];
    let daemon = Running::start(settings(&folder.path().join("spool"), destinations), QUICK);
    store(daemon.address(), &series(folder.path(), "a", 2));
    let wait = Duration::from_secs(20);
    let (first, second) = (told.recv_timeout(wait).unwrap(), told.recv_timeout(wait).unwrap());
    assert_eq!(first, second, "the same message, its idempotency key included");
    let (head, body) = second.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /hook?x=1 HTTP/1.1\r\n"), "{head}");
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["event"], "result");
    let to = daemon.daemon().http_address().unwrap();
    let fetched = get(to, body["href"].as_str().unwrap());
    assert_eq!(fetched.status, 200);
    assert_eq!(body["sha256"], fetched.header("etag").unwrap().trim_matches('"'));
    wait_for("its record", || {
        (get(to, "/v1/status").json()["destinations"][0]["sent"] == 1).then_some(())
    });
    daemon.stop();
}
