//! The update agent of one device: from a signed release to a model that runs, and back by itself.
//!
//! Invariants:
//! 1. One row of the agent's database says what is to be loaded; it is on the disk before anything acts on it.
//! 2. What is loaded is the last good content or the candidate on trial, never anything that was not verified.
//! 3. A start on trial is counted before the candidate is loaded, so that one that ends the process is left by itself.
//! 4. A local way back never lowers a floor.
//!
//! Called by `cli` (`serve`, `fleet status`).

mod config;
mod examine;
mod machine;
mod run;
mod shelf;
mod state;
mod status;
mod store;
mod supply;
#[cfg(test)]
mod tests;

pub use config::{Bounds, Config, Limits};
pub use examine::{Examined, Examiner, Finding, SUBCOMMAND, confine};
pub use machine::Machine;
pub use run::{Agent, Blueprint, Served, Swap};
pub use shelf::{FetchError, Shelf};
pub use state::{
    Candidate, Content, Duty, Event, Load, Note, Quarantined, Refusal, Setback, Sound, Stage,
    Standing, Timing, Trial, Verdict,
};
pub use status::{Status, Target};
pub use store::{Store, StoreError};
pub use supply::{Checked, Supply, Trouble, supply};
