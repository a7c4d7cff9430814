use ndarray::{Array1, Array4, ArrayView2, ArrayView4};
use ort::{
    ep,
    session::{Session, builder::GraphOptimizationLevel, builder::SessionBuilder},
    value::{Outlet, TensorElementType, TensorRef},
};
use serde::Deserialize;

use super::{EngineError, Runtime, operators};

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

/// The two graphs of a generator, as bytes whose digest the caller has checked.
#[derive(Debug, Clone)]
pub struct Graphs {
    pub condition: Vec<u8>,
    pub denoiser: Vec<u8>,
}

/// Shapes that the graphs must have, without the batch dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interface {
    /// Image channels, rows, columns: [C, H, W].
    pub image: [usize; 3],
    /// Label channels L of x and `x0`.
    pub label_channels: usize,
    /// Channels nf of the condition features.
    pub features: usize,
    /// nz.
    pub latent: usize,
}

impl Interface {
    /// [L, H, W].
    #[must_use]
    pub fn label(&self) -> [usize; 3] {
        [self.label_channels, self.image[1], self.image[2]]
    }
}

/// A generator split into condition encoder and denoiser, each a session of ONNX Runtime.
#[derive(Debug)]
pub struct Generator {
    condition: Session,
    denoiser: Session,
    interface: Interface,
}

impl Generator {
    /// # Errors
    /// If the provider cannot be had, a graph does not load, or its inputs and outputs are not `interface`.
    pub fn load(
        runtime: &Runtime,
        graphs: &Graphs,
        interface: Interface,
        options: &Options,
    ) -> Result<Self, EngineError> {
        let [c, h, w] = interface.image;
        let condition = session(runtime, "condition", &graphs.condition, options)?;
        expect("condition", condition.inputs(), &[("image", &[0, c, h, w])])?;
        expect("condition", condition.outputs(), &[("condition", &[0, interface.features, h, w])])?;

        let denoiser = session(runtime, "denoiser", &graphs.denoiser, options)?;
        let [l, ..] = interface.label();
        expect(
            "denoiser",
            denoiser.inputs(),
            &[
                ("x", &[0, l, h, w]),
                ("t", &[0]),
                ("condition", &[0, interface.features, h, w]),
                ("z", &[0, interface.latent]),
            ],
        )?;
        expect("denoiser", denoiser.outputs(), &[("x0", &[0, l, h, w])])?;
        Ok(Self { condition, denoiser, interface })
    }

    #[must_use]
    pub fn interface(&self) -> Interface {
        self.interface
    }

    /// Condition features [N, nf, H, W] of images [N, C, H, W].
    ///
    /// # Errors
    /// If the graph fails or gives a value that is not finite.
    pub fn condition(&mut self, images: ArrayView4<'_, f32>) -> Result<Array4<f32>, EngineError> {
        let images = images.as_standard_layout();
        let result = (|| {
            let image = TensorRef::from_array_view(images.view())?;
            let outputs = self.condition.run(ort::inputs!["image" => image])?;
            Ok(outputs["condition"].try_extract_array::<f32>()?.to_owned())
        })();
        finite("condition", result)
    }

    /// x_0 [B, L, H, W] from x [B, L, H, W] at time-step `step`, condition features [1 or B, nf, H, W] and
    /// latents `z` [B, nz].
    ///
    /// # Errors
    /// If the graph fails or gives a value that is not finite.
    pub fn denoise(
        &mut self,
        step: usize,
        x: ArrayView4<'_, f32>,
        condition: ArrayView4<'_, f32>,
        z: ArrayView2<'_, f32>,
    ) -> Result<Array4<f32>, EngineError> {
        predict(&mut self.denoiser, "denoiser", step, x, ("condition", condition), z)
    }
}

/// The generator as one unsplit graph that recomputes the condition in every call: the literal procedure,
/// kept as the yardstick of the benchmarks.
#[derive(Debug)]
pub struct Literal {
    session: Session,
}

impl Literal {
    /// # Errors
    /// If the graph does not load.
    pub fn load(runtime: &Runtime, graph: &[u8], options: &Options) -> Result<Self, EngineError> {
        Ok(Self { session: session(runtime, "generator", graph, options)? })
    }

    /// x_0 [B, L, H, W] from x, images [B, C, H, W] and latents [B, nz].
    ///
    /// # Errors
    /// If the graph fails or gives a value that is not finite.
    pub fn denoise(
        &mut self,
        step: usize,
        x: ArrayView4<'_, f32>,
        images: ArrayView4<'_, f32>,
        z: ArrayView2<'_, f32>,
    ) -> Result<Array4<f32>, EngineError> {
        predict(&mut self.session, "generator", step, x, ("image", images), z)
    }
}

/// Runs a graph that predicts x_0; `guide` is the name and value of what it is conditioned on.
fn predict(
    session: &mut Session,
    graph: &'static str,
    step: usize,
    x: ArrayView4<'_, f32>,
    (name, guide): (&'static str, ArrayView4<'_, f32>),
    z: ArrayView2<'_, f32>,
) -> Result<Array4<f32>, EngineError> {
    let t = Array1::from_elem(x.dim().0, step as i64);
    let (x, z) = (x.as_standard_layout(), z.as_standard_layout());
    let guide = guide.as_standard_layout();
    let result = (|| {
        let outputs = session.run(ort::inputs![
            "x" => TensorRef::from_array_view(x.view())?,
            "t" => TensorRef::from_array_view(t.view())?,
            name => TensorRef::from_array_view(guide.view())?,
            "z" => TensorRef::from_array_view(z.view())?,
        ])?;
        Ok(outputs["x0"].try_extract_array::<f32>()?.to_owned())
    })();
    finite(graph, result)
}

/// A product of two square matrices as the runtime computes it: the machine's own rate of arithmetic, which the
/// benchmarks hold the generator against.
#[derive(Debug)]
pub struct Product {
    session: Session,
}

impl Product {
    /// # Errors
    /// If the graph, `y` = `a` @ `b`, does not load.
    pub fn load(runtime: &Runtime, graph: &[u8], options: &Options) -> Result<Self, EngineError> {
        Ok(Self { session: session(runtime, "product", graph, options)? })
    }

    /// # Errors
    /// If the graph fails.
    pub fn multiply(
        &mut self,
        a: ArrayView2<'_, f32>,
        b: ArrayView2<'_, f32>,
    ) -> Result<(), EngineError> {
        let failed = |e: ort::Error| EngineError::Run { graph: "product", reason: e.to_string() };
        let (a, b) = (TensorRef::from_array_view(a), TensorRef::from_array_view(b));
        let inputs = ort::inputs!["a" => a.map_err(failed)?, "b" => b.map_err(failed)?];
        self.session.run(inputs).map(|_| ()).map_err(failed)
    }
}

fn finite(
    graph: &'static str,
    result: ort::Result<ndarray::ArrayD<f32>>,
) -> Result<Array4<f32>, EngineError> {
    let run = |reason: String| EngineError::Run { graph, reason };
    let array = result
        .map_err(|e| run(e.to_string()))?
        .into_dimensionality()
        .map_err(|e| run(e.to_string()))?;
    if array.iter().all(|v: &f32| v.is_finite()) {
        Ok(array)
    } else {
        Err(EngineError::NotFinite { graph })
    }
}

fn session(
    runtime: &Runtime,
    graph: &'static str,
    bytes: &[u8],
    options: &Options,
) -> Result<Session, EngineError> {
    let failed = |reason: String| EngineError::Graph { graph, reason };
    let mut builder = Session::builder(&runtime.environment)
        .and_then(|b| Ok(b.with_optimization_level(GraphOptimizationLevel::All)?))
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
    builder = with_provider(builder, options)?;
    builder.commit_from_memory(bytes).map_err(|e| failed(e.to_string()))
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
fn expect(
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
