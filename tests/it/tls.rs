//! DICOM over TLS with certificates on both sides, against dcmtk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cdal::daemon::Drained;
use cdal::deliver::Config;
use cdal::tls::{Client, Server};

use crate::support::certificates::certificates;
use crate::support::daemon::{Running, settings};
use crate::support::dicom::{dataset, files, series};
use crate::support::process::{dcmtk, dcmtk_storescp, free_port, store};
use crate::support::wait_for;
use crate::support::worker::Stand;

const QUICK: Stand = Stand { compute: Duration::ZERO };

/// dcmtk's words for a certificate of one's own and for whom to trust.
fn options(folder: &Path, own: &str, trusted: &str) -> Vec<String> {
    let path = |name: String| folder.join(name).to_string_lossy().into_owned();
    vec![
        "+tls".to_owned(),
        path(format!("{own}.key")),
        path(format!("{own}.pem")),
        "+cf".to_owned(),
        path(format!("{trusted}.pem")),
    ]
}

#[test]
fn only_who_shows_a_certificate_of_the_right_root_can_send() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let path = |name: &str| folder.path().join(name);
    let mut settings = settings(&path("spool"), vec![Config::folder("disk", path("out"))]);
    settings.ingest.dicom.tls = Some(Server {
        certificate: path("server.pem"),
        key: path("server.key"),
        clients: Some(path("ca.pem")),
    });
    let daemon = Running::start(settings, QUICK);
    let images = series(folder.path(), "a", 2);
    let send = |options: &[String]| {
        let options: Vec<&str> = options.iter().map(String::as_str).chain(["-ta", "5"]).collect();
        dcmtk("storescu", daemon.address(), &options, &images).status.success()
    };
    assert!(!send(&[]), "without TLS");
    assert!(
        !send(&options(folder.path(), "server", "server")),
        "with a certificate of another root"
    );
    assert!(files(&path("spool/instances")).is_empty());
    assert!(send(&options(folder.path(), "client", "server")));
    wait_for("the product", || files(&path("out")).pop());
    assert_eq!(daemon.stop(), Drained::Completely);
}

#[test]
fn a_destination_is_trusted_by_its_root_and_sees_the_daemons_certificate() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir(path("out")).unwrap();
    let port = free_port();
    // The peer wants a certificate (-rc) of the root `ca`.
    let mut peer = options(folder.path(), "server", "ca");
    peer.push("-rc".to_owned());
    let peer: Vec<&str> = peer.iter().map(String::as_str).collect();
    let _peer = dcmtk_storescp(port, &path("out"), &peer);
    let destination = |name: &str, ca: &str, own: Option<&str>| {
        let file = |end: &str| own.map(|own| path(&format!("{own}.{end}")));
        let tls = Client {
            ca: path(ca),
            certificate: file("pem"),
            key: file("key"),
            server_name: Some("localhost".to_owned()),
        };
        Config { tls: Some(tls), ..Config::dicom(name, &format!("127.0.0.1:{port}"), "DCMTK") }
    };
    let mut destinations = vec![
        destination("right", "server.pem", Some("client")),
        destination("stranger", "ca.pem", Some("client")),
        destination("anonymous", "server.pem", None),
    ];
    destinations.push(Config::dicom("plain", &format!("127.0.0.1:{port}"), "DCMTK"));
    let daemon = Running::start(settings(&path("spool"), destinations), QUICK);
    store(daemon.address(), &series(folder.path(), "a", 2));
    let received = wait_for("the product", || files(&path("out")).pop());
    let made: Vec<PathBuf> = files(&path("spool/products"));
    wait_for("identical bytes", || (dataset(&received) == dataset(&made[0])).then_some(()));
    assert_eq!(daemon.stop(), Drained::WithRest { jobs: 0, deliveries: 3, reports: 0 });
}
