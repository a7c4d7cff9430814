//! ONNX Runtime: finding the library, choosing the execution provider, sessions, the thread that owns them.
//!
//! The only room that names `ort`, beside `train`. One runtime library serves one process; sessions belong to
//! one owner thread per device ([`Device`]), to which work is handed as closures. Called by `segmenter`,
//! `bundle` (golden check) and `train`.

mod bound;
mod device;
mod engines;
mod generator;
mod operators;
mod placement;
mod runtime;
mod session;
mod standby;

pub use device::Device;
pub use engines::Engines;
pub use generator::{Generator, Graphs, Interface, Literal, Product};
pub use placement::{Placement, placements};
pub use runtime::{Purpose, Runtime};
pub(crate) use session::training;
pub use session::{Options, Provider};
pub use standby::{Progress, Serving, Standby};

/// What stops the engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("no usable {purpose} library of ONNX Runtime; looked at {looked}; {remedy}")]
    NoLibrary { purpose: &'static str, looked: String, remedy: &'static str },
    #[error("ONNX Runtime {version} at {path} cannot start: {reason}")]
    Start { version: String, path: String, reason: String },
    #[error(
        "execution provider {provider} cannot be used: {reason}; install its libraries or choose provider = \"cpu\""
    )]
    Provider { provider: &'static str, reason: String },
    #[error(
        "execution provider {provider} cannot be used: this library of ONNX Runtime was built without it; give a build with it (runtime.library, --runtime or ORT_DYLIB_PATH; see \"The runtime library\" in README.md), or choose provider = \"cpu\""
    )]
    NotBuilt { provider: &'static str },
    #[error(
        "graph {graph} has nodes that {provider} cannot run and that would fall to the CPU: {reason}; choose another provider, or allow it (runtime.allow_cpu_nodes, --allow-cpu-nodes)"
    )]
    CpuNodes { graph: &'static str, provider: &'static str, reason: String },
    #[error("graph {graph} does not load: {reason}")]
    Graph { graph: &'static str, reason: String },
    #[error("graph {graph} has {found} where the bundle needs {expected}; export the bundle again")]
    Interface { graph: &'static str, found: String, expected: String },
    #[error("graph {graph} failed to run: {reason}")]
    Run { graph: &'static str, reason: String },
    #[error("graph {graph} gave NaN or infinity; the weights or the input are damaged")]
    NotFinite { graph: &'static str },
    #[error("the engine's thread has ended; restart the program")]
    Gone,
}
