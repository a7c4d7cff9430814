//! From a graph's bytes to a session that runs it.

use ort::{
    ep,
    session::{Session, builder::GraphOptimizationLevel, builder::SessionBuilder},
    value::{Outlet, TensorElementType},
};
use serde::Deserialize;

use super::{EngineError, GraphCache, Runtime, cache, operators};
use crate::durable::DurableError;

/// Who runs the graphs. Asking for a GPU never ends on the CPU unsaid: a provider that cannot start is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    #[default]
    Cpu,
    Cuda,
    TensorRt,
}

impl Provider {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
        }
    }
}

/// How sessions are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    pub provider: Provider,
    /// Ordinal of the GPU; of no meaning for the CPU.
    pub device: i32,
    /// Threads inside an operator; `None` leaves the choice to the runtime (one per physical core).
    pub intra_threads: Option<usize>,
}

pub(super) fn session(
    runtime: &Runtime,
    graph: &'static str,
    bytes: &[u8],
    options: &Options,
) -> Result<Session, EngineError> {
    let failed = |e: ort::Error| EngineError::Graph { graph, reason: e.to_string() };
    match &runtime.cache {
        // Other providers' graphs hold parts that cannot be written as a graph.
        Some(cache) if options.provider == Provider::Cpu => {
            cached(runtime, cache, graph, bytes, options)
        }
        _ => builder(runtime, graph, options, GraphOptimizationLevel::All)?
            .commit_from_memory(bytes)
            .map_err(failed),
    }
}

/// A session of the graph as it was optimised before; else the runtime optimises it and writes it down.
fn cached(
    runtime: &Runtime,
    cache: &GraphCache,
    graph: &'static str,
    bytes: &[u8],
    options: &Options,
) -> Result<Session, EngineError> {
    let failed = |e: ort::Error| EngineError::Graph { graph, reason: e.to_string() };
    let key = cache::key(bytes, runtime.build, options);
    if let Some(optimised) = cache.get(&key) {
        let mut builder = builder(runtime, graph, options, GraphOptimizationLevel::Disable)?;
        match builder.commit_from_memory(&optimised) {
            Ok(session) => return Ok(session),
            Err(error) => {
                tracing::warn!(graph, %error, "a cached graph does not load; it is made anew");
                cache.forget(&key);
            }
        }
    }
    let mut builder = builder(runtime, graph, options, GraphOptimizationLevel::All)?;
    let scratch = cache.scratch();
    let written = scratch.as_ref().ok().map(|scratch| scratch.path().join("optimised.onnx"));
    if let Some(path) = &written {
        builder = builder.with_optimized_model_path(path).map_err(|e| failed(e.into()))?;
    }
    let session = builder.commit_from_memory(bytes).map_err(failed)?;
    let kept = match (scratch, written) {
        (Ok(_scratch), Some(path)) => std::fs::read(&path)
            .map_err(DurableError::of("read", path))
            .and_then(|optimised| cache.put(&key, &optimised)),
        (Err(error), _) => Err(error),
        (Ok(_), None) => Ok(()),
    };
    if let Err(error) = kept {
        tracing::warn!(graph, %error, "the optimised graph is not cached; the next start optimises it again");
    }
    Ok(session)
}

fn builder(
    runtime: &Runtime,
    graph: &'static str,
    options: &Options,
    level: GraphOptimizationLevel,
) -> Result<SessionBuilder, EngineError> {
    let failed = |reason: String| EngineError::Graph { graph, reason };
    let mut builder = Session::builder(&runtime.environment)
        .and_then(|b| Ok(b.with_optimization_level(level)?))
        .map_err(|e| failed(e.to_string()))?;
    // Threads of one graph would go on looking for work for tens of milliseconds, on the cores that the other graph needs.
    builder = builder
        .with_config_entry("session.force_spinning_stop", "1")
        .map_err(|e| failed(e.to_string()))?;
    if let Some(threads) = options.intra_threads {
        builder = builder.with_intra_threads(threads).map_err(|e| failed(e.to_string()))?;
    }
    if options.provider == Provider::Cpu {
        let domain = operators::domain().map_err(|e| failed(e.to_string()))?;
        builder = builder.with_operators(domain).map_err(|e| failed(e.to_string()))?;
    }
    with_provider(builder, options)
}

fn with_provider(
    builder: SessionBuilder,
    options: &Options,
) -> Result<SessionBuilder, EngineError> {
    let cuda = || ep::CUDA::default().with_device_id(options.device).build().error_on_failure();
    let tensorrt =
        || ep::TensorRT::default().with_device_id(options.device).build().error_on_failure();
    let providers = match options.provider {
        Provider::Cpu => return Ok(builder),
        Provider::Cuda => vec![cuda()],
        Provider::TensorRt => vec![tensorrt(), cuda()],
    };
    builder.with_execution_providers(providers).map_err(|e| EngineError::Provider {
        provider: options.provider.name(),
        reason: e.to_string(),
    })
}

/// Names, element types and ranks of inputs or outputs; a 0 in a shape stands for the batch dimension.
pub(super) fn expect(
    graph: &'static str,
    outlets: &[Outlet],
    wanted: &[(&str, &[usize])],
) -> Result<(), EngineError> {
    let describe_wanted = |shape: &[usize]| {
        shape.iter().map(|&n| if n == 0 { "N".into() } else { n.to_string() }).collect::<Vec<_>>()
    };
    for &(name, shape) in wanted {
        let expected = format!("{name} [{}]", describe_wanted(shape).join(", "));
        let mismatch = |found: String| EngineError::Interface { graph, found, expected };
        let Some(outlet) = outlets.iter().find(|outlet| outlet.name() == name) else {
            let names: Vec<_> = outlets.iter().map(Outlet::name).collect();
            return Err(mismatch(format!("only {}", names.join(", "))));
        };
        let found = outlet.dtype().tensor_shape().map(|s| s.to_vec()).unwrap_or_default();
        let kind = if name == "t" { TensorElementType::Int64 } else { TensorElementType::Float32 };
        let fits = found.len() == shape.len()
            && outlet.dtype().tensor_type() == Some(kind)
            && found.iter().zip(shape).all(|(&f, &w)| w == 0 || f < 0 || f == w as i64);
        if !fits {
            return Err(mismatch(format!("{name} {found:?}")));
        }
    }
    Ok(())
}
