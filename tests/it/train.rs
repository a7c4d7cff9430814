//! `cdal train` as a real process: it leaves a sound bundle, and kill -9 costs nothing but time.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use crate::project::{cdal, root, said};

fn configuration(folder: &Path) -> PathBuf {
    let parameters = fs::read_to_string(root().join("configs/phantom.parameters.json")).unwrap();
    let smaller = parameters.replace("\"ch_mult\": [1, 1, 2]", "\"ch_mult\": [1, 1]");
    assert_ne!(parameters, smaller);
    fs::write(folder.join("parameters.json"), smaller).unwrap();
    let text = format!(
        r#"
run_folder = "run"
python = "{}"

[model]
preset = "phantom"
parameters = "parameters.json"
seed = 5

[data]
kind = "phantom"
first_seed = 10
validation_first_seed = 5
validation_cases = 0

[optimiser]
steps = 6
batch = 3
learning_rate = 1e-3
final_learning_rate = 1e-5
betas = [0.5, 0.9]
ema_decay = 0.9
checkpoint_every = 2
intra_threads = 2

[card]
name = "tiny"
version = "0.0.1"
weights = "a test's"
data = "phantoms"
licence = "MIT OR Apache-2.0"
"#,
        root().join(".venv/bin/python").display()
    );
    let path = folder.join("train.toml");
    fs::write(&path, text).unwrap();
    path
}

fn start(config: &Path, resume: bool) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cdal"));
    command.args(["train", "--config"]).arg(config).current_dir(root());
    if resume {
        command.arg("--resume");
    }
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    if cfg!(not(target_arch = "x86_64")) {
        println!("left out: no training build of ONNX Runtime is published for this processor");
        return;
    }
    let straight = tempfile::tempdir().unwrap();
    let config = configuration(straight.path());
    // What an earlier try left before its first checkpoint counts for nothing.
    fs::create_dir_all(straight.path().join("run/artifacts")).unwrap();
    let output = cdal(&["train", "--config", config.to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    let again = cdal(&["train", "--config", config.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(1), "a finished run is not overwritten");

    let killed = tempfile::tempdir().unwrap();
    let config = configuration(killed.path());
    let mut child = start(&config, false);
    let state = killed.path().join("run/last/state.json");
    while !state.exists() {
        assert!(child.try_wait().unwrap().is_none(), "training ended before its first checkpoint");
        thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    assert!(!killed.path().join("run/bundle").exists(), "it was killed before the end");
    let output = cdal(&["train", "--config", config.to_str().unwrap(), "--resume"]);
    assert!(output.status.success(), "{}", said(&output));

    let weights = |folder: &Path| fs::read(folder.join("run/weights.safetensors")).unwrap();
    assert!(weights(straight.path()) == weights(killed.path()), "weights differ after resuming");

    let bundle = killed.path().join("run/bundle");
    let check = cdal(&["bundle", "check", bundle.to_str().unwrap()]);
    assert!(check.status.success(), "{}", said(&check));
}
