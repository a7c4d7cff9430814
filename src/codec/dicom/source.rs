use std::fmt;

use dicom_core::Tag;
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;

use super::part10::text;

/// What a result needs to know of the series it was computed from.
///
/// Holds the patient's data: its `Debug` shows none of it.
pub struct DicomSource {
    /// Everything but the pixels of the instance that holds the first slice.
    pub(in crate::codec) header: InMemDicomObject,
    pub(in crate::codec) instances: Vec<SourceInstance>,
    /// One per slice of the volume, in its order.
    pub(in crate::codec) slices: Vec<SourceSlice>,
}

pub(in crate::codec) struct SourceInstance {
    pub(in crate::codec) sop_class: String,
    pub(in crate::codec) sop_instance: String,
}

pub(in crate::codec) struct SourceSlice {
    /// Index into `instances`.
    pub(in crate::codec) instance: usize,
    /// ReferencedFrameNumber, from 1; `None` for a single-frame instance.
    pub(in crate::codec) frame: Option<u32>,
    /// ImagePositionPatient, mm.
    pub(in crate::codec) position: Option<[f64; 3]>,
}

impl DicomSource {
    /// Text of an attribute of the series' first instance; `None` if absent or empty.
    #[must_use]
    pub fn text(&self, tag: Tag) -> Option<String> {
        text(&self.header, tag).map(std::borrow::Cow::into_owned)
    }

    #[must_use]
    pub fn study_instance_uid(&self) -> Option<String> {
        self.text(tags::STUDY_INSTANCE_UID)
    }

    #[must_use]
    pub fn series_instance_uid(&self) -> Option<String> {
        self.text(tags::SERIES_INSTANCE_UID)
    }

    #[must_use]
    pub fn modality(&self) -> Option<String> {
        self.text(tags::MODALITY)
    }
}

impl fmt::Debug for DicomSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DicomSource")
            .field("instances", &self.instances.len())
            .field("slices", &self.slices.len())
            .finish_non_exhaustive()
    }
}
