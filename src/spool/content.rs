use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use super::Spool;

/// What has to be known of an object's content. The spool reads no format itself: `ingest` does it for it. Blocks.
pub trait Content: Debug + Send + Sync + 'static {
    /// Whether the file can be read to its end.
    fn is_whole(&self, file: &Path) -> bool;

    /// What differs between two files under one SOP Instance UID, by the names of attributes; nothing if they hold the
    /// same instance. Never a value.
    fn differences(&self, known: &Path, other: &Path) -> Vec<String>;
}

impl Spool {
    /// From now on objects are known by their content. Before that, two files hold the same instance if their bytes
    /// are equal, and whatever was accepted is whole.
    pub fn understand(&self, content: Arc<dyn Content>) {
        let _ = self.content.set(content);
    }

    pub(super) fn is_whole(&self, file: &Path) -> bool {
        self.content.get().is_none_or(|content| content.is_whole(file))
    }
}
