//! The training loop.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use ndarray::ArrayD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    AdversaryLosses, Batch, Batches, Config, TrainError, TrainingSession, Validator,
    adversary::{Adversary, Means, Round},
    checkpoint::{read_floats, recover, swap, sync},
    sameness::{refuse_changes, sameness},
    samples,
    story::story,
    tools::{export, file, make_artifacts, read_arrays, safetensors, tensor_names, write_whole},
};
use crate::{
    bundle::Manifest,
    codec::overlay,
    engine::Runtime,
    sampler::{Philox, Schedule},
};

/// One line of `metrics.jsonl`, and what the terminal shows.
#[derive(Debug, Clone, Serialize)]
pub struct Progress {
    pub step: u64,
    pub steps: u64,
    /// Mean denoising error since the last line.
    pub loss: f32,
    pub learning_rate: f32,
    /// Of the discriminator, where the run has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adversary: Option<AdversaryLosses>,
    pub slices_per_second: f64,
    /// Mean Dice of each label over the validation cases that have it, by the real sampler; only at checkpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_dice: Option<Vec<Option<f64>>>,
    /// Until the last step, if it goes on as so far.
    #[serde(skip)]
    pub remaining: Duration,
}

/// What a checkpoint holds beside the runtime's own file.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    step: u64,
    best_dice: f64,
    /// Validation at this step.
    #[serde(default)]
    dice: Vec<Option<f64>>,
    /// What a run that resumes this must share; absent in those of earlier versions.
    #[serde(default)]
    sameness: Option<Value>,
}

/// Steps between lines of progress.
const REPORT_EVERY: u64 = 20;

/// What the caller is told while a run goes on.
#[derive(Debug)]
pub enum Event<'a> {
    /// What begins now, such as "reading cases"; it may take minutes.
    Stage(&'static str),
    /// A step is done; `remaining` as in [`Progress`].
    Step {
        step: u64,
        steps: u64,
        remaining: Duration,
    },
    Progress(&'a Progress),
}

/// How a run is to go.
#[derive(Debug, Clone, Copy)]
pub struct Orders<'a> {
    /// Go on from the last checkpoint.
    pub resume: bool,
    /// Once true, the run ends after the step under way, with a checkpoint.
    pub stop: &'a AtomicBool,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With a finished bundle, here.
    Finished(PathBuf),
    /// As it was told to. `step` is that of the last checkpoint, `None` if there is none.
    Stopped { step: Option<u64> },
}

/// Trains as `config` says and leaves a finished bundle at `run_folder/bundle`.
///
/// # Errors
/// If a run stands in the folder and `resume` is not given, or anything fails; the last whole checkpoint
/// stays.
pub fn train(
    config: &Config,
    runtime: &Runtime,
    orders: Orders<'_>,
    mut report: impl FnMut(&Event<'_>),
) -> Result<Outcome, TrainError> {
    match run_on(config, runtime, orders, &mut report) {
        Ok(bundle) => Ok(Outcome::Finished(bundle)),
        Err(TrainError::Stopped) => {
            let state = config.run_folder.join("last/state.json");
            let state = fs::read(state).ok().and_then(|text| serde_json::from_slice(&text).ok());
            Ok(Outcome::Stopped { step: state.map(|state: State| state.step) })
        }
        Err(error) => Err(error),
    }
}

/// As [`train`]; a stop is an error here.
fn run_on(
    config: &Config,
    runtime: &Runtime,
    Orders { resume, stop }: Orders<'_>,
    report: &mut dyn FnMut(&Event<'_>),
) -> Result<PathBuf, TrainError> {
    let folder = &config.run_folder;
    let last = folder.join("last");
    recover(&last)?;
    if last.exists() && !resume {
        return Err(TrainError::Exists(folder.clone()));
    }
    fs::create_dir_all(folder).map_err(|e| file(folder, &e))?;
    let artifacts = folder.join("artifacts");
    if !last.exists() && artifacts.exists() {
        // Left by a run that made no checkpoint, maybe of other parameters.
        fs::remove_dir_all(&artifacts).map_err(|e| file(&artifacts, &e))?;
    }
    if !artifacts.is_dir() {
        report(&Event::Stage("making the training graphs"));
        make_artifacts(config, &artifacts, stop)?;
    }
    report(&Event::Stage("reading cases and graphs"));
    let manifest = Manifest::read(&artifacts.join("recipe.toml"))?;
    let mut run = Run::start(config, runtime, &artifacts, &last, manifest)?;
    run.take_steps(stop, report)?;
    let weights = folder.join("weights.safetensors");
    run.write_average(&weights)?;
    let notes = folder.join("training.md");
    let labels = &run.batches.manifest().labels;
    let told =
        story(config, run.batches.cases(), run.validator.cases.len(), labels, &run.state.dice);
    write_whole(&notes, told.as_bytes())?;
    let out = folder.join("bundle");
    report(&Event::Stage("writing the bundle"));
    export(config, &weights, &notes, &out, stop)?;
    Ok(out)
}

/// What one step found.
#[derive(Debug, Clone, Copy)]
struct Losses {
    denoising: f32,
    learning_rate: f32,
    adversary: Option<AdversaryLosses>,
}

struct Run<'a> {
    config: &'a Config,
    /// The generator.
    session: TrainingSession,
    adversary: Option<Adversary<'a>>,
    batches: Batches,
    schedule: Schedule,
    validator: Validator,
    /// Moving average of the parameters, in the runtime's order.
    average: Vec<f32>,
    names: Vec<String>,
    /// Weights that are not trained, by their published names.
    frozen: BTreeMap<String, ArrayD<f32>>,
    state: State,
}

impl<'a> Run<'a> {
    fn start(
        config: &'a Config,
        runtime: &Runtime,
        artifacts: &Path,
        last: &Path,
        manifest: Manifest,
    ) -> Result<Self, TrainError> {
        let resumed = last.is_dir();
        let checkpoint =
            if resumed { last.join("checkpoint") } else { artifacts.join("checkpoint") };
        let threads = config.optimiser.intra_threads;
        let mut session = TrainingSession::load(runtime, artifacts, &checkpoint, threads)?;
        let adversary = Adversary::load(config, runtime, artifacts, last, &session)?;
        let (state, average) = if resumed {
            let path = last.join("state.json");
            let text = fs::read(&path).map_err(|e| file(&path, &e))?;
            let state = serde_json::from_slice(&text)
                .map_err(|e| TrainError::File { path, reason: e.to_string() })?;
            (state, read_floats(&last.join("average.f32"), session.size())?)
        } else {
            let state = State { step: 0, best_dice: 0.0, dice: Vec::new(), sameness: None };
            (state, session.parameters()?.to_vec())
        };
        let schedule = manifest.diffusion.schedule();
        let (batches, validator) = Batches::open(config, manifest)?;
        let now = sameness(config, &batches.digest())?;
        let mut state: State = state;
        if let Some(before) = &state.sameness {
            refuse_changes(&config.run_folder, before, &now)?;
        }
        state.sameness = Some(now);
        let frozen = match artifacts.join("frozen.safetensors") {
            path if path.exists() => read_arrays(&path)?,
            _ => BTreeMap::new(),
        };
        Ok(Self {
            config,
            session,
            adversary,
            schedule,
            validator,
            frozen,
            batches,
            average,
            names: tensor_names(&artifacts.join("parameters.safetensors"))?,
            state,
        })
    }

    /// All steps that are left, with their checkpoints.
    fn take_steps(
        &mut self,
        stop: &AtomicBool,
        report: &mut dyn FnMut(&Event<'_>),
    ) -> Result<(), TrainError> {
        let config = self.config;
        let metrics = config.run_folder.join("metrics.jsonl");
        let batches = self.batches.stream(self.schedule.clone(), self.state.step);
        let mut window = Window::new();
        let (started, first, steps) = (Instant::now(), self.state.step, config.optimiser.steps);
        for batch in batches {
            let is_asked_to_stop = || stop.load(Ordering::Relaxed);
            if is_asked_to_stop() {
                return self.stop_here();
            }
            let losses = self.step(&batch?)?;
            self.average()?;
            self.state.step += 1;
            window.add(losses);
            let step = self.state.step;
            let each = started.elapsed().as_secs_f64() / (step - first) as f64;
            let remaining = Duration::from_secs_f64(each * (steps - step) as f64);
            report(&Event::Step { step, steps, remaining });
            let is_checkpoint =
                step.is_multiple_of(config.optimiser.checkpoint_every) || step == steps;
            if is_checkpoint || step.is_multiple_of(REPORT_EVERY) {
                let mut progress = Progress { remaining, ..window.close(step, config) };
                if is_checkpoint {
                    report(&Event::Stage("validating"));
                    progress.validation_dice = match self.validate(stop) {
                        Err(TrainError::Stopped) => return self.stop_here(),
                        validated => validated?,
                    };
                    self.checkpoint(progress.validation_dice.as_deref().unwrap_or_default())?;
                    window = Window::new();
                }
                append(&metrics, &progress)?;
                report(&Event::Progress(&progress));
            }
        }
        Ok(())
    }

    /// Ends with a checkpoint of this step, whose validation is that of the last one.
    fn stop_here(&mut self) -> Result<(), TrainError> {
        if self.state.step > 0 {
            let dice = self.state.dice.clone();
            self.checkpoint(&dice)?;
        }
        Err(TrainError::Stopped)
    }

    /// One step as published: the discriminator's, where there is one, then the generator's.
    fn step(&mut self, batch: &Batch) -> Result<Losses, TrainError> {
        let step = self.state.step;
        let learning_rate = self.config.optimiser.rate_at(step);
        let (denoising, adversary) = if let Some(adversary) = &mut self.adversary {
            let noise = Philox::new(self.config.model.seed, step);
            let round = Round { step, batch, schedule: &self.schedule, noise };
            let found = adversary.discriminate(&mut self.session, round)?;
            let (denoising, adversarial) =
                adversary.generate(&mut self.session, round, learning_rate)?;
            (denoising, Some(AdversaryLosses { adversarial, ..found }))
        } else {
            let found = self.session.step(&batch.inputs(&batch.x), learning_rate)?;
            (found.loss("generator", step)?, None)
        };
        Ok(Losses { denoising, learning_rate, adversary })
    }

    /// Exponential moving average of the weights; it follows closely at first.
    fn average(&mut self) -> Result<(), TrainError> {
        let step = self.state.step as f32;
        let decay = self.config.optimiser.ema_decay.min((1.0 + step) / (10.0 + step));
        let now = self.session.parameters()?;
        for (average, now) in self.average.iter_mut().zip(now) {
            *average += (1.0 - decay) * (now - *average);
        }
        Ok(())
    }

    /// Mean Dice of each label, with the averaged weights and the real sampler; `None` where no case
    /// is held back.
    ///
    /// # Errors
    /// [`TrainError::Stopped`] if `stop` became true before the last case.
    fn validate(&mut self, stop: &AtomicBool) -> Result<Option<Vec<Option<f64>>>, TrainError> {
        if self.validator.cases.is_empty() {
            return Ok(None);
        }
        let training = self.session.parameters()?.to_vec();
        self.session.set_parameters(&self.average)?;
        let (folder, step) = (self.config.run_folder.join("samples"), self.state.step);
        let labels = &self.batches.manifest().labels;
        let pictures = self.config.validation.pictures;
        let result =
            self.validator.mean_dice(&mut self.session, &self.schedule, |number, case, found| {
                if stop.load(Ordering::Relaxed) {
                    return Err(TrainError::Stopped);
                }
                if number >= pictures {
                    return Ok(());
                }
                fs::create_dir_all(&folder).map_err(|e| file(&folder, &e))?;
                let name = format!("step-{step:06}-{}.png", case.name);
                let panels = overlay::panels(&case.volume, &case.truth, found, labels)?;
                write_whole(&folder.join(name), &panels)
            });
        self.session.set_parameters(&training)?;
        if folder.is_dir() {
            samples::describe(&folder, labels)?;
        }
        result.map(Some)
    }

    /// Replaces `last` (and `best`, if it is) by the present state; a crash leaves the old or the new one.
    fn checkpoint(&mut self, dice: &[Option<f64>]) -> Result<(), TrainError> {
        let folder = &self.config.run_folder;
        let mean = dice.iter().flatten().sum::<f64>() / dice.iter().flatten().count().max(1) as f64;
        let is_best = mean > self.state.best_dice;
        self.state.best_dice = self.state.best_dice.max(mean);
        self.state.dice = dice.to_vec();

        let scratch = folder.join(".next");
        let _ = fs::remove_dir_all(&scratch);
        fs::create_dir_all(&scratch).map_err(|e| file(&scratch, &e))?;
        self.session.save(&scratch.join("checkpoint"))?;
        let bytes: Vec<u8> = self.average.iter().flat_map(|v| v.to_le_bytes()).collect();
        write_whole(&scratch.join("average.f32"), &bytes)?;
        let state = serde_json::to_vec_pretty(&self.state).expect("a state serialises");
        write_whole(&scratch.join("state.json"), &state)?;
        sync(&scratch.join("checkpoint"))?;
        if let Some(adversary) = &self.adversary {
            sync(&adversary.save(&scratch)?)?;
        }
        sync(&scratch)?;
        swap(&scratch, &folder.join("last"))?;
        sync(folder)?;
        if is_best {
            self.write_average(&folder.join("best.safetensors"))?;
        }
        Ok(())
    }

    /// Writes the averaged weights under their published names.
    fn write_average(&mut self, path: &Path) -> Result<(), TrainError> {
        let training = self.session.parameters()?.to_vec();
        self.session.set_parameters(&self.average)?;
        let named = self.session.named_parameters(&self.names);
        self.session.set_parameters(&training)?;
        let mut all = self.frozen.clone();
        all.extend(named?);
        write_whole(path, &safetensors(&all)?)
    }
}

/// Mean losses and speed between two lines of progress.
struct Window {
    started: Instant,
    sum: f32,
    steps: u64,
    learning_rate: f32,
    adversary: Means,
}

impl Window {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            sum: 0.0,
            steps: 0,
            learning_rate: 0.0,
            adversary: Means::default(),
        }
    }

    fn add(&mut self, losses: Losses) {
        self.sum += losses.denoising;
        self.steps += 1;
        self.learning_rate = losses.learning_rate;
        if let Some(found) = &losses.adversary {
            self.adversary.add(found);
        }
    }

    fn close(&mut self, step: u64, config: &Config) -> Progress {
        let slices = (self.steps * config.optimiser.batch as u64) as f64;
        let progress = Progress {
            step,
            steps: config.optimiser.steps,
            loss: self.sum / self.steps.max(1) as f32,
            learning_rate: self.learning_rate,
            adversary: self.adversary.close(),
            slices_per_second: slices / self.started.elapsed().as_secs_f64(),
            validation_dice: None,
            remaining: Duration::ZERO,
        };
        *self = Self::new();
        progress
    }
}

fn append(path: &Path, progress: &Progress) -> Result<(), TrainError> {
    let line = serde_json::to_string(progress).expect("numbers serialise");
    let mut out =
        fs::OpenOptions::new().create(true).append(true).open(path).map_err(|e| file(path, &e))?;
    writeln!(out, "{line}").map_err(|e| file(path, &e))
}
