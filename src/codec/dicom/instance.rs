//! One image file's header, in short: what it is and where its frames lie.

use std::path::{Path, PathBuf};

use dicom_core::Tag;
use dicom_dictionary_std::{tags, uids};

use super::composition::{Member, Place};
use super::data_set::DataSet;
use super::frames;
use super::image::{self, FrameInfo, Image};
use super::part10::Part10;
use super::traits::{self, Traits};
use crate::codec::CodecError;

pub(super) struct Instance {
    pub(super) path: PathBuf,
    pub(super) series: String,
    pub(super) sop_class: String,
    pub(super) sop_uid: String,
    /// `SeriesNumber`, if it is one.
    pub(super) number: Option<i32>,
    /// `InstanceNumber`, if it is one.
    ordinal: Option<i32>,
    pub(super) frame_of_reference: Option<String>,
    pub(super) is_localizer: bool,
    pub(super) image: Image,
    pub(super) frames: Vec<FrameInfo>,
    /// One for each frame.
    traits: Vec<Traits>,
}

impl Instance {
    /// `None` if the file holds no image to segment.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, CodecError> {
        let file = Part10::open(path)?;
        let header = file.data_set();
        if !is_image(header)? {
            return Ok(None);
        }
        frames::check_syntax(path, file.transfer_syntax)?;
        let image_type = header.text(tags::IMAGE_TYPE)?.unwrap_or_default();
        let is_of = |kind: &str| image_type.split('\\').any(|value| value.trim() == kind);
        if is_of("MOSAIC") {
            return Err(CodecError::unsupported(
                path,
                "a mosaic (ImageType MOSAIC: the slices of a volume side by side in one picture)",
                "have the scanner send single slices or enhanced multi-frame, or convert it to NIfTI",
            ));
        }
        let image = Image::read(path, header)?;
        let required = |tag: Tag, name: &str| {
            header.text(tag)?.ok_or_else(|| {
                CodecError::malformed(path, "DICOM", format!("its {name} is missing"))
            })
        };
        // They order cases and name them; one that is no number costs no image.
        let number = |tag| header.number(tag).ok().flatten().and_then(integer);
        Ok(Some(Self {
            path: path.to_owned(),
            series: required(tags::SERIES_INSTANCE_UID, "SeriesInstanceUID")?,
            sop_class: required(tags::SOP_CLASS_UID, "SOPClassUID")?,
            sop_uid: required(tags::SOP_INSTANCE_UID, "SOPInstanceUID")?,
            number: number(tags::SERIES_NUMBER),
            ordinal: number(tags::INSTANCE_NUMBER),
            frame_of_reference: header.text(tags::FRAME_OF_REFERENCE_UID)?,
            is_localizer: is_of("LOCALIZER"),
            frames: image::read_frames(path, header, &image)?,
            traits: (0..image.frames)
                .map(|frame| traits::read(header, frame))
                .collect::<Result<_, _>>()?,
            image,
        }))
    }

    /// For people: its file and, because a daemon's files have no names that a scanner gave, its number.
    pub(super) fn label(&self) -> String {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        match self.ordinal {
            Some(number) => format!("{name}, InstanceNumber {number}"),
            None => name.into_owned(),
        }
    }

    /// [C, D, H, W] of what this instance holds.
    pub(super) fn shape(&self) -> [usize; 4] {
        [self.image.channels(), self.image.frames, self.image.rows, self.image.columns]
    }

    /// Whether the file of `other` holds this instance once more, in whatever encoding.
    pub(super) fn is_same_image(&self, other: &Self) -> bool {
        let places = |instance: &Self| -> Vec<Place> {
            instance.frames.iter().map(|frame| frame.place).collect()
        };
        self.sop_uid == other.sop_uid
            && self.shape() == other.shape()
            && self.is_localizer == other.is_localizer
            && places(self) == places(other)
    }

    pub(super) fn members(&self) -> impl Iterator<Item = Member> {
        self.frames.iter().zip(&self.traits).map(|(frame, traits)| Member {
            place: frame.place,
            size: [self.image.rows, self.image.columns],
            channels: self.image.channels(),
            frame_of_reference: self.frame_of_reference.clone(),
            is_localizer: self.is_localizer || traits::is_localizer(traits),
            traits: traits.clone(),
        })
    }
}

/// What an Integer String can be (PS3.5, 6.2); anything else is no number of a series or an instance.
fn integer(value: f64) -> Option<i32> {
    let is_integer = value.fract() == 0.0;
    let is_in_range = (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&value);
    (is_integer && is_in_range).then_some(value as i32)
}

/// Objects with pixels that are no images to segment.
const NOT_IMAGES: [&str; 4] = [
    uids::SEGMENTATION_STORAGE,
    uids::LABEL_MAP_SEGMENTATION_STORAGE,
    uids::RT_DOSE_STORAGE,
    uids::PARAMETRIC_MAP_STORAGE,
];

/// Whether the object is an image that can be segmented; a dose grid or a segmentation has pixels too.
pub(super) fn is_image(header: &DataSet) -> Result<bool, CodecError> {
    let class = header.text(tags::SOP_CLASS_UID)?;
    Ok(header.has(tags::ROWS) && !class.is_some_and(|uid| NOT_IMAGES.contains(&uid.as_str())))
}
