use serde::{Deserialize, Serialize};

/// A coded concept (DICOM PS3.3 section 8.8): value, designator of its scheme, meaning in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Code {
    pub value: String,
    pub scheme: String,
    pub meaning: String,
}

/// One structure a model can mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// Voxel value in a mask, 1 to 255; 0 is background. Also the DICOM `SegmentNumber`.
    pub value: u8,
    pub name: String,
    /// Recommended display colour, sRGB.
    pub colour: [u8; 3],
    /// `SegmentedPropertyCategoryCodeSequence`, such as Anatomical Structure (SCT 91723000).
    pub category: Code,
    /// `SegmentedPropertyTypeCodeSequence`, such as Hippocampus (SCT 5366008).
    #[serde(rename = "type")]
    pub kind: Code,
}
