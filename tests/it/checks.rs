//! The project's own checks: `.ci/run` and `tests/peers.sh`, with stand-ins for what they start.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::project::root;

/// A program of this name in `folder`.
fn stand_in(folder: &Path, name: &str, script: &str) {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// What `.ci/run` starts, a line each, and what it prints, where `cargo deny` behaves as `deny` says.
fn ci(deny: &str) -> (Output, String) {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let log_this = format!("echo \"$(basename \"$0\") $*\" >> {}", log.display());
    stand_in(folder.path(), "make", &log_this);
    stand_in(folder.path(), "cargo", &format!("{log_this}\ncase \"$*\" in\n{deny}\nesac"));
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let output = Command::new(root().join(".ci/run")).env("PATH", path).output().unwrap();
    (output, fs::read_to_string(log).unwrap())
}

#[test]
fn ci_checks_advisories_where_the_database_can_be_had() {
    let (output, started) = ci("");
    assert!(output.status.success());
    assert!(started.contains("cargo deny --offline --locked check advisories\n"), "{started}");
    assert!(started.ends_with("make test\n"), "{started}");

    let (output, _) = ci("*\"check advisories\") exit 1 ;;");
    assert!(!output.status.success(), "an advisory ends it");
}

#[test]
fn ci_says_so_when_advisories_are_not_checked() {
    let (output, started) = ci("\"deny fetch db\") exit 1 ;;");
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("advisories not checked"), "{said}");
    assert!(!started.contains("check advisories"), "{started}");
    assert!(started.ends_with("make test\n"), "{started}");

    let (output, _) = ci("\"deny --version\") exit 1 ;;");
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("advisories not checked"));
}

/// The packages that `tests/peers.sh` finds missing, with stand-ins for all programs but `without`, and `files` alone.
fn missing(dcmtk: &str, without: &str, files: &[&str]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let (programs, files_root) = (folder.path().join("bin"), folder.path().join("root"));
    fs::create_dir(&programs).unwrap();
    for name in [
        "storescu", "storescp", "echoscu", "dcmdump", "dciodvfy", "gdcmconv", "socat", "chromium",
        "openssl", "pgrep",
    ] {
        if name != without {
            let version = format!("echo '$dcmtk: {name} v{dcmtk} 2022-04-22 $'");
            stand_in(&programs, name, &version);
        }
    }
    for file in files {
        let path = files_root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        stand_in(path.parent().unwrap(), path.file_name().unwrap().to_str().unwrap(), "");
    }
    let mut command = Command::new("/bin/sh");
    command.arg(root().join("tests/peers.sh")).arg("--list");
    // Nothing else is found: the script needs no other program for this.
    command.env("PATH", &programs).env("CDAL_PEERS_ROOT", &files_root);
    let output = command.output().unwrap();
    assert_eq!(output.stderr, b"", "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.success(), text.is_empty(), "{text}");
    text.lines().map(|line| line.split(':').next().unwrap().to_owned()).collect()
}

const FILES: [&str; 6] = [
    "usr/sbin/Orthanc",
    "usr/share/orthanc/plugins/libOrthancDicomWeb.so",
    "usr/lib/postgresql/15/bin/initdb",
    "usr/lib/postgresql/15/bin/postgres",
    "usr/lib/postgresql/15/bin/psql",
    "usr/lib/postgresql/15/bin/pg_isready",
];

#[test]
fn peers_that_are_all_there_are_left_alone() {
    assert_eq!(missing("3.6.7", "", &FILES), [""; 0]);
    assert_eq!(missing("3.7.0", "", &FILES), [""; 0]);
}

#[test]
fn an_orthanc_without_its_dicomweb_plugin_lacks_a_package() {
    let files: Vec<_> = FILES.into_iter().filter(|file| !file.contains("plugins")).collect();
    assert_eq!(missing("3.6.7", "", &files), ["orthanc-dicomweb"]);
}

#[test]
fn half_a_postgresql_and_an_old_dcmtk_are_missing() {
    let clients: Vec<_> = FILES.into_iter().filter(|file| !file.ends_with("initdb")).collect();
    assert_eq!(missing("3.6.7", "", &clients), ["postgresql-15"]);
    let old: Vec<_> = FILES.map(|file| file.replace("/15/", "/9.6/")).to_vec();
    let old: Vec<_> = old.iter().map(String::as_str).collect();
    assert_eq!(missing("3.6.7", "", &old), ["postgresql-15"]);
    assert_eq!(missing("3.6.5", "", &FILES), ["dcmtk"]);
    assert_eq!(missing("3.6.7", "socat", &FILES), ["socat"]);
}
