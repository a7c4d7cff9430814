use std::sync::Arc;

use crate::http::{Drawing, Gallery, Model, Updates};
use crate::spool::{Claim, Product};

/// Makes products of a series. One thread owns it and calls it for one job at a time.
///
/// A panic inside is caught and fails the job for good.
pub trait Worker: Send + 'static {
    /// `claim.files`: the Part-10 files of one series in order of arrival, or one image of another format. The same
    /// files in the same revision must give the same products, UIDs and bytes included: a job that was cut off is run
    /// again.
    ///
    /// # Errors
    /// Whether trying again may help, and why not if not.
    fn process(&mut self, claim: &Claim) -> Result<Vec<Product>, JobError>;

    /// Draws the last case, where there is something to see. Taken after the case is on its way; run on another thread.
    fn pictures(&mut self) -> Option<Drawing> {
        None
    }

    /// Where the masks of cases may be shown while they are computed. Called once, before the first job.
    fn show_previews(&mut self, _gallery: &Arc<Gallery>) {}

    /// For inference requests beside the spool's jobs.
    fn model(&self) -> Option<Arc<dyn Model>> {
        None
    }

    /// How updates of it stand, where it has an agent.
    fn updates(&self) -> Option<Arc<dyn Updates>> {
        None
    }

    /// Without it jobs wait in the spool, and none of their attempts is used up.
    fn takes_jobs(&self) -> bool {
        true
    }
}

/// Stands where no model can be loaded: everything is taken in and kept.
#[derive(Debug, Clone, Copy)]
pub struct NoModel;

impl Worker for NoModel {
    fn process(&mut self, _claim: &Claim) -> Result<Vec<Product>, JobError> {
        Err(JobError::Transient("no model can be loaded".to_owned()))
    }

    fn takes_jobs(&self) -> bool {
        false
    }
}

impl<W: Worker + ?Sized> Worker for Box<W> {
    fn process(&mut self, claim: &Claim) -> Result<Vec<Product>, JobError> {
        (**self).process(claim)
    }

    fn pictures(&mut self) -> Option<Drawing> {
        (**self).pictures()
    }

    fn show_previews(&mut self, gallery: &Arc<Gallery>) {
        (**self).show_previews(gallery);
    }

    fn model(&self) -> Option<Arc<dyn Model>> {
        (**self).model()
    }

    fn updates(&self) -> Option<Arc<dyn Updates>> {
        (**self).updates()
    }

    fn takes_jobs(&self) -> bool {
        (**self).takes_jobs()
    }
}

/// The reason is logged and kept with the job: no patient data, no UID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// The same input will never do, such as a colour series for a grey model.
    #[error("{0}")]
    Permanent(String),
    /// No input explains it, such as an output that is not a number: the model is at fault. As final as `Permanent`.
    #[error("{0}")]
    Model(String),
    /// It may pass, such as a lack of memory.
    #[error("{0}")]
    Transient(String),
}
