//! Inputs and output of the denoiser, bound to its session once for each batch shape and used for every step.
//!
//! On the CPU the session computes on these values in place. On a GPU each has a twin in the device's memory, to which it is
//! copied; the twins' addresses never change, so that the whole step can be recorded once and replayed (CUDA graphs).

use std::{fmt::Debug, ptr};

use ndarray::{ArrayView, ArrayView2, ArrayView4, ArrayViewMut, ArrayViewMut4, Axis, Dimension};
use ort::{
    AsPointer, Error, Result,
    memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType},
    session::{IoBinding, NoSelectedOutputs, RunOptions, Session},
    value::{PrimitiveTensorElementType, Tensor},
};

use super::{Interface, Provider};

/// Steps that are recorded at most, each for a batch shape. A recording stays until its session ends.
const RECORDINGS: usize = 64;

/// Where values are held.
#[derive(Debug)]
pub(super) struct Staging {
    host: Allocator,
    /// Memory of the GPU.
    device: Option<Allocator>,
    /// Steps that may still be recorded.
    recordings: usize,
}

impl Staging {
    pub fn new(session: &Session, provider: Provider, device: i32) -> Result<Self> {
        let (kind, place) = (MemoryType::Default, AllocationDevice::CUDA);
        let gpu = || {
            Allocator::new(session, MemoryInfo::new(place, device, AllocatorType::Device, kind)?)
        };
        let device = (provider != Provider::Cpu).then(gpu).transpose()?;
        Ok(Self { host: Allocator::default(), device, recordings: RECORDINGS })
    }

    /// As on a GPU whose memory is this machine's.
    #[cfg(test)]
    pub fn twinned() -> Self {
        let (host, device) = (Allocator::default(), Some(Allocator::default()));
        Self { host, device, recordings: 1 }
    }

    /// Whether the session computes in the program's own memory.
    pub fn is_in_place(&self) -> bool {
        self.device.is_none()
    }

    /// The size of the buffers for a batch: a GPU meets few sizes, since each costs it a search for kernels and a recording.
    pub fn room(&self, batch: usize) -> usize {
        if self.device.is_some() { batch.next_power_of_two() } else { batch }
    }

    /// Condition features of `count` images.
    pub fn guide(&self, interface: Interface, count: usize) -> Result<Guide> {
        let [_, h, w] = interface.image;
        Ok(Guide { features: self.place([count, interface.features, h, w])? })
    }

    fn place<T, const N: usize>(&self, shape: [usize; N]) -> Result<Place<T>>
    where
        T: PrimitiveTensorElementType + Debug + Default + Clone,
    {
        let mut host = Tensor::new(&self.host, shape)?;
        host.extract_tensor_mut().1.fill(T::default());
        let twin = self.device.as_ref().map(|device| Tensor::new(device, shape)).transpose()?;
        Ok(Place { host, twin })
    }

    /// Options of a run: the number under which it is recorded, -1 for none.
    fn recording(&mut self) -> Result<Option<RunOptions<NoSelectedOutputs>>> {
        if self.device.is_none() {
            return Ok(None);
        }
        let number = if self.recordings > 0 { self.recordings.to_string() } else { "-1".into() };
        self.recordings = self.recordings.saturating_sub(1);
        let mut options = RunOptions::new()?;
        options.set("gpu_graph_id", number)?;
        Ok(Some(options))
    }
}

/// A tensor that the program reads and writes, and its twin on the device, if that has memory of its own.
#[derive(Debug)]
struct Place<T: PrimitiveTensorElementType + Debug> {
    host: Tensor<T>,
    twin: Option<Tensor<T>>,
}

impl<T: PrimitiveTensorElementType + Debug> Place<T> {
    fn values(&self) -> &[T] {
        self.host.extract_tensor().1
    }

    fn values_mut(&mut self) -> &mut [T] {
        self.host.extract_tensor_mut().1
    }

    /// What the session reads and writes.
    fn bound(&mut self) -> &mut Tensor<T> {
        self.twin.as_mut().unwrap_or(&mut self.host)
    }

    fn send(&mut self) -> Result<()> {
        self.twin.as_mut().map_or(Ok(()), |twin| self.host.copy_into(twin))
    }

    fn fetch(&mut self) -> Result<()> {
        self.twin.as_ref().map_or(Ok(()), |twin| twin.copy_into(&mut self.host))
    }
}

/// Condition features [1 or B, nf, H, W] that the steps of a batch share.
#[derive(Debug)]
pub(super) struct Guide {
    features: Place<f32>,
}

impl Guide {
    /// Takes `features[rows[i]]` for entry i.
    pub fn set(&mut self, features: ArrayView4<'_, f32>, rows: &[usize]) -> Result<()> {
        let each = features.len() / features.dim().0;
        for (own, &row) in self.features.values_mut().chunks_exact_mut(each).zip(rows) {
            take(own, &features.index_axis(Axis(0), row));
        }
        self.features.send()
    }
}

/// The denoiser's inputs and output for batches of one size.
pub(super) struct Bound {
    /// Entries that there is room for.
    pub room: usize,
    /// Features of its own, where every entry has others; else all batches share the features of one image.
    pub guide: Option<Guide>,
    binding: IoBinding,
    options: Option<RunOptions<NoSelectedOutputs>>,
    x: Place<f32>,
    t: Place<i64>,
    z: Place<f32>,
    x0: Place<f32>,
}

impl Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bound").field("room", &self.room).finish_non_exhaustive()
    }
}

impl Bound {
    /// `shared`: the features of one image, where each entry has none of its own.
    pub fn new(
        session: &Session,
        staging: &mut Staging,
        interface: Interface,
        room: usize,
        shared: Option<&mut Guide>,
    ) -> Result<Self> {
        let [l, h, w] = interface.label();
        let mut x = staging.place([room, l, h, w])?;
        let mut t = staging.place([room])?;
        let mut z = staging.place([room, interface.latent])?;
        let mut x0 = staging.place([room, l, h, w])?;
        let mut own = if shared.is_none() { Some(staging.guide(interface, room)?) } else { None };
        let guide = shared.or(own.as_mut()).expect("it is its own or shared");
        let mut binding = session.create_binding()?;
        binding.bind_input("x", x.bound())?;
        binding.bind_input("t", t.bound())?;
        binding.bind_input("z", z.bound())?;
        binding.bind_input("condition", guide.features.bound())?;
        binding.bind_output("x0", x0.bound())?;
        let options = staging.recording()?;
        Ok(Self { room, guide: own, binding, options, x, t, z, x0 })
    }

    /// One step: x_0 [B, L, H, W] from x, the time-step, the latents and the features. Tells whether all of it is finite.
    pub fn run(
        &mut self,
        session: &mut Session,
        step: usize,
        x: ArrayView4<'_, f32>,
        z: ArrayView2<'_, f32>,
        mut x0: ArrayViewMut4<'_, f32>,
    ) -> Result<bool> {
        take(self.x.values_mut(), &x);
        take(self.z.values_mut(), &z);
        self.t.values_mut().fill(step as i64);
        self.x.send()?;
        self.t.send()?;
        self.z.send()?;
        let options = self.options.as_ref().map_or(ptr::null(), AsPointer::ptr);
        // SAFETY: session, options and binding are alive and nobody else's; the binding keeps the inputs, `self` the output.
        // `Session::run_binding` would do but for wrapping the output anew each time, on the heap.
        unsafe {
            let session = session.ptr().cast_mut();
            let status = (ort::api().RunWithBinding)(session, options, self.binding.ptr());
            Error::result_from_status(status)?;
        }
        self.x0.fetch()?;
        // Beyond the batch lies what nobody asked for.
        let values = &self.x0.values()[..x0.len()];
        x0.assign(&ArrayView4::from_shape(x.dim(), values).expect("x0 has the shape of x"));
        Ok(values.iter().all(|value| value.is_finite()))
    }
}

/// Puts `values` in front.
fn take<D: Dimension>(own: &mut [f32], values: &ArrayView<'_, f32, D>) {
    ArrayViewMut::from_shape(values.raw_dim(), &mut own[..values.len()])
        .expect("as many as there are values")
        .assign(values);
}
