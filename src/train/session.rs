//! One training session of ONNX Runtime: steps, parameters, checkpoints.
//!
//! `ort` 2.0.0-rc.15 panics in its own `Trainer::step` (outputs are wrapped without their allocator) and keeps
//! the names of the graphs' inputs to itself, so both go through the C API with the trainer's pointer. This is
//! the only unsafe code of the room.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    ffi::{CStr, c_char},
    path::Path,
    ptr::{self, NonNull},
};

use ndarray::{ArrayD, ArrayView, ArrayView1, ArrayViewD, Dimension};
use ort::{
    AsPointer,
    memory::Allocator,
    session::SessionInputValue,
    sys,
    training::{Checkpoint, Trainer, training_api},
    value::{DynTensor, Tensor, TensorRef},
};

use super::TrainError;
use crate::engine::{self, Runtime};

/// Inputs by the names that the graphs give them. A graph takes those that it names and leaves the others.
#[derive(Debug, Clone, Default)]
pub struct Inputs<'a>(Vec<(Cow<'a, str>, Values<'a>)>);

#[derive(Debug, Clone)]
enum Values<'a> {
    Floats(ArrayViewD<'a, f32>),
    Integers(ArrayView1<'a, i64>),
}

impl<'a> Inputs<'a> {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn floats<D: Dimension>(
        mut self,
        name: impl Into<Cow<'a, str>>,
        values: ArrayView<'a, f32, D>,
    ) -> Self {
        self.0.push((name.into(), Values::Floats(values.into_dyn())));
        self
    }

    /// Time-steps [N].
    #[must_use]
    pub fn integers(mut self, name: &'a str, values: ArrayView1<'a, i64>) -> Self {
        self.0.push((name.into(), Values::Integers(values)));
        self
    }
}

/// What a pass gave, by name.
#[derive(Debug, Clone)]
pub struct Outputs(BTreeMap<String, ArrayD<f32>>);

impl Outputs {
    /// The loss of a training step of `network`.
    ///
    /// # Errors
    /// If it is not finite: the step was not taken, and no other will do better.
    pub fn loss(&self, network: &'static str, step: u64) -> Result<f32, TrainError> {
        let loss = self.scalar("loss")?;
        if loss.is_finite() { Ok(loss) } else { Err(TrainError::Diverged { network, loss, step }) }
    }

    /// A loss or one of its terms.
    ///
    /// # Errors
    /// If the graph has no such output.
    pub fn scalar(&self, name: &str) -> Result<f32, TrainError> {
        self.0.get(name).and_then(|values| values.first().copied()).ok_or_else(|| missing(name))
    }

    /// # Errors
    /// If the graph has no such output.
    pub fn take(&mut self, name: &str) -> Result<ArrayD<f32>, TrainError> {
        self.0.remove(name).ok_or_else(|| missing(name))
    }
}

fn missing(output: &str) -> TrainError {
    TrainError::Runtime(format!(
        "the graph has no output {output:?}; its artifacts were made for another kind of run"
    ))
}

/// Graphs, weights and optimizer of one network under training.
#[derive(Debug)]
pub struct TrainingSession {
    trainer: Trainer,
    allocator: Allocator,
    /// Number of trainable parameters.
    size: usize,
    /// Room for all of them.
    copied: Tensor<f32>,
    training: Interface,
    evaluation: Interface,
}

/// Names of a graph's inputs and outputs in its order.
#[derive(Debug)]
struct Interface {
    inputs: Vec<String>,
    outputs: Vec<String>,
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
        let builder = engine::training(runtime, intra_threads).map_err(failed)?;
        let state = Checkpoint::load(checkpoint).map_err(|e| {
            TrainError::Runtime(format!("checkpoint {}: {e}", checkpoint.display()))
        })?;
        let allocator = Allocator::default();
        let trainer =
            Trainer::new_from_artifacts(builder, Allocator::default(), artifacts, Some(state))
                .map_err(failed)?;
        let size = trainer.num_params(true).map_err(failed)?;
        let api = training_api()?;
        let names = |count, name| names(&trainer, &allocator, count, name);
        let training = Interface {
            inputs: names(
                api.TrainingSessionGetTrainingModelInputCount,
                api.TrainingSessionGetTrainingModelInputName,
            )?,
            outputs: names(
                api.TrainingSessionGetTrainingModelOutputCount,
                api.TrainingSessionGetTrainingModelOutputName,
            )?,
        };
        let evaluation = Interface {
            inputs: names(
                api.TrainingSessionGetEvalModelInputCount,
                api.TrainingSessionGetEvalModelInputName,
            )?,
            outputs: names(
                api.TrainingSessionGetEvalModelOutputCount,
                api.TrainingSessionGetEvalModelOutputName,
            )?,
        };
        let copied = Tensor::<f32>::new(&allocator, [size])?;
        Ok(Self { trainer, allocator, size, copied, training, evaluation })
    }

    /// Whether a step takes an input of this name.
    #[must_use]
    pub fn takes(&self, input: &str) -> bool {
        self.training.inputs.iter().any(|name| name == input)
    }

    /// One forward and backward pass and one step of Adam; gives what the pass found before it.
    ///
    /// Where the loss is not finite the weights stay as they were; [`Outputs::loss`] tells.
    ///
    /// # Errors
    /// If an input is missing or the runtime fails.
    pub fn step(&mut self, inputs: &Inputs<'_>, learning_rate: f32) -> Result<Outputs, TrainError> {
        let outputs = self.run(training_api()?.TrainStep, &self.training, inputs)?;
        if outputs.scalar("loss")?.is_finite() {
            let mut optimizer = self.trainer.optimizer();
            optimizer.set_lr(learning_rate)?;
            optimizer.step()?;
            optimizer.reset_grad()?;
        }
        Ok(outputs)
    }

    /// The eval graph, without touching the weights: `x0` of a generator, `attention` of a discriminator.
    ///
    /// # Errors
    /// If an input is missing or the runtime fails.
    pub fn evaluate(&mut self, inputs: &Inputs<'_>) -> Result<Outputs, TrainError> {
        self.run(training_api()?.EvalStep, &self.evaluation, inputs)
    }

    fn run(
        &self,
        pass: Pass,
        graph: &Interface,
        inputs: &Inputs<'_>,
    ) -> Result<Outputs, TrainError> {
        let values = graph.inputs.iter().map(|name| {
            let given = inputs.0.iter().find(|(given, _)| given == name).ok_or_else(|| {
                TrainError::Runtime(format!("input {name:?} of the graph is not given"))
            })?;
            Ok(match &given.1 {
                Values::Floats(view) => TensorRef::from_array_view(view.view())?.into(),
                Values::Integers(view) => TensorRef::from_array_view(view.view())?.into(),
            })
        });
        let values: Vec<SessionInputValue<'_>> = values.collect::<Result<_, TrainError>>()?;
        let pointers: Vec<*const _> = values.iter().map(|value| value.ptr()).collect();
        let mut raw = vec![ptr::null_mut(); graph.outputs.len()];
        // SAFETY: both callers hold the session alone (`&mut self`), the inputs outlive the call, and inputs
        // and outputs are as many as the graph has; each output is a new value that we own and wrap below
        // with its allocator.
        let values = unsafe {
            ort::Error::result_from_status(pass(
                self.trainer.ptr().cast_mut(),
                ptr::null(),
                pointers.len(),
                pointers.as_ptr(),
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
        let named =
            graph.outputs.iter().zip(&values).map(|(name, value)| {
                Ok((name.clone(), value.try_extract_array::<f32>()?.to_owned()))
            });
        Ok(Outputs(named.collect::<Result<_, TrainError>>()?))
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
    pub fn parameters(&mut self) -> Result<&[f32], TrainError> {
        self.trainer.copy_parameters_to(&mut self.copied, true)?;
        Ok(self.copied.extract_tensor().1)
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
        names: &[String],
    ) -> Result<BTreeMap<String, ArrayD<f32>>, TrainError> {
        names
            .iter()
            .map(|name| {
                let tensor = self.trainer.checkpoint().get_parameter(name, &self.allocator)?;
                Ok((name.clone(), tensor.try_extract_array::<f32>()?.to_owned()))
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

/// `TrainStep` and `EvalStep` of the C API.
type Pass = unsafe extern "system" fn(
    session: *mut sys::OrtTrainingSession,
    options: *const sys::OrtRunOptions,
    inputs_len: usize,
    inputs: *const *const sys::OrtValue,
    outputs_len: usize,
    outputs: *mut *mut sys::OrtValue,
) -> sys::OrtStatusPtr;

type Count =
    unsafe extern "system" fn(*const sys::OrtTrainingSession, *mut usize) -> sys::OrtStatusPtr;

type Name = unsafe extern "system" fn(
    *const sys::OrtTrainingSession,
    usize,
    *mut sys::OrtAllocator,
    *mut *const c_char,
) -> sys::OrtStatusPtr;

/// The names that one pair of the C API's functions gives.
fn names(
    trainer: &Trainer,
    allocator: &Allocator,
    count: Count,
    name: Name,
) -> Result<Vec<String>, TrainError> {
    let mut total = 0;
    // SAFETY: the session lives, `total` takes the count.
    unsafe { ort::Error::result_from_status(count(trainer.ptr(), &raw mut total))? };
    (0..total)
        .map(|index| {
            let mut text = ptr::null();
            // SAFETY: a successful call leaves a C string that is ours to free with the allocator given.
            unsafe {
                ort::Error::result_from_status(name(
                    trainer.ptr(),
                    index,
                    allocator.ptr().cast_mut(),
                    &raw mut text,
                ))?;
                let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
                allocator.free(text.cast_mut());
                Ok(owned)
            }
        })
        .collect()
}
