//! What a header says of its image: sample format, and per frame place and meaning of the values.

use std::path::Path;

use dicom_core::Tag;
use dicom_dictionary_std::{tags, uids};

use super::composition::Place;
use super::data_set::DataSet;
use super::lut::Lut;
use super::stack::Plane;
use super::voi::{Padding, Voi};
use crate::codec::{CodecError, MAX_SAMPLES};

/// `PhotometricInterpretation` (PS3.3 C.7.6.3.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Photometric {
    Monochrome1,
    Monochrome2,
    Palette,
    Rgb,
    YbrFull,
    YbrFull422,
}

/// The Image Pixel module.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) frames: usize,
    pub(super) samples_per_pixel: usize,
    pub(super) bits_allocated: u16,
    pub(super) bits_stored: u16,
    pub(super) high_bit: u16,
    pub(super) signed: bool,
    pub(super) planar: bool,
    pub(super) photometric: Photometric,
    /// Red, green, blue of PALETTE COLOR.
    pub(super) palette: Option<[Lut; 3]>,
    /// `ModalityLUTSequence`: in place of a rescale.
    pub(super) modality_lut: Option<Lut>,
    /// Stored values that are no part of the picture.
    pub(super) padding: Option<Padding>,
    /// Whether the smallest value is shown white (PS3.3 C.7.6.3.1.2, C.8.11.3.1.2).
    pub(super) inverse: bool,
}

impl Image {
    pub(super) fn read(path: &Path, header: &DataSet) -> Result<Self, CodecError> {
        let malformed = |reason: &str| CodecError::malformed(path, "DICOM", reason);
        let required = |tag: Tag, name: &str| {
            header.count(tag)?.ok_or_else(|| malformed(&format!("its {name} is missing")))
        };
        let photometric = match header.text(tags::PHOTOMETRIC_INTERPRETATION)?.as_deref() {
            Some("MONOCHROME1") => Photometric::Monochrome1,
            Some("MONOCHROME2") => Photometric::Monochrome2,
            Some("PALETTE COLOR") => Photometric::Palette,
            // JPEG 2000 decoders undo the reversible and irreversible transforms themselves.
            Some("RGB" | "YBR_RCT" | "YBR_ICT") => Photometric::Rgb,
            Some("YBR_FULL") => Photometric::YbrFull,
            Some("YBR_FULL_422") => Photometric::YbrFull422,
            Some(_) => {
                return Err(CodecError::unsupported(
                    path,
                    "its photometric interpretation",
                    "have the sender use MONOCHROME2 or RGB",
                ));
            }
            None => return Err(malformed("its PhotometricInterpretation is missing")),
        };
        let bits_allocated = required(tags::BITS_ALLOCATED, "BitsAllocated")? as u16;
        let bits_stored = header.count(tags::BITS_STORED)?.map_or(bits_allocated, |n| n as u16);
        let high_bit = header.count(tags::HIGH_BIT)?;
        let high_bit = high_bit.map_or(bits_stored.saturating_sub(1), |n| n as u16);
        let signed = header.count(tags::PIXEL_REPRESENTATION)? == Some(1);
        let grey = matches!(photometric, Photometric::Monochrome1 | Photometric::Monochrome2);
        let inverse = photometric == Photometric::Monochrome1
            || header.text(tags::PRESENTATION_LUT_SHAPE)?.as_deref() == Some("INVERSE");
        let image = Self {
            rows: required(tags::ROWS, "Rows")?,
            columns: required(tags::COLUMNS, "Columns")?,
            frames: header.count(tags::NUMBER_OF_FRAMES)?.unwrap_or(1),
            samples_per_pixel: required(tags::SAMPLES_PER_PIXEL, "SamplesPerPixel")?,
            bits_allocated,
            bits_stored,
            high_bit,
            signed,
            planar: header.count(tags::PLANAR_CONFIGURATION)? == Some(1),
            photometric,
            palette: match photometric {
                Photometric::Palette => Some(palette(path, header, signed)?),
                _ => None,
            },
            modality_lut: header
                .items(tags::MODALITY_LUT_SEQUENCE)?
                .first()
                .map(|item| Lut::read(path, item, tags::LUT_DESCRIPTOR, tags::LUT_DATA, signed))
                .transpose()?
                .map(Lut::of_true_depth),
            padding: if grey { Padding::read(header)? } else { None },
            inverse: grey && inverse,
        };
        image.check(path)?;
        Ok(image)
    }

    fn check(&self, path: &Path) -> Result<(), CodecError> {
        let malformed = |reason: &str| CodecError::malformed(path, "DICOM", reason);
        if self.rows == 0 || self.columns == 0 || self.frames == 0 {
            return Err(malformed("it has no pixels"));
        }
        if self.rows > 65535 || self.columns > 65535 {
            return Err(malformed("its Rows or Columns exceed 65535"));
        }
        let declared = (self.pixels() as u64)
            .saturating_mul(self.frames as u64)
            .saturating_mul(self.channels() as u64);
        if declared > MAX_SAMPLES {
            let path = path.to_owned();
            return Err(CodecError::TooLarge { path, declared, limit: MAX_SAMPLES });
        }
        let expected = match self.photometric {
            Photometric::Monochrome1 | Photometric::Monochrome2 | Photometric::Palette => 1,
            Photometric::Rgb | Photometric::YbrFull | Photometric::YbrFull422 => 3,
        };
        if self.samples_per_pixel != expected {
            return Err(malformed("its SamplesPerPixel contradicts PhotometricInterpretation"));
        }
        if expected == 3 && self.bits_allocated != 8 {
            return Err(CodecError::unsupported(
                path,
                format!("{}-bit colour", self.bits_allocated),
                "convert it to 8 bits per channel",
            ));
        }
        if !matches!(self.bits_allocated, 1 | 8 | 16 | 32) {
            return Err(CodecError::unsupported(
                path,
                format!("BitsAllocated {}", self.bits_allocated),
                "convert it to 8 or 16 bits",
            ));
        }
        if self.bits_stored == 0
            || self.bits_stored > self.bits_allocated
            || self.high_bit >= self.bits_allocated
            || self.high_bit + 1 < self.bits_stored
        {
            return Err(malformed("its BitsStored and HighBit do not fit BitsAllocated"));
        }
        Ok(())
    }

    /// Pixels of one frame.
    pub(super) fn pixels(&self) -> usize {
        self.rows * self.columns
    }

    /// Channels of the volume it becomes.
    pub(super) fn channels(&self) -> usize {
        match self.photometric {
            Photometric::Monochrome1 | Photometric::Monochrome2 => 1,
            _ => 3,
        }
    }

    /// Bits of one uncompressed frame.
    pub(super) fn frame_bits(&self) -> u64 {
        let samples = match self.photometric {
            Photometric::YbrFull422 => 2 * self.pixels(), // chroma for every other pixel
            _ => self.pixels() * self.samples_per_pixel,
        };
        samples as u64 * u64::from(self.bits_allocated)
    }

    /// Smallest and largest stored value that `BitsStored` can hold.
    pub(super) fn stored_range(&self) -> (f64, f64) {
        let span = 2_f64.powi(i32::from(self.bits_stored));
        if self.signed { (-span / 2.0, span / 2.0 - 1.0) } else { (0.0, span - 1.0) }
    }
}

fn palette(path: &Path, header: &DataSet, signed: bool) -> Result<[Lut; 3], CodecError> {
    let lut = |descriptor, data| Lut::read(path, header, descriptor, data, signed);
    Ok([
        lut(
            tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
            tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DATA,
        )?,
        lut(
            tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
            tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DATA,
        )?,
        lut(
            tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR,
            tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DATA,
        )?,
    ])
}

/// Place and meaning of one frame.
#[derive(Debug)]
pub(super) struct FrameInfo {
    pub(super) place: Place,
    pub(super) slope: f64,
    pub(super) intercept: f64,
    pub(super) voi: Voi,
}

/// One entry per frame, in stored order. Functional groups (PS3.3 C.7.6.16) go before the data set's root.
pub(super) fn read_frames(
    path: &Path,
    header: &DataSet,
    image: &Image,
) -> Result<Vec<FrameInfo>, CodecError> {
    let frames = image.frames;
    let per_frame = header.items(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE)?;
    if !per_frame.is_empty() && per_frame.len() != frames {
        return Err(CodecError::malformed(
            path,
            "DICOM",
            format!("{frames} frames but {} functional groups", per_frame.len()),
        ));
    }
    if frames > 1 && per_frame.is_empty() {
        return Err(CodecError::unsupported(
            path,
            "a multi-frame image that gives no position of its frames (cine or retired format)",
            "convert it to the enhanced multi-frame or the single-frame format",
        ));
    }
    let kind = Kind::of(header)?;
    (0..frames)
        .map(|frame| {
            let info = read_frame(path, image, kind, &|macro_| group(header, frame, macro_))?;
            if frames > 1 && info.place == Place::Nowhere {
                return Err(CodecError::unsupported(
                    path,
                    "a multi-frame image without ImagePositionPatient for each frame",
                    "give an image whose frames are slices of a volume",
                ));
            }
            Ok(info)
        })
        .collect()
}

/// The functional group of `frame` (from 0) that holds `macro_`: its own, the shared one, or the data set's root.
pub(super) fn group(header: &DataSet, frame: usize, macro_: Tag) -> Result<&DataSet, CodecError> {
    for level in frame_groups(header, frame)? {
        if let Some(found) = level.items(macro_)?.first() {
            return Ok(found);
        }
    }
    Ok(header)
}

/// The functional groups of `frame` (from 0): its own, then the shared ones.
pub(super) fn frame_groups(
    header: &DataSet,
    frame: usize,
) -> Result<impl Iterator<Item = &DataSet>, CodecError> {
    let own = header.items(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE)?.get(frame);
    let shared = header.items(tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE)?.first();
    Ok([own, shared].into_iter().flatten())
}

fn read_frame<'a>(
    path: &Path,
    image: &Image,
    kind: Kind,
    group: &impl Fn(Tag) -> Result<&'a DataSet, CodecError>,
) -> Result<FrameInfo, CodecError> {
    let malformed = |reason: &str| CodecError::malformed(path, "DICOM", reason);
    let transformation = group(tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE)?;
    let slope = transformation.number(tags::RESCALE_SLOPE)?.unwrap_or(1.0);
    if slope == 0.0 {
        return Err(malformed("its RescaleSlope is 0, which leaves no image"));
    }
    let intercept = transformation.number(tags::RESCALE_INTERCEPT)?.unwrap_or(0.0);
    let signed = image.signed || (image.modality_lut.is_none() && intercept < 0.0);
    Ok(FrameInfo {
        place: read_place(kind, group)?,
        slope,
        intercept,
        voi: Voi::read(path, group(tags::FRAME_VOILUT_SEQUENCE)?, signed)?,
    })
}

/// Whether an image shows a plane of the patient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A slice: without its plane it is of no use.
    CrossSection,
    /// A projection, a capture or a photograph, which may lie nowhere.
    Other,
}

impl Kind {
    /// By SOP class (PS3.4 table B.5-1); by `Modality` where the class is not known.
    pub(super) fn of(header: &DataSet) -> Result<Self, CodecError> {
        const SLICES: [&str; 14] = [
            uids::CT_IMAGE_STORAGE,
            uids::ENHANCED_CT_IMAGE_STORAGE,
            uids::LEGACY_CONVERTED_ENHANCED_CT_IMAGE_STORAGE,
            uids::MR_IMAGE_STORAGE,
            uids::ENHANCED_MR_IMAGE_STORAGE,
            uids::ENHANCED_MR_COLOR_IMAGE_STORAGE,
            uids::LEGACY_CONVERTED_ENHANCED_MR_IMAGE_STORAGE,
            uids::POSITRON_EMISSION_TOMOGRAPHY_IMAGE_STORAGE,
            uids::ENHANCED_PET_IMAGE_STORAGE,
            uids::LEGACY_CONVERTED_ENHANCED_PET_IMAGE_STORAGE,
            uids::NUCLEAR_MEDICINE_IMAGE_STORAGE,
            uids::X_RAY3_D_ANGIOGRAPHIC_IMAGE_STORAGE,
            uids::X_RAY3_D_CRANIOFACIAL_IMAGE_STORAGE,
            uids::BREAST_TOMOSYNTHESIS_IMAGE_STORAGE,
        ];
        const STANDARD_STORAGE: &str = "1.2.840.10008.5.1.4.1.1.";
        let class = header.text(tags::SOP_CLASS_UID)?.unwrap_or_default();
        let modality = header.text(tags::MODALITY)?.unwrap_or_default();
        let by_modality = ["CT", "MR", "PT", "NM"].contains(&modality.as_str());
        if SLICES.contains(&class.as_str()) || (!class.starts_with(STANDARD_STORAGE) && by_modality)
        {
            Ok(Self::CrossSection)
        } else {
            Ok(Self::Other)
        }
    }
}

/// Where a frame lies. A value that is there and cannot be read is [`Place::Unreadable`]: a localizer does without.
pub(super) fn read_place<'a>(
    kind: Kind,
    group: &impl Fn(Tag) -> Result<&'a DataSet, CodecError>,
) -> Result<Place, CodecError> {
    let measures = group(tags::PIXEL_MEASURES_SEQUENCE)?;
    let position = group(tags::PLANE_POSITION_SEQUENCE)?.numbers(tags::IMAGE_POSITION_PATIENT);
    let orientation =
        group(tags::PLANE_ORIENTATION_SEQUENCE)?.numbers(tags::IMAGE_ORIENTATION_PATIENT);
    let missing = |attribute, is_unreadable: bool| match kind {
        Kind::Other if !is_unreadable => Ok(Place::Nowhere),
        _ => Ok(Place::Unreadable(attribute)),
    };
    let Ok(Some(&[x, y, z])) = position.as_ref().map(Option::as_deref) else {
        return missing("ImagePositionPatient", position.is_err());
    };
    let Ok(Some(&[a, b, c, d, e, f])) = orientation.as_ref().map(Option::as_deref) else {
        return missing("ImageOrientationPatient", orientation.is_err());
    };
    let spacing = match measures.numbers(tags::PIXEL_SPACING).as_ref().map(Option::as_deref) {
        Ok(Some(&[rows, columns])) if rows > 0.0 && columns > 0.0 => [rows, columns],
        _ => return Ok(Place::Unreadable("PixelSpacing")),
    };
    let Ok(thickness) = measures.number(tags::SLICE_THICKNESS) else {
        return Ok(Place::Unreadable("SliceThickness"));
    };
    Ok(Place::At(Plane {
        position: [x, y, z],
        orientation: [[a, b, c], [d, e, f]],
        spacing,
        thickness: thickness.filter(|t| *t > 0.0),
    }))
}
