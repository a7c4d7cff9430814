//! Named places where a test kills the process or fills the disk.
//!
//! A build with debug assertions, as every `cargo test` makes it, obeys the environment variable `CDAL_FAILPOINT`;
//! in a release build these functions are empty. No cargo feature: tests would have to be told to switch it on, and a
//! release with it would be one typing error away.
//!
//! ```text
//! CDAL_FAILPOINT=store.committed=abort      at the first pass
//! CDAL_FAILPOINT=store.committed@3=abort    at the third
//! CDAL_FAILPOINT=disk.write@3..9=full       from the third to the eighth: "no space left on device"
//! ```

use std::io;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Between the durable steps of an object, a job and a delivery, in the order in which they are passed.
pub const STEPS: [&str; 32] = [
    "ingest.written",      // the last byte is in a temporary file
    "ingest.synced",       // and on the disk
    "store.renamed",       // the payload has its name and no row
    "store.recorded",      // the row is not committed
    "store.committed",     // and now it is; the sender has heard nothing
    "job.claimed",         // it is running
    "job.computed",        // the products are in memory
    "finish.renamed",      // they are files without a row
    "finish.recorded",     // the job's end is not committed
    "finish.committed",    // and now it is; no destination has heard of it
    "delivery.confirmed",  // a destination has it and the spool does not know
    "delivery.recorded",   // the row is not committed
    "delivery.committed",  // and now it is
    "commitment.recorded", // a sender's request for storage commitment is in the spool; it has heard nothing
    "commitment.told",     // the sender has acknowledged the report and the spool does not know
    "custody.asked",       // a destination will be asked for its commitment, and has not been yet
    "custody.reported",    // its report has come and is recorded; it has heard nothing
    "tidy.committed",      // finished work is forgotten; its files are still there
    "shared.recorded",     // a series is on the shared queue's server, and not committed
    "shared.committed",    // and now it is; the spool does not know
    "shared.claimed",      // a job is this device's, and none of its payloads is here
    "shared.finished",     // its end and its results are on the server, and not committed
    "shared.settled",      // a destination has a result; that is on the server, and not committed
    "trust.kept",          // verified metadata is kept, and what may not be older than it is not
    "fleet.fetched",       // a piece of a release is in a `.part`
    "fleet.synced",        // a whole blob is on the disk under the name of a part
    "fleet.renamed",       // it has its name, and the directory is not synced
    "fleet.assembled",     // a bundle is whole under the name of a part
    "fleet.recorded",      // a step of the update is not committed
    "fleet.committed",     // and now it is; nothing has acted on it
    "fleet.swapping", // the trial and its first start are recorded; nothing of the candidate is loaded
    "fleet.between",  // the generation before has ended, the next one does not serve yet
];

/// Calls of the operating system that a full disk fails.
pub const CALLS: [&str; 3] = ["disk.write", "disk.sync", "disk.rename"];

const VARIABLE: &str = "CDAL_FAILPOINT";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Abort,
    Full,
}

#[derive(Debug)]
struct Plan {
    name: String,
    passes: Range<u64>,
    action: Action,
    passed: AtomicU64,
}

/// Ends the process here, as a power cut would, if the plan says so.
#[inline]
pub fn reach(step: &'static str) {
    if cfg!(debug_assertions) {
        debug_assert!(STEPS.contains(&step), "failpoint {step} is not in the list");
        if due(step) == Some(Action::Abort) {
            std::process::abort();
        }
    }
}

/// Fails here if the plan says so.
///
/// # Errors
/// `StorageFull`, with the system's own number.
#[inline]
pub(super) fn call(name: &'static str) -> io::Result<()> {
    if cfg!(debug_assertions) {
        debug_assert!(CALLS.contains(&name), "failpoint {name} is not in the list");
        match due(name) {
            Some(Action::Full) => {
                return Err(io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()));
            }
            Some(Action::Abort) => std::process::abort(),
            None => {}
        }
    }
    Ok(())
}

fn due(name: &str) -> Option<Action> {
    static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
    let plan = PLAN.get_or_init(|| {
        let text = std::env::var(VARIABLE).ok()?;
        Some(Plan::parse(&text).unwrap_or_else(|| panic!("{VARIABLE}={text} is not understood")))
    });
    let plan = plan.as_ref().filter(|plan| plan.name == name)?;
    let pass = plan.passed.fetch_add(1, Ordering::Relaxed) + 1;
    plan.passes.contains(&pass).then_some(plan.action)
}

impl Plan {
    fn parse(text: &str) -> Option<Self> {
        let (place, action) = text.split_once('=')?;
        let action = match action {
            "abort" => Action::Abort,
            "full" => Action::Full,
            _ => return None,
        };
        let (name, passes) = place.split_once('@').unwrap_or((place, "1"));
        let passes = match passes.split_once("..") {
            Some((first, end)) => first.parse().ok()?..end.parse().ok()?,
            None => passes.parse().ok().map(|pass: u64| pass..pass + 1)?,
        };
        let known = STEPS.contains(&name) || CALLS.contains(&name);
        known.then(|| Self { name: name.to_owned(), passes, action, passed: AtomicU64::new(0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_a_known_place_its_passes_and_what_happens() {
        let plan = Plan::parse("disk.write@3..9=full").unwrap();
        assert_eq!(
            (plan.name.as_str(), plan.passes, plan.action),
            ("disk.write", 3..9, Action::Full)
        );
        assert_eq!(Plan::parse("store.committed=abort").unwrap().passes, 1..2);
        assert_eq!(Plan::parse("store.committed@4=abort").unwrap().passes, 4..5);
        for wrong in
            ["", "store.committed", "no.such=abort", "store.committed=stop", "disk.sync@x=full"]
        {
            assert!(Plan::parse(wrong).is_none(), "{wrong}");
        }
    }
}
