use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::TrainError;

/// A training run, as written in `configs/train-*.toml`. Paths are relative to the file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where checkpoints, metrics and the finished bundle go.
    pub run_folder: PathBuf,
    /// Interpreter that has `cdal_onnx`; it makes the training graphs and the bundle.
    #[serde(default = "default_python")]
    pub python: PathBuf,
    pub model: Model,
    pub data: Data,
    #[serde(default)]
    pub augmentation: Augmentation,
    pub optimiser: Optimiser,
    /// A discriminator beside the generator, as published; without it the generator trains alone.
    pub adversary: Option<Adversary>,
    pub card: Card,
}

fn default_python() -> PathBuf {
    "../.venv/bin/python".into()
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    pub preset: String,
    pub parameters: PathBuf,
    /// First weights; drawn with `seed` where absent.
    pub checkpoint: Option<PathBuf>,
    /// Of the first weights, the batches and the noise.
    pub seed: u64,
}

/// Where cases come from.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Data {
    /// A new phantom for every few slices, seeds counting up from `first_seed`.
    Phantom { first_seed: u64, validation_first_seed: u64, validation_cases: u64 },
    /// Images and truths of `folder`, as [`crate::truth::Dataset`] pairs and reads them; `split` names the cases
    /// to train on and to validate on: {"train": […], "val": […]}.
    Pairs { folder: PathBuf, split: PathBuf, validation_cases: usize },
}

/// How much a slice is changed before it is learned from; each is the half-width of a uniform draw.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augmentation {
    pub rotation_degrees: f32,
    /// Share of the size: 0.2 scales by 0.8 to 1.2.
    pub scale: f32,
    pub shift_pixels: f32,
    /// Of the logarithm of gamma: 0.3 gives gammas from 0.74 to 1.35.
    pub gamma: f32,
    /// Standard deviation of added noise, in normalised units.
    pub noise: f32,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
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
    pub checkpoint_every: u64,
    pub intra_threads: usize,
}

/// The discriminator: how it is trained, and what it does for the generator.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adversary {
    /// First weights; drawn with the model's seed where absent.
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
        for relative in [&mut config.run_folder, &mut config.python, &mut config.model.parameters]
            .into_iter()
            .chain(config.model.checkpoint.as_mut())
            .chain(config.adversary.as_mut().and_then(|adversary| adversary.checkpoint.as_mut()))
            .chain(match &mut config.data {
                Data::Pairs { folder, split, .. } => vec![folder, split],
                Data::Phantom { .. } => vec![],
            })
        {
            *relative = folder.join(&*relative);
        }
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
        checks.into_iter().find(|(fine, _)| !fine).map_or(Ok(()), |(_, fault)| Err(fault))
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
