//! `cdal train` as its users run it: from any folder, told what goes on, stopped and gone on with.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::project::{root, said};
use crate::support::can_train;

/// A run of `steps` that makes a checkpoint at the end alone. `python`: a line of the configuration.
fn configuration(folder: &Path, steps: u32, python: &str) -> PathBuf {
    let parameters = fs::read_to_string(root().join("configs/phantom.parameters.json")).unwrap();
    let smaller = parameters.replace("\"ch_mult\": [1, 1, 2]", "\"ch_mult\": [1, 1]");
    fs::write(folder.join("parameters.json"), smaller).unwrap();
    let text = format!(
        r#"
run_folder = "run"
{python}
[model]
preset = "phantom"
parameters = "parameters.json"
seed = 5
[data]
kind = "phantom"
first_seed = 10
validation_first_seed = 5
validation_cases = 1
[validation]
votes = 1
overlap = 0.0
[optimiser]
steps = {steps}
batch = 2
learning_rate = 1e-3
final_learning_rate = 1e-5
betas = [0.5, 0.9]
ema_decay = 0.9
checkpoint_every = 100000
intra_threads = 1
[card]
name = "tiny"
version = "0.0.1"
weights = "a test's"
data = "phantoms"
licence = "MIT OR Apache-2.0"
"#
    );
    let path = folder.join("train.toml");
    fs::write(&path, text).unwrap();
    path
}

/// From a folder that has nothing to do with the project.
fn train(config: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cdal"));
    command.args(["train", "--config"]).arg(config).args(more);
    command.current_dir(config.parent().unwrap()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Lines of stderr up to one with `words`.
fn until(child: &mut Child, words: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
    let mut reader = stderr.lines();
    for line in reader.by_ref() {
        lines.push(line.unwrap());
        if lines.last().is_some_and(|line| line.contains(words)) {
            // The rest is read, so that the child is not held up.
            std::thread::spawn(move || reader.for_each(drop));
            return lines;
        }
    }
    panic!("{words:?} is not in {lines:?}")
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_run_is_stopped_with_a_checkpoint_and_gone_on_with_from_another_folder() {
    if !can_train() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // No `python`: the interpreter and its package are found from the program's own place.
    let config = configuration(folder.path(), 5000, "");
    let mut child = train(&config, &[]).spawn().unwrap();
    let lines = until(&mut child, "step 1/5000");
    assert!(lines[0].contains("making the training graphs"), "not silent at first: {lines:?}");
    signal(&child, "-INT");
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(1));
    let state = fs::read(folder.path().join("run/last/state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
    let step = state["step"].as_u64().unwrap();
    assert!((1..5000).contains(&step), "{state}");

    let mut child = train(&config, &["--resume"]).spawn().unwrap();
    let next = format!("step {}/5000", step + 1);
    until(&mut child, &next);
    signal(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn a_stopped_run_says_where_its_checkpoint_is_and_how_to_go_on() {
    if !can_train() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = configuration(folder.path(), 5000, "");
    let mut child = train(&config, &[]).spawn().unwrap();
    let stderr = child.stderr.take().unwrap();
    let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("step 1/5000")));
    signal(&child, "-TERM");
    let rest: Vec<_> = lines.collect();
    child.wait().unwrap();
    let last = rest.last().unwrap();
    assert!(last.contains("run/last") && last.contains("--resume"), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("stopping after this step")), "{rest:?}");
}

#[test]
fn pictures_of_validation_have_a_page_with_a_legend() {
    if !can_train() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = configuration(folder.path(), 1, "");
    let output = train(&config, &[]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let page = fs::read_to_string(folder.path().join("run/samples/index.html")).unwrap();
    for words in ["the truth on it", "step-000001-phantom-00005.png", "rgb("] {
        assert!(page.contains(words), "{words}: {page}");
    }
}

/// What a run ends with that has no fit interpreter.
fn with_python(python: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let config = configuration(folder.path(), 1, &format!("python = \"{python}\""));
    train(&config, &[]).output().unwrap()
}

#[test]
fn an_interpreter_that_is_not_there_is_named_with_the_key_to_set() {
    if !can_train() {
        return;
    }
    let output = with_python("/none/bin/python");
    let words = said(&output);
    assert_eq!(output.status.code(), Some(1), "{words}");
    for part in ["/none/bin/python does not start", "`python`", "make python"] {
        assert!(words.contains(part), "{part}: {words}");
    }
}

#[test]
fn pairs_without_a_split_are_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    let config = configuration(folder.path(), 1, "");
    let text = fs::read_to_string(&config).unwrap();
    let start = text.find("kind = \"phantom\"").unwrap();
    let end = text.find("[validation]").unwrap();
    let pairs = "kind = \"pairs\"\nfolder = \"data\"\nvalidation_cases = 1\n";
    fs::write(&config, format!("{}{pairs}{}", &text[..start], &text[end..])).unwrap();
    let data = folder.path().join("data");
    let made = crate::project::cdal(&["phantom", "--out", data.to_str().unwrap(), "--count", "3"]);
    assert!(made.status.success(), "{}", said(&made));
    if can_train() {
        let output = train(&config, &[]).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let card = fs::read_to_string(folder.path().join("run/bundle/MODEL_CARD.md")).unwrap();
        assert!(card.contains("| cases | 2 |"), "{card}");
    }
}
