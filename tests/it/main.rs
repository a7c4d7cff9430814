//! One binary for all integration tests; each file is a theme.

mod codec_samples;
mod project;
mod rooms;
mod sampler;
mod scripts;
