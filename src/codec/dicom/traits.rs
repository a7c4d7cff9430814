//! Attributes that tell volumes at the same place apart: time points, echoes, b-values, reconstructions.

use dicom_core::Tag;
use dicom_dictionary_std::tags;

use super::data_set::DataSet;
use super::image::frame_groups;
use crate::codec::CodecError;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trait {
    /// Of the single-frame formats.
    pub keyword: &'static str,
    /// For names of results.
    pub word: &'static str,
    tag: Tag,
    /// Functional group and attribute of the enhanced formats (PS3.3 C.7.6.16).
    frame: Option<(Tag, Tag)>,
}

/// Values of [`TRAITS`]; `None` where an attribute is absent.
pub type Traits = [Option<String>; TRAITS.len()];

/// Index of `StackID` in [`TRAITS`]: its stacks need not share their places.
pub(super) const STACK_ID: usize = 0;
const IMAGE_TYPE: usize = 10;

/// The most telling first.
pub const TRAITS: [Trait; 17] = [
    of("StackID", "stack", tags::STACK_ID, Some((tags::FRAME_CONTENT_SEQUENCE, tags::STACK_ID))),
    of(
        "TemporalPositionIdentifier",
        "time",
        tags::TEMPORAL_POSITION_IDENTIFIER,
        Some((tags::FRAME_CONTENT_SEQUENCE, tags::TEMPORAL_POSITION_INDEX)),
    ),
    of("EchoNumbers", "echo", tags::ECHO_NUMBERS, None),
    of(
        "DiffusionBValue",
        "b",
        tags::DIFFUSION_B_VALUE,
        Some((tags::MR_DIFFUSION_SEQUENCE, tags::DIFFUSION_B_VALUE)),
    ),
    of(
        "AcquisitionNumber",
        "acquisition",
        tags::ACQUISITION_NUMBER,
        Some((tags::FRAME_CONTENT_SEQUENCE, tags::FRAME_ACQUISITION_NUMBER)),
    ),
    of(
        "EchoTime",
        "echo-time",
        tags::ECHO_TIME,
        Some((tags::MR_ECHO_SEQUENCE, tags::EFFECTIVE_ECHO_TIME)),
    ),
    of(
        "InversionTime",
        "inversion-time",
        tags::INVERSION_TIME,
        Some((tags::MR_MODIFIER_SEQUENCE, tags::INVERSION_TIMES)),
    ),
    of(
        "FlipAngle",
        "flip-angle",
        tags::FLIP_ANGLE,
        Some((tags::MR_TIMING_AND_RELATED_PARAMETERS_SEQUENCE, tags::FLIP_ANGLE)),
    ),
    of(
        "TriggerTime",
        "trigger-time",
        tags::TRIGGER_TIME,
        Some((tags::CARDIAC_SYNCHRONIZATION_SEQUENCE, tags::NOMINAL_CARDIAC_TRIGGER_DELAY_TIME)),
    ),
    of(
        "DiffusionGradientOrientation",
        "direction",
        tags::DIFFUSION_GRADIENT_ORIENTATION,
        Some((tags::MR_DIFFUSION_SEQUENCE, tags::DIFFUSION_GRADIENT_DIRECTION_SEQUENCE)),
    ),
    of(
        "ImageType",
        "type",
        tags::IMAGE_TYPE,
        Some((tags::MR_IMAGE_FRAME_TYPE_SEQUENCE, tags::FRAME_TYPE)),
    ),
    of(
        "ConvolutionKernel",
        "kernel",
        tags::CONVOLUTION_KERNEL,
        Some((tags::CT_RECONSTRUCTION_SEQUENCE, tags::CONVOLUTION_KERNEL)),
    ),
    of("KVP", "kvp", tags::KVP, Some((tags::CTX_RAY_DETAILS_SEQUENCE, tags::KVP))),
    of("SequenceName", "sequence", tags::SEQUENCE_NAME, None),
    of("FrameReferenceTime", "reference-time", tags::FRAME_REFERENCE_TIME, None),
    of(
        "AcquisitionTime",
        "acquired",
        tags::ACQUISITION_TIME,
        Some((tags::FRAME_CONTENT_SEQUENCE, tags::FRAME_ACQUISITION_DATE_TIME)),
    ),
    of("ContentTime", "content-time", tags::CONTENT_TIME, None),
];

const fn of(
    keyword: &'static str,
    word: &'static str,
    tag: Tag,
    frame: Option<(Tag, Tag)>,
) -> Trait {
    Trait { keyword, word, tag, frame }
}

/// Whether `ImageType`, or `FrameType`, says LOCALIZER (PS3.3 C.7.6.1.1.2 and C.8.2.1.1.1).
pub(super) fn is_localizer(traits: &Traits) -> bool {
    let kind = traits[IMAGE_TYPE].as_deref().unwrap_or_default();
    kind.split('\\').any(|value| value.trim() == "LOCALIZER")
}

/// Of one frame (from 0).
pub(super) fn read(header: &DataSet, frame: usize) -> Result<Traits, CodecError> {
    let mut values = Traits::default();
    for (value, one) in values.iter_mut().zip(&TRAITS) {
        if let Some((macro_, tag)) = one.frame {
            for groups in frame_groups(header, frame)? {
                let Some(group) = groups.items(macro_)?.first() else { continue };
                // The gradient's direction stands in a sequence of its own.
                *value = match group.items(tag) {
                    Ok([item, ..]) => text(item, one.tag),
                    _ => text(group, tag),
                };
                if value.is_some() {
                    break;
                }
            }
        }
        *value = value.take().or_else(|| text(header, one.tag));
    }
    Ok(values)
}

/// A value that cannot be read tells nothing apart, and costs no image.
fn text(data_set: &DataSet, tag: Tag) -> Option<String> {
    data_set.text(tag).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_the_list_are_those_that_are_meant() {
        assert_eq!(TRAITS[STACK_ID].keyword, "StackID");
        assert_eq!(TRAITS[IMAGE_TYPE].keyword, "ImageType");
    }
}
