use std::path::{Path, PathBuf};

use super::{Received, Refusal, Sink, identify};
use crate::durable::{self, DurableError, Incoming, Synced};

/// How an object came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    Dicom,
    Serial,
}

/// An object that is in the folder to stay.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Landed {
    pub path: PathBuf,
    pub bytes: u64,
    pub via: Via,
}

/// Puts objects into a folder as `<SOP Instance UID>.dcm`. The same bytes again change nothing; other bytes under
/// a known name are kept beside the first.
pub struct FolderSink {
    folder: PathBuf,
    on_landed: Box<dyn Fn(&Landed) + Send + Sync>,
}

impl FolderSink {
    /// `on_landed` is called for every object when it is safe, before its sender is told.
    ///
    /// # Errors
    /// If the folder cannot be made or cleared of half-written files.
    pub fn open(
        folder: &Path,
        on_landed: impl Fn(&Landed) + Send + Sync + 'static,
    ) -> Result<Self, DurableError> {
        durable::create_directory(folder)?;
        durable::remove_parts(folder)?;
        Ok(Self { folder: folder.to_owned(), on_landed: Box::new(on_landed) })
    }

    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Keeps a file under `name`, which the caller has checked.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn land(&self, name: &str, file: Synced, via: Via) -> Result<(), DurableError> {
        let bytes = file.bytes;
        let path = file.persist_beside(&self.folder, name)?;
        (self.on_landed)(&Landed { path, bytes, via });
        Ok(())
    }
}

impl Sink for FolderSink {
    fn begin(&self) -> Result<Incoming, Refusal> {
        Ok(Incoming::create(&self.folder)?)
    }

    fn store(&self, received: &Received, file: Synced) -> Result<(), Refusal> {
        identify::series_of(received, file.path())?;
        Ok(self.land(&format!("{}.dcm", received.sop_instance_uid), file, Via::Dicom)?)
    }
}
