use std::fmt::Write;
use std::path::PathBuf;

use super::Origin;

/// One fault, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub origin: Origin,
    /// Whole key, such as `destination[0].address`.
    pub key: String,
    /// As it is written; `None` if it is missing.
    pub value: Option<String>,
    pub problem: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read {path}: {source}")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("not TOML: {0}")]
    Syntax(String),
    #[error("{}", list(.0))]
    Faults(Vec<Finding>),
}

fn list(findings: &[Finding]) -> String {
    let plural = if findings.len() == 1 { "" } else { "s" };
    let mut text = format!("{} fault{plural} in the configuration", findings.len());
    for Finding { origin, key, value, problem } in findings {
        let value = value.as_ref().map(|value| format!(" = {value}")).unwrap_or_default();
        write!(text, "\n  {origin}: {key}{value}: {problem}")
            .expect("writing to a string succeeds");
    }
    text
}
