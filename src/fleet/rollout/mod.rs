//! Who takes a release when, and what became of it: pure, on a clock that is handed in.
//!
//! [`Plan`] gives every device one start, computed from its id and the release alone: device, collector and operator
//! find the same one without asking each other.
//!
//! Called by `agent` (whether it is this device's turn, and if not, why).

mod clock;
mod plan;

pub use clock::utc;
pub use plan::{Place, Plan, PlanError, Stage, Unmet};
