use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use config::{File, FileFormat, Source, Value, ValueKind};

use super::ConfigError;
use super::environment::Variable;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    File(String),
    Variable(String),
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.write_str(path),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// Origin of every key, sections included.
pub(super) type Origins = BTreeMap<String, Origin>;

const VARIABLE_MARK: &str = "environment variable ";

/// Layers files and variables with the `config` crate and takes the origins out of its values.
pub(super) fn merge(
    files: &[&Path],
    variables: Vec<Variable>,
) -> Result<(toml::Value, Origins), ConfigError> {
    let mut builder = config::Config::builder();
    for path in files {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_path_buf(), source })?;
        let layer = Layer { path: path.display().to_string(), text };
        builder = builder.add_source(layer);
    }
    let merged = builder
        .add_source(Variables(variables))
        .build()
        .map_err(|error| ConfigError::Syntax(error.to_string()))?;
    let mut origins = Origins::new();
    let tree = convert(merged.cache, String::new(), &mut origins);
    Ok((tree, origins))
}

/// One file, under the name the user gave it.
#[derive(Debug, Clone)]
struct Layer {
    path: String,
    text: String,
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<config::Map<String, Value>, config::ConfigError> {
        let fail = |error: config::ConfigError| {
            config::ConfigError::Message(format!("{}: {error}", self.path))
        };
        let table = File::from_str(&self.text, FileFormat::Toml).collect().map_err(fail)?;
        Ok(table.into_iter().map(|(key, value)| (key, mark(value, &self.path))).collect())
    }
}

#[derive(Debug, Clone)]
struct Variables(Vec<Variable>);

impl Source for Variables {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<config::Map<String, Value>, config::ConfigError> {
        let value = |variable: &Variable| {
            let origin = format!("{VARIABLE_MARK}{}", variable.name);
            (variable.key.clone(), Value::new(Some(&origin), variable.text.clone()))
        };
        Ok(self.0.iter().map(value).collect())
    }
}

fn mark(value: Value, origin: &String) -> Value {
    let kind = match value.kind {
        ValueKind::Table(table) => {
            ValueKind::Table(table.into_iter().map(|(k, v)| (k, mark(v, origin))).collect())
        }
        ValueKind::Array(array) => {
            ValueKind::Array(array.into_iter().map(|v| mark(v, origin)).collect())
        }
        kind => kind,
    };
    Value::new(Some(origin), kind)
}

fn convert(value: Value, key: String, origins: &mut Origins) -> toml::Value {
    let origin = match value.origin() {
        Some(text) => match text.strip_prefix(VARIABLE_MARK) {
            Some(name) => Origin::Variable(name.to_owned()),
            None => Origin::File(text.to_owned()),
        },
        None => Origin::Default,
    };
    let converted = match value.kind {
        ValueKind::Table(table) => toml::Value::Table(
            table
                .into_iter()
                .map(|(name, value)| {
                    let below = join(&key, &name);
                    (name, convert(value, below, origins))
                })
                .collect(),
        ),
        ValueKind::Array(array) => toml::Value::Array(
            array
                .into_iter()
                .enumerate()
                .map(|(index, value)| convert(value, format!("{key}[{index}]"), origins))
                .collect(),
        ),
        ValueKind::Boolean(value) => value.into(),
        ValueKind::I64(value) => value.into(),
        ValueKind::Float(value) => value.into(),
        ValueKind::Nil => toml::Value::String(String::new()),
        ValueKind::String(value) => value.into(),
        other => toml::Value::String(other.to_string()), // beyond TOML's integers
    };
    origins.insert(key, origin);
    converted
}

/// `a.b`, as keys are shown.
pub(super) fn join(key: &str, name: &str) -> String {
    if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") }
}

/// Keys and values of a tree without its tables.
pub(super) fn leaves(value: &toml::Value) -> Vec<(String, String)> {
    fn walk(value: &toml::Value, key: String, out: &mut Vec<(String, String)>) {
        match value {
            toml::Value::Table(table) => {
                table.iter().for_each(|(name, value)| walk(value, join(&key, name), out));
            }
            toml::Value::Array(array) if array.iter().any(toml::Value::is_table) => {
                let elements = array.iter().enumerate();
                elements.for_each(|(index, value)| walk(value, format!("{key}[{index}]"), out));
            }
            value => out.push((key, value.to_string())),
        }
    }
    let mut out = Vec::new();
    walk(value, String::new(), &mut out);
    out
}

/// The place of `key` (`a.b[0].c`) in a tree: its parent and the last step.
pub(super) enum Step<'k> {
    Name(&'k str),
    Index(usize),
}

pub(super) fn steps(key: &str) -> Vec<Step<'_>> {
    key.split(['.', '['])
        .filter(|step| !step.is_empty())
        .map(|step| match step.strip_suffix(']').and_then(|index| index.parse().ok()) {
            Some(index) => Step::Index(index),
            None => Step::Name(step),
        })
        .collect()
}

pub(super) fn get_mut<'t>(tree: &'t mut toml::Value, key: &str) -> Option<&'t mut toml::Value> {
    steps(key).into_iter().try_fold(tree, |value, step| match step {
        Step::Name(name) => value.get_mut(name),
        Step::Index(index) => value.get_mut(index),
    })
}
