use super::{Finding, Origin};

const PREFIX: &str = "CDAL_";
const SEPARATOR: &str = "__";
const SECTIONS: [&str; 9] =
    ["runtime", "model", "spool", "shared", "ingest", "results", "http", "destination", "daemon"];

/// One setting from the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Variable {
    pub(super) name: String,
    /// In the notation of the `config` crate: `destination[0].address`.
    pub(super) key: String,
    pub(super) text: String,
}

/// Picks the settings out of the environment: `CDAL_INGEST__DICOM__LISTEN` is `ingest.dicom.listen`,
/// `CDAL_DESTINATION__0__ADDRESS` is `destination[0].address`. A variable that only looks like a setting is a fault,
/// because it would be passed over in silence; other `CDAL_` variables are none of this room's business.
pub(super) fn read(
    environment: impl IntoIterator<Item = (String, String)>,
) -> (Vec<Variable>, Vec<Finding>) {
    let (mut variables, mut findings) = (Vec::new(), Vec::new());
    for (name, text) in environment {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        let rest = rest.to_ascii_lowercase();
        if rest.contains(SEPARATOR) {
            let mut key = String::new();
            for segment in rest.split(SEPARATOR) {
                if segment.parse::<usize>().is_ok() {
                    key.extend(["[", segment, "]"]);
                } else {
                    key.push_str(if key.is_empty() { "" } else { "." });
                    key.push_str(segment);
                }
            }
            variables.push(Variable { name, key, text });
        } else if let Some(section) =
            SECTIONS.iter().find(|s| rest.strip_prefix(**s).is_some_and(|r| r.starts_with('_')))
        {
            let key = &rest[section.len() + 1..];
            findings.push(Finding {
                problem: format!(
                    "is no setting; write {PREFIX}{}{SEPARATOR}{}, with two underscores",
                    section.to_ascii_uppercase(),
                    key.to_ascii_uppercase()
                ),
                key: rest.clone(),
                value: Some(format!("{text:?}")),
                origin: Origin::Variable(name),
            });
        }
    }
    variables.sort_by(|a, b| a.key.cmp(&b.key));
    (variables, findings)
}
