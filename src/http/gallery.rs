use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::spool::JobId;

/// Cases whose pictures are kept.
const KEPT: usize = 12;

/// Pictures of the last cases, for the status page. In memory only; they are no results.
#[derive(Debug, Default)]
pub struct Gallery {
    shown: Mutex<VecDeque<(JobId, Arc<Pictures>)>>,
    drawing: AtomicBool,
}

/// PNG files of the same slices: the image alone, with the mask, with the votes' disagreement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pictures {
    pub image: Vec<u8>,
    pub mask: Vec<u8>,
    pub disagreement: Vec<u8>,
}

impl Gallery {
    /// Draws a case on a thread of its own. While one is being drawn, others are passed over: pictures must not hold
    /// up cases.
    pub fn draw(
        self: &Arc<Self>,
        job: JobId,
        drawing: impl FnOnce() -> Option<Pictures> + Send + 'static,
    ) {
        if self.drawing.swap(true, Ordering::AcqRel) {
            return;
        }
        let gallery = Arc::clone(self);
        let draw = move || {
            let _done = Done(&gallery.drawing);
            if let Some(pictures) = drawing() {
                let mut shown = gallery.shown();
                shown.truncate(KEPT - 1);
                shown.push_front((job, Arc::new(pictures)));
            }
        };
        if std::thread::Builder::new().name("pictures".to_owned()).spawn(draw).is_err() {
            self.drawing.store(false, Ordering::Release);
        }
    }

    #[must_use]
    pub fn of(&self, job: &JobId) -> Option<Arc<Pictures>> {
        self.shown().iter().find(|(known, _)| known == job).map(|(_, shown)| Arc::clone(shown))
    }

    fn shown(&self) -> MutexGuard<'_, VecDeque<(JobId, Arc<Pictures>)>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the drawing, also if it panics.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
