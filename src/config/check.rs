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
                || (fault.key == "ingest"
                    && ["ingest.", "http."].iter().any(|way| key.starts_with(way)))
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

/// What is wrong with a value of the wrong type, and what would be right. `message` is serde's.
fn remedy(message: &str) -> String {
    let Some(((what, found), expected)) = message
        .split_once(", expected ")
        .and_then(|(found, expected)| Some((found.split_once(": ")?, expected)))
        .filter(|((what, _), _)| ["invalid type", "invalid value"].contains(what))
    else {
        return message.to_owned();
    };
    let is_whole = WHOLE.iter().any(|kind| expected.starts_with(kind));
    let is_number = is_whole || expected.starts_with('f') || expected.starts_with("floating point");
    let wanted = if is_whole { "a whole number, not below 0" } else { expected };
    let told = format!("{what}: {found}, expected {wanted}");
    let text = found.strip_prefix("string \"").and_then(|text| text.strip_suffix('"'));
    if expected.starts_with("a string") || expected.starts_with("path") {
        return format!(
            "{told}; put it in quotes, with a unit if it is a duration, such as \"500ms\""
        );
    }
    match (text, expected) {
        (Some(text), "a sequence") => format!("{told}; write a list, such as [{text:?}]"),
        (None, "a sequence") if found == "map" => {
            format!("{told}; write its heading in double brackets, such as [[destination]]")
        }
        (Some(_), "a boolean") => format!("{told}; write true or false, without quotes"),
        (Some(text), _) if is_number => match (literal(text), bytes(text)) {
            (Some(_), _) => format!("{told}; remove the quotes"),
            (None, Some(number)) => {
                format!(
                    "{told}; sizes are numbers of bytes, without quotes and unit: write {number}"
                )
            }
            (None, None) => format!("{told}; write a number, without quotes and unit"),
        },
        _ => told,
    }
}

/// What serde calls whole numbers.
const WHOLE: [&str; 6] = ["u8", "u16", "u32", "u64", "usize", "a nonzero"];

/// Bytes of a size as people write it, such as `5GB` or `1.5 GiB`.
fn bytes(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 13] = [
        ("b", 1),
        ("k", 1000),
        ("kb", 1000),
        ("kib", 1 << 10),
        ("m", 1_000_000),
        ("mb", 1_000_000),
        ("mib", 1 << 20),
        ("g", 1_000_000_000),
        ("gb", 1_000_000_000),
        ("gib", 1 << 30),
        ("t", 1_000_000_000_000),
        ("tb", 1_000_000_000_000),
        ("tib", 1 << 40),
    ];
    let text = text.trim().to_ascii_lowercase();
    let end = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(end);
    let number: f64 = number.trim().replace('_', "").parse().ok()?;
    let (_, factor) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
    let bytes = number * factor as f64;
    (bytes >= 0.0 && bytes < i64::MAX as f64).then_some(bytes as u64)
}

/// Something of the right type, so that reading can go on behind a missing value.
fn placeholder(field: &str) -> Value {
    match field {
        "model" | "spool" => Value::Table(toml::Table::new()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_with_a_unit_is_told_as_the_number_to_write() {
        let found = |text: &str| remedy(&format!("invalid type: string {text:?}, expected u64"));
        assert!(found("5GB").ends_with("write 5000000000"), "{}", found("5GB"));
        assert!(found("1.5 GiB").ends_with("write 1610612736"));
        assert!(found("5").ends_with("remove the quotes"));
        assert!(found("plenty").ends_with("write a number, without quotes and unit"));
    }

    #[test]
    fn a_value_of_another_type_is_answered_with_what_would_be_right() {
        for (message, told) in [
            (
                "invalid type: string \"yes\", expected a boolean",
                "write true or false, without quotes",
            ),
            ("invalid type: integer `5`, expected a string", "such as \"500ms\""),
            ("invalid type: string \"A\", expected a sequence", "write a list, such as [\"A\"]"),
            ("invalid type: map, expected a sequence", "such as [[destination]]"),
            ("invalid value: integer `-1`, expected usize", "a whole number, not below 0"),
            ("invalid type: floating point `2.5`, expected u64", "a whole number, not below 0"),
            ("unknown variant `gpu`, expected one of `cpu`, `cuda`", "`cuda`"),
        ] {
            let found = remedy(message);
            assert!(found.ends_with(told), "{message}: {found}");
        }
    }
}
