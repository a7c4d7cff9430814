use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::json;

use super::Refusal;
use super::identify::{self, Examined};
use crate::durable::{Incoming, Synced};
use crate::spool::{Arrival, JobId, Spool, Stored};
use crate::telemetry::{Way, audit, metrics};

/// Takes files that came whole and are all there is of their cases: by HTTP or from a watched folder.
///
/// DICOM files join the job of their series, as if they had come by C-STORE. Every other image is a case of its own,
/// known by its content: the same bytes again are the same job.
pub struct Intake {
    spool: Arc<Spool>,
    way: Way,
    on_change: Box<dyn Fn() + Send + Sync>,
}

/// A job that files went into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    pub job: JobId,
    /// Files of this hand-over that the spool did not have before.
    pub new_files: u64,
}

impl Intake {
    /// `on_change` is called after every hand-over; it must not block.
    pub fn new(spool: Arc<Spool>, way: Way, on_change: impl Fn() + Send + Sync + 'static) -> Self {
        Self { spool, way, on_change: Box::new(on_change) }
    }

    /// A temporary file in the spool.
    ///
    /// # Errors
    /// If there is no room.
    pub fn begin(&self) -> Result<Incoming, Refusal> {
        self.spool.check_free_space()?;
        Ok(Incoming::create(&self.spool.incoming())?)
    }

    /// What a file is, if it is an image this program reads and nothing of it is missing. `name` is how its giver calls
    /// it, where he does: results of what has no UIDs are named after it.
    ///
    /// # Errors
    /// If it is not.
    pub fn examine(&self, file: Synced, name: Option<&str>) -> Result<Examined, Refusal> {
        identify::examine(file, name)
    }

    /// Keeps `files` and makes their jobs ready; `from` names who gave them, for the audit trail.
    ///
    /// # Errors
    /// If one of them is no image this program reads, or not whole: then none is kept. As [`Self::keep`].
    pub fn accept(&self, files: Vec<Synced>, from: &str) -> Result<Vec<Accepted>, Refusal> {
        let count = files.len();
        let examine = |(index, file)| match self.examine(file, None) {
            Err(Refusal::Broken(reason)) if count > 1 => {
                Err(Refusal::Broken(format!("file {} of {count}: {reason}", index + 1)))
            }
            examined => examined,
        };
        let files = files.into_iter().enumerate().map(examine).collect::<Result<_, _>>()?;
        self.keep(files, from)
    }

    /// Keeps what was examined. It survives a power cut when this returns. Blocks on the disk.
    ///
    /// # Errors
    /// If the disk refuses: the same files may be handed over again.
    pub fn keep(&self, files: Vec<Examined>, from: &str) -> Result<Vec<Accepted>, Refusal> {
        let mut jobs: Vec<Accepted> = Vec::new();
        let mut quarantined = BTreeSet::new();
        for Examined { file, series, instance, class, extension } in files {
            let arrival = Arrival {
                sop_instance_uid: instance.clone(),
                sop_class_uid: class,
                series_instance_uid: series,
                association: 0,
                extension,
            };
            let (job, new_files) = match self.spool.store(&arrival, file)? {
                Stored::Accepted { job, .. } => (job, 1),
                Stored::Duplicate => match self.spool.job_of(&instance)? {
                    Some(job) => (job, 0),
                    None => continue,
                },
                Stored::Resent { job } => {
                    resent(&job, from);
                    (job, 0)
                }
                Stored::Quarantined { job } => {
                    quarantined.insert(job.as_str().to_owned());
                    (job, 1)
                }
            };
            metrics().object(self.way);
            match jobs.iter_mut().find(|known| known.job == job) {
                Some(known) => known.new_files += new_files,
                None => jobs.push(Accepted { job, new_files }),
            }
        }
        for Accepted { job, new_files } in &jobs {
            self.spool.complete(job)?;
            audit::record(
                "accepted",
                json!({ "job": job.as_str(), "files": new_files, "from": from }),
            );
            tracing::info!(%job, new_files, from, "case accepted");
        }
        for job in quarantined {
            tracing::error!(
                job,
                "an object came with a known SOP Instance UID and other content; the job is quarantined"
            );
        }
        (self.on_change)();
        Ok(jobs)
    }
}

/// Every object of a series without a result has come again: it is tried again.
pub(super) fn resent(job: &JobId, from: &str) {
    audit::record("resent", json!({ "job": job.as_str(), "from": from }));
    tracing::info!(%job, "all objects of a series without a result were sent again; it is tried again");
}
