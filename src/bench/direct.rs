//! The bare sampler: cases decoded, segmented and encoded in this process.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::input::one_case;
use super::report::Setting;
use super::{BenchError, ms};
use crate::bundle::Manifest;
use crate::codec::{Source, mask_png, nifti, seg};
use crate::domain::PrecisionChoice;
use crate::engine::{Options, Provider, Runtime, placements};
use crate::sampler::Stopping;
use crate::segmenter::{Outcome, Request, Segmenter, SegmenterError, interface};

/// One combination of what can be chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    pub bundle: PathBuf,
    /// `None`: as many as the bundle says.
    pub votes: Option<usize>,
    /// `None`: all of the model's.
    pub steps: Option<usize>,
    pub stopping: Stopping,
    pub options: Options,
}

/// Values of one choice that are measured side by side, such as `votes=1,5`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sweep {
    key: Key,
    values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Bundle,
    Votes,
    Steps,
    Stop,
    Provider,
    Threads,
    Precision,
}

const KEYS: [(&str, Key); 7] = [
    ("bundle", Key::Bundle),
    ("votes", Key::Votes),
    ("steps", Key::Steps),
    ("stop", Key::Stop),
    ("provider", Key::Provider),
    ("threads", Key::Threads),
    ("precision", Key::Precision),
];

impl FromStr for Sweep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, values) = text.split_once('=').unwrap_or((text, ""));
        let key = KEYS.iter().find(|(known, _)| *known == name).map(|(_, key)| *key);
        let values: Vec<String> =
            values.split(',').filter(|value| !value.is_empty()).map(str::to_owned).collect();
        match key {
            Some(key) if !values.is_empty() => Ok(Self { key, values }),
            _ => Err(format!(
                "{text:?} is not KEY=VALUE,VALUE with bundle, votes, steps, stop, provider, threads or precision, such as votes=1,5"
            )),
        }
    }
}

impl Choice {
    /// Every combination of the sweeps' values, each with the words that distinguish it.
    ///
    /// # Errors
    /// If a value means nothing.
    pub fn combine(self, sweeps: &[Sweep]) -> Result<Vec<(String, Self)>, BenchError> {
        let mut combined = vec![(String::new(), self)];
        for Sweep { key, values } in sweeps {
            let (word, _) =
                KEYS.iter().find(|(_, known)| known == key).expect("every key is named");
            let mut next = Vec::with_capacity(combined.len() * values.len());
            for (name, choice) in &combined {
                for value in values {
                    let name = format!("{name} {word}={value}").trim().to_owned();
                    let choice = choice
                        .with(*key, value)
                        .ok_or_else(|| BenchError::Sweep { key: word, value: value.clone() })?;
                    next.push((name, choice));
                }
            }
            combined = next;
        }
        Ok(combined)
    }

    fn with(&self, key: Key, value: &str) -> Option<Self> {
        let mut choice = self.clone();
        let count = || value.parse().ok().filter(|&count: &usize| count > 0);
        match key {
            Key::Bundle => choice.bundle = value.into(),
            Key::Votes => choice.votes = Some(count()?),
            Key::Steps => choice.steps = Some(count()?),
            Key::Stop => choice.stopping = value.parse().ok()?,
            Key::Threads => choice.options.intra_threads = Some(count()?),
            Key::Precision => {
                use serde::{Deserialize, de::IntoDeserializer, de::value};
                let text: value::StrDeserializer<'_, value::Error> = value.into_deserializer();
                choice.options.precision = PrecisionChoice::deserialize(text).ok()?;
            }
            Key::Provider => {
                let all = [Provider::Cpu, Provider::Cuda, Provider::TensorRt];
                choice.options.provider = all.into_iter().find(|known| known.name() == value)?;
            }
        }
        Some(choice)
    }
}

/// A model that is loaded, and what is asked of it.
#[derive(Debug)]
pub struct Direct {
    pub segmenter: Arc<Segmenter>,
    request: Request,
    options: Options,
}

/// What one case took, stage by stage, in the order in which it passed them.
pub type Stages = Vec<(String, f64)>;

impl Direct {
    /// Loads what `choices` need, each bundle once for each way to run it.
    ///
    /// # Errors
    /// If a bundle does not load, or a choice asks for more time-steps than its model has.
    pub fn load(
        runtime: &Arc<Runtime>,
        choices: &[(String, Choice)],
    ) -> Result<Vec<Self>, BenchError> {
        let mut loaded: Vec<(&Path, Options, Arc<Segmenter>)> = Vec::new();
        let mut subjects = Vec::with_capacity(choices.len());
        for (_, choice) in choices {
            let known = loaded.iter().find(|(bundle, options, _)| {
                *bundle == choice.bundle && *options == choice.options
            });
            let segmenter = if let Some((.., segmenter)) = known {
                Arc::clone(segmenter)
            } else {
                let opened = Segmenter::open(Arc::clone(runtime), &choice.bundle, choice.options)?;
                let segmenter = Arc::new(opened);
                loaded.push((&choice.bundle, choice.options, Arc::clone(&segmenter)));
                segmenter
            };
            let most = segmenter.bundle().manifest.diffusion.steps;
            if let Some(steps) = choice.steps.filter(|&steps| steps > most) {
                return Err(BenchError::Steps { steps, most });
            }
            let request = Request {
                votes: choice.votes,
                steps: choice.steps,
                stopping: choice.stopping,
                ..Request::default()
            };
            subjects.push(Self { segmenter, request, options: choice.options });
        }
        Ok(subjects)
    }

    /// What was measured. Runs a step in sessions of its own to see who runs what.
    ///
    /// # Errors
    /// If that fails.
    pub fn setting(&self, runtime: &Runtime) -> Result<Setting, BenchError> {
        let bundle = self.segmenter.bundle();
        let graphs = self.segmenter.graphs()?;
        let nodes = placements(runtime, &graphs, interface(&bundle.manifest), &self.options);
        let Manifest { name, version, diffusion, votes, .. } = &bundle.manifest;
        Ok(Setting {
            model: name.clone(),
            model_version: version.clone(),
            model_digest: bundle.digest.clone(),
            steps: self.request.steps.unwrap_or(diffusion.steps),
            votes: self.request.votes.unwrap_or(*votes),
            stop: self.request.stopping.to_string(),
            provider: self.options.provider.name().to_owned(),
            threads: self.options.intra_threads,
            precision: Some(self.segmenter.precision()?),
            nodes: nodes.map_err(SegmenterError::from)?,
        })
    }

    /// One case from its files to the bytes of its mask: DICOM SEG, NIfTI or PNG, as the case is.
    ///
    /// # Errors
    /// If it cannot be read, segmented or encoded.
    pub fn run(&self, path: &Path) -> Result<Stages, BenchError> {
        let started = Instant::now();
        let case = one_case(path)?;
        let decode = started.elapsed();
        let outcome = self.segmenter.segment(&case.volume, &self.request)?;
        let started = Instant::now();
        let labels = &self.segmenter.bundle().manifest.labels;
        let (geometry, mask) = (case.volume.geometry.as_ref(), &outcome.segmentation.mask);
        let encoded = match &case.source {
            Source::Dicom(source) => {
                let provenance = self.segmenter.provenance(&outcome, self.request.seed, "");
                let form = seg::Form::default();
                seg::encode(form, source, geometry, &outcome.segmentation, labels, &provenance)?
                    .bytes
            }
            Source::Raster if mask.dim().0 == 1 => {
                mask_png::encode(mask.index_axis(ndarray::Axis(0), 0), labels)?
            }
            source => nifti::encode_mask(source, geometry, mask)?,
        };
        std::hint::black_box(encoded);
        Ok(stages(decode, &outcome, started.elapsed()))
    }
}

fn stages(decode: Duration, outcome: &Outcome, encode: Duration) -> Stages {
    let Outcome { stages, steps, .. } = outcome;
    let taken = stages.steps.iter().enumerate().rev().take(*steps);
    let mut named = vec![
        ("decode".to_owned(), decode),
        ("prepare".to_owned(), stages.prepare),
        ("condition".to_owned(), stages.condition),
    ];
    named.extend(taken.map(|(t, time)| (format!("step t={t}"), *time)));
    named.extend([
        ("vote".to_owned(), stages.vote()),
        ("assemble".to_owned(), stages.assemble),
        ("encode".to_owned(), encode),
    ]);
    named.into_iter().map(|(name, time)| (name, ms(time))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweeps_are_combined_and_nonsense_is_refused() {
        let choice = Choice {
            bundle: "model".into(),
            votes: None,
            steps: None,
            stopping: Stopping::Never,
            options: Options::default(),
        };
        let sweeps: Vec<Sweep> =
            ["votes=1,5", "threads=1,2"].iter().map(|text| text.parse().unwrap()).collect();
        let combined = choice.clone().combine(&sweeps).unwrap();
        let names: Vec<&str> = combined.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            ["votes=1 threads=1", "votes=1 threads=2", "votes=5 threads=1", "votes=5 threads=2"]
        );
        assert_eq!(combined[3].1.votes, Some(5));
        assert_eq!(combined[3].1.options.intra_threads, Some(2));
        assert_eq!(choice.clone().combine(&[]).unwrap(), [(String::new(), choice.clone())]);
        for wrong in ["votes", "votes=", "speed=1"] {
            assert!(wrong.parse::<Sweep>().is_err(), "{wrong}");
        }
        for wrong in ["votes=0", "stop=soon", "provider=abacus"] {
            assert!(choice.clone().combine(&[wrong.parse().unwrap()]).is_err(), "{wrong}");
        }
    }
}
