use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;
use tempfile::NamedTempFile;

/// Writes a file so that it is there whole or not at all.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    write_together(&[(path.to_owned(), bytes.to_owned())])
}

/// Writes files that belong together: none gets its name before all are whole on the disk.
pub(super) fn write_together(files: &[(PathBuf, Vec<u8>)]) -> anyhow::Result<()> {
    let failed = |path: &Path| format!("{}: cannot be written", path.display());
    let mut whole = Vec::new();
    for (path, bytes) in files {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let write = || -> std::io::Result<NamedTempFile> {
            if path.is_dir() {
                return Err(std::io::ErrorKind::IsADirectory.into());
            }
            let mut scratch = tempfile::Builder::new().permissions(mode()).tempfile_in(folder)?;
            scratch.write_all(bytes)?;
            scratch.as_file().sync_all()?;
            Ok(scratch)
        };
        whole.push((path, write().with_context(|| failed(path))?));
    }
    for (path, scratch) in whole {
        scratch.persist(path).map_err(|e| e.error).with_context(|| failed(path))?;
    }
    Ok(())
}

/// Readable for all, as files of any other program; the umask still applies.
fn mode() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    std::fs::Permissions::from_mode(0o644)
}
