use std::{fmt, sync::Arc, time::Duration};

use crate::domain::Segmentation;

type Show = dyn Fn(Segmentation, usize) + Send + Sync;

/// Who wants to see the mask while votes are still drawn: after the first one, or as many as one batch holds, then each time
/// as many again have been drawn. Where all go into one batch, nothing is shown. The result is the same with and without.
#[derive(Clone)]
pub struct Preview {
    /// Time that the rest of the vote must be expected to take.
    pub(super) worth: Duration,
    show: Arc<Show>,
}

impl Preview {
    /// `show` gets the mask so far and the votes it was made of. It is called on the engine's thread, which waits for it.
    /// Where the rest of the vote takes less than `worth`, nothing is shown.
    pub fn new(
        worth: Duration,
        show: impl Fn(Segmentation, usize) + Send + Sync + 'static,
    ) -> Self {
        Self { worth, show: Arc::new(show) }
    }

    pub(super) fn show(&self, segmentation: Segmentation, votes: usize) {
        (self.show)(segmentation, votes);
    }
}

impl fmt::Debug for Preview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Preview").field("worth", &self.worth).finish_non_exhaustive()
    }
}
