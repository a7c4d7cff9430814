//! Segmentation objects (PS3.3 A.51), BINARY, as they are stored: segments, and frames with what each shows.

use std::path::Path;

use dicom_core::Tag;
use dicom_dictionary_std::{tags, uids};

use super::composition::Place;
use super::data_set::DataSet;
use super::frames::Frames;
use super::image::{Image, Kind, group, read_place};
use super::part10::Part10;
use super::stack::Plane;
use crate::codec::CodecError;

pub(in crate::codec) struct Segmentation {
    pub(in crate::codec) segments: Vec<Segment>,
    pub(in crate::codec) rows: usize,
    pub(in crate::codec) columns: usize,
    pub(in crate::codec) frames: Vec<Frame>,
}

/// An item of `SegmentSequence`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::codec) struct Segment {
    pub(in crate::codec) number: u16,
    pub(in crate::codec) name: String,
    /// Value and scheme of `SegmentedPropertyTypeCodeSequence`.
    pub(in crate::codec) kind: Option<(String, String)>,
}

pub(in crate::codec) struct Frame {
    /// `ReferencedSegmentNumber`.
    pub(in crate::codec) segment: u16,
    pub(in crate::codec) plane: Option<Plane>,
    /// SOP instances that the frame was made from, each with `ReferencedFrameNumber` where it has frames.
    pub(in crate::codec) sources: Vec<(String, Option<u32>)>,
    /// [rows, columns], 0 or 1.
    pub(in crate::codec) pixels: Vec<u8>,
}

/// Whether a DICOM file holds a segmentation of either kind; `false` too for what is no DICOM file.
pub(in crate::codec) fn is_segmentation(path: &Path) -> Result<bool, CodecError> {
    const KINDS: [&str; 2] = [uids::SEGMENTATION_STORAGE, uids::LABEL_MAP_SEGMENTATION_STORAGE];
    let bytes =
        std::fs::read(path).map_err(|source| CodecError::Read { path: path.to_owned(), source })?;
    if !super::is_dicom(&bytes) {
        return Ok(false);
    }
    let class = Part10::from_bytes(path, bytes)?.data_set().text(tags::SOP_CLASS_UID)?;
    Ok(class.is_some_and(|uid| KINDS.contains(&uid.as_str())))
}

impl Segmentation {
    pub(in crate::codec) fn read(path: &Path) -> Result<Self, CodecError> {
        let malformed = |reason: String| CodecError::malformed(path, "DICOM", reason);
        let file = Part10::open(path)?;
        let object = file.data_set();
        if object.text(tags::SEGMENTATION_TYPE)?.as_deref() != Some("BINARY")
            || !file.transfer_syntax.is_codec_free()
        {
            let what = "a segmentation that is fractional, a label map or compressed";
            return Err(CodecError::unsupported(path, what, "give it as BINARY, uncompressed"));
        }
        let image = Image::read(path, object)?;
        if image.bits_allocated != 1 {
            return Err(malformed("a BINARY segmentation has 1 bit a pixel".into()));
        }
        let stored = Frames::new(path, object, &image, file.transfer_syntax)?;
        let groups = object.items(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE)?.len();
        if groups != image.frames {
            let reason = format!("{} frames but {groups} functional groups", image.frames);
            return Err(malformed(reason));
        }
        let frames = (0..image.frames)
            .map(|frame| {
                let group = |macro_: Tag| group(object, frame, macro_);
                let segment = group(tags::SEGMENT_IDENTIFICATION_SEQUENCE)?
                    .count(tags::REFERENCED_SEGMENT_NUMBER)?
                    .ok_or_else(|| malformed(format!("frame {} names no segment", frame + 1)))?;
                Ok(Frame {
                    segment: segment as u16,
                    plane: match read_place(Kind::Other, &group)? {
                        Place::At(plane) => Some(plane),
                        Place::Nowhere => None,
                        Place::Unreadable(attribute) => {
                            return Err(CodecError::NoPlane { path: path.to_owned(), attribute });
                        }
                    },
                    sources: sources(group(tags::DERIVATION_IMAGE_SEQUENCE)?)?,
                    pixels: stored.get(frame)?.bytes.into_owned(),
                })
            })
            .collect::<Result<_, CodecError>>()?;
        Ok(Self { segments: segments(object)?, rows: image.rows, columns: image.columns, frames })
    }
}

fn segments(object: &DataSet) -> Result<Vec<Segment>, CodecError> {
    let mut segments = Vec::new();
    for item in object.items(tags::SEGMENT_SEQUENCE)? {
        let Some(number) = item.count(tags::SEGMENT_NUMBER)? else { continue };
        let kind = match item.items(tags::SEGMENTED_PROPERTY_TYPE_CODE_SEQUENCE)?.first() {
            Some(code) => {
                let scheme = code.text(tags::CODING_SCHEME_DESIGNATOR)?;
                code.text(tags::CODE_VALUE)?.zip(scheme)
            }
            None => None,
        };
        // For people alone: one in an unknown character set costs no mask.
        let name = item.text(tags::SEGMENT_LABEL).ok().flatten().unwrap_or_default();
        segments.push(Segment { number: number as u16, name, kind });
    }
    Ok(segments)
}

fn sources(derivation: &DataSet) -> Result<Vec<(String, Option<u32>)>, CodecError> {
    let mut sources = Vec::new();
    for item in derivation.items(tags::SOURCE_IMAGE_SEQUENCE)? {
        if let Some(instance) = item.text(tags::REFERENCED_SOP_INSTANCE_UID)? {
            let frame = item.count(tags::REFERENCED_FRAME_NUMBER)?;
            sources.push((instance, frame.map(|frame| frame as u32)));
        }
    }
    Ok(sources)
}
