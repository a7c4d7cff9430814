//! The discriminator beside the generator: its own step, the attention that it lends to the generator's, and
//! the term that it may add to the generator's loss (cdal.md, "Training, as published").

use std::path::{Path, PathBuf};

use ndarray::{Array4, Ix4, aview1};
use serde::Serialize;

use super::{
    Batch, Config, Inputs, TrainError, TrainingSession, config,
    diffusion::{Pair, normals, pair, pair_at, posterior},
    draws::{ATTENDED, DISCRIMINATOR, FAKE, TERM},
    session::Outputs,
    tools::tensor_names,
};
use crate::{
    engine::Runtime,
    sampler::{Philox, Schedule},
};

/// What a step found, or its mean over several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct AdversaryLosses {
    /// What the discriminator minimises: the sum of the next three.
    pub loss: f32,
    /// softplus(-D(x_t, t, x_{t+1})).
    pub real: f32,
    /// softplus(D(x_pos, t, x_{t+1})).
    pub fake: f32,
    /// ½·r1_gamma·‖∇_{x_t} D‖², where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r1: Option<f32>,
    /// softplus(-D(x_pos, t, x_{t+1})) in the generator's loss, where that sees the discriminator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adversarial: Option<f32>,
    pub learning_rate: f32,
}

/// What one step of training works on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round<'a> {
    pub step: u64,
    pub batch: &'a Batch,
    pub schedule: &'a Schedule,
    /// All that is drawn in the step comes from here.
    pub noise: Philox,
}

/// The discriminator under training.
#[derive(Debug)]
pub(super) struct Adversary<'a> {
    config: &'a config::Adversary,
    optimiser: &'a config::Optimiser,
    session: TrainingSession,
    /// Of its weights, as published.
    names: Vec<String>,
}

/// Where the artifacts of a run, and each of its checkpoints, hold the discriminator.
const PLACE: &str = "discriminator";

impl<'a> Adversary<'a> {
    /// The discriminator that `config` asks for, with the state in checkpoint folder `last` if there is one.
    ///
    /// # Errors
    /// If the run was begun with another kind of `[adversary]`, or the runtime refuses the artifacts.
    pub fn load(
        config: &'a Config,
        runtime: &Runtime,
        artifacts: &Path,
        last: &Path,
        generator: &TrainingSession,
    ) -> Result<Option<Self>, TrainError> {
        let folder = artifacts.join(PLACE);
        let begun_otherwise = |begun: &str| {
            let run = config.run_folder.display();
            TrainError::Config(format!(
                "{run}: the run was begun {begun}; make the configuration so again, or take another run_folder"
            ))
        };
        let Some(asked) = &config.adversary else {
            let begun_with = folder.is_dir();
            return if begun_with { Err(begun_otherwise("with an [adversary]")) } else { Ok(None) };
        };
        if !folder.is_dir() {
            return Err(begun_otherwise("without an [adversary]"));
        }
        match (asked.adversarial_weight > 0.0, generator.takes("adversarial_weight")) {
            (true, false) => return Err(begun_otherwise("with an adversarial_weight of 0")),
            (false, true) => return Err(begun_otherwise("with an adversarial_weight above 0")),
            _ => {}
        }
        let checkpoint = if last.is_dir() { last.join(PLACE) } else { folder.join("checkpoint") };
        let threads = config.optimiser.intra_threads;
        Ok(Some(Self {
            config: asked,
            optimiser: &config.optimiser,
            session: TrainingSession::load(runtime, &folder, &checkpoint, threads)?,
            names: tensor_names(&folder.join("parameters.safetensors"))?,
        }))
    }

    /// The discriminator's step: a fresh pair, and what the generator makes of its x_{t+1}.
    pub fn discriminate(
        &mut self,
        generator: &mut TrainingSession,
        round: Round<'_>,
    ) -> Result<AdversaryLosses, TrainError> {
        let Round { step, batch, schedule, noise } = round;
        let Pair { t, x_t, x_tp1 } = pair(schedule, noise, DISCRIMINATOR, &batch.target);
        let z = normals(noise, DISCRIMINATOR.latent, batch.z.dim());
        let seen = Inputs::new()
            .floats("x", x_tp1.view())
            .integers("t", t.view())
            .floats("image", batch.image.view())
            .floats("z", z.view());
        let x0 = four(&mut generator.evaluate(&seen)?, "x0")?;
        let x_pos = posterior(schedule, noise, FAKE, &t, &x_tp1).of(&x0);

        let is_penalised = self.config.r1_gamma > 0.0 && step.is_multiple_of(self.config.lazy_reg);
        let r1_weight = [if is_penalised { 0.5 * self.config.r1_gamma } else { 0.0 }];
        let inputs = Inputs::new()
            .floats("x_t", x_t.view())
            .integers("t", t.view())
            .floats("x_tp1", x_tp1.view())
            .floats("x_pos", x_pos.view())
            .floats("r1_weight", aview1(&r1_weight));
        let learning_rate = self.config.rate_at(self.optimiser, step);
        let found = self.session.step(&inputs, learning_rate)?;
        Ok(AdversaryLosses {
            loss: found.loss("discriminator", step)?,
            real: found.scalar("real")?,
            fake: found.scalar("fake")?,
            r1: is_penalised.then(|| found.scalar("r1")).transpose()?,
            adversarial: None,
            learning_rate,
        })
    }

    /// The generator's step under the discriminator: on the attended label, with the adversarial term if it is
    /// weighted. Gives the denoising error and that term.
    pub fn generate(
        &mut self,
        generator: &mut TrainingSession,
        round: Round<'_>,
        learning_rate: f32,
    ) -> Result<(f32, Option<f32>), TrainError> {
        let Round { step, batch, schedule, noise } = round;
        let attended = if self.config.attention { Some(self.attended(round)?) } else { None };
        let x = attended.as_ref().unwrap_or(&batch.x);
        let inputs = batch.inputs(x);
        if self.config.adversarial_weight == 0.0 {
            let found = generator.step(&inputs, learning_rate)?;
            return Ok((found.loss("generator", step)?, None));
        }
        let drawn = posterior(schedule, noise, TERM, &batch.t, x);
        let weight = [self.config.adversarial_weight];
        let weights = self.session.named_parameters(&self.names)?;
        let inputs = weights.iter().fold(
            inputs
                .floats("x0_weight", drawn.x0_weight.view())
                .floats("x_rest", drawn.rest.view())
                .floats("adversarial_weight", aview1(&weight)),
            |inputs, (name, values)| inputs.floats(format!("{PLACE}.{name}"), values.view()),
        );
        let found = generator.step(&inputs, learning_rate)?;
        found.loss("generator", step)?;
        Ok((found.scalar("mse")?, Some(found.scalar("adversarial")?)))
    }

    /// x_{t+1} of the label weighted by D's spatial attention to the generator's pair, under fresh noise.
    fn attended(&mut self, round: Round<'_>) -> Result<Array4<f32>, TrainError> {
        let Round { batch, schedule, noise, .. } = round;
        let inputs = Inputs::new()
            .floats("x_t", batch.x_t.view())
            .integers("t", batch.t.view())
            .floats("x_tp1", batch.x.view());
        let attention = four(&mut self.session.evaluate(&inputs)?, "attention")?;
        let label = &batch.target * &attention; // [N, 1, H, W] over all channels of the label
        Ok(pair_at(schedule, noise, ATTENDED, batch.t.clone(), &label).x_tp1)
    }

    /// Adds weights and optimizer state to a checkpoint folder in the making; gives the file.
    pub fn save(&self, folder: &Path) -> Result<PathBuf, TrainError> {
        let path = folder.join(PLACE);
        self.session.save(&path)?;
        Ok(path)
    }
}

fn four(outputs: &mut Outputs, name: &str) -> Result<Array4<f32>, TrainError> {
    let values = outputs.take(name)?;
    values.into_dimensionality::<Ix4>().map_err(|e| TrainError::Runtime(format!("{name}: {e}")))
}

/// Means of the losses between two lines of progress; R1 over the steps that were penalised.
#[derive(Debug, Default)]
pub(super) struct Means {
    sums: AdversaryLosses,
    steps: u32,
    penalised: u32,
}

impl Means {
    pub fn add(&mut self, found: &AdversaryLosses) {
        let more = |sum: Option<f32>, value: Option<f32>| match (sum, value) {
            (None, None) => None,
            (sum, value) => Some(sum.unwrap_or(0.0) + value.unwrap_or(0.0)),
        };
        let sums = &mut self.sums;
        sums.loss += found.loss;
        sums.real += found.real;
        sums.fake += found.fake;
        sums.r1 = more(sums.r1, found.r1);
        sums.adversarial = more(sums.adversarial, found.adversarial);
        sums.learning_rate = found.learning_rate;
        self.steps += 1;
        self.penalised += u32::from(found.r1.is_some());
    }

    /// None where no step had an adversary.
    pub fn close(&self) -> Option<AdversaryLosses> {
        let share = 1.0 / self.steps as f32;
        (self.steps > 0).then(|| AdversaryLosses {
            loss: self.sums.loss * share,
            real: self.sums.real * share,
            fake: self.sums.fake * share,
            r1: self.sums.r1.map(|r1| r1 / self.penalised as f32),
            adversarial: self.sums.adversarial.map(|term| term * share),
            learning_rate: self.sums.learning_rate,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_r1_is_over_the_penalised_steps() {
        let mut means = Means::default();
        assert_eq!(means.close(), None);
        let found = AdversaryLosses { loss: 2.0, real: 1.0, fake: 1.0, ..Default::default() };
        means.add(&AdversaryLosses { r1: Some(0.5), loss: 2.5, ..found });
        means.add(&found);
        let expected = AdversaryLosses { r1: Some(0.5), loss: 2.25, ..found };
        assert_eq!(means.close(), Some(expected));
    }
}
