use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// In what numbers a denoiser computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// The canonical one, which every bundle holds.
    Fp32,
    Fp16,
    /// 8 bits in the convolutions.
    Int8,
}

impl Precision {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Int8 => "int8",
        }
    }
}

/// Which of a bundle's precisions may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PrecisionChoice {
    /// The one that is fastest on this machine, of those that the bundle holds.
    #[default]
    Auto,
    Fp32,
    Fp16,
    Int8,
}

impl PrecisionChoice {
    #[must_use]
    pub fn allows(self, precision: Precision) -> bool {
        match self {
            Self::Auto => true,
            Self::Fp32 => precision == Precision::Fp32,
            Self::Fp16 => precision == Precision::Fp16,
            Self::Int8 => precision == Precision::Int8,
        }
    }
}
