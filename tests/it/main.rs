//! One binary for all integration tests.

mod project;
mod rooms;
mod sampler;
