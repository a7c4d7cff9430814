//! As many pixels as the attributes say.

use dicom_dictionary_std::{tags, uids};

use super::walk::{Coding, Found, Fragment, Pixels, name};

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
            | "1.2.840.10008.1.2.2" => return Self::Native,
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

    fn begins(self, head: [u8; 4]) -> bool {
        match self {
            Self::Jpeg => head[..2] == [0xFF, 0xD8],
            Self::Jpeg2000 => head == [0xFF, 0x4F, 0xFF, 0x51],
            _ => true,
        }
    }
}

/// Whether the pixel data is there and holds every frame.
pub(super) fn check(found: &Found, syntax: &str, coding: Coding) -> Result<(), String> {
    let frames = match found.text(tags::NUMBER_OF_FRAMES) {
        None => 1,
        Some(_) => match found.number(tags::NUMBER_OF_FRAMES, coding) {
            Some(frames) if frames > 0 => frames,
            _ => return Err("its NumberOfFrames is no number above 0".to_owned()),
        },
    };
    let packing = Packing::of(syntax);
    match &found.pixels {
        None => Err("its PixelData is missing: it ends before the pixels begin".to_owned()),
        Some(Pixels::Native { tag, length }) => {
            if !matches!(packing, Packing::Native | Packing::Unknown) {
                return Err(
                    "its PixelData is not compressed as its transfer syntax says".to_owned()
                );
            }
            let needed = native_bytes(found, coding, frames, *tag)?;
            if *length < needed {
                let name = name(*tag);
                return Err(format!("its {name} has {length} bytes where {needed} are needed"));
            }
            Ok(())
        }
        Some(Pixels::Encapsulated { offsets, fragments, is_delimited }) => {
            if packing == Packing::Native {
                return Err(
                    "its PixelData is compressed, which its transfer syntax is not".to_owned()
                );
            }
            let frames = if packing == Packing::Video { 1 } else { frames };
            let ends = frame_ends(found, packing, offsets, fragments, frames)?;
            if packing == Packing::Rle {
                check_rle(fragments)?;
            }
            if matches!(packing, Packing::Jpeg | Packing::Jpeg2000)
                && let Some(number) = ends.iter().position(|&end| !fragments[end].ends_codestream)
            {
                return Err(format!("frame {} of its PixelData breaks off", number + 1));
            }
            if !is_delimited && !matches!(packing, Packing::Jpeg | Packing::Jpeg2000 | Packing::Rle)
            {
                return Err("it ends before its PixelData does".to_owned());
            }
            Ok(())
        }
    }
}

/// What the Image Pixel module says (PS3.3 C.7.6.3, PS3.5 section 8.1.1).
fn native_bytes(
    found: &Found,
    coding: Coding,
    frames: u64,
    tag: dicom_core::Tag,
) -> Result<u64, String> {
    let required = |tag| match found.number(tag, coding) {
        Some(number) if number > 0 => Ok(number),
        _ => Err(format!("its {} is missing or no number above 0", name(tag))),
    };
    let pixels = required(tags::ROWS)?.saturating_mul(required(tags::COLUMNS)?);
    let bits = match tag {
        tags::FLOAT_PIXEL_DATA => 32,
        tags::DOUBLE_FLOAT_PIXEL_DATA => 64,
        _ => {
            let samples = match found.text(tags::PHOTOMETRIC_INTERPRETATION).as_deref() {
                Some("YBR_FULL_422" | "YBR_PARTIAL_422") => 2, // chroma for every other pixel
                _ => required(tags::SAMPLES_PER_PIXEL)?,
            };
            required(tags::BITS_ALLOCATED)?.saturating_mul(samples)
        }
    };
    Ok(pixels.saturating_mul(frames).saturating_mul(bits).div_ceil(8))
}

/// The last fragment of every frame.
fn frame_ends(
    found: &Found,
    packing: Packing,
    offsets: &[u32],
    fragments: &[Fragment],
    frames: u64,
) -> Result<Vec<usize>, String> {
    let too_few = |there: usize| Err(format!("{there} of its {frames} frames are there"));
    if fragments.iter().all(|fragment| fragment.length == 0) {
        return Err("its PixelData holds no fragment: it ends before the pixels begin".to_owned());
    }
    if frames == 1 {
        return Ok(vec![fragments.len() - 1]);
    }
    let there = fragments.len() as u64;
    if there < frames {
        return too_few(fragments.len());
    }
    if there == frames {
        return Ok((0..fragments.len()).collect());
    }
    let starts: Option<Vec<usize>> = offsets
        .iter()
        .map(|offset| fragments.binary_search_by_key(&u64::from(*offset), |f| f.at).ok())
        .collect();
    let starts = match starts {
        Some(starts) if starts.len() as u64 == frames => starts,
        _ if found.has_extended_offsets() => return Ok(vec![fragments.len() - 1]),
        _ => {
            let begins = |(index, fragment): (usize, &Fragment)| {
                packing.begins(fragment.head).then_some(index)
            };
            fragments.iter().enumerate().filter_map(begins).collect()
        }
    };
    match (starts.len() as u64).cmp(&frames) {
        std::cmp::Ordering::Less => too_few(starts.len()),
        std::cmp::Ordering::Greater => Ok(vec![fragments.len() - 1]),
        std::cmp::Ordering::Equal => {
            let ends = starts.iter().skip(1).map(|start| start.saturating_sub(1));
            Ok(ends.chain([fragments.len() - 1]).collect())
        }
    }
}

/// Every RLE frame is one fragment that begins with the number of its segments, 1 to 15 (PS3.5 annex G.5).
fn check_rle(fragments: &[Fragment]) -> Result<(), String> {
    let is_damaged = |fragment: &Fragment| {
        fragment.length < 64 || !(1..=15).contains(&u32::from_le_bytes(fragment.head))
    };
    match fragments.iter().position(is_damaged) {
        Some(number) => Err(format!("frame {} of its PixelData has no RLE header", number + 1)),
        None => Ok(()),
    }
}
