//! Room under construction.

pub mod dimse;
pub mod part10;
pub mod serial;
