use std::path::Path;

use serde::Deserialize;

use super::BundleError;
use crate::{
    domain::{Label, Precision},
    sampler,
};

/// The schema that this program reads.
pub const SCHEMA: u32 = 1;

/// `bundle.toml`, checked. Without graphs and golden case it is a `recipe.toml`, which training starts from.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub schema: u32,
    pub name: String,
    pub version: String,
    /// Independent samples drawn for one mask.
    pub votes: usize,
    pub input: Input,
    pub normalisation: Normalisation,
    pub windows: Windows,
    pub decision: Decision,
    pub labels: Vec<Label>,
    pub diffusion: Diffusion,
    pub network: Network,
    pub graphs: Option<GraphFiles>,
    pub golden: Option<Golden>,
    /// Of the denoiser, in other precisions; `python -m cdal_onnx quantize` admits them.
    #[serde(default)]
    pub variants: Vec<Variant>,
    pub provenance: Option<Provenance>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub kind: InputKind,
    /// Image channels C.
    pub channels: usize,
    /// Rows and columns that the network sees.
    pub size: [usize; 2],
    /// Volumes with geometry: which way rows, columns and slices run.
    pub orientation: Option<Orientation>,
    /// Images: rows and columns to which every image is resized first.
    pub resize: Option<[usize; 2]>,
    /// Volumes: distance between neighbouring rows, columns and slices (as oriented) that the network was trained on, mm. A
    /// case of another spacing is resampled to it, and its mask is decided on the case's own grid. Without it every voxel is
    /// shown to the network as it is, whatever its size.
    pub spacing: Option<[f64; 3]>,
    /// Rows, columns and slices (as oriented) beyond which a case is refused: in mm where `spacing` is given, otherwise in
    /// pixels.
    pub largest: Option<[usize; 3]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputKind {
    /// One image, grey or colour.
    Image,
    /// A stack of slices.
    Volume,
}

/// Patient directions towards which the row, column and slice index grow, such as "LPI".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Orientation {
    /// For rows, columns, slices: the patient axis (0 = x, 1 = y, 2 = z) and whether the index grows towards
    /// its positive end (L, P, S).
    pub axes: [(usize, bool); 3],
}

impl TryFrom<String> for Orientation {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || {
            format!("orientation {text:?} is not three letters, one of L/R, one of A/P, one of S/I")
        };
        let letters: Vec<char> = text.chars().collect();
        let [a, b, c] = letters[..] else { return Err(wrong()) };
        let mut axes = [(0, false); 3];
        for (slot, letter) in axes.iter_mut().zip([a, b, c]) {
            *slot = match letter {
                'L' => (0, true),
                'R' => (0, false),
                'P' => (1, true),
                'A' => (1, false),
                'S' => (2, true),
                'I' => (2, false),
                _ => return Err(wrong()),
            };
        }
        let mut seen = axes.map(|(axis, _)| axis);
        seen.sort_unstable();
        if seen == [0, 1, 2] { Ok(Self { axes }) } else { Err(wrong()) }
    }
}

/// How samples become network input.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Normalisation {
    /// Smallest sample of the case to -1, largest to 1.
    MinMax,
    /// Black of the nominal range to -1, white to 1; colour is averaged to grey for one-channel models.
    NominalRange,
    /// (v - mean)/std for each channel, v on the scale 0 to 255 of the nominal range.
    ZScore { mean: Vec<f32>, std: Vec<f32> },
}

/// What the network is shown of a case.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Windows {
    /// The whole (resized) image.
    Whole,
    /// Side by side, without overlap; the resized image is a whole number of them.
    Tiles,
    /// Overlapping windows of rows, columns and slices; every slice of a window is one image. Smaller cases
    /// are padded evenly on both sides with `padding` (normalised units).
    Sliding {
        size: [usize; 3],
        overlap: f64,
        padding: f32,
        #[serde(default)]
        plan: Plan,
    },
}

/// How often a slice is sampled where windows overlap in depth. Slices do not see each other, so that overlap
/// in depth adds votes and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Plan {
    /// Once for every window that holds it, as published.
    #[default]
    Literal,
    /// Once at every place in the plane.
    EachSliceOnce,
}

/// From votes to label values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Decision {
    /// The channel with the largest average is the label value; channel 0 is background.
    Argmax,
    /// One channel, rounded.
    Threshold {
        foreground: Polarity,
        #[serde(default)]
        rounded: Rounding,
    },
}

/// On which grid the mean of votes is rounded; they differ where images are resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rounding {
    /// The network's, as published; the mask is carried back by nearest neighbour.
    #[default]
    Network,
    /// The image's own: the mean is carried back by linear interpolation, so that a small network can draw
    /// a smooth outline.
    Image,
}

/// Which end of [-1, 1] marks the structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Polarity {
    Positive,
    Negative,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Diffusion {
    /// T.
    pub steps: usize,
    pub variance: VarianceKind,
    pub beta_min: f64,
    pub beta_max: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VarianceKind {
    Preserving,
    Geometric,
}

impl Diffusion {
    /// Whether sampling with it stays within finite numbers. T is checked apart.
    pub(super) fn is_finite(&self) -> bool {
        let within = (1..=64).contains(&self.steps);
        !within
            || self.schedule().posterior.iter().all(|p| {
                [p.x0_weight, p.x_weight, p.log_variance].iter().all(|value| value.is_finite())
            })
    }

    #[must_use]
    pub fn schedule(&self) -> sampler::Schedule {
        let (beta_min, beta_max) = (self.beta_min, self.beta_max);
        let variance = match self.variance {
            VarianceKind::Preserving => sampler::Variance::Preserving { beta_min, beta_max },
            VarianceKind::Geometric => sampler::Variance::Geometric { beta_min, beta_max },
        };
        sampler::Schedule::new(self.steps, variance)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// L.
    pub label_channels: usize,
    /// nf: channels of the condition features.
    pub features: usize,
    /// nz.
    pub latent: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphFiles {
    pub condition: FileDigest,
    pub denoiser: FileDigest,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    pub file: String,
    pub sha256: String,
}

/// A recorded case that the graphs must reproduce.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    pub file: String,
    pub sha256: String,
    /// Largest absolute difference of the mean of votes.
    pub tolerance: f32,
}

/// A denoiser beside the canonical one, which it agreed with on calibration cases.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    pub precision: Precision,
    pub denoiser: FileDigest,
    /// Least Dice of a label's masks against those of the canonical denoiser, and the Dice that was asked for.
    pub dice: f64,
    pub least_dice: f64,
    /// Calibration cases.
    pub cases: usize,
    /// Root mean square difference of the golden case's mean of votes from its record.
    pub golden_rms: f32,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    pub weights: String,
    pub data: String,
    pub licence: String,
    pub exporter: String,
}

impl Manifest {
    /// Reads and checks `bundle.toml` or `recipe.toml`.
    ///
    /// # Errors
    /// All that is wrong with it, in one message.
    pub fn read(path: &Path) -> Result<Self, BundleError> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| BundleError::Unreadable { path: path.into(), reason: e.to_string() })?;
        Self::parse(&text, path)
    }

    /// # Errors
    /// As [`Manifest::read`]; `path` is only named in messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, BundleError> {
        let wrong = |reason: String| BundleError::Manifest { path: path.into(), reason };
        let deserializer = toml::Deserializer::parse(text).map_err(|e| {
            let before = e.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            wrong(format!("line {}: {}", before.matches('\n').count() + 1, e.message()))
        })?;
        let manifest: Self = serde_path_to_error::deserialize(deserializer)
            .map_err(|e| wrong(format!("{}: {}", e.path(), e.inner().message())))?;
        let faults = manifest.faults();
        if faults.is_empty() { Ok(manifest) } else { Err(wrong(faults.join("; "))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LUNG: &str = include_str!("../../onnx/cdal_onnx/presets/lung.toml");
    const REST: &str = "
[diffusion]
steps = 2
variance = \"preserving\"
beta_min = 0.1
beta_max = 20.0

[network]
label_channels = 1
features = 32
latent = 10
";

    /// What is said of the lung preset with `from` replaced by `to`.
    fn fault(from: &str, to: &str) -> String {
        let text = format!("{LUNG}{REST}").replace("$name", "lung").replace("$version", "1");
        let text = text.replace("$size", "64");
        assert!(Manifest::parse(&text, Path::new("b.toml")).is_ok());
        assert!(text.contains(from), "{from}");
        Manifest::parse(&text.replace(from, to), Path::new("b.toml")).unwrap_err().to_string()
    }

    #[test]
    fn sizes_and_numbers_that_no_run_survives_are_refused() {
        for (from, to, said) in [
            ("resize = [64, 64]", "resize = [0, 64]", "input.resize"),
            ("resize = [64, 64]", "resize = [64, 9000000]", "input.resize"),
            ("steps = 2", "steps = 65", "diffusion.steps"),
            ("latent = 10", "latent = 9000000000", "network.latent"),
            ("features = 32", "features = 0", "network.features"),
            ("beta_max = 20.0", "beta_max = inf", "not finite"),
            ("\"preserving\"", "\"geometric\"", "not finite"),
            (
                "[network]",
                "[golden]\nfile = \"g\"\nsha256 = \"\"\ntolerance = inf\n[network]",
                "tolerance",
            ),
            ("name = \"lung\"", "name = \"a\\nb\"", "name must be"),
            ("value = \"39607008\"", "value = \"12345678901234567\"", "labels[0].type.value"),
            ("steps = 2", "steps = = 2", "line 31: "),
            ("votes = 30", "votes = 0\nextra = 1", "extra"),
        ] {
            let found = fault(from, to);
            assert!(found.starts_with("b.toml: ") && found.contains(said), "{to}: {found}");
            assert_eq!(found.lines().count(), 1, "{found}");
        }
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let found = fault("votes = 30", "votes = 0").replace("b.toml: ", "");
        assert!(!found.contains(';'), "{found}");
        let text = format!("{LUNG}{REST}").replace("$size", "64").replace("steps = 2", "steps = 0");
        let found = Manifest::parse(&text.replace("votes = 30", "votes = 0"), Path::new("b.toml"));
        let found = found.unwrap_err().to_string();
        assert!(found.contains("votes = 0") && found.contains("diffusion.steps = 0"), "{found}");
    }
}
