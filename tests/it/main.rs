//! Integration tests: real sockets, real processes, real files.

mod config;
mod crash;
mod delivery;
mod ingest;
mod serial;
mod support;
mod workstation;
