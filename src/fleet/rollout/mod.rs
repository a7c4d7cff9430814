//! Who takes a release when, and what became of it: pure, on a clock that is handed in.
//!
//! [`Plan`] gives every device one start, computed from its id and the release alone: device, collector and operator
//! find the same one without asking each other. [`Ledger`] hears the devices' reports, tells what became of each, and
//! pauses a rollout in which too many fail. A pause only delays: what a device installs is settled by signatures.
//!
//! Called by `agent` (whether it is this device's turn, and if not, why) and `collect`.

mod account;
mod clock;
mod halt;
mod ledger;
mod plan;
mod report;
#[cfg(test)]
mod tests;
mod trail;

pub use account::{Account, Class, Line, StageAccount};
pub use clock::utc;
pub use halt::{Cause, Halt, Hold, Pause};
pub use ledger::{Alarm, Device, Entry, Ledger, Progress, Record};
pub use plan::{Place, Plan, PlanError, Stage, Unmet};
pub use report::{Failure, Named, Phase, Proof, Report};
pub use trail::Trail;
