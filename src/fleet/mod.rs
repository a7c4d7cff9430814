//! Signed releases for many devices: published as a TUF repository, taken by an agent in each daemon, rolled out in
//! waves, rolled back by themselves.

pub mod agent;
pub mod collect;
mod release;
pub mod rollout;

pub use release::{Blob, BundleRef, Probation, Release, Rollout, SCHEMA, Wave};
