//! `cdal train` as a real process: it leaves a sound bundle, and kill -9 costs nothing but time.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use crate::project::{cdal, root, said};

/// The published step and the adversarial term besides, penalised on every third step.
const ADVERSARY: &str = "
[adversary]
learning_rate = 1e-3
final_learning_rate = 1e-5
betas = [0.5, 0.9]
r1_gamma = 1.0
lazy_reg = 3
adversarial_weight = 0.1
";

fn configuration(folder: &Path, adversary: &str) -> PathBuf {
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
{adversary}
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
    resumes_to_the_same_bits("");
}

#[test]
fn a_killed_run_with_an_adversary_resumes_to_the_same_bits() {
    resumes_to_the_same_bits(ADVERSARY);
}

fn resumes_to_the_same_bits(adversary: &str) {
    if cfg!(not(target_arch = "x86_64")) {
        println!("left out: no training build of ONNX Runtime is published for this processor");
        return;
    }
    let straight = tempfile::tempdir().unwrap();
    let config = configuration(straight.path(), adversary);
    // What an earlier try left before its first checkpoint counts for nothing.
    fs::create_dir_all(straight.path().join("run/artifacts")).unwrap();
    let output = cdal(&["train", "--config", config.to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    let again = cdal(&["train", "--config", config.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(1), "a finished run is not overwritten");

    let killed = tempfile::tempdir().unwrap();
    let config = configuration(killed.path(), adversary);
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
    let lines = fs::read_to_string(straight.path().join("run/metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert!(last["loss"].as_f64().unwrap() > 0.0, "{last}");
    for term in ["loss", "real", "fake", "adversarial", "learning_rate"] {
        let value = last["adversary"][term].as_f64();
        assert_eq!(value.is_some_and(|value| value > 0.0), !adversary.is_empty(), "{term}: {last}");
    }

    // A run is gone on with as it was begun.
    let other = if adversary.is_empty() { ADVERSARY } else { "" };
    let config = configuration(killed.path(), other);
    let output = cdal(&["train", "--config", config.to_str().unwrap(), "--resume"]);
    assert_eq!(output.status.code(), Some(78), "{}", said(&output));
    assert!(said(&output).contains("begun with"), "{}", said(&output));

    let bundle = killed.path().join("run/bundle");
    let check = cdal(&["bundle", "check", bundle.to_str().unwrap()]);
    assert!(check.status.success(), "{}", said(&check));
}
