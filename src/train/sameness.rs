//! What a resumed run must share with the one it goes on with, or its steps would not be the same.

use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Config, Data, TrainError, tools::file};

/// All that the steps of a run depend on, by sections of the configuration; `cases` identifies the cases read from
/// folders. Where checkpoints go, how often, and on how many threads is left out.
pub(super) fn sameness(config: &Config, cases: &str) -> Result<Value, TrainError> {
    let path = &config.model.parameters;
    let parameters = std::fs::read(path).map_err(|e| file(path, &e))?;
    let model = &config.model;
    Ok(json!({
        "model": {
            "preset": model.preset,
            "parameters": hex(&Sha256::digest(&parameters)),
            "seed": model.seed,
            "freeze": model.freeze,
        },
        "data": match &config.data {
            Data::Phantom { first_seed, .. } => json!({ "first_seed": first_seed }),
            Data::Pairs { .. } => json!({ "cases": cases }),
        },
        "augmentation": config.augmentation,
        "optimiser": config.optimiser,
        "adversary": config.adversary,
    }))
}

/// # Errors
/// If `now` differs from `before`, with each key that does. Keys that an earlier version did not write are passed over.
pub(super) fn refuse_changes(folder: &Path, before: &Value, now: &Value) -> Result<(), TrainError> {
    let mut changes = Vec::new();
    compare("", before, now, &mut changes);
    if changes.is_empty() {
        return Ok(());
    }
    Err(TrainError::Changed { run_folder: folder.into(), changes: changes.join(", ") })
}

fn compare(key: &str, before: &Value, now: &Value, changes: &mut Vec<String>) {
    if let (Value::Object(before), Value::Object(now)) = (before, now) {
        for (name, before) in before {
            let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            compare(&key, before, now.get(name).unwrap_or(&Value::Null), changes);
        }
    } else if before != now {
        changes.push(match key {
            "data.cases" => "data (other training cases or labels)".into(),
            "model.parameters" => "model.parameters (the file's content)".into(),
            _ => format!("{key} (was {before}, is {now})"),
        });
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_that_differs_is_named_and_new_keys_are_passed_over() {
        let before = json!({"optimiser": {"batch": 8, "steps": 9}, "data": {"cases": "ab"}});
        let refuse = |now| refuse_changes(Path::new("run"), &before, &now);
        let mut now = before.clone();
        now["optimiser"]["added"] = json!(1);
        assert!(refuse(now.clone()).is_ok());
        now["optimiser"]["batch"] = json!(4);
        now["data"]["cases"] = json!("cd");
        let said = refuse(now).unwrap_err().to_string();
        assert!(said.contains("optimiser.batch (was 8, is 4)"), "{said}");
        assert!(said.contains("data (other training cases or labels)"), "{said}");
        assert!(!said.contains("steps"), "{said}");
    }
}
