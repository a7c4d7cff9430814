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
mod ingest;
mod main_job;
mod phantom_model;
mod project;
mod rooms;
mod sampler;
mod scripts;
mod serial;
mod stopping;
mod support;
mod synthetic;
mod train;
mod train_data;
mod workstation;
