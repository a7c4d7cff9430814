//! Inputs and output of the denoiser, bound to its session once for each batch shape and used for every step.

use std::ptr;

use ndarray::{ArrayView2, ArrayView4, ArrayViewMut2, ArrayViewMut4};
use ort::{
    AsPointer, Error, Result,
    memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType},
    session::{IoBinding, Session},
    value::Tensor,
};

use super::{Interface, Provider};

/// Where values wait on their way to the device and back. The CPU computes on them in place; a GPU copies what is bound
/// to it once, at the binding, by its own engine, for which the memory is pinned.
#[derive(Debug)]
pub(super) struct Staging {
    inputs: Allocator,
    outputs: Allocator,
    is_in_place: bool,
}

impl Staging {
    pub fn new(session: &Session, provider: Provider, device: i32) -> Result<Self> {
        if provider == Provider::Cpu {
            let [inputs, outputs] = [Allocator::default(), Allocator::default()];
            return Ok(Self { inputs, outputs, is_in_place: true });
        }
        let pinned = |kind| {
            let place = AllocationDevice::CUDA_PINNED;
            Allocator::new(session, MemoryInfo::new(place, device, AllocatorType::Device, kind)?)
        };
        let (inputs, outputs) = (pinned(MemoryType::CPUInput)?, pinned(MemoryType::CPUOutput)?);
        Ok(Self { inputs, outputs, is_in_place: false })
    }

    /// Condition features of `count` images.
    pub fn guide(&self, interface: Interface, count: usize) -> Result<Guide> {
        let [_, h, w] = interface.image;
        let features = Tensor::new(&self.inputs, [count, interface.features, h, w])?;
        Ok(Guide { features, count, revision: 0 })
    }
}

/// Condition features [1 or B, nf, H, W] that the steps of a batch share.
#[derive(Debug)]
pub(super) struct Guide {
    features: Tensor<f32>,
    pub count: usize,
    /// Counts the times that they were set: what lies on a device is of one revision.
    revision: u64,
}

impl Guide {
    /// Takes `features[rows[i]]` for entry i.
    pub fn set(&mut self, features: ArrayView4<'_, f32>, rows: &[usize]) {
        let (_, nf, h, w) = features.dim();
        let (_, values) = self.features.extract_tensor_mut();
        let mut own = ArrayViewMut4::from_shape((self.count, nf, h, w), values)
            .expect("features have the shape of the interface");
        for (mut own, &row) in own.outer_iter_mut().zip(rows) {
            own.assign(&features.index_axis(ndarray::Axis(0), row));
        }
        self.revision += 1;
    }
}

/// The denoiser's inputs and output for batches of one size.
#[derive(Debug)]
pub(super) struct Bound {
    pub batch: usize,
    /// Features of its own, where every entry has others; else all batches share the features of one image.
    pub guide: Option<Guide>,
    binding: IoBinding,
    x: Tensor<f32>,
    t: Tensor<i64>,
    z: Tensor<f32>,
    x0: Tensor<f32>,
    is_in_place: bool,
    /// Of the features that are bound.
    revision: Option<u64>,
}

impl Bound {
    pub fn new(
        session: &Session,
        staging: &Staging,
        interface: Interface,
        batch: usize,
        has_guide: bool,
    ) -> Result<Self> {
        let Staging { inputs, outputs, is_in_place } = staging;
        let [l, h, w] = interface.label();
        let x = Tensor::new(inputs, [batch, l, h, w])?;
        let t = Tensor::new(inputs, [batch])?;
        let z = Tensor::new(inputs, [batch, interface.latent])?;
        let mut x0 = Tensor::new(outputs, [batch, l, h, w])?;
        let mut binding = session.create_binding()?;
        binding.bind_input("x", &x)?;
        binding.bind_input("t", &t)?;
        binding.bind_input("z", &z)?;
        binding.bind_output("x0", &mut x0)?;
        let guide = has_guide.then(|| staging.guide(interface, batch)).transpose()?;
        Ok(Self { batch, guide, binding, x, t, z, x0, is_in_place: *is_in_place, revision: None })
    }

    /// One step: x_0 [B, L, H, W] from x, the time-step, the latents and the features, its own or those of `shared`. Tells
    /// whether all of it is finite.
    pub fn run(
        &mut self,
        session: &mut Session,
        step: usize,
        x: ArrayView4<'_, f32>,
        z: ArrayView2<'_, f32>,
        shared: &Guide,
        mut x0: ArrayViewMut4<'_, f32>,
    ) -> Result<bool> {
        let fits = "batches have the size they are bound for";
        let own = self.x.extract_tensor_mut().1;
        ArrayViewMut4::from_shape(x.dim(), own).expect(fits).assign(&x);
        let own = self.z.extract_tensor_mut().1;
        ArrayViewMut2::from_shape(z.dim(), own).expect(fits).assign(&z);
        self.t.extract_tensor_mut().1.fill(step as i64);
        let guide = self.guide.as_ref().unwrap_or(shared);
        // In place, the tensor is bound for good; on a device, so is a copy of what it held.
        if self.revision.is_none_or(|bound| bound != guide.revision && !self.is_in_place) {
            self.binding.bind_input("condition", &guide.features)?;
        }
        self.revision = Some(guide.revision);
        if !self.is_in_place {
            self.binding.bind_input("x", &self.x)?;
            self.binding.bind_input("t", &self.t)?;
            self.binding.bind_input("z", &self.z)?;
        }
        // SAFETY: session and binding are alive and nobody else's; the binding keeps the inputs, `self` the output.
        // `Session::run_binding` would do but for wrapping the output anew each time, on the heap.
        unsafe {
            let session = session.ptr().cast_mut();
            let status = (ort::api().RunWithBinding)(session, ptr::null(), self.binding.ptr());
            Error::result_from_status(status)?;
        }
        let values = self.x0.extract_tensor().1;
        x0.assign(&ArrayView4::from_shape(x.dim(), values).expect(fits));
        Ok(values.iter().all(|value| value.is_finite()))
    }
}
