use std::fmt;

use dicom_core::Tag;

use super::composition::Part;
use super::data_set::DataSet;
use crate::codec::CodecError;

/// What a result needs to know of the series it was computed from.
///
/// Holds the patient's data: its `Debug` shows none of it.
pub struct DicomSource {
    /// Everything but the pixels of the instance that holds the first slice.
    pub(in crate::codec) header: DataSet,
    /// Which volume of its series.
    pub(in crate::codec) part: Part,
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
    /// `ReferencedFrameNumber`, from 1; `None` for a single-frame instance.
    pub(in crate::codec) frame: Option<u32>,
    /// `ImagePositionPatient`, mm.
    pub(in crate::codec) position: Option<[f64; 3]>,
}

impl DicomSource {
    /// Text of an attribute of the series' first instance; `None` if absent or empty.
    ///
    /// # Errors
    /// If there is a value that cannot be read.
    pub fn text(&self, tag: Tag) -> Result<Option<String>, CodecError> {
        self.header.text(tag)
    }

    /// Bytes of a text of the series' first instance, without padding, in its character set; `None` if absent or empty.
    pub(in crate::codec) fn bytes(&self, tag: Tag) -> Option<Vec<u8>> {
        self.header.text_bytes(tag)
    }

    /// First number of an attribute of the series' first instance; `None` if absent or empty.
    ///
    /// # Errors
    /// If there is a value that cannot be read.
    pub fn number(&self, tag: Tag) -> Result<Option<f64>, CodecError> {
        self.header.number(tag)
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
