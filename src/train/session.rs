//! One training session of ONNX Runtime: steps, parameters, checkpoints.
//!
//! `ort` 2.0.0-rc.15 panics in its own `Trainer::step` (outputs are wrapped without their allocator), so
//! steps go through the C API with the trainer's pointer. This is the only unsafe code of the room.

use std::{
    collections::BTreeMap,
    ffi::CString,
    path::Path,
    ptr::{self, NonNull},
};

use ndarray::{Array1, ArrayD, ArrayViewD};
use ort::{
    AsPointer,
    memory::Allocator,
    session::{Session, SessionInputValue},
    training::{Checkpoint, Trainer, training_api},
    value::{DynTensor, Tensor, TensorRef},
};

use super::TrainError;
use crate::engine::Runtime;

/// Inputs of the training and the eval graph, in their order.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// `x_{t+1}` [N, L, H, W].
    pub x: ArrayViewD<'a, f32>,
    /// [N].
    pub t: &'a Array1<i64>,
    /// [N, C, H, W].
    pub image: ArrayViewD<'a, f32>,
    /// [N, nz].
    pub z: ArrayViewD<'a, f32>,
    /// The clean label [N, L, H, W].
    pub target: ArrayViewD<'a, f32>,
}

/// Graphs, weights and optimizer of one network under training.
#[derive(Debug)]
pub struct TrainingSession {
    trainer: Trainer,
    allocator: Allocator,
    /// Number of trainable parameters.
    size: usize,
}

impl TrainingSession {
    /// Loads artifacts made by `cdal_onnx`, with the weights and optimizer state of `checkpoint`.
    ///
    /// # Errors
    /// If the runtime refuses the graphs or the checkpoint.
    pub fn load(
        runtime: &Runtime,
        artifacts: &Path,
        checkpoint: &Path,
        intra_threads: usize,
    ) -> Result<Self, TrainError> {
        let failed = |e: ort::Error| {
            TrainError::Runtime(format!("training graphs in {}: {e}", artifacts.display()))
        };
        let builder = Session::builder(&runtime.environment)
            .map_err(failed)?
            .with_intra_threads(intra_threads)
            .map_err(|e| TrainError::Runtime(e.to_string()))?;
        let state = Checkpoint::load(checkpoint).map_err(|e| {
            TrainError::Runtime(format!("checkpoint {}: {e}", checkpoint.display()))
        })?;
        let trainer =
            Trainer::new_from_artifacts(builder, Allocator::default(), artifacts, Some(state))
                .map_err(failed)?;
        let size = trainer.num_params(true).map_err(failed)?;
        Ok(Self { trainer, allocator: Allocator::default(), size })
    }

    /// One forward and backward pass and one step of Adam; gives the loss before it.
    ///
    /// # Errors
    /// If the runtime fails.
    pub fn step(&mut self, inputs: &Inputs<'_>, learning_rate: f32) -> Result<f32, TrainError> {
        let loss = self.run(Pass::Train, inputs)?[0].iter().copied().next().unwrap_or(f32::NAN);
        if !loss.is_finite() {
            return Ok(loss); // the caller stops; weights stay as they were
        }
        let mut optimizer = self.trainer.optimizer();
        optimizer.set_lr(learning_rate)?;
        optimizer.step()?;
        optimizer.reset_grad()?;
        Ok(loss)
    }

    /// x_0 [N, L, H, W] without touching the weights.
    ///
    /// # Errors
    /// If the runtime fails.
    pub fn predict(&mut self, inputs: &Inputs<'_>) -> Result<ArrayD<f32>, TrainError> {
        Ok(self.run(Pass::Eval, inputs)?.swap_remove(1))
    }

    /// All outputs, copied: `loss`, `x0`.
    fn run(&mut self, pass: Pass, inputs: &Inputs<'_>) -> Result<Vec<ArrayD<f32>>, TrainError> {
        let api = training_api()?;
        let (run, outputs) = match pass {
            Pass::Train => (api.TrainStep, 2),
            Pass::Eval => (api.EvalStep, 2),
        };
        let values: [SessionInputValue<'_>; 5] = [
            TensorRef::from_array_view(inputs.x.view())?.into(),
            TensorRef::from_array_view(inputs.t.view())?.into(),
            TensorRef::from_array_view(inputs.image.view())?.into(),
            TensorRef::from_array_view(inputs.z.view())?.into(),
            TensorRef::from_array_view(inputs.target.view())?.into(),
        ];
        let inputs: Vec<*const _> = values.iter().map(|value| value.ptr()).collect();
        let mut raw = vec![ptr::null_mut(); outputs];
        // SAFETY: the session is ours alone (`&mut self`), the inputs outlive the call and there are as many
        // as both graphs take; each output is a new value that we own and wrap below with its allocator.
        let values = unsafe {
            ort::Error::result_from_status(run(
                self.trainer.ptr().cast_mut(),
                ptr::null(),
                inputs.len(),
                inputs.as_ptr(),
                raw.len(),
                raw.as_mut_ptr(),
            ))?;
            raw.into_iter()
                .map(|value| {
                    let value = NonNull::new(value).expect("a successful step fills its outputs");
                    DynTensor::from_ptr(value, Some(&self.allocator))
                })
                .collect::<Vec<_>>()
        };
        values.iter().map(|value| Ok(value.try_extract_array::<f32>()?.to_owned())).collect()
    }

    /// Number of trainable parameters.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// All trainable parameters in the runtime's own order.
    ///
    /// # Errors
    /// If the runtime fails.
    pub fn parameters(&self) -> Result<Vec<f32>, TrainError> {
        let mut buffer = Tensor::<f32>::new(&self.allocator, [self.size])?;
        self.trainer.copy_parameters_to(&mut buffer, true)?;
        Ok(buffer.extract_tensor().1.to_vec())
    }

    /// Replaces all trainable parameters.
    ///
    /// # Errors
    /// If the runtime fails.
    pub fn set_parameters(&mut self, values: &[f32]) -> Result<(), TrainError> {
        let buffer = Tensor::from_array(([values.len()], values.to_vec()))?;
        self.trainer.copy_parameters_from(&buffer, true)?;
        Ok(())
    }

    /// The parameters `names`, by name.
    ///
    /// # Errors
    /// If one is unknown to the checkpoint.
    pub fn named_parameters(
        &self,
        names: impl Iterator<Item = String>,
    ) -> Result<BTreeMap<String, ArrayD<f32>>, TrainError> {
        let api = training_api()?;
        names
            .map(|name| {
                let text = CString::new(name.as_str())
                    .map_err(|_| TrainError::Runtime("parameter name with NUL".into()))?;
                let mut value = ptr::null_mut();
                // SAFETY: checkpoint and allocator live as long as the trainer; the value is new and ours.
                let tensor = unsafe {
                    ort::Error::result_from_status((api.GetParameter)(
                        self.trainer.checkpoint().ptr(),
                        text.as_ptr(),
                        self.allocator.ptr().cast_mut(),
                        &raw mut value,
                    ))?;
                    let value = NonNull::new(value).expect("a found parameter is not null");
                    DynTensor::from_ptr(value, Some(&self.allocator))
                };
                let array = tensor.try_extract_array::<f32>()?.to_owned();
                Ok((name, array))
            })
            .collect()
    }

    /// Writes weights and optimizer state; the caller makes that atomic.
    ///
    /// # Errors
    /// If the runtime cannot write.
    pub fn save(&self, path: &Path) -> Result<(), TrainError> {
        self.trainer.checkpoint().save(path, true)?;
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Pass {
    Train,
    Eval,
}
