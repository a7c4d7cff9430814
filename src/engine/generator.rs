use std::path::PathBuf;

use ndarray::{Array1, Array2, Array4, ArrayView2, ArrayView4, ArrayViewMut4};
use ort::{session::Session, value::TensorRef};

use super::{
    EngineError, Engines, Options, Provider, Runtime,
    bound::{Bound, Guide, Staging},
    session::{Making, expect},
};
use crate::domain::Precision;

/// Pixels of x that one call of the denoiser takes at most on the CPU, and samples: enough to keep every core busy, little
/// enough that activations stay near the cache.
const BATCH_PIXELS: usize = 32 * 1024;
const BATCH: usize = 16;

/// The same on a GPU, 32 samples of 256 x 256, and the most samples of smaller ones; fewer may be found to be enough.
const CUDA_BATCH_PIXELS: usize = 2 * 1024 * 1024;
/// TensorRT builds its engines for the largest batch, whose memory they then take.
const TENSORRT_BATCH_PIXELS: usize = 512 * 1024;
const GPU_BATCH: usize = 256;

/// Batch shapes that keep their buffers; the one that was used longest ago gives way. Early endings come by many on the CPU;
/// a GPU meets powers of two.
const SHAPES: usize = 16;

/// Steps that a record of nodes is about: the first one finds caches cold.
const PROFILED: usize = 5;

/// The two graphs of a generator, as bytes whose digest the caller has checked.
#[derive(Debug, Clone)]
pub struct Graphs {
    pub condition: Vec<u8>,
    pub denoiser: Vec<u8>,
    /// Of the denoiser.
    pub precision: Precision,
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

    /// Samples that one call of the denoiser takes at most.
    fn most(&self, provider: Provider) -> usize {
        let pixels = self.image[1] * self.image[2];
        // A GPU meets powers of two: see `Staging::room`.
        let power = |most: usize| 1 << (most / pixels).clamp(1, GPU_BATCH).ilog2();
        match provider {
            Provider::Cpu => (BATCH_PIXELS / pixels).clamp(1, BATCH),
            Provider::Cuda => power(CUDA_BATCH_PIXELS),
            Provider::TensorRt => power(TENSORRT_BATCH_PIXELS),
        }
    }
}

/// A generator split into condition encoder and denoiser, each a session of ONNX Runtime.
#[derive(Debug)]
pub struct Generator {
    // Buffers go before the session whose memory they are.
    /// The last one was used last.
    bound: Vec<Bound>,
    /// Features of the one image that a batch is about.
    shared: Guide,
    staging: Staging,
    /// Images that the next batch is about: all its entries have one, or each its own.
    guides: usize,
    batch: usize,
    interface: Interface,
    precision: Precision,
    condition: Session,
    denoiser: Session,
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
        let engines = Engines::of(runtime, graphs, options);
        let making = Making { engines: engines.as_ref(), ..Making::new(runtime, options) };
        Self::make(making, graphs, interface)
    }

    pub(super) fn make(
        making: Making<'_>,
        graphs: &Graphs,
        interface: Interface,
    ) -> Result<Self, EngineError> {
        let Interface { image: [c, h, w], features, latent, .. } = interface;
        let ([l, ..], most) = (interface.label(), interface.most(making.options.provider));
        let image: [(&str, &[usize]); 1] = [("image", &[c, h, w])];
        let condition = making.session("condition", &graphs.condition, &image, most)?;
        expect("condition", condition.inputs(), &image)?;
        expect("condition", condition.outputs(), &[("condition", &[features, h, w])])?;

        let inputs: [(&str, &[usize]); 4] =
            [("x", &[l, h, w]), ("t", &[]), ("condition", &[features, h, w]), ("z", &[latent])];
        let making = Making { is_recorded: true, ..making };
        let denoiser = making.session("denoiser", &graphs.denoiser, &inputs, most)?;
        expect("denoiser", denoiser.inputs(), &inputs)?;
        expect("denoiser", denoiser.outputs(), &[("x0", &[l, h, w])])?;
        let buffers = || {
            let Options { provider, device, .. } = *making.options;
            let staging = Staging::new(&denoiser, provider, device)?;
            let shared = staging.guide(interface, 1)?;
            Ok((staging, shared))
        };
        let (staging, shared) = buffers().map_err(failed("denoiser"))?;
        let bound = Vec::with_capacity(SHAPES);
        let precision = graphs.precision;
        Ok(Self {
            bound,
            shared,
            staging,
            guides: 1,
            batch: most,
            interface,
            precision,
            condition,
            denoiser,
        })
    }

    /// Some steps of a full batch on zeros, then what the sessions recorded of their nodes: the files that they wrote, by
    /// graph.
    pub(super) fn profile(mut self) -> Result<[(&'static str, PathBuf); 2], EngineError> {
        let Interface { image: [c, h, w], latent, .. } = self.interface;
        let features = self.condition(Array4::zeros((1, c, h, w)).view())?;
        self.guide(features.view(), &[0])?;
        let x = Array4::zeros((self.batch, self.interface.label_channels, h, w));
        let (z, mut x0) = (Array2::zeros((self.batch, latent)), x.clone());
        for _ in 0..PROFILED {
            self.denoise(0, x.view(), z.view(), x0.view_mut())?;
        }
        let end = |graph, session: &mut Session| {
            let written = session.end_profiling().map_err(failed(graph))?;
            Ok((graph, PathBuf::from(written)))
        };
        Ok([end("condition", &mut self.condition)?, end("denoiser", &mut self.denoiser)?])
    }

    #[must_use]
    pub fn interface(&self) -> Interface {
        self.interface
    }

    /// Samples that one call of [`Generator::denoise`] should take: at first as many as it may.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Samples that it should take at least, where there are more to draw: with fewer, cores are idle; a GPU, which takes
    /// nearly as long for half a batch as for a whole one, sooner.
    #[must_use]
    pub fn least_batch(&self) -> usize {
        let parts = if self.staging.is_in_place() { 8 } else { 2 };
        (self.batch / parts).max(1)
    }

    /// Another number, which measuring found to be better.
    pub fn set_batch(&mut self, batch: usize) {
        self.batch = batch.max(1);
    }

    #[must_use]
    pub fn precision(&self) -> Precision {
        self.precision
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

    /// Sets what the following batches are about: entry i is conditioned on `features[rows[i]]`, of [N, nf, H, W]. Where
    /// all rows are one, batches may have any size, else that of `rows`.
    ///
    /// # Errors
    /// If there is no memory for the features.
    pub fn guide(
        &mut self,
        features: ArrayView4<'_, f32>,
        rows: &[usize],
    ) -> Result<(), EngineError> {
        if rows.iter().all(|&row| row == rows[0]) {
            self.guides = 1;
            return self.shared.set(features, &rows[..1]).map_err(failed("denoiser"));
        }
        self.guides = rows.len();
        let guide = &mut self.bound(rows.len())?.guide;
        let guide = guide.as_mut().expect("each entry has its own image");
        guide.set(features, rows).map_err(failed("denoiser"))
    }

    /// x_0 [B, L, H, W] from x [B, L, H, W] at time-step `step` and latents `z` [B, nz], for the images of
    /// [`Generator::guide`]. Once a batch shape has been seen, a step allocates nothing.
    ///
    /// # Errors
    /// If the graph fails or gives a value that is not finite.
    pub fn denoise(
        &mut self,
        step: usize,
        x: ArrayView4<'_, f32>,
        z: ArrayView2<'_, f32>,
        x0: ArrayViewMut4<'_, f32>,
    ) -> Result<(), EngineError> {
        let batch = x.dim().0;
        assert!(self.guides == 1 || self.guides == batch, "a batch has the size of its guide");
        self.bound(batch)?;
        let bound = self.bound.last_mut().expect("it was just found");
        match bound.run(&mut self.denoiser, step, x, z, x0) {
            Ok(true) => Ok(()),
            Ok(false) => Err(EngineError::NotFinite { graph: "denoiser" }),
            Err(error) => Err(failed("denoiser")(error)),
        }
    }

    /// The buffers for batches of this size, which become the last ones used.
    fn bound(&mut self, batch: usize) -> Result<&mut Bound, EngineError> {
        let (room, has_guide) = (self.staging.room(batch), self.guides > 1);
        let fits = |bound: &Bound| bound.room == room && bound.guide.is_some() == has_guide;
        let bound = if let Some(index) = self.bound.iter().position(fits) {
            self.bound.remove(index)
        } else {
            if self.bound.len() == SHAPES {
                self.bound.remove(0);
            }
            let shared = (!has_guide).then_some(&mut self.shared);
            Bound::new(&self.denoiser, &mut self.staging, self.interface, room, shared)
                .map_err(failed("denoiser"))?
        };
        self.bound.push(bound);
        Ok(self.bound.last_mut().expect("it was just put there"))
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
        Ok(Self { session: Making::new(runtime, options).session("generator", graph, &[], 1)? })
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
        let t = Array1::from_elem(x.dim().0, step as i64);
        let (x, z) = (x.as_standard_layout(), z.as_standard_layout());
        let images = images.as_standard_layout();
        let result = (|| {
            let outputs = self.session.run(ort::inputs![
                "x" => TensorRef::from_array_view(x.view())?,
                "t" => TensorRef::from_array_view(t.view())?,
                "image" => TensorRef::from_array_view(images.view())?,
                "z" => TensorRef::from_array_view(z.view())?,
            ])?;
            Ok(outputs["x0"].try_extract_array::<f32>()?.to_owned())
        })();
        finite("generator", result)
    }
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
        Ok(Self { session: Making::new(runtime, options).session("product", graph, &[], 1)? })
    }

    /// # Errors
    /// If the graph fails.
    pub fn multiply(
        &mut self,
        a: ArrayView2<'_, f32>,
        b: ArrayView2<'_, f32>,
    ) -> Result<(), EngineError> {
        let mut run = || {
            let (a, b) = (TensorRef::from_array_view(a)?, TensorRef::from_array_view(b)?);
            self.session.run(ort::inputs!["a" => a, "b" => b]).map(|_| ())
        };
        run().map_err(failed("product"))
    }
}

fn failed(graph: &'static str) -> impl FnOnce(ort::Error) -> EngineError {
    move |error| EngineError::Run { graph, reason: error.to_string() }
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

#[cfg(test)]
mod tests {
    use ndarray::{ArrayD, Axis, s};

    use super::*;
    use crate::engine::Purpose;

    #[test]
    fn batches_of_a_gpu_are_powers_of_two() {
        let of = |size, provider| {
            let image = [1, size, size];
            Interface { image, label_channels: 1, features: 32, latent: 16 }.most(provider)
        };
        assert_eq!([32, 96, 256, 1024].map(|size| of(size, Provider::Cpu)), [16, 3, 1, 1]);
        assert_eq!([32, 96, 256, 2048].map(|size| of(size, Provider::Cuda)), [256, 128, 32, 1]);
        assert_eq!([32, 96, 256].map(|size| of(size, Provider::TensorRt)), [256, 32, 8]);
    }

    /// Numbers between -1 and 1 that look random.
    fn numbers(shape: &[usize], seed: usize) -> ArrayD<f32> {
        let mut at = seed;
        ArrayD::from_shape_simple_fn(shape, || {
            at += 1;
            ((at * at) as f32).sin()
        })
    }

    #[test]
    fn values_with_twins_on_a_device_give_the_same_bits_in_batches_of_any_size() {
        let runtime = Runtime::load(Purpose::Inference, None).expect("run `make runtime`");
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("onnx/phantom");
        let [condition, denoiser] = ["condition.onnx", "denoiser.onnx"]
            .map(|name| std::fs::read(folder.join(name)).unwrap());
        let graphs = Graphs { condition, denoiser, precision: Precision::Fp32 };
        let interface =
            Interface { image: [1, 48, 48], label_channels: 3, features: 32, latent: 32 };
        let load = || Generator::load(&runtime, &graphs, interface, &Options::default()).unwrap();
        let (mut plain, mut twinned) = (load(), load());
        twinned.staging = Staging::twinned();
        twinned.shared = twinned.staging.guide(interface, 1).unwrap();

        let images = numbers(&[4, 1, 48, 48], 1).into_dimensionality().unwrap();
        let features = plain.condition(images.view()).unwrap();
        let x = numbers(&[5, 3, 48, 48], 2).into_dimensionality::<ndarray::Ix4>().unwrap();
        let z = numbers(&[5, 32], 3).into_dimensionality::<ndarray::Ix2>().unwrap();
        // One image for all, then images of their own; sizes with room to spare and without; back to one that was seen.
        let batches: [&[usize]; 6] =
            [&[0], &[2; 5], &[0, 3, 1], &[1; 4], &[3, 2, 1, 0, 1], &[0, 1, 1]];
        for rows in batches {
            let size = rows.len();
            let of = |generator: &mut Generator| {
                let (x, z) = (x.slice(s![..size, .., .., ..]), z.slice(s![..size, ..]));
                let mut x0 = Array4::zeros(x.dim());
                generator.guide(features.view(), rows).unwrap();
                for step in [1, 0] {
                    generator.denoise(step, x, z, x0.view_mut()).unwrap();
                }
                x0
            };
            let (expected, found) = (of(&mut plain), of(&mut twinned));
            for (entry, (expected, found)) in
                expected.axis_iter(Axis(0)).zip(found.axis_iter(Axis(0))).enumerate()
            {
                assert_eq!(expected, found, "entry {entry} of {rows:?}");
            }
        }
        let rooms: Vec<_> = twinned.bound.iter().map(|bound| bound.room).collect();
        assert!(rooms.iter().all(|room| room.is_power_of_two()) && rooms.len() == 5, "{rooms:?}");
    }
}
