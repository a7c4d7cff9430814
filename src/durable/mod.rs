//! Files that are either there in whole, on the disk, or not there at all.
//!
//! temp file in the same file system → fsync → rename → fsync of the directory. Whatever this program leaves behind
//! is written this way: the spool, the folders of `cdal workstation` and of destinations, results, checkpoints.
//! [`failpoint`] lets a test cut the power between any two steps.

pub mod failpoint;
mod lock;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::{NamedTempFile, TempPath};

pub use lock::Lock;

/// What the disk refused. Nothing half-written is left under the name that was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}: {source}; {}", remedy(source))]
pub struct DurableError {
    pub action: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

impl DurableError {
    /// For `map_err`.
    pub fn of(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self { action, path, source }
    }
}

/// What to do about it.
fn remedy(error: &io::Error) -> &'static str {
    use io::ErrorKind::{
        IsADirectory, NotADirectory, NotFound, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem,
        StorageFull,
    };
    match error.kind() {
        NotFound => "make the folder, or correct the path",
        PermissionDenied => "let the user that this runs as write there, or choose another path",
        ReadOnlyFilesystem => "mount the file system for writing, or choose another path",
        NotADirectory => "a file is in the place of a folder; choose another path",
        IsADirectory => "a folder is in the place of a file; choose another path",
        StorageFull | QuotaExceeded => "free some disk space",
        _ => "check that the disk is there, writable and not full",
    }
}

/// Whether an attempt that failed so may succeed later although nobody changed what was asked for: an address or a file is
/// in use, a disk is full, a network is not there.
#[must_use]
pub fn may_pass(error: &io::Error) -> bool {
    use io::ErrorKind::{
        AddrInUse, AddrNotAvailable, ConnectionAborted, ConnectionRefused, ConnectionReset,
        HostUnreachable, Interrupted, NetworkDown, NetworkUnreachable, OutOfMemory, QuotaExceeded,
        ResourceBusy, StaleNetworkFileHandle, StorageFull, TimedOut, WouldBlock,
    };
    matches!(
        error.kind(),
        AddrInUse
            | AddrNotAvailable
            | ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkDown
            | NetworkUnreachable
            | OutOfMemory
            | QuotaExceeded
            | ResourceBusy
            | StaleNetworkFileHandle
            | StorageFull
            | TimedOut
            | WouldBlock
    )
}

/// Ends every temp file's name, so that a start after a crash can tell what to remove.
pub const PART_SUFFIX: &str = ".part";

/// A file that is being written: counts and hashes what goes in. Removed if dropped before `persist`.
#[derive(Debug)]
pub struct Incoming {
    file: NamedTempFile,
    hash: Sha256,
    bytes: u64,
}

/// A whole file, synced to the disk under its temporary name. Removed if dropped before `persist`.
#[derive(Debug)]
pub struct Synced {
    path: TempPath,
    /// Of the whole file, hexadecimal.
    pub sha256: String,
    pub bytes: u64,
}

impl Incoming {
    /// # Errors
    /// If no file can be made in `directory`.
    pub fn create(directory: &Path) -> Result<Self, DurableError> {
        let file = tempfile::Builder::new()
            .suffix(PART_SUFFIX)
            .permissions(fs::Permissions::from_mode(0o666)) // less what the umask takes
            .tempfile_in(directory)
            .map_err(DurableError::of("create a temporary file in", directory))?;
        Ok(Self { file, hash: Sha256::new(), bytes: 0 })
    }

    /// # Errors
    /// If the disk refuses.
    pub fn write(&mut self, data: &[u8]) -> Result<(), DurableError> {
        failpoint::call("disk.write")
            .and_then(|()| self.file.write_all(data))
            .map_err(DurableError::of("write", self.file.path()))?;
        self.hash.update(data);
        self.bytes += data.len() as u64;
        Ok(())
    }

    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// # Errors
    /// If the disk refuses.
    pub fn sync(self) -> Result<Synced, DurableError> {
        failpoint::call("disk.sync")
            .and_then(|()| self.file.as_file().sync_all())
            .map_err(DurableError::of("sync", self.file.path()))?;
        Ok(Synced {
            path: self.file.into_temp_path(),
            sha256: hex(&self.hash.finalize()),
            bytes: self.bytes,
        })
    }
}

impl Synced {
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Renames to `target`, in place of what may be there, and syncs the directory.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn persist(self, target: &Path) -> Result<(), DurableError> {
        failpoint::call("disk.rename")
            .and_then(|()| self.path.persist(target).map_err(|error| error.error))
            .map_err(DurableError::of("rename to", target))?;
        sync_directory(folder_of(target))
    }

    /// Persists under `name` in `directory`. The same content already there is left alone; other content
    /// under that name is kept too, and this one gets a name with a part of its hash.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn persist_beside(self, directory: &Path, name: &str) -> Result<PathBuf, DurableError> {
        let nifti = name.strip_suffix(".nii.gz").map(|stem| (stem, "nii.gz"));
        let (stem, extension) = nifti.or(name.rsplit_once('.')).unwrap_or((name, "dcm"));
        let other = format!("{stem}-{}.{extension}", &self.sha256[..16]);
        failpoint::call("disk.rename").map_err(DurableError::of("rename in", directory))?;
        let mut path = self.path;
        for target in [directory.join(name), directory.join(other)] {
            match path.persist_noclobber(&target) {
                Ok(()) => return sync_directory(directory).map(|()| target),
                Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => {
                    if sha256_of_file(&target)? == self.sha256 {
                        return sync_directory(directory).map(|()| target);
                    }
                    path = error.path;
                }
                Err(error) => return Err(DurableError::of("rename to", target)(error.error)),
            }
        }
        let full = directory.join(format!("{stem}-{}.{extension}", self.sha256));
        path.persist(&full).map_err(|error| DurableError::of("rename to", &full)(error.error))?;
        sync_directory(directory).map(|()| full)
    }
}

/// Writes a file in place of what may be there.
///
/// # Errors
/// If the disk refuses; what was there is then still there.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), DurableError> {
    write_together(&[(path.to_owned(), bytes.to_owned())])
}

/// Writes files that belong together: none gets its name before all are whole on the disk.
///
/// # Errors
/// If the disk refuses, or a folder has one of the names.
pub fn write_together(files: &[(PathBuf, Vec<u8>)]) -> Result<(), DurableError> {
    let mut whole = Vec::with_capacity(files.len());
    for (path, bytes) in files {
        if path.is_dir() {
            return Err(DurableError::of("write", path)(io::ErrorKind::IsADirectory.into()));
        }
        whole.push((path, write(folder_of(path), bytes)?));
    }
    whole.into_iter().try_for_each(|(path, synced)| synced.persist(path))
}

/// Writes `bytes` as a synced temp file in `directory`.
///
/// # Errors
/// If the disk refuses.
pub fn write(directory: &Path, bytes: &[u8]) -> Result<Synced, DurableError> {
    let mut incoming = Incoming::create(directory)?;
    incoming.write(bytes)?;
    incoming.sync()
}

/// What is free on the disk of `path`, for this program.
///
/// # Errors
/// If it cannot be asked.
pub fn free_bytes(path: &Path) -> Result<u64, DurableError> {
    let disk = rustix::fs::statvfs(path)
        .map_err(|error| DurableError::of("measure", path)(error.into()))?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Creates `path` and its parents, synced.
///
/// # Errors
/// If the disk refuses.
pub fn create_directory(path: &Path) -> Result<(), DurableError> {
    fs::create_dir_all(path).map_err(DurableError::of("create", path))?;
    sync_directory(folder_of(path))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// # Errors
/// If the disk refuses.
pub fn sync_directory(path: &Path) -> Result<(), DurableError> {
    File::open(path).and_then(|d| d.sync_all()).map_err(DurableError::of("sync directory", path))
}

/// Removes what a crash left half written in `directory`.
///
/// # Errors
/// If the disk refuses.
pub fn remove_parts(directory: &Path) -> Result<usize, DurableError> {
    let mut removed = 0;
    let entries = fs::read_dir(directory).map_err(DurableError::of("list", directory))?;
    for entry in entries.flatten() {
        let path = entry.path();
        if path.to_string_lossy().ends_with(PART_SUFFIX) {
            fs::remove_file(&path).map_err(DurableError::of("remove", &path))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// # Errors
/// If the file cannot be read.
pub fn sha256_of_file(path: &Path) -> Result<String, DurableError> {
    let file = File::open(path).map_err(DurableError::of("open", path))?;
    Ok(sha256_of(file).map_err(DurableError::of("read", path))?.0)
}

/// The hash of everything that is left to be read, hexadecimal, and how many bytes that was.
///
/// # Errors
/// If it cannot be read.
pub fn sha256_of(mut bytes: impl io::Read) -> io::Result<(String, u64)> {
    let (mut hash, mut length) = (Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match bytes.read(&mut buffer)? {
            0 => return Ok((hex(&hash.finalize()), length)),
            count => {
                hash.update(&buffer[..count]);
                length += count as u64;
            }
        }
    }
}

/// Whether `name` from outside may be joined to a folder: 1 to 128 letters, digits, `.`, `-`, `_`, not starting
/// with a dot, not ending like a half-written file.
#[must_use]
pub fn is_file_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with('.')
        && !name.ends_with(PART_SUFFIX)
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string succeeds");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_content_is_stored_once_and_other_content_is_kept_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = |bytes: &[u8]| {
            write(folder.path(), bytes).unwrap().persist_beside(folder.path(), "a.dcm")
        };
        let first = store(b"one").unwrap();
        assert_eq!(store(b"one").unwrap(), first);
        let second = store(b"two").unwrap();
        assert_ne!(second, first);
        assert_eq!(store(b"two").unwrap(), second);
        assert_eq!(fs::read(first).unwrap(), b"one");
        assert_eq!(fs::read(second).unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn files_that_belong_together_are_all_there_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("taken")).unwrap();
        let files = |names: [&str; 2]| names.map(|name| (path(name), name.as_bytes().to_vec()));
        let error = write_together(&files(["a", "taken"])).unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only the folder");
        write_together(&files(["a", "b"])).unwrap();
        assert_eq!(fs::read(path("b")).unwrap(), b"b");
    }

    #[test]
    fn a_remedy_goes_with_its_reason() {
        let told = |kind: io::ErrorKind| DurableError::of("create", "a")(kind.into()).to_string();
        assert!(
            told(io::ErrorKind::NotADirectory)
                .ends_with("a file is in the place of a folder; choose another path")
        );
        assert!(told(io::ErrorKind::StorageFull).ends_with("free some disk space"));
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied] {
            assert!(!told(kind).contains("full"), "{}", told(kind));
        }
    }

    #[test]
    fn a_dropped_file_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        Incoming::create(folder.path()).unwrap().write(b"half").unwrap();
        drop(write(folder.path(), b"whole").unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
