//! Secrets come from files that only the service can read, never from the configuration or the environment.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where systemd puts the files of `LoadCredential=`.
const DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// The place of a credentials file: a relative path lies in `$CREDENTIALS_DIRECTORY` where that is set.
#[must_use]
pub fn locate(path: &Path) -> PathBuf {
    match std::env::var_os(DIRECTORY) {
        Some(directory) if path.is_relative() => Path::new(&directory).join(path),
        _ => path.to_owned(),
    }
}

/// Reads a file that holds a secret.
///
/// # Errors
/// What is wrong and what to do, without the path: if it cannot be read, or everyone can.
pub fn read(path: &Path) -> Result<String, String> {
    let path = locate(path);
    let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
    let mode = std::fs::metadata(&path).map_err(unreadable)?.permissions().mode();
    if mode & 0o007 != 0 {
        return Err("everyone may read this secret; run `chmod o= ` on it".to_owned());
    }
    std::fs::read_to_string(&path).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_everyone_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "s").unwrap();
        let allow = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode));
        allow(0o644).unwrap();
        assert!(read(&path).unwrap_err().contains("chmod"));
        allow(0o640).unwrap();
        assert_eq!(read(&path).unwrap(), "s");
        assert!(read(&folder.path().join("none")).unwrap_err().contains("cannot be read"));
    }
}
