//! One binary for all integration tests; each file is a theme. Real sockets, real processes, real files.

mod bad_input;
mod codec_damage;
mod codec_dicom;
mod codec_nifti;
mod codec_samples;
mod codec_seg;
mod config;
mod crash;
mod delivery;
mod eval;
mod http;
mod ingest;
mod main_job;
mod phantom_model;
mod project;
mod rooms;
mod sampler;
mod scripts;
mod serial;
mod serve_http;
mod support;
mod surroundings;
mod synthetic;
mod train;
mod web_destinations;
mod workstation;
