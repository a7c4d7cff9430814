//! `cdal train` as a real process: it leaves a sound bundle, and kill -9 costs nothing but time.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use crate::project::{cdal, root, said};
use crate::support::can_train;

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
    if !can_train() {
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
    let other = text_with(&config, "batch = 3", "batch = 2");
    let output = cdal(&["train", "--config", other.to_str().unwrap(), "--resume"]);
    assert_eq!(output.status.code(), Some(78), "{}", said(&output));
    assert!(said(&output).contains("optimiser.batch (was 3, is 2)"), "{}", said(&output));
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

/// Another configuration beside `config`.
fn text_with(config: &Path, from: &str, to: &str) -> PathBuf {
    let text = fs::read_to_string(config).unwrap();
    assert!(text.contains(from));
    let path = config.with_file_name("other.toml");
    fs::write(&path, text.replace(from, to)).unwrap();
    path
}

const FREEZE: &str = r#"freeze = ["all_modules.2.*", "z_transform.*"]"#;
const VALIDATION: &str = "
[validation]
votes = 1
overlap = 0.0
[augmentation]
bias = 0.1
flip_rows = true
";

#[test]
fn a_bundle_is_tuned_with_layers_kept_and_the_card_tells_how() {
    if !can_train() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let bundle = root().join("onnx/phantom");
    let config = configuration(folder.path(), "");
    let parameters = root().join("configs/phantom.parameters.json");
    let text = fs::read_to_string(&config)
        .unwrap()
        .replace("\"parameters.json\"", &format!("{parameters:?}"))
        .replace("[data]", &format!("start = {{ bundle = {bundle:?} }}\n{FREEZE}\n[data]"))
        .replace("validation_cases = 0", "validation_cases = 1")
        .replace("steps = 6", "steps = 1")
        .replace("learning_rate = 1e-3", "learning_rate = 1e-6")
        .replace("final_learning_rate = 1e-5", "final_learning_rate = 1e-6")
        .replace("[card]", &format!("{VALIDATION}\n[card]"));
    fs::write(&config, text).unwrap();
    let output = cdal(&["train", "--config", config.to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    let run = folder.path().join("run");

    let read = |name: &str| fs::read(run.join(name)).unwrap();
    let (before, after) = (read("start.safetensors"), read("weights.safetensors"));
    let before = safetensors::SafeTensors::deserialize(&before).unwrap();
    let after = safetensors::SafeTensors::deserialize(&after).unwrap();
    assert_eq!(before.len(), after.len());
    for (name, tensor) in before.iter() {
        let same = after.tensor(name).unwrap().data() == tensor.data();
        if name.starts_with("all_modules.2.") || name.starts_with("z_transform.") {
            assert!(same, "{name} was to stay");
        }
    }
    assert!(
        before.iter().any(|(name, tensor)| after.tensor(name).unwrap().data() != tensor.data())
    );

    let metrics: serde_json::Value = serde_json::from_slice(&read("metrics.jsonl")).unwrap();
    for dice in metrics["validation_dice"].as_array().unwrap() {
        assert!(dice.as_f64().unwrap() > 0.7, "it began as a trained model: {metrics}");
    }
    assert!(read("samples/step-000001-phantom-00005.png").starts_with(b"\x89PNG"));
    let card = fs::read_to_string(run.join("bundle/MODEL_CARD.md")).unwrap();
    for told in [
        "| steps | 1 of 3 slices |",
        "| augmentation | bias 0.1, flip_rows |",
        "| first weights | the bundle phantom |",
        "| kept as they were | all_modules.2.*, z_transform.* |",
        "mean over 1 cases, votes 1, overlap 0 |",
        "licence of the weights | MIT",
    ] {
        assert!(card.contains(told), "{told} in {card}");
    }

    let other = text_with(&config, "z_transform.*", "no_such.*");
    fs::remove_dir_all(&run).unwrap();
    let output = cdal(&["train", "--config", other.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("no weights are named like 'no_such.*'"), "{}", said(&output));
}
