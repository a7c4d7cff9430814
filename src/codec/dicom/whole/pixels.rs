//! As many pixels as the attributes say.

use bytes::Bytes;
use dicom_core::Tag;
use dicom_dictionary_std::{tags, uids};

use super::super::attributes::Pixels;
use super::super::data_set::{DataSet, Fragments};
use super::keyword;

/// So much of a fragment's end is looked at for the end of a codestream: padding may stand behind it.
const TAIL: usize = 32;

/// How a transfer syntax packs pixels (PS3.5 annex A.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    Native,
    /// JPEG and JPEG-LS: a codestream begins with SOI and ends with EOI.
    Jpeg,
    /// JPEG 2000 and HTJ2K: a codestream begins with SOC and SIZ and ends with EOC.
    Jpeg2000,
    Rle,
    /// One stream for all frames.
    Video,
    /// Encapsulated in a way that cannot be judged here.
    Other,
    /// A private syntax: native or not.
    Unknown,
}

impl Packing {
    fn of(syntax: &str) -> Self {
        match syntax {
            uids::IMPLICIT_VR_LITTLE_ENDIAN
            | uids::EXPLICIT_VR_LITTLE_ENDIAN
            | uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
            | "1.2.840.10008.1.2.2" => return Self::Native, // the last is Explicit VR Big Endian, retired
            uids::RLE_LOSSLESS => return Self::Rle,
            _ => {}
        }
        let Some(number) = syntax.strip_prefix("1.2.840.10008.1.2.4.") else {
            return if syntax.starts_with("1.2.840.10008.1.2.") {
                Self::Other
            } else {
                Self::Unknown
            };
        };
        let main = number.split('.').next().and_then(|number| number.parse().ok()).unwrap_or(0);
        match main {
            50..=81 => Self::Jpeg,
            90..=93 | 201..=203 => Self::Jpeg2000,
            100..=108 => Self::Video,
            _ => Self::Other,
        }
    }

    fn has_markers(self) -> bool {
        matches!(self, Self::Jpeg | Self::Jpeg2000)
    }

    fn begins(self, fragment: &[u8]) -> bool {
        match self {
            Self::Jpeg => fragment.starts_with(&[0xFF, 0xD8]),
            Self::Jpeg2000 => fragment.starts_with(&[0xFF, 0x4F, 0xFF, 0x51]),
            _ => true,
        }
    }
}

/// Whether the pixel data is there and holds every frame.
pub(super) fn check(data_set: &DataSet, syntax: &str) -> Result<(), String> {
    let count =
        |tag| data_set.count(tag).map_err(|_| format!("its {} is no whole number", keyword(tag)));
    let frames = count(tags::NUMBER_OF_FRAMES)?.unwrap_or(1);
    if frames == 0 {
        return Err("its NumberOfFrames is 0".to_owned());
    }
    let packing = Packing::of(syntax);
    for tag in super::PIXELS {
        let damaged = |_| format!("its {} is damaged", keyword(tag));
        match data_set.pixels(tag).map_err(damaged)? {
            None => {}
            Some(Pixels::Native(bytes)) => {
                if !matches!(packing, Packing::Native | Packing::Unknown) {
                    let reason = "its PixelData is not compressed as its transfer syntax says";
                    return Err(reason.to_owned());
                }
                return check_native(data_set, tag, frames as u64, bytes.len() as u64);
            }
            Some(Pixels::Encapsulated(found)) => {
                if packing == Packing::Native {
                    let reason = "its PixelData is compressed, which its transfer syntax is not";
                    return Err(reason.to_owned());
                }
                let frames = if packing == Packing::Video { 1 } else { frames };
                return check_fragments(found, packing, frames);
            }
        }
    }
    Err("its PixelData is missing: it ends before the pixels begin".to_owned())
}

/// What the Image Pixel module says (PS3.3 C.7.6.3, PS3.5 section 8.1.1).
fn check_native(data_set: &DataSet, tag: Tag, frames: u64, there: u64) -> Result<(), String> {
    let required = |tag| match data_set.count(tag) {
        Ok(Some(number)) if number > 0 => Ok(number as u64),
        _ => Err(format!("its {} is missing or no number above 0", keyword(tag))),
    };
    let pixels = required(tags::ROWS)?.saturating_mul(required(tags::COLUMNS)?);
    let bits = match tag {
        tags::FLOAT_PIXEL_DATA => 32,
        tags::DOUBLE_FLOAT_PIXEL_DATA => 64,
        _ => {
            let photometric = data_set.text(tags::PHOTOMETRIC_INTERPRETATION).ok().flatten();
            let samples = match photometric.as_deref() {
                Some("YBR_FULL_422" | "YBR_PARTIAL_422") => 2, // chroma for every other pixel
                _ => required(tags::SAMPLES_PER_PIXEL)?,
            };
            required(tags::BITS_ALLOCATED)?.saturating_mul(samples)
        }
    };
    let needed = pixels.saturating_mul(frames).saturating_mul(bits).div_ceil(8);
    if there < needed {
        return Err(format!("its {} has {there} bytes where {needed} are needed", keyword(tag)));
    }
    Ok(())
}

fn check_fragments(found: &Fragments, packing: Packing, frames: usize) -> Result<(), String> {
    let Fragments { offsets, parts: fragments, closed } = found;
    let ends = frame_ends(packing, offsets, fragments, frames)?;
    if packing == Packing::Rle {
        check_rle(fragments)?;
    }
    let ends_stream = |fragment: &Bytes| {
        let tail = &fragment[fragment.len().saturating_sub(TAIL)..];
        tail.windows(2).any(|pair| pair == [0xFF, 0xD9])
    };
    if packing.has_markers()
        && let Some(number) = ends.iter().position(|&end| !ends_stream(&fragments[end]))
    {
        return Err(format!("frame {} of its PixelData breaks off", number + 1));
    }
    // Several writers leave the delimiter out: then the pixels themselves have to tell that they are complete.
    if !closed && !packing.has_markers() && packing != Packing::Rle {
        return Err("it ends before its PixelData does".to_owned());
    }
    Ok(())
}

/// The last fragment of every frame, as far as that can be told.
fn frame_ends(
    packing: Packing,
    offsets: &[u8],
    fragments: &[Bytes],
    frames: usize,
) -> Result<Vec<usize>, String> {
    let too_few = |there: usize| Err(format!("{there} of its {frames} frames are there"));
    let Some(last) = fragments.iter().rposition(|fragment| !fragment.is_empty()) else {
        return Err("its PixelData holds no fragment: it ends before the pixels begin".to_owned());
    };
    if frames == 1 {
        return Ok(vec![last]);
    }
    if fragments.len() < frames {
        return too_few(fragments.len());
    }
    if fragments.len() == frames {
        return Ok((0..frames).collect());
    }
    let starts = match starts_by_table(offsets, fragments) {
        Some(starts) if starts.len() == frames => starts,
        _ => (0..fragments.len()).filter(|&at| packing.begins(&fragments[at])).collect(),
    };
    match starts.len().cmp(&frames) {
        std::cmp::Ordering::Less => too_few(starts.len()),
        std::cmp::Ordering::Greater => Ok(vec![last]),
        std::cmp::Ordering::Equal => {
            let ends = starts.iter().skip(1).map(|start| start.saturating_sub(1));
            Ok(ends.chain([last]).collect())
        }
    }
}

/// The fragments at which frames start by the Basic Offset Table, which counts from the first fragment's item tag.
fn starts_by_table(offsets: &[u8], fragments: &[Bytes]) -> Option<Vec<usize>> {
    let positions: Vec<u64> = fragments
        .iter()
        .scan(0, |at, fragment| {
            let start = *at;
            *at += fragment.len() as u64 + 8;
            Some(start)
        })
        .collect();
    let offset =
        |bytes: &[u8]| u64::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    offsets.chunks_exact(4).map(|bytes| positions.binary_search(&offset(bytes)).ok()).collect()
}

/// Every RLE frame is one fragment that begins with the number of its segments, 1 to 15 (PS3.5 annex G.5).
fn check_rle(fragments: &[Bytes]) -> Result<(), String> {
    let is_damaged = |fragment: &Bytes| {
        let segments = fragment.first_chunk().map_or(0, |head| u32::from_le_bytes(*head));
        fragment.len() < 64 || !(1..=15).contains(&segments)
    };
    match fragments.iter().position(is_damaged) {
        Some(number) => Err(format!("frame {} of its PixelData has no RLE header", number + 1)),
        None => Ok(()),
    }
}
