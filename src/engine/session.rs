//! From a graph's bytes to a session that runs it.

use std::path::Path;

use ort::{
    ep,
    session::{Session, builder::GraphOptimizationLevel, builder::SessionBuilder},
    value::{Outlet, TensorElementType},
};
use serde::Deserialize;

use super::{EngineError, Engines, Runtime, operators};
use crate::domain::PrecisionChoice;

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
    /// Whether the CPU may run what a GPU's provider cannot; else such a graph is refused.
    pub allow_cpu_nodes: bool,
    pub precision: PrecisionChoice,
}

/// What a session is made of.
#[derive(Clone, Copy)]
pub(super) struct Making<'a> {
    pub runtime: &'a Runtime,
    pub options: &'a Options,
    /// Where TensorRT keeps its engines.
    pub engines: Option<&'a Engines>,
    /// Folder for a record of every node that runs.
    pub profile: Option<&'a Path>,
    /// Whether inputs and outputs stay where they are from run to run, so that CUDA may record a run and replay it.
    pub is_recorded: bool,
}

impl<'a> Making<'a> {
    pub fn new(runtime: &'a Runtime, options: &'a Options) -> Self {
        Self { runtime, options, engines: None, profile: None, is_recorded: false }
    }

    /// `shapes`: each input with its dimensions but the first, which is 1 to `most`.
    pub fn session(
        self,
        graph: &'static str,
        bytes: &[u8],
        shapes: &[(&str, &[usize])],
        most: usize,
    ) -> Result<Session, EngineError> {
        let failed = |reason: String| EngineError::Graph { graph, reason };
        let mut builder = self.builder(graph).map_err(|e: ort::Error| failed(e.to_string()))?;
        builder = self.with_provider(builder, shapes, most)?;
        builder.commit_from_memory(bytes).map_err(|error| {
            let (reason, provider) = (error.to_string(), self.options.provider);
            // The runtime has no code of its own for this.
            if provider != Provider::Cpu && reason.contains("fallback to CPU EP") {
                EngineError::CpuNodes { graph, provider: provider.name(), reason }
            } else {
                failed(reason)
            }
        })
    }

    fn builder(self, graph: &str) -> ort::Result<SessionBuilder> {
        let mut builder = Session::builder(&self.runtime.environment)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            // Threads of one graph would go on looking for work for tens of milliseconds, on the cores that the other
            // graph needs.
            .with_config_entry("session.force_spinning_stop", "1")?;
        if let Some(threads) = self.options.intra_threads {
            builder = builder.with_intra_threads(threads)?;
        }
        if let Some(folder) = self.profile {
            builder = builder.with_profiling(folder.join(graph))?;
        }
        if self.options.provider == Provider::Cpu {
            builder = builder.with_operators(operators::domain(self.options.intra_threads)?)?;
        } else if !self.options.allow_cpu_nodes {
            builder = builder.with_disable_cpu_fallback()?;
        }
        Ok(builder)
    }

    fn with_provider(
        self,
        builder: SessionBuilder,
        shapes: &[(&str, &[usize])],
        most: usize,
    ) -> Result<SessionBuilder, EngineError> {
        let Options { provider, device, allow_cpu_nodes, .. } = *self.options;
        let is_recorded = self.is_recorded
            && provider == Provider::Cuda
            && !allow_cpu_nodes // which cannot be recorded
            && self.profile.is_none();
        let cuda = || {
            ep::CUDA::default()
                .with_device_id(device)
                // Float32 is float32: with ten bits of mantissa the golden case is no longer met.
                .with_tf32(false)
                // Trying out every algorithm takes seconds for each batch shape, and finds hardly better ones.
                .with_conv_algorithm_search(ep::cuda::ConvAlgorithmSearch::Heuristic)
                .with_cuda_graph(is_recorded)
                .build()
                .error_on_failure()
        };
        let tensorrt = || {
            let mut tensorrt = ep::TensorRT::default()
                .with_device_id(device)
                .with_profile_min_shapes(profile(shapes, 1))
                .with_profile_opt_shapes(profile(shapes, most))
                .with_profile_max_shapes(profile(shapes, most));
            if let Some(engines) = self.engines {
                tensorrt = tensorrt
                    .with_engine_cache(true)
                    .with_engine_cache_path(engines.folder().display())
                    .with_engine_cache_prefix("cdal")
                    .with_timing_cache(true)
                    .with_timing_cache_path(engines.timings().display());
            }
            tensorrt.build().error_on_failure()
        };
        let providers = match provider {
            Provider::Cpu => return Ok(builder),
            Provider::Cuda => vec![cuda()],
            Provider::TensorRt => vec![tensorrt(), cuda()],
        };
        builder.with_execution_providers(providers).map_err(|e| {
            let reason = e.to_string();
            if reason.contains("not enabled in this build") {
                return EngineError::NotBuilt { provider: provider.name() };
            }
            let reason = reason.trim().trim_end_matches('.').to_owned();
            EngineError::Provider { provider: provider.name(), reason }
        })
    }
}

/// Options of a training session: the runtime's own, and our kernels for what its graphs spell by the domain `cdal`.
pub(crate) fn training(
    runtime: &Runtime,
    intra_threads: usize,
) -> Result<SessionBuilder, ort::Error> {
    let builder = Session::builder(&runtime.environment)?.with_intra_threads(intra_threads)?;
    Ok(builder.with_operators(operators::domain(Some(intra_threads))?)?)
}

/// Shapes of inputs as TensorRT reads them, such as `x:2x1x32x32,t:2`.
fn profile(shapes: &[(&str, &[usize])], batch: usize) -> String {
    let shape = |(name, rest): &(&str, &[usize])| {
        let sizes: Vec<_> = [&[batch], *rest].concat().iter().map(usize::to_string).collect();
        format!("{name}:{}", sizes.join("x"))
    };
    shapes.iter().map(shape).collect::<Vec<_>>().join(",")
}

/// Names, element types and dimensions of inputs or outputs; the first dimension, the batch, is left out.
pub(super) fn expect(
    graph: &'static str,
    outlets: &[Outlet],
    wanted: &[(&str, &[usize])],
) -> Result<(), EngineError> {
    for &(name, shape) in wanted {
        let sizes = shape.iter().map(usize::to_string);
        let sizes: Vec<_> = std::iter::once("N".to_owned()).chain(sizes).collect();
        let expected = format!("{name} [{}]", sizes.join(", "));
        let mismatch = |found: String| EngineError::Interface { graph, found, expected };
        let Some(outlet) = outlets.iter().find(|outlet| outlet.name() == name) else {
            let names: Vec<_> = outlets.iter().map(Outlet::name).collect();
            return Err(mismatch(format!("only {}", names.join(", "))));
        };
        let found = outlet.dtype().tensor_shape().map(|s| s.to_vec()).unwrap_or_default();
        let kind = if name == "t" { TensorElementType::Int64 } else { TensorElementType::Float32 };
        let fits = found.len() == shape.len() + 1
            && outlet.dtype().tensor_type() == Some(kind)
            && found[1..].iter().zip(shape).all(|(&f, &w)| f < 0 || f == w as i64);
        if !fits {
            return Err(mismatch(format!("{name} {found:?}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_written_as_tensorrt_reads_them() {
        let shapes: [(&str, &[usize]); 2] = [("x", &[1, 32, 32]), ("t", &[])];
        assert_eq!(profile(&shapes, 2), "x:2x1x32x32,t:2");
    }
}
