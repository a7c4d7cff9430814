//! Relative paths lie in the folder of the file that names them, wherever the program was started; those of environment
//! variables lie in the working directory, as those of the command line do.
//!
//! Earlier versions took all of them from the working directory. Where that alone leads to something that exists, it still
//! does, with a warning.

use std::path::{Path, PathBuf};

use toml::Value;

use super::Origin;
use super::tree::{self, Origins};
use crate::domain::credential;

/// Keys of paths, `[]` for each element.
const PATHS: [&str; 10] = [
    "runtime.library",
    "runtime.cache",
    "model.bundle",
    "spool.directory",
    "ingest.folder.path",
    "destination[].path",
    "daemon.audit",
    "fleet.repository",
    "fleet.root",
    "fleet.directory",
];

/// Keys of files that lie in `$CREDENTIALS_DIRECTORY` where the service manager has set that.
const CREDENTIALS: [&str; 22] = [
    "shared.password",
    "ingest.dicom.tls.certificate",
    "ingest.dicom.tls.key",
    "ingest.dicom.tls.clients",
    "http.tokens",
    "http.tls.certificate",
    "http.tls.key",
    "http.tls.clients",
    "commitment.requester[].tls.ca",
    "commitment.requester[].tls.certificate",
    "commitment.requester[].tls.key",
    "destination[].token",
    "destination[].ca",
    "destination[].certificate",
    "destination[].key",
    "destination[].tls.ca",
    "destination[].tls.certificate",
    "destination[].tls.key",
    "fleet.ca",
    "fleet.collector.tls.ca",
    "fleet.collector.tls.certificate",
    "fleet.collector.tls.key",
];

/// Puts every relative path of a file into that file's folder.
pub(super) fn resolve(tree: &mut Value, origins: &Origins) {
    let (mut paths, mut credentials) = (Vec::new(), Vec::new());
    for pattern in PATHS {
        expand(tree, pattern, String::new(), &mut paths);
    }
    for pattern in CREDENTIALS {
        expand(tree, pattern, String::new(), &mut credentials);
    }
    let paths = paths.into_iter().map(|key| (key, false));
    for (key, is_credential) in paths.chain(credentials.into_iter().map(|key| (key, true))) {
        let Some(Origin::File(file)) = origins.get(&key) else { continue };
        let folder = Path::new(file).parent().unwrap_or(Path::new(""));
        let Some(Value::String(text)) = tree::get_mut(tree, &key) else { continue };
        if let Some(path) = resolved(&key, text, folder, is_credential)
            && let Some(path) = path.to_str()
        {
            path.clone_into(text);
        }
    }
}

/// `None` where the path stays as it is.
fn resolved(key: &str, text: &str, folder: &Path, is_credential: bool) -> Option<PathBuf> {
    let path = Path::new(text);
    let is_elsewhere = match key {
        "fleet.repository" => text.contains("://"),
        // A bare name is for the system's loader to find.
        "runtime.library" => path.components().count() == 1,
        _ => false,
    };
    let is_handed_over = is_credential && credential::locate(path).is_absolute();
    if text.is_empty() || path.is_absolute() || is_elsewhere || is_handed_over {
        return None;
    }
    let beside = folder.join(path);
    if !beside.exists() && path.exists() {
        tracing::warn!(
            key,
            "a relative path is taken from the working directory, because nothing is there in the folder of the \
             configuration file; write it relative to that file, or absolute"
        );
        return None;
    }
    Some(beside)
}

/// Every key of the tree that `pattern` stands for.
fn expand(tree: &mut Value, pattern: &str, done: String, found: &mut Vec<String>) {
    let Some((head, rest)) = pattern.split_once("[]") else {
        let key = done + pattern;
        if tree::get_mut(tree, &key).is_some_and(|value| value.is_str()) {
            found.push(key);
        }
        return;
    };
    let list = done + head;
    let count = tree::get_mut(tree, &list).and_then(|v| v.as_array().map(Vec::len)).unwrap_or(0);
    for index in 0..count {
        expand(tree, rest, format!("{list}[{index}]"), found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load_with;

    #[test]
    fn a_relative_path_lies_beside_its_file_and_that_of_a_variable_in_the_working_directory() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.toml");
        let text = "[model]\nbundle = \"models/mine\"\n[spool]\ndirectory = \"/var/spool/cdal\"\n\
                    [ingest.dicom]\n[ingest.folder]\npath = \"../in\"\n[http]\nlisten = \"127.0.0.1:0\"\n\
                    tokens = \"tokens\"\n[[destination]]\nname = \"a\"\nkind = \"folder\"\npath = \"out\"\n";
        std::fs::write(&file, text).unwrap();
        let variable = ("CDAL_DAEMON__AUDIT".to_owned(), "audit.jsonl".to_owned());
        let settings = load_with(&[&file], [variable]).unwrap().settings;
        assert_eq!(settings.model.bundle, folder.path().join("models/mine"));
        assert_eq!(settings.spool.directory, Path::new("/var/spool/cdal"));
        assert_eq!(settings.ingest.folder.path, Some(folder.path().join("../in")));
        assert_eq!(settings.destination[0].path, Some(folder.path().join("out")));
        assert_eq!(settings.http.tokens, Some(folder.path().join("tokens")));
        assert_eq!(settings.daemon.audit, Some("audit.jsonl".into()));
    }

    #[test]
    fn what_only_the_working_directory_has_is_still_found_there() {
        let folder = tempfile::tempdir().unwrap();
        let here = "src/config/paths.rs"; // tests run in the project's folder
        assert_eq!(resolved("model.bundle", here, folder.path(), false), None);
        assert_eq!(resolved("runtime.library", "libonnxruntime.so", folder.path(), false), None);
        assert_eq!(resolved("fleet.repository", "https://a/b", folder.path(), false), None);
        let stick = resolved("fleet.repository", "stick", folder.path(), false);
        assert_eq!(stick, Some(folder.path().join("stick")));
    }

    #[test]
    fn every_key_of_a_path_is_one_of_the_schema() {
        let schema = crate::config::schema().to_string();
        for pattern in PATHS.iter().chain(&CREDENTIALS) {
            let name = pattern.rsplit(['.', ']']).next().unwrap();
            assert!(schema.contains(&format!("\"{name}\":")), "{pattern}");
        }
    }
}
