//! Segmentation objects (PS3.3 A.51), BINARY, as they are stored: segments, and frames with what each shows.

use std::path::Path;

use dicom_core::Tag;
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;

use super::frames::Frames;
use super::image::{Image, group, read_plane};
use super::part10::{Part10, items, number, text};
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
    let header = Part10::from_bytes(path, bytes)?.header(path)?;
    Ok(text(&header, tags::SOP_CLASS_UID).is_some_and(|uid| KINDS.contains(&uid.as_ref())))
}

impl Segmentation {
    pub(in crate::codec) fn read(path: &Path) -> Result<Self, CodecError> {
        let malformed = |reason: String| CodecError::malformed(path, "DICOM", reason);
        let file = Part10::open(path)?;
        let object = file.whole(path)?;
        if text(&object, tags::SEGMENTATION_TYPE).as_deref() != Some("BINARY")
            || !file.transfer_syntax.is_codec_free()
        {
            let what = "a segmentation that is fractional, a label map or compressed";
            return Err(CodecError::unsupported(path, what, "give it as BINARY, uncompressed"));
        }
        let image = Image::read(path, &object)?;
        if image.bits_allocated != 1 {
            return Err(malformed("a BINARY segmentation has 1 bit a pixel".into()));
        }
        let stored = Frames::new(path, &object, &image, file.transfer_syntax)?;
        let groups = items(&object, tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE).len();
        if groups != image.frames {
            let reason = format!("{} frames but {groups} functional groups", image.frames);
            return Err(malformed(reason));
        }
        let frames = (0..image.frames)
            .map(|frame| {
                let group = |macro_: Tag| group(&object, frame, macro_);
                let identification = group(tags::SEGMENT_IDENTIFICATION_SEQUENCE);
                let segment = number(identification, tags::REFERENCED_SEGMENT_NUMBER)
                    .ok_or_else(|| malformed(format!("frame {} names no segment", frame + 1)))?;
                Ok(Frame {
                    segment: segment as u16,
                    plane: read_plane(path, &group)?,
                    sources: sources(group(tags::DERIVATION_IMAGE_SEQUENCE)),
                    pixels: stored.get(frame)?.bytes.into_owned(),
                })
            })
            .collect::<Result<_, CodecError>>()?;
        Ok(Self { segments: segments(&object), rows: image.rows, columns: image.columns, frames })
    }
}

fn segments(object: &InMemDicomObject) -> Vec<Segment> {
    let own = |item: &InMemDicomObject, tag| text(item, tag).map(|text| text.trim().to_owned());
    items(object, tags::SEGMENT_SEQUENCE)
        .iter()
        .filter_map(|item| {
            let kind = items(item, tags::SEGMENTED_PROPERTY_TYPE_CODE_SEQUENCE).first();
            Some(Segment {
                number: number(item, tags::SEGMENT_NUMBER)? as u16,
                name: own(item, tags::SEGMENT_LABEL).unwrap_or_default(),
                kind: kind.and_then(|code| {
                    let scheme = own(code, tags::CODING_SCHEME_DESIGNATOR)?;
                    Some((own(code, tags::CODE_VALUE)?, scheme))
                }),
            })
        })
        .collect()
}

fn sources(derivation: &InMemDicomObject) -> Vec<(String, Option<u32>)> {
    items(derivation, tags::SOURCE_IMAGE_SEQUENCE)
        .iter()
        .filter_map(|item| {
            let instance = text(item, tags::REFERENCED_SOP_INSTANCE_UID)?.into_owned();
            let frame = number(item, tags::REFERENCED_FRAME_NUMBER).map(|frame| frame as u32);
            Some((instance, frame))
        })
        .collect()
}
