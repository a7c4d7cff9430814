//! PNG and TIFF images: one slice of grey or red, green, blue. Alpha is dropped.

use std::fs::{self, File};
use std::io::{BufReader, Cursor};
use std::path::Path;

use ndarray::{Array, Array4, Axis, s};
use png::{BitDepth, Transformations};
use tiff::ColorType as TiffColour;
use tiff::decoder::{Decoder as TiffDecoder, DecodingResult, Limits};
use tiff::tags::Tag;

use super::{Case, CodecError, MAX_SAMPLES, Source, file_stem, first_not_finite};
use crate::domain::Volume;

pub(super) fn read_png(path: &Path) -> Result<Case, CodecError> {
    let malformed =
        |error: png::DecodingError| CodecError::malformed(path, "PNG", error.to_string());
    let bytes = read_file(path)?;
    let limits = png::Limits { bytes: 64 << 20 }; // of text and colour profiles, not of pixels
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    // Palettes become RGB, less than 8 bits become 8.
    decoder.set_transformations(Transformations::EXPAND);
    let mut reader = decoder.read_info().map_err(malformed)?;
    let (colour, depth) = reader.output_color_type();
    let (columns, rows) = reader.info().size();
    check_size(path, rows, columns, colour.samples())?;
    let size = reader
        .output_buffer_size()
        .ok_or_else(|| CodecError::malformed(path, "PNG", "its size overflows"))?;
    let mut buffer = vec![0; size];
    reader.next_frame(&mut buffer).map_err(malformed)?;
    let (values, white): (Vec<f32>, f32) = if depth == BitDepth::Sixteen {
        let word = |pair: &[u8]| f32::from(u16::from_be_bytes([pair[0], pair[1]]));
        (buffer.chunks_exact(2).map(word).collect(), 65535.0)
    } else {
        (buffer.into_iter().map(f32::from).collect(), 255.0)
    };
    case(path, "PNG", rows, columns, colour.samples(), values, Some((0.0, white)))
}

/// Checks that every row of a PNG is there and that its checksums are right, one row at a time.
pub(super) fn check_png(path: &Path) -> Result<(), CodecError> {
    let malformed =
        |error: png::DecodingError| CodecError::malformed(path, "PNG", error.to_string());
    let limits = png::Limits { bytes: 64 << 20 };
    let decoder = png::Decoder::new_with_limits(open(path)?, limits);
    let mut reader = decoder.read_info().map_err(malformed)?;
    let (columns, rows) = reader.info().size();
    check_size(path, rows, columns, reader.output_color_type().0.samples())?;
    while reader.next_row().map_err(malformed)?.is_some() {}
    reader.finish().map_err(malformed)
}

/// Checks that every strip or tile of a TIFF is there, one at a time.
pub(super) fn check_tiff(path: &Path) -> Result<(), CodecError> {
    let malformed = |error: tiff::TiffError| match error {
        tiff::TiffError::UnsupportedError(_) => {
            CodecError::unsupported(path, "this kind of TIFF", "convert it to grey or RGB")
        }
        error => CodecError::malformed(path, "TIFF", error.to_string()),
    };
    let mut decoder = TiffDecoder::new(open(path)?).map_err(malformed)?;
    let (columns, rows) = decoder.dimensions().map_err(malformed)?;
    check_size(path, rows, columns, 1)?;
    let chunks = match decoder.get_chunk_type() {
        tiff::decoder::ChunkType::Strip => decoder.strip_count(),
        tiff::decoder::ChunkType::Tile => decoder.tile_count(),
    };
    for chunk in 0..chunks.map_err(malformed)? {
        decoder.read_chunk(chunk).map_err(malformed)?;
    }
    Ok(())
}

fn open(path: &Path) -> Result<BufReader<File>, CodecError> {
    let file = File::open(path);
    file.map(BufReader::new).map_err(|source| CodecError::Read { path: path.to_owned(), source })
}

pub(super) fn read_tiff(path: &Path) -> Result<Case, CodecError> {
    let malformed = |error: tiff::TiffError| CodecError::malformed(path, "TIFF", error.to_string());
    let bytes = read_file(path)?;
    let mut decoder = TiffDecoder::new(Cursor::new(bytes)).map_err(malformed)?;
    let (columns, rows) = decoder.dimensions().map_err(malformed)?;
    let samples = match decoder.colortype().map_err(malformed)? {
        TiffColour::Gray(_) => 1,
        TiffColour::GrayA(_) => 2,
        TiffColour::RGB(_) => 3,
        TiffColour::RGBA(_) => 4,
        other => {
            let what = format!("TIFF of colour type {other:?}");
            return Err(CodecError::unsupported(path, what, "convert it to grey or RGB"));
        }
    };
    check_size(path, rows, columns, samples)?;
    if decoder.more_images() {
        let remedy = "give one image per file, or the volume as NIfTI or DICOM";
        return Err(CodecError::unsupported(path, "TIFF of several pages", remedy));
    }
    if samples > 1
        && decoder.find_tag_unsigned(Tag::PlanarConfiguration).map_err(malformed)? == Some(2_u16)
    {
        let remedy = "save it with interleaved channels";
        return Err(CodecError::unsupported(path, "TIFF with separate planes", remedy));
    }
    let mut limits = Limits::default();
    limits.decoding_buffer_size = MAX_SAMPLES as usize * 2;
    let mut decoder = decoder.with_limits(limits);
    let (values, range) = match decoder.read_image().map_err(malformed)? {
        DecodingResult::U8(v) => (floats(v, f32::from), Some((0.0, 255.0))),
        DecodingResult::U16(v) => (floats(v, f32::from), Some((0.0, 65535.0))),
        DecodingResult::U32(v) => (floats(v, |x| x as f32), Some((0.0, u32::MAX as f32))),
        DecodingResult::I8(v) => (floats(v, f32::from), Some((-128.0, 127.0))),
        DecodingResult::I16(v) => (floats(v, f32::from), Some((-32768.0, 32767.0))),
        DecodingResult::I32(v) => {
            (floats(v, |x| x as f32), Some((i32::MIN as f32, i32::MAX as f32)))
        }
        DecodingResult::F16(v) => (floats(v, f32::from), None),
        DecodingResult::F32(v) => (v, None),
        DecodingResult::F64(v) => (floats(v, |x| x as f32), None),
        DecodingResult::U64(_) | DecodingResult::I64(_) => {
            return Err(CodecError::unsupported(path, "64-bit TIFF", "convert it to 16 bits"));
        }
    };
    case(path, "TIFF", rows, columns, samples, values, range)
}

fn floats<T>(values: Vec<T>, convert: impl Fn(T) -> f32) -> Vec<f32> {
    values.into_iter().map(convert).collect()
}

fn read_file(path: &Path) -> Result<Vec<u8>, CodecError> {
    fs::read(path).map_err(|source| CodecError::Read { path: path.to_owned(), source })
}

fn check_size(path: &Path, rows: u32, columns: u32, samples: usize) -> Result<(), CodecError> {
    let declared = (u64::from(rows) * u64::from(columns)).saturating_mul(samples as u64);
    if declared > MAX_SAMPLES {
        return Err(CodecError::TooLarge { path: path.to_owned(), declared, limit: MAX_SAMPLES });
    }
    Ok(())
}

/// `values`: [H, W, samples], the last of 2 or 4 samples being alpha.
fn case(
    path: &Path,
    format: &'static str,
    rows: u32,
    columns: u32,
    samples: usize,
    values: Vec<f32>,
    nominal_range: Option<(f32, f32)>,
) -> Result<Case, CodecError> {
    let (present, needed) = (values.len(), rows as usize * columns as usize * samples);
    let interleaved = Array::from_shape_vec((rows as usize, columns as usize, samples), values)
        .map_err(|_| {
            let reason = format!("it holds {present} samples where it declares {needed}");
            CodecError::malformed(path, format, reason)
        })?;
    let channels = if samples < 3 { 1 } else { 3 };
    let planes = interleaved.slice(s![.., .., ..channels]).permuted_axes([2, 0, 1]);
    if let Some([_, row, column]) = first_not_finite(&planes) {
        return Err(CodecError::NotFinite { path: path.to_owned(), slice: 0, row, column });
    }
    let samples: Array4<f32> = planes.insert_axis(Axis(1)).as_standard_layout().into_owned();
    Ok(Case {
        name: file_stem(path),
        volume: Volume { samples, geometry: None, nominal_range },
        source: Source::Raster,
        warnings: Vec::new(),
    })
}
