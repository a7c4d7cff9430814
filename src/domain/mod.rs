//! What every room may speak of: images on a grid in space, masks, labels, where a result came from.
//!
//! Plain data: no I/O, no async, no model. Arrays are indexed [channel, slice, row, column];
//! coordinates are millimetres in the DICOM patient system (LPS: +x left, +y posterior, +z superior).

pub mod credential;
pub mod duration;
mod fault;
mod geometry;
mod label;
mod precision;
mod uid;
mod volume;

pub use fault::Fault;
pub use geometry::Geometry;
pub use label::{Code, Label};
pub use precision::{Precision, PrecisionChoice};
pub use uid::{SopReference, Uid, UidError};
pub use volume::{Provenance, Segmentation, Volume};
