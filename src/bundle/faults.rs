//! What can be wrong with a manifest that parses: all faults at once.

use super::{Decision, InputKind, Manifest, Normalisation, Windows, manifest::SCHEMA};
use crate::domain::Precision;

impl Manifest {
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut check = |fine: bool, fault: String| {
            if !fine {
                faults.push(fault);
            }
        };
        check(
            self.schema == SCHEMA,
            format!("schema {} is not {SCHEMA}, the one this program reads", self.schema),
        );
        check((1..=1000).contains(&self.votes), format!("votes = {} is not 1 to 1000", self.votes));
        let [height, width] = self.input.size;
        check(
            (1..=4096).contains(&height) && (1..=4096).contains(&width),
            format!("input.size = {:?} is not within 1 to 4096", self.input.size),
        );
        check(
            matches!(self.input.channels, 1 | 3),
            format!("input.channels = {} is not 1 or 3", self.input.channels),
        );
        check(
            (1..=64).contains(&self.diffusion.steps),
            format!("diffusion.steps = {} is not 1 to 64", self.diffusion.steps),
        );
        check(
            self.diffusion.beta_min > 0.0 && self.diffusion.beta_max >= self.diffusion.beta_min,
            "diffusion.beta_min must be positive and not above beta_max".into(),
        );
        check(
            self.diffusion.is_finite(),
            "diffusion gives a schedule that is not finite; geometric variance needs beta_max below 1"
                .into(),
        );
        check(
            (1..=65536).contains(&self.network.latent),
            format!("network.latent = {} is not 1 to 65536", self.network.latent),
        );
        check(
            (1..=4096).contains(&self.network.features),
            format!("network.features = {} is not 1 to 4096", self.network.features),
        );
        check(
            self.input.resize.is_none_or(|r| r.iter().all(|side| (1..=8192).contains(side))),
            format!("input.resize = {:?} is not within 1 to 8192", self.input.resize),
        );
        check(
            self.golden.as_ref().is_none_or(|g| g.tolerance > 0.0 && g.tolerance <= 0.1),
            "golden.tolerance must be positive and at most 0.1, the mean of votes being 0 to 1"
                .into(),
        );
        if let Normalisation::ZScore { mean, std } = &self.normalisation {
            check(
                mean.len() == self.input.channels
                    && std.len() == self.input.channels
                    && std.iter().all(|&s| s > 0.0),
                "normalisation.mean and std need one number for each channel, std positive".into(),
            );
        }
        match &self.windows {
            Windows::Whole => check(
                self.input.resize.is_none_or(|resize| resize == self.input.size),
                "windows of kind whole need input.resize equal to input.size".into(),
            ),
            Windows::Tiles => check(
                self.input.resize.is_some_and(|r| r[0] % height == 0 && r[1] % width == 0),
                "windows of kind tiles need an input.resize that is a multiple of input.size"
                    .into(),
            ),
            Windows::Sliding { size, overlap, padding, plan: _ } => check(
                size[..2] == self.input.size
                    && (1..=1024).contains(&size[2])
                    && (0.0..1.0).contains(overlap)
                    && padding.is_finite(),
                "windows.size must begin with input.size and end with 1 to 1024 slices, overlap lie in [0, 1)"
                    .into(),
            ),
        }
        check(
            (self.input.kind == InputKind::Volume)
                == matches!(self.windows, Windows::Sliding { .. }),
            "input.kind volume goes with sliding windows, image with whole or tiles".into(),
        );
        let millimetres = |spacing: [f64; 3]| spacing.iter().all(|s| (0.01..=100.0).contains(s));
        check(
            self.input
                .spacing
                .is_none_or(|spacing| self.input.kind == InputKind::Volume && millimetres(spacing)),
            format!(
                "input.spacing = {:?} must be three distances of 0.01 to 100 mm, for input.kind volume",
                self.input.spacing.unwrap_or_default()
            ),
        );
        faults.extend(self.variant_faults());
        faults.extend(self.label_faults());
        faults.extend(self.text_faults());
        faults
    }

    fn variant_faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut check = |fine: bool, fault: String| {
            if !fine {
                faults.push(fault);
            }
        };
        for (index, variant) in self.variants.iter().enumerate() {
            let is_other = variant.precision != Precision::Fp32
                && self.variants[..index].iter().all(|v| v.precision != variant.precision);
            check(
                is_other,
                format!("variants[{index}].precision must be fp16 or int8, each once at most"),
            );
            check(
                variant.dice >= variant.least_dice && (0.0..=1.0).contains(&variant.dice),
                format!("variants[{index}].dice must lie in [least_dice, 1]"),
            );
            check(
                (0.0..=0.5).contains(&variant.golden_rms),
                format!("variants[{index}].golden_rms must lie in [0, 0.5]"),
            );
        }
        faults
    }

    /// Labels that are not numbered in order, or do not go with the network's channels.
    fn label_faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut check = |fine: bool, fault: String| {
            if !fine {
                faults.push(fault);
            }
        };
        let values: Vec<u8> = self.labels.iter().map(|label| label.value).collect();
        check(
            !values.is_empty() && values.iter().enumerate().all(|(i, &v)| usize::from(v) == i + 1),
            format!("label values are {values:?}; they must be 1, 2, … in order"),
        );
        check(
            match self.decision {
                Decision::Argmax => self.network.label_channels == self.labels.len() + 1,
                Decision::Threshold { .. } => {
                    self.network.label_channels == 1 && self.labels.len() == 1
                }
            },
            format!(
                "{} labels do not go with {} label channels (argmax: one more for background; threshold: one)",
                self.labels.len(),
                self.network.label_channels
            ),
        );
        faults
    }

    /// Texts that no DICOM attribute can hold.
    fn text_faults(&self) -> Vec<String> {
        let fits = |text: &str, longest| {
            (1..=longest).contains(&text.chars().count())
                && !text.chars().any(|c| c.is_control() || c == '\\')
        };
        self.texts()
            .filter(|(_, text, longest)| !fits(text, *longest))
            .map(|(what, _, longest)| {
                format!("{what} must be 1 to {longest} characters, none of them \\ or a control")
            })
            .collect()
    }

    /// What goes into DICOM objects and messages, with the longest that its attribute holds (LO, SH).
    fn texts(&self) -> impl Iterator<Item = (String, &str, usize)> {
        let own =
            [("name".to_owned(), &*self.name, 64), ("version".to_owned(), &*self.version, 64)];
        let labels = self.labels.iter().enumerate().flat_map(|(index, label)| {
            let codes = [("category", &label.category), ("type", &label.kind)];
            let codes = codes.into_iter().flat_map(move |(which, code)| {
                [
                    ("value", &*code.value, 16),
                    ("scheme", &*code.scheme, 16),
                    ("meaning", &*code.meaning, 64),
                ]
                .map(|(key, text, longest)| {
                    (format!("labels[{index}].{which}.{key}"), text, longest)
                })
            });
            std::iter::once((format!("labels[{index}].name"), &*label.name, 64)).chain(codes)
        });
        own.into_iter().chain(labels)
    }
}
