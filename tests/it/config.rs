//! `cdal config`, and the configurations that come with the package.

use std::path::Path;

use crate::support::process::cdal;

#[test]
fn every_daemon_configuration_in_configs_is_right() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.file_name().to_string_lossy().ends_with(".daemon.toml") {
            cdal::config::load_with(&[&entry.path()], []).unwrap();
            count += 1;
        }
    }
    assert!(count >= 2);
}

#[test]
fn check_names_every_fault_and_exits_with_78_and_show_names_origins() {
    let folder = tempfile::tempdir().unwrap();
    let bad = folder.path().join("bad.toml");
    std::fs::write(&bad, "[model]\nvotes = 0\nbundel = \"x\"\n[spool]\ndirectory = 5\n").unwrap();
    let output = cdal().args(["config", "check"]).arg(&bad).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{text}");
    for key in ["model.votes", "model.bundel", "model.bundle", "spool.directory", "ingest"] {
        assert!(text.contains(&format!("bad.toml: {key}")), "{key}: {text}");
    }

    let good = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/demo.daemon.toml");
    let mut show = cdal();
    show.args(["config", "show"]).arg(good).env("CDAL_MODEL__SEED", "9");
    let output = show.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("model.seed = 9  # environment variable CDAL_MODEL__SEED"), "{text}");
    assert!(text.contains("daemon.retry_delay = \"5s\"  # default"), "{text}");
    assert!(text.lines().any(|l| l.starts_with("model.bundle") && l.ends_with("demo.daemon.toml")));
}

#[test]
fn usage_errors_exit_with_2() {
    for wrong in [&["workstation", "--out", "x"][..], &["serve"], &["nonsense"]] {
        assert_eq!(cdal().args(wrong).output().unwrap().status.code(), Some(2), "{wrong:?}");
    }
}
