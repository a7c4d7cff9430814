//! cDAL segmentation next to the scanner: the map of rooms.
//!
//! Data flows one way: `ingest` → `spool` → `segmenter` (`bundle` + `sampler` + `engine`) → `deliver`.
//! Which room may import which is held by `tests/it/rooms.rs`.

#![warn(clippy::print_stdout, clippy::print_stderr)] // `cli::output` says why

pub mod bench;
pub mod bundle;
pub mod cli;
pub mod codec;
pub mod config;
pub mod daemon;
pub mod deliver;
pub mod domain;
pub mod durable;
pub mod engine;
pub mod eval;
pub mod fleet;
pub mod http;
pub mod ingest;
pub mod page;
pub mod phantom;
pub mod sampler;
pub mod segmenter;
pub mod spool;
pub mod telemetry;
pub mod tls;
pub mod train;
pub mod truth;
pub mod upper_layer;
