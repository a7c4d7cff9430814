//! Truth: images with the masks that are known to be right, and how close another mask comes to one.
//!
//! [`Dataset`] pairs the files of a folder, [`Pair::read`] gives image and truth on one grid, [`metrics`] holds the
//! definitions. Invariants: a truth lies on its image's grid and holds no value that the labels do not know; what
//! does not fit is an error and never bent. Called by `eval`, `train` and `cli`.

mod dataset;
mod error;
pub mod metrics;
mod pair;

pub use dataset::{Dataset, Pair, Split};
pub use error::TruthError;
