//! Finds every fault, not only the first: after each one the tree is mended and read again.

use toml::Value;

use super::tree::{self, Origins};
use super::{Finding, Origin, Settings};

/// Far more than a file can have by mistake.
const MAX_FINDINGS: usize = 100;

/// Adds what is wrong to `findings`. `None` if so much is wrong that not all of it could be read.
pub(super) fn check(
    mut tree: Value,
    origins: &Origins,
    findings: &mut Vec<Finding>,
) -> Option<Settings> {
    let original = tree.clone();
    let mut as_number = Vec::new();
    for _ in 0..MAX_FINDINGS {
        let error = match serde_path_to_error::deserialize::<_, Settings>(tree.clone()) {
            Ok(settings) => {
                add_range_faults(&settings, &original, origins, findings);
                return Some(settings);
            }
            Err(error) => error,
        };
        let message = error.inner().to_string();
        // What follows repeats the key, on lines of its own.
        let message = message.lines().next().unwrap_or_default().to_owned();
        let mut key = error.path().to_string();
        if key == "." {
            key.clear();
        }
        if let Some(field) = quoted(&message, "missing field") {
            let key = tree::join(&key, field);
            if !insert(&mut tree, &key, placeholder(field)) {
                return None;
            }
            let problem = "is missing; this setting has no default".to_owned();
            note(findings, &original, origins, key, problem);
            continue;
        }
        if let Some(field) = quoted(&message, "unknown field")
            && !key.ends_with(field)
        {
            key = tree::join(&key, field);
        }
        // A variable is text; where a number or a truth value is wanted, it is read as one, once.
        if matches!(origins.get(&key), Some(Origin::Variable(_))) && !as_number.contains(&key) {
            let slot = tree::get_mut(&mut tree, &key)?;
            if let Some(value) = slot.as_str().and_then(literal) {
                *slot = value;
                as_number.push(key);
                continue;
            }
        }
        if !remove(&mut tree, &key) {
            return None;
        }
        note(findings, &original, origins, key, remedy(&message));
    }
    None
}

fn add_range_faults(
    settings: &Settings,
    original: &Value,
    origins: &Origins,
    findings: &mut Vec<Finding>,
) {
    let known: Vec<String> = findings.iter().map(|finding| finding.key.clone()).collect();
    for fault in settings.faults() {
        // What was mended is not what the user wrote; a destination without its kind means nothing at all.
        let mended = known.iter().any(|key| {
            fault.key == *key
                || key
                    .strip_suffix(".kind")
                    .is_some_and(|destination| fault.key.starts_with(destination))
        });
        if !mended {
            note(findings, original, origins, fault.key, fault.problem);
        }
    }
}

/// Also for keys that are not there: the origin is then that of the section around it.
fn note(
    findings: &mut Vec<Finding>,
    original: &Value,
    origins: &Origins,
    key: String,
    problem: String,
) {
    if findings.iter().any(|finding| finding.key == key) {
        return;
    }
    let value = tree::get_mut(&mut original.clone(), &key).map(|value| value.to_string());
    let mut around = key.as_str();
    let origin = loop {
        match origins.get(around) {
            Some(Origin::Default) | None if !around.is_empty() => {
                around = around.rfind(['.', '[']).map_or("", |end| &around[..end]);
            }
            found => break found.cloned().unwrap_or(Origin::Default),
        }
    };
    let origin = match origin {
        Origin::Default => first_file(origins),
        origin => origin,
    };
    findings.push(Finding { origin, key, value, problem });
}

fn first_file(origins: &Origins) -> Origin {
    origins.values().find(|o| matches!(o, Origin::File(_))).cloned().unwrap_or(Origin::Default)
}

fn quoted<'m>(message: &'m str, start: &str) -> Option<&'m str> {
    message.strip_prefix(start)?.trim_start().strip_prefix('`')?.split('`').next()
}

fn remedy(message: &str) -> String {
    if message.starts_with("invalid type: string") && !message.contains("expected a string") {
        format!("{message}; remove the quotes")
    } else if message.starts_with("invalid type") && message.contains("expected a string") {
        format!("{message}; put it in quotes, with a unit if it is a duration, such as \"500ms\"")
    } else {
        message.to_owned()
    }
}

/// Something of the right type, so that reading can go on behind a missing value.
fn placeholder(field: &str) -> Value {
    match field {
        "model" | "spool" | "ingest" | "dicom" => Value::Table(toml::Table::new()),
        "kind" => "folder".into(),
        _ => "placeholder".into(),
    }
}

fn literal(text: &str) -> Option<Value> {
    let text = text.trim();
    text.parse::<i64>()
        .map(Value::from)
        .or_else(|_| text.parse::<bool>().map(Value::from))
        .or_else(|_| text.parse::<f64>().map(Value::from))
        .ok()
}

fn insert(tree: &mut Value, key: &str, value: Value) -> bool {
    let (parent, name) = key.rsplit_once('.').unwrap_or(("", key));
    match tree::get_mut(tree, parent).and_then(Value::as_table_mut) {
        Some(table) => table.insert(name.to_owned(), value).is_none(),
        None => false,
    }
}

fn remove(tree: &mut Value, key: &str) -> bool {
    let mut steps = tree::steps(key);
    let Some(last) = steps.pop() else { return false };
    let parent = steps.into_iter().try_fold(tree, |value, step| match step {
        tree::Step::Name(name) => value.get_mut(name),
        tree::Step::Index(index) => value.get_mut(index),
    });
    match (parent, last) {
        (Some(Value::Table(table)), tree::Step::Name(name)) => table.remove(name).is_some(),
        // The others keep their numbers: an empty element is full of faults, but they are not the user's.
        (Some(Value::Array(array)), tree::Step::Index(index)) if index < array.len() => {
            array.truncate(index);
            true
        }
        _ => false,
    }
}
