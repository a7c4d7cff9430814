//! One binary for all integration tests; each file is a theme. Real sockets, real processes, real files.

mod bad_input;
mod codec_samples;
mod config;
mod crash;
mod delivery;
mod ingest;
mod project;
mod rooms;
mod sampler;
mod scripts;
mod serial;
mod support;
mod workstation;
