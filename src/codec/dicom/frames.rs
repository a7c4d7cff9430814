//! Pixel data split into frames, each decompressed: PS3.5 section 8 and annex A.4.

use std::borrow::Cow;
use std::path::Path;

use bytes::Bytes;
use dicom_core::value::C;
use dicom_dictionary_std::{tags, uids};
use dicom_encoding::adapters::{PixelDataObject, RawPixelData};
use dicom_encoding::{Codec, Endianness, TransferSyntax};

use super::attributes::Pixels;
use super::codestream::{self, Process};
use super::data_set::{DataSet, Fragments};
use super::image::{Image, Photometric};
use super::rle;
use crate::codec::{CodecError, contain};

const DECODABLE: [&str; 9] = [
    uids::JPEG_BASELINE8_BIT,
    uids::JPEG_EXTENDED12_BIT,
    uids::JPEG_LOSSLESS,
    uids::JPEG_LOSSLESS_SV1,
    uids::JPEG2000_LOSSLESS,
    uids::JPEG2000,
    uids::HTJ2K_LOSSLESS,
    uids::HTJ2K_LOSSLESS_RPCL,
    uids::HTJ2K,
];

/// One frame's samples as bytes: little-endian, interleaved unless `planar`.
pub(super) struct RawFrame<'a> {
    pub(super) bytes: Cow<'a, [u8]>,
    /// Bits per sample in `bytes`: 1, 8, 16 or 32.
    pub(super) allocated: u16,
    pub(super) planar: bool,
    pub(super) photometric: Photometric,
}

/// Refuses a syntax that cannot be decoded here, by its name, before any pixel is read.
pub(super) fn check_syntax(path: &Path, syntax: &TransferSyntax) -> Result<(), CodecError> {
    let uid = syntax.uid();
    if syntax.is_codec_free() || uid == uids::RLE_LOSSLESS || DECODABLE.contains(&uid) {
        return Ok(());
    }
    Err(CodecError::unsupported(
        path,
        format!("its transfer syntax, {},", syntax.name()),
        "have the sender use Explicit VR Little Endian, RLE, JPEG or JPEG 2000",
    ))
}

/// The pixel data of a file; gives its frames one at a time.
pub(super) struct Frames<'a> {
    path: &'a Path,
    image: &'a Image,
    syntax: &'a TransferSyntax,
    content: Content<'a>,
}

enum Content<'a> {
    Native(Cow<'a, [u8]>),
    /// Fragments, and at which fragment each frame starts (with the end after the last).
    Encapsulated {
        fragments: &'a [Bytes],
        starts: Vec<usize>,
    },
}

impl<'a> Frames<'a> {
    pub(super) fn new(
        path: &'a Path,
        object: &'a DataSet,
        image: &'a Image,
        syntax: &'a TransferSyntax,
    ) -> Result<Self, CodecError> {
        let malformed = |reason: &str| CodecError::malformed(path, "DICOM", reason);
        let pixels = object.pixels(tags::PIXEL_DATA)?.ok_or_else(|| {
            CodecError::unsupported(path, "an image without integer pixel data", "convert it")
        })?;
        let content = match pixels {
            Pixels::Native(bytes) => {
                if !syntax.is_codec_free() {
                    return Err(malformed("its pixel data is not compressed as it declares"));
                }
                if image.bits_allocated == 32 && syntax.endianness() == Endianness::Big {
                    // Written as 16-bit words, whose order within 32 bits not all writers agree on.
                    let remedy = "have the sender use Explicit VR Little Endian";
                    return Err(CodecError::unsupported(path, "32-bit big-endian", remedy));
                }
                Content::Native(bytes)
            }
            Pixels::Encapsulated(found) => {
                if syntax.is_codec_free() {
                    let reason =
                        "its pixel data is compressed, and its transfer syntax does not say how";
                    return Err(malformed(reason));
                }
                let starts = frame_starts(object, found, image.frames, syntax)
                    .map_err(|reason| malformed(&format!("its pixel data is damaged: {reason}")))?;
                Content::Encapsulated { fragments: &found.parts, starts }
            }
        };
        let frames = Self { path, image, syntax, content };
        frames.check_length()?;
        Ok(frames)
    }

    /// Native pixel data must hold every declared frame.
    fn check_length(&self) -> Result<(), CodecError> {
        let Content::Native(bytes) = &self.content else { return Ok(()) };
        let needed = (self.image.frame_bits() * self.image.frames as u64).div_ceil(8);
        if (bytes.len() as u64) < needed {
            return Err(CodecError::Truncated {
                path: self.path.to_owned(),
                what: "its pixel data".into(),
                needed,
                present: bytes.len() as u64,
            });
        }
        Ok(())
    }

    /// `number` counts from 0.
    pub(super) fn get(&self, number: usize) -> Result<RawFrame<'_>, CodecError> {
        match &self.content {
            Content::Native(bytes) => Ok(self.native(bytes, number)),
            Content::Encapsulated { fragments, starts } => {
                let parts = &fragments[starts[number]..starts[number + 1]];
                let bytes = match parts {
                    [only] => Cow::Borrowed(only.as_ref()),
                    many => Cow::Owned(many.concat()),
                };
                self.decompress(&bytes, number)
            }
        }
    }

    fn native<'b>(&self, bytes: &'b [u8], number: usize) -> RawFrame<'b> {
        let bits = self.image.frame_bits();
        let start = bits * number as u64;
        let bytes = if self.image.bits_allocated == 1 {
            // Frames follow each other bit by bit, so that one may begin inside a byte.
            let bit = |at: u64| bytes[(at / 8) as usize] >> (at % 8) & 1;
            Cow::Owned((start..start + bits).map(bit).collect())
        } else {
            Cow::Borrowed(&bytes[(start / 8) as usize..((start + bits) / 8) as usize])
        };
        RawFrame {
            bytes,
            allocated: self.image.bits_allocated.max(8),
            planar: self.image.planar,
            photometric: self.image.photometric,
        }
    }

    fn decompress(&self, bytes: &[u8], number: usize) -> Result<RawFrame<'static>, CodecError> {
        let image = self.image;
        let malformed = |reason: String| {
            CodecError::malformed(self.path, "DICOM", format!("frame {}: {reason}", number + 1))
        };
        if self.syntax.uid() == uids::RLE_LOSSLESS {
            let width = usize::from(image.bits_allocated / 8);
            let decoded = rle::decode(bytes, image.pixels(), image.samples_per_pixel, width)
                .ok_or_else(|| malformed("its RLE segments are damaged".to_owned()))?;
            return Ok(RawFrame {
                bytes: Cow::Owned(decoded),
                allocated: image.bits_allocated,
                planar: false,
                photometric: image.photometric,
            });
        }

        let stream = codestream::inspect(bytes)
            .ok_or_else(|| malformed("its compressed header is damaged".to_owned()))?;
        let declared = (image.rows, image.columns, image.samples_per_pixel);
        let found = (stream.rows, stream.columns, stream.components);
        if declared != found {
            return Err(malformed(format!(
                "it holds {found:?} rows, columns and components, the data set says {declared:?}"
            )));
        }
        // 12-bit lossy streams would decode to 8 bits, silently.
        if stream.precision > 16
            || matches!(&stream.process, Process::JpegLossy(_) if stream.precision > 8)
        {
            return Err(CodecError::unsupported(
                self.path,
                format!("{}-bit compression in {}", stream.precision, self.syntax.name()),
                "have the sender use Explicit VR Little Endian or a lossless syntax",
            ));
        }
        let mut photometric = image.photometric;
        let mut bytes = Cow::Borrowed(bytes);
        if let Process::JpegLossy(hints) = &stream.process
            && stream.components == 3
        {
            if photometric == Photometric::Rgb
                && let Some(marked) = codestream::marked_rgb(&bytes, hints)
            {
                bytes = Cow::Owned(marked);
            }
            photometric = Photometric::Rgb; // the decoder converts
        }
        let allocated = if stream.precision <= 8 { 8 } else { 16 };
        let source = OneFrame { image, allocated, bytes: &bytes, syntax: self.syntax.uid() };
        let decoded = decode(self.syntax, &source).map_err(malformed)?;
        Ok(RawFrame { bytes: Cow::Owned(decoded), allocated, planar: false, photometric })
    }
}

fn decode(syntax: &TransferSyntax, frame: &OneFrame<'_>) -> Result<Vec<u8>, String> {
    let Codec::EncapsulatedPixelData(Some(decoder), _) = syntax.codec() else {
        return Err(format!("no decoder for {}", syntax.name()));
    };
    let outcome = contain(|| {
        let mut decoded = Vec::new();
        decoder.decode_frame(frame, 0, &mut decoded).map(|()| decoded)
    });
    match outcome {
        Some(Ok(decoded)) => Ok(decoded),
        Some(Err(error)) => Err(format!("it cannot be decompressed ({error})")),
        None => Err("it cannot be decompressed (contradictory stream)".to_owned()),
    }
}

/// At which fragment each frame starts, and the fragment count at the end. The reason, where that cannot be told.
fn frame_starts(
    object: &DataSet,
    found: &Fragments,
    frames: usize,
    syntax: &TransferSyntax,
) -> Result<Vec<usize>, String> {
    let fragments = &found.parts;
    if fragments.len() < frames {
        let count = fragments.len();
        return Err(format!("it holds {count} fragments for {frames} frames; send it again"));
    }
    let is_run_length = syntax.uid() == uids::RLE_LOSSLESS;
    // Without a delimiter the file may have been cut between two fragments.
    if !found.closed && !is_run_length && !fragments.last().is_some_and(|last| ends_stream(last)) {
        return Err("its last frame ends too early, and no delimiter follows; send it again".into());
    }
    if frames == 1 {
        return Ok(vec![0, fragments.len()]);
    }
    if fragments.len() == frames {
        return Ok((0..=frames).collect());
    }
    let extended = object.bulk(tags::EXTENDED_OFFSET_TABLE).ok().flatten();
    let offsets: Vec<u64> = match &extended {
        Some(table) => offsets::<8>(table),
        None => offsets::<4>(&found.offsets),
    };
    if let Some(starts) = starts_by_offset(fragments, &offsets, frames) {
        return Ok(starts);
    }
    if is_run_length {
        let reason = "each frame of RLE Lossless is one fragment (PS3.5 A.4.2)";
        return Err(format!(
            "it holds {} fragments for {frames} frames; {reason}",
            fragments.len()
        ));
    }
    starts_by_stream(fragments, frames)
}

fn starts_by_offset(fragments: &[Bytes], offsets: &[u64], frames: usize) -> Option<Vec<usize>> {
    if offsets.len() != frames {
        return None;
    }
    // Offsets count from the first fragment's item tag; each item has 8 bytes of header.
    let positions: Vec<u64> = fragments
        .iter()
        .scan(0, |at, fragment| {
            let start = *at;
            *at += fragment.len() as u64 + 8;
            Some(start)
        })
        .collect();
    let mut starts: Vec<usize> =
        offsets.iter().map(|offset| positions.binary_search(offset).ok()).collect::<Option<_>>()?;
    starts.push(fragments.len());
    let in_order = starts[0] == 0 && starts.windows(2).all(|pair| pair[0] < pair[1]);
    in_order.then_some(starts)
}

/// Without a table, a frame begins where a compressed stream does: both kinds of stream mark their ends (PS3.5 A.4).
fn starts_by_stream(fragments: &[Bytes], frames: usize) -> Result<Vec<usize>, String> {
    let begins = |at: &usize| codestream::begins(&fragments[*at]);
    let is_first = |at: &usize| *at == 0 || ends_stream(&fragments[*at - 1]);
    let mut starts: Vec<usize> = (0..fragments.len()).filter(begins).collect();
    if starts.len() != frames {
        // Pixels can look like the beginning of a stream, but hardly right behind the end of one.
        starts.retain(is_first);
    }
    if starts.len() != frames || starts[0] != 0 {
        return Err(format!(
            "its offset table does not say where its {frames} frames begin, and its fragments hold {} \
             compressed streams; have the sender write a Basic Offset Table",
            starts.len()
        ));
    }
    starts.push(fragments.len());
    Ok(starts)
}

/// Whether a fragment ends with the end of a JPEG, JPEG-LS or JPEG 2000 stream, and padding.
fn ends_stream(fragment: &[u8]) -> bool {
    let end = fragment.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1);
    fragment[..end].ends_with(&[0xff, 0xd9])
}

/// Little-endian numbers of `N` bytes.
fn offsets<const N: usize>(table: &[u8]) -> Vec<u64> {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte));
    table.chunks_exact(N).map(number).collect()
}

/// A single compressed frame as the registry's decoders want to see it.
struct OneFrame<'a> {
    image: &'a Image,
    allocated: u16,
    bytes: &'a [u8],
    syntax: &'a str,
}

impl PixelDataObject for OneFrame<'_> {
    fn transfer_syntax_uid(&self) -> &str {
        self.syntax
    }
    fn rows(&self) -> Option<u16> {
        u16::try_from(self.image.rows).ok()
    }
    fn cols(&self) -> Option<u16> {
        u16::try_from(self.image.columns).ok()
    }
    fn samples_per_pixel(&self) -> Option<u16> {
        u16::try_from(self.image.samples_per_pixel).ok()
    }
    fn bits_allocated(&self) -> Option<u16> {
        Some(self.allocated)
    }
    fn bits_stored(&self) -> Option<u16> {
        Some(self.image.bits_stored)
    }
    fn photometric_interpretation(&self) -> Option<&str> {
        None
    }
    fn number_of_frames(&self) -> Option<u32> {
        Some(1)
    }
    fn number_of_fragments(&self) -> Option<u32> {
        Some(1)
    }
    fn fragment(&self, fragment: usize) -> Option<Cow<'_, [u8]>> {
        (fragment == 0).then_some(Cow::Borrowed(self.bytes))
    }
    fn offset_table(&self) -> Option<Cow<'_, [u32]>> {
        Some(Cow::Borrowed(&[]))
    }
    fn raw_pixel_data(&self) -> Option<RawPixelData> {
        Some(RawPixelData {
            fragments: C::from_vec(vec![self.bytes.to_vec()]),
            offset_table: C::new(),
        })
    }
}
