//! The daemon among what surrounds it: configuration schema, doctor, service unit, watched folder, TLS.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cdal::ingest::folder;
use cdal::tls;
use serde_json::Value;

use crate::project::{cdal, root, said};
use crate::scripts::run_python;
use crate::support::certificates::certificates;
use crate::support::daemon::{Running, settings};
use crate::support::dicom::series;
use crate::support::http::get;
use crate::support::process::{dcmtk_storescp, free_port};
use crate::support::wait_for;
use crate::support::worker::Stand;

#[test]
fn the_schema_takes_every_example_and_nothing_spoilt() {
    let folder = tempfile::tempdir().unwrap();
    let schema = folder.path().join("schema.json");
    let output = cdal(&["config", "schema"]);
    assert!(output.status.success(), "{}", said(&output));
    fs::write(&schema, &output.stdout).unwrap();
    let mut files: Vec<PathBuf> = fs::read_dir(root().join("configs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(".daemon.toml"))
        .collect();
    files.insert(0, schema);
    let arguments: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    run_python("check_schema.py", &arguments).expect("the project's Python is there");
}

#[test]
fn the_doctor_tells_a_peer_that_answers_from_one_that_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let _peer = dcmtk_storescp(port, folder.path(), &[]);
    let file = folder.path().join("c.toml");
    let destination = |name: &str, port: u16| {
        format!(
            "[[destination]]\nname = \"{name}\"\nkind = \"dicom\"\naddress = \"127.0.0.1:{port}\"\n\
             ae_title = \"DCMTK\"\ntimeout = \"2s\"\n"
        )
    };
    let examine = |destinations: &str| -> (Option<i32>, Value) {
        let text = format!(
            "[model]\nbundle = \"onnx/phantom\"\n[spool]\ndirectory = \"{}\"\nmin_free_bytes = 1\n\
             [ingest.dicom]\nlisten = \"127.0.0.1:0\"\n{destinations}",
            folder.path().join("spool").display()
        );
        fs::write(&file, text).unwrap();
        let output = cdal(&["doctor", "--json", "--config", file.to_str().unwrap()]);
        let report = serde_json::from_slice(&output.stdout);
        (output.status.code(), report.unwrap_or_else(|e| panic!("{e}: {}", said(&output))))
    };
    let verdict = |report: &Value, check: &str| {
        let findings = report["findings"].as_array().unwrap();
        let found = findings.iter().find(|finding| finding["check"] == check);
        found.unwrap_or_else(|| panic!("{check} is not in {report}"))["verdict"].clone()
    };
    let (status, report) = examine(&destination("there", port));
    assert_eq!(status, Some(0), "{report}");
    for check in
        ["configuration", "runtime", "provider cpu", "model", "disk", "spool", "destination there"]
    {
        assert_eq!(verdict(&report, check), "ok", "{report}");
    }
    let both = destination("there", port) + &destination("gone", free_port());
    let (status, report) = examine(&both);
    assert_eq!(status, Some(1), "{report}");
    assert_eq!(verdict(&report, "destination there"), "ok");
    assert_eq!(verdict(&report, "destination gone"), "bad");
    assert_eq!(report["verdict"], "bad");
    assert_eq!(cdal(&["doctor", "--config", "no.toml"]).status.code(), Some(78));
}

#[test]
fn the_service_unit_is_one_that_systemd_takes() {
    let unit = root().join("configs/systemd/cdal.service");
    let folder = tempfile::tempdir().unwrap();
    // The program it starts is not installed here.
    let text = fs::read_to_string(unit).unwrap().replace("/usr/bin/cdal", "/bin/true");
    let copy = folder.path().join("cdal.service");
    fs::write(&copy, &text).unwrap();
    for line in [
        "Type=notify",
        "WatchdogSec=60s",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "DevicePolicy=closed",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}");
    }
    let Ok(output) = Command::new("systemd-analyze").arg("verify").arg(&copy).output() else {
        println!("skipped systemd-analyze: not installed");
        return;
    };
    let complaints: Vec<_> = String::from_utf8_lossy(&output.stderr)
        .lines()
        .filter(|line| line.contains("cdal.service"))
        .map(str::to_owned)
        .collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn everything_the_debian_package_holds_is_there() {
    let text = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let manifest: toml::Value = toml::from_str(&text).unwrap();
    let package = &manifest["package"]["metadata"]["deb"];
    for asset in package["assets"].as_array().unwrap() {
        let source = Path::new(asset[0].as_str().unwrap());
        let (start, end) =
            source.to_str().unwrap().split_once('*').unwrap_or((source.to_str().unwrap(), ""));
        if start.starts_with("target/") {
            continue; // built
        }
        let folder = root().join(source.parent().unwrap());
        let found = fs::read_dir(folder).unwrap().flatten().any(|file| {
            let path = file.path();
            let path = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            path.starts_with(start) && path.ends_with(end)
        });
        assert!(found, "{}", source.display());
        let target = Path::new(asset[1].as_str().unwrap());
        if target.parent().is_some_and(|folder| folder.ends_with("sysusers.d")) {
            // The packager's script asks for the user by the name of the source.
            assert_eq!(source.file_name(), target.file_name());
        }
    }
    let units = root().join(package["systemd-units"]["unit-scripts"].as_str().unwrap());
    assert!(units.join("cdal.service").exists());
    assert!(root().join(package["maintainer-scripts"].as_str().unwrap()).join("postinst").exists());
}

#[test]
fn what_is_put_into_the_watched_folder_is_a_case_and_leaves_it() {
    let home = tempfile::tempdir().unwrap();
    let watched = home.path().join("in");
    let mut settings = settings(&home.path().join("spool"), vec![]);
    settings.ingest.folder = folder::Config {
        path: Some(watched.clone()),
        settle: Duration::from_millis(300),
        poll: Duration::from_millis(50),
    };
    let daemon = Running::start(settings, Stand { compute: Duration::ZERO });
    fs::create_dir(watched.join("patient")).unwrap();
    series(&watched.join("patient"), "a", 3);
    fs::write(watched.join("notes.txt"), "not an image").unwrap();
    fs::write(watched.join("half.png.part"), "being written").unwrap();
    let to = daemon.daemon().http_address().unwrap();
    let jobs = wait_for("the series to be done", || {
        let jobs = get(to, "/v1/status").json()["jobs"].clone();
        (jobs[0]["state"] == "done").then_some(jobs)
    });
    assert_eq!((jobs.as_array().unwrap().len(), &jobs[0]["objects"]), (1, &3.into()));
    wait_for("the shelves", || {
        let at = |path: &str| watched.join(path).exists();
        (at("taken/patient/a-0.dcm") && at("refused/notes.refused.txt")).then_some(())
    });
    assert!(watched.join("refused/notes.txt").exists() && watched.join("half.png.part").exists());
    daemon.stop();
}

#[test]
fn with_tls_clients_need_the_right_root_and_where_asked_a_certificate_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    certificates(folder.path());
    let mut settings = settings(&path("spool"), vec![]);
    settings.http.tls = Some(tls::Server {
        certificate: path("server.pem"),
        key: path("server.key"),
        clients: Some(path("ca.pem")),
    });
    let daemon = Running::start(settings, Stand { compute: Duration::ZERO });
    let port = daemon.daemon().http_address().unwrap().port().to_string();
    run_python("check_tls.py", &[Path::new(&port), folder.path()]).expect("Python is there");
    daemon.stop();
}
