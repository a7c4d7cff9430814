use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::spool::JobId;

/// Cases whose pictures are kept.
const KEPT: usize = 12;

/// The next case computes meanwhile, and somebody waits for it.
const LEAST_PRIORITY: i32 = 19;

/// Pictures of the last cases, for the status page. In memory only; they are no results.
#[derive(Default)]
pub struct Gallery(Mutex<Wall>);

#[derive(Default)]
struct Wall {
    shown: VecDeque<(JobId, Arc<Pictures>)>,
    /// A thread is drawing.
    drawing: bool,
    /// To be drawn next.
    waiting: Option<(JobId, Drawing)>,
}

/// A case that can be drawn.
pub type Drawing = Box<dyn FnOnce() -> Option<Pictures> + Send>;

/// PNG files of the same slices: the image alone, with the mask, with the votes' disagreement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pictures {
    pub image: Vec<u8>,
    pub mask: Vec<u8>,
    pub disagreement: Vec<u8>,
    /// Votes that the mask was made of while more were to come.
    pub preview: Option<usize>,
}

impl Gallery {
    /// Draws a case on a thread of its own. While one is being drawn only the newest of the others waits: pictures must
    /// neither hold up cases nor gather them in memory.
    pub fn draw(self: &Arc<Self>, job: JobId, drawing: Drawing) {
        let mut wall = self.wall();
        wall.waiting = Some((job, drawing));
        if wall.drawing {
            return;
        }
        let gallery = Arc::clone(self);
        let draw = move || {
            // Of this thread alone, as Linux counts them. Where it is refused, pictures cost the next case a little.
            let _ = rustix::process::setpriority_process(None, LEAST_PRIORITY);
            while gallery.draw_next() {}
        };
        wall.drawing = std::thread::Builder::new().name("pictures".to_owned()).spawn(draw).is_ok();
    }

    /// `false` if there was nothing to draw: the thread ends.
    fn draw_next(&self) -> bool {
        let next = {
            let mut wall = self.wall();
            let next = wall.waiting.take();
            wall.drawing = next.is_some();
            next
        };
        let Some((job, drawing)) = next else { return false };
        let drawn = catch_unwind(AssertUnwindSafe(drawing));
        if let Some(pictures) = drawn.ok().flatten() {
            let mut wall = self.wall();
            wall.shown.retain(|(known, _)| *known != job);
            wall.shown.truncate(KEPT - 1);
            wall.shown.push_front((job, Arc::new(pictures)));
        }
        true
    }

    #[must_use]
    pub fn of(&self, job: &JobId) -> Option<Arc<Pictures>> {
        let wall = self.wall();
        wall.shown.iter().find(|(known, _)| known == job).map(|(_, shown)| Arc::clone(shown))
    }

    fn wall(&self) -> MutexGuard<'_, Wall> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_newest_of_a_burst_is_drawn_and_a_panic_ends_nothing() {
        let job = |n: u8| JobId::parse(&format!("{n:016x}")).unwrap();
        let pictures = || {
            let empty = Vec::new;
            let (image, mask, disagreement) = (empty(), empty(), empty());
            Some(Pictures { image, mask, disagreement, preview: None })
        };
        let gallery = Arc::new(Gallery::default());
        let (go, wait) = channel::<()>();
        let (begin, begun) = channel();
        let (told, done) = channel();
        gallery.draw(
            job(1),
            Box::new(move || {
                begin.send(()).unwrap();
                let _ = wait.recv();
                panic!("a drawing that fails");
            }),
        );
        begun.recv_timeout(Duration::from_secs(20)).unwrap();
        for n in 2..5 {
            let told = told.clone();
            let draw = move || {
                told.send(n).unwrap();
                pictures()
            };
            gallery.draw(job(n), Box::new(draw));
        }
        go.send(()).unwrap();
        assert_eq!(done.recv_timeout(Duration::from_secs(20)), Ok(4));
        while gallery.of(&job(4)).is_none() {
            std::thread::yield_now();
        }
        assert!((1..4).all(|n| gallery.of(&job(n)).is_none()));
    }

    #[test]
    fn a_case_takes_the_place_of_its_preview() {
        let job = JobId::parse(&format!("{:016x}", 1)).unwrap();
        let gallery = Arc::new(Gallery::default());
        for preview in [Some(1), Some(4), None] {
            let (image, mask, disagreement) = (Vec::new(), Vec::new(), Vec::new());
            let pictures = Pictures { image, mask, disagreement, preview };
            gallery.draw(job.clone(), Box::new(move || Some(pictures)));
            while gallery.of(&job).is_none_or(|shown| shown.preview != preview) {
                std::thread::yield_now();
            }
            assert_eq!(gallery.wall().shown.len(), 1);
        }
    }
}
