//! What a header says of its image: sample format, and per frame place and meaning of the values.

use std::path::Path;

use dicom_core::Tag;
use dicom_dictionary_std::tags;

use super::data_set::DataSet;
use super::lut::Lut;
use super::stack::Plane;
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
                .transpose()?,
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
#[derive(Debug, Clone)]
pub(super) struct FrameInfo {
    /// `None` for projections and captures, which lie nowhere in the patient.
    pub(super) plane: Option<Plane>,
    pub(super) slope: f64,
    pub(super) intercept: f64,
    /// Black and white of the first VOI window, in rescaled values.
    pub(super) window: Option<(f64, f64)>,
}

/// One entry per frame, in stored order. Functional groups (PS3.3 C.7.6.16) go before the data set's root.
pub(super) fn read_frames(
    path: &Path,
    header: &DataSet,
    frames: usize,
) -> Result<Vec<FrameInfo>, CodecError> {
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
    (0..frames)
        .map(|frame| {
            let info = read_frame(path, &|macro_| group(header, frame, macro_))?;
            if frames > 1 && info.plane.is_none() {
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
    let own = header.items(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE)?.get(frame);
    let shared = header.items(tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE)?.first();
    for level in [own, shared].into_iter().flatten() {
        if let Some(found) = level.items(macro_)?.first() {
            return Ok(found);
        }
    }
    Ok(header)
}

fn read_frame<'a>(
    path: &Path,
    group: &impl Fn(Tag) -> Result<&'a DataSet, CodecError>,
) -> Result<FrameInfo, CodecError> {
    let malformed = |reason: &str| CodecError::malformed(path, "DICOM", reason);
    let plane = read_plane(path, group)?;
    let transformation = group(tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE)?;
    let slope = transformation.number(tags::RESCALE_SLOPE)?.unwrap_or(1.0);
    if slope == 0.0 {
        return Err(malformed("its RescaleSlope is 0, which leaves no image"));
    }
    Ok(FrameInfo {
        plane,
        slope,
        intercept: transformation.number(tags::RESCALE_INTERCEPT)?.unwrap_or(0.0),
        window: window(group(tags::FRAME_VOILUT_SEQUENCE)?)?,
    })
}

/// Where a frame lies; `None` where nothing says so.
pub(super) fn read_plane<'a>(
    path: &Path,
    group: &impl Fn(Tag) -> Result<&'a DataSet, CodecError>,
) -> Result<Option<Plane>, CodecError> {
    let measures = group(tags::PIXEL_MEASURES_SEQUENCE)?;
    let position = group(tags::PLANE_POSITION_SEQUENCE)?.numbers(tags::IMAGE_POSITION_PATIENT)?;
    let orientation =
        group(tags::PLANE_ORIENTATION_SEQUENCE)?.numbers(tags::IMAGE_ORIENTATION_PATIENT)?;
    match (position.as_deref(), orientation.as_deref()) {
        (Some(&[x, y, z]), Some(&[a, b, c, d, e, f])) => {
            let spacing = match measures.numbers(tags::PIXEL_SPACING)?.as_deref() {
                Some(&[rows, columns]) if rows > 0.0 && columns > 0.0 => [rows, columns],
                _ => {
                    let reason = "its PixelSpacing is missing or not positive";
                    return Err(CodecError::malformed(path, "DICOM", reason));
                }
            };
            Ok(Some(Plane {
                position: [x, y, z],
                orientation: [[a, b, c], [d, e, f]],
                spacing,
                thickness: measures.number(tags::SLICE_THICKNESS)?.filter(|t| *t > 0.0),
            }))
        }
        _ => Ok(None),
    }
}

/// Black and white of the first window (PS3.3 C.11.2.1.2 and C.11.2.1.3.2).
fn window(voi: &DataSet) -> Result<Option<(f64, f64)>, CodecError> {
    let (Some(centre), Some(width)) =
        (voi.number(tags::WINDOW_CENTER)?, voi.number(tags::WINDOW_WIDTH)?)
    else {
        return Ok(None);
    };
    Ok(match voi.text(tags::VOILUT_FUNCTION)?.as_deref() {
        Some("LINEAR_EXACT" | "SIGMOID") if width > 0.0 => {
            Some((centre - width / 2.0, centre + width / 2.0))
        }
        None | Some("LINEAR") if width > 1.0 => {
            let (middle, half) = (centre - 0.5, (width - 1.0) / 2.0);
            Some((middle - half, middle + half))
        }
        _ => None,
    })
}
