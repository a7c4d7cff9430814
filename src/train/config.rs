use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::TrainError;

/// A training run, as written in `configs/train-*.toml`. Paths are relative to the file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where checkpoints, metrics and the finished bundle go.
    pub run_folder: PathBuf,
    /// Interpreter that has what `cdal_onnx` needs; it makes the training graphs and the bundle. A name without a folder is
    /// looked for on the search path. Without it the project's `.venv`, else `python3`, is taken.
    pub python: Option<PathBuf>,
    pub model: Model,
    pub data: Data,
    #[serde(default)]
    pub augmentation: Augmentation,
    pub optimiser: Optimiser,
    #[serde(default)]
    pub validation: Validation,
    /// A discriminator beside the generator, as published; without it the generator trains alone.
    pub adversary: Option<Adversary>,
    pub card: Card,
    /// Where the file is.
    #[serde(skip)]
    pub(super) folder: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    pub preset: String,
    pub parameters: PathBuf,
    /// First weights, .safetensors or .pth; drawn with `seed` where neither this nor `start` is given.
    pub checkpoint: Option<PathBuf>,
    /// Where training goes on from.
    pub start: Option<Start>,
    /// Weights that stay as they are: patterns of their published names, such as "all_modules.3.*".
    #[serde(default)]
    pub freeze: Vec<String>,
    /// Of the first weights, the batches and the noise.
    pub seed: u64,
}

/// `start = { bundle = "DIR" }` or `start = { checkpoint = "FILE" }`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// A bundle of the same parameters, whose weights are recovered from its graphs.
    Bundle(PathBuf),
    Checkpoint(PathBuf),
}

/// Where cases come from.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Data {
    /// A new phantom for every few slices, seeds counting up from `first_seed`.
    Phantom { first_seed: u64, validation_first_seed: u64, validation_cases: u64 },
    /// Images and truths of `folder`, as [`crate::truth::Dataset`] pairs and reads them; `split` names the cases
    /// to train on and to validate on: {"train": […], "val": […]}. Without it `validation_cases` of all, evenly spread over
    /// the order of their names, are held back.
    Pairs { folder: PathBuf, split: Option<PathBuf>, validation_cases: usize },
}

/// How much a slice is changed before it is learned from. Numbers are half-widths of uniform draws where nothing else
/// is said; what is left out is not done.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augmentation {
    /// Where crops are taken from a slice.
    pub crops: Crops,
    /// Upside down, left to right: each in half of the draws. Not for models that tell the sides apart.
    pub flip_rows: bool,
    pub flip_columns: bool,
    pub rotation_degrees: f32,
    /// Share of the size: 0.2 scales by 0.8 to 1.2.
    pub scale: f32,
    /// As `scale`, rows and columns apart.
    pub stretch: f32,
    pub shift_pixels: f32,
    /// Standard deviation of a smooth displacement along each axis, and the pixels over which it bends. Beyond a
    /// third of these, the image begins to fold.
    pub elastic_pixels: f32,
    pub elastic_spacing: f32,
    /// Standard deviation of the logarithm of a smooth gain, as coils and tubes have it.
    pub bias: f32,
    /// Of the logarithm of gamma: 0.3 gives gammas from 0.74 to 1.35.
    pub gamma: f32,
    /// Share of the distance from the mean.
    pub contrast: f32,
    /// Added, share of the image's range.
    pub brightness: f32,
    /// As `brightness`, for each channel apart.
    pub colour: f32,
    /// Standard deviation of added noise, in normalised units.
    pub noise: f32,
}

impl Default for Augmentation {
    fn default() -> Self {
        Self {
            crops: Crops::Windows,
            flip_rows: false,
            flip_columns: false,
            rotation_degrees: 0.0,
            scale: 0.0,
            stretch: 0.0,
            shift_pixels: 0.0,
            elastic_pixels: 0.0,
            elastic_spacing: 16.0,
            bias: 0.0,
            gamma: 0.0,
            contrast: 0.0,
            brightness: 0.0,
            colour: 0.0,
            noise: 0.0,
        }
    }
}

impl Augmentation {
    fn check(&self) -> Result<(), &'static str> {
        let Self { rotation_degrees, shift_pixels, elastic_pixels, elastic_spacing, .. } = *self;
        let Self { scale, stretch, bias, gamma, contrast, brightness, colour, noise, .. } = *self;
        let amounts = [rotation_degrees, shift_pixels, elastic_pixels, bias, gamma, noise];
        let shares = [scale, stretch, contrast, brightness, colour];
        if !amounts.iter().chain(&shares).all(|v| v.is_finite() && *v >= 0.0) {
            Err("augmentation takes finite numbers that are not negative")
        } else if !shares.iter().all(|&share| share < 1.0) {
            Err("augmentation.scale, stretch, contrast, brightness and colour are shares below 1")
        } else if !(elastic_spacing.is_finite() && elastic_spacing >= 2.0) {
            Err("augmentation.elastic_spacing must be at least 2 pixels")
        } else {
            Ok(())
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Crops {
    /// At the windows that masks are made of.
    Windows,
    /// At any place of the slice.
    Anywhere,
}

/// What is serialised of it is what a resumed run must share with the one it goes on with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimiser {
    pub steps: u64,
    /// Slices in a step.
    pub batch: usize,
    pub learning_rate: f64,
    /// Where the cosine decay ends.
    pub final_learning_rate: f64,
    /// Adam's.
    pub betas: [f64; 2],
    /// Of the moving average of weights that is validated and exported.
    pub ema_decay: f32,
    /// Steps between checkpoints, each with a validation by the real sampler.
    #[serde(skip_serializing)]
    pub checkpoint_every: u64,
    #[serde(skip_serializing)]
    pub intra_threads: usize,
}

/// How a checkpoint is validated: always by the real sampler, as thoroughly as time allows.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Validation {
    /// Votes for a mask; the preset says how many by default.
    pub votes: Option<usize>,
    /// Of sliding windows, in place of the preset's. Then every crop is sampled once, where windows that overlap in
    /// depth sample it again.
    pub overlap: Option<f64>,
    /// Cases of which a picture is kept at each checkpoint.
    pub pictures: usize,
}

impl Default for Validation {
    fn default() -> Self {
        Self { votes: None, overlap: None, pictures: 4 }
    }
}

impl Validation {
    fn check(&self) -> Result<(), &'static str> {
        if !self.votes.is_none_or(|votes| (1..=1000).contains(&votes)) {
            Err("validation.votes must be 1 to 1000")
        } else if !self.overlap.is_none_or(|overlap| (0.0..1.0).contains(&overlap)) {
            Err("validation.overlap must lie in [0, 1)")
        } else {
            Ok(())
        }
    }
}

/// The discriminator: how it is trained, and what it does for the generator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adversary {
    /// First weights; drawn with the model's seed where absent.
    #[serde(skip_serializing)]
    pub checkpoint: Option<PathBuf>,
    pub learning_rate: f64,
    /// Where the cosine decay ends.
    pub final_learning_rate: f64,
    /// Adam's.
    pub betas: [f64; 2],
    /// Of the penalty ½·`r1_gamma`·‖∇D‖² on real pairs; 0 leaves it out.
    pub r1_gamma: f32,
    /// Steps from one penalty to the next.
    #[serde(default = "every_step")]
    pub lazy_reg: u64,
    /// Whether the label is weighted by D's spatial attention before it is noised for the generator.
    #[serde(default = "yes")]
    pub attention: bool,
    /// Of softplus(-D) in the generator's loss; published: 0.
    #[serde(default)]
    pub adversarial_weight: f32,
}

fn every_step() -> u64 {
    1
}

fn yes() -> bool {
    true
}

/// What the bundle says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    pub name: String,
    pub version: String,
    pub weights: String,
    pub data: String,
    pub licence: String,
}

impl Config {
    /// # Errors
    /// If the file cannot be read or a value is wrong; the message names the key.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let wrong = |reason: String| TrainError::Config(format!("{}: {reason}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        let deserializer =
            toml::Deserializer::parse(&text).map_err(|e| wrong(e.message().to_owned()))?;
        let mut config: Self = serde_path_to_error::deserialize(deserializer)
            .map_err(|e| wrong(format!("{}: {}", e.path(), e.inner().message())))?;
        config.check().map_err(|fault| wrong(fault.into()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        for relative in [&mut config.run_folder, &mut config.model.parameters]
            .into_iter()
            // A bare name is for the search path.
            .chain(config.python.as_mut().filter(|python| python.components().count() > 1))
            .chain(config.model.checkpoint.as_mut())
            .chain(config.model.start.as_mut().map(|start| match start {
                Start::Bundle(path) | Start::Checkpoint(path) => path,
            }))
            .chain(config.adversary.as_mut().and_then(|adversary| adversary.checkpoint.as_mut()))
            .chain(match &mut config.data {
                Data::Pairs { folder, split, .. } => {
                    [folder].into_iter().chain(split.as_mut()).collect()
                }
                Data::Phantom { .. } => vec![],
            })
        {
            *relative = folder.join(&*relative);
        }
        folder.clone_into(&mut config.folder);
        Ok(config)
    }

    fn check(&self) -> Result<(), &'static str> {
        let rate = |r: f64| r.is_finite() && r > 0.0;
        let momenta = |betas: &[f64; 2]| betas.iter().all(|b| (0.0..1.0).contains(b));
        let weight = |w: f32| w.is_finite() && w >= 0.0;
        let o = &self.optimiser;
        let mut checks = vec![
            (o.steps > 0, "optimiser.steps must be positive"),
            (o.batch > 0 && o.batch <= 4096, "optimiser.batch must be 1 to 4096"),
            (
                rate(o.learning_rate) && rate(o.final_learning_rate),
                "learning rates must be positive",
            ),
            (momenta(&o.betas), "optimiser.betas must lie in [0, 1)"),
            ((0.0..1.0).contains(&o.ema_decay), "optimiser.ema_decay must lie in [0, 1)"),
            (o.checkpoint_every > 0, "optimiser.checkpoint_every must be positive"),
            (o.intra_threads > 0, "optimiser.intra_threads must be positive"),
        ];
        if let Some(a) = &self.adversary {
            checks.extend([
                (
                    rate(a.learning_rate) && rate(a.final_learning_rate),
                    "the adversary's learning rates must be positive",
                ),
                (momenta(&a.betas), "adversary.betas must lie in [0, 1)"),
                (weight(a.r1_gamma), "adversary.r1_gamma must not be negative"),
                (a.lazy_reg > 0, "adversary.lazy_reg must be positive; 1 is every step"),
                (weight(a.adversarial_weight), "adversary.adversarial_weight must not be negative"),
                (
                    o.batch <= 4 || o.batch.is_multiple_of(4),
                    "optimiser.batch must be at most 4 or a multiple of 4 with an [adversary], \
                     whose minibatch stddev takes groups of 4",
                ),
            ]);
        }
        let is_twice = self.model.checkpoint.is_some() && self.model.start.is_some();
        checks.push((!is_twice, "model.checkpoint and model.start are the same thing; give one"));
        checks.into_iter().find(|(fine, _)| !fine).map_or(Ok(()), |(_, fault)| Err(fault))?;
        self.augmentation.check()?;
        self.validation.check()
    }
}

impl Optimiser {
    /// Cosine decay from the first to the last step.
    #[must_use]
    pub fn rate_at(&self, step: u64) -> f32 {
        self.decayed(step, self.learning_rate, self.final_learning_rate)
    }

    fn decayed(&self, step: u64, first: f64, last: f64) -> f32 {
        let done = step as f64 / self.steps as f64;
        let cosine = f64::midpoint(1.0, (std::f64::consts::PI * done).cos());
        (last + (first - last) * cosine) as f32
    }
}

impl Adversary {
    /// The discriminator's rate, over the same steps.
    #[must_use]
    pub fn rate_at(&self, optimiser: &Optimiser, step: u64) -> f32 {
        optimiser.decayed(step, self.learning_rate, self.final_learning_rate)
    }
}
