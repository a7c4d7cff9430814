//! NIfTI-1 volumes in one file (.nii, .nii.gz): read as a case or a mask, and masks written back.
//!
//! The file's fastest index is our column, the next the row, the slowest the slice; its world is RAS,
//! ours LPS.

mod grid;
mod write;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use ::nifti::{Endianness, NiftiHeader, NiftiType};
use flate2::read::MultiGzDecoder;
use ndarray::{Array3, Array4};

use super::{Case, CodecError, MAX_SAMPLES, Source, file_stem, first_not_finite};
use crate::domain::Volume;

pub use self::grid::NiftiGrid;
pub use self::write::{encode_image, encode_mask};

const HEADER: usize = 348;
/// So much may stand behind the volume before a gzip's checksum is looked at.
const MAX_TRAILING: u64 = 64 << 20;
/// Deflate packs at most 1032 bytes into one (RFC 1951: 258 bytes in 2 bits).
const MAX_DEFLATE_RATIO: u64 = 1032;

/// Reads a volume.
///
/// # Errors
/// If the file is damaged or shorter than it declares, its values or grid are not ones that can be
/// segmented, or it holds more than one volume.
pub fn read(path: &Path) -> Result<Case, CodecError> {
    let (header, data) = load(path)?;
    let format = Format::of(path, &header)?;
    let [columns, rows, slices] = shape(path, &header)?;
    let count = columns * rows * slices;
    let values = if format.channels == 3 {
        // x-fastest triplets: gather each channel into its own plane.
        (0..3)
            .flat_map(|c| (0..count).map(move |i| (c, i)))
            .map(|(c, i)| f32::from(data[3 * i + c]))
            .collect()
    } else {
        let (slope, inter) = scaling(&header);
        format.values(&data, slope, inter)
    };
    let samples = Array4::from_shape_vec([format.channels, slices, rows, columns], values)
        .map_err(|error| malformed(path, error.to_string()))?;
    for channel in samples.outer_iter() {
        if let Some([slice, row, column]) = first_not_finite(&channel) {
            return Err(CodecError::NotFinite { path: path.to_owned(), slice, row, column });
        }
    }
    let grid = NiftiGrid::from_header(&header);
    let nominal_range = if header.cal_max > header.cal_min {
        Some((header.cal_min, header.cal_max))
    } else {
        (matches!(format.kind, NiftiType::Uint8 | NiftiType::Rgb24)
            && scaling(&header) == (1.0, 0.0))
            .then_some((0.0, 255.0))
    };
    Ok(Case {
        name: file_stem(path),
        volume: Volume { samples, geometry: Some(grid.geometry(path, slices)?), nominal_range },
        source: Source::Nifti(Box::new(grid)),
        warnings: Vec::new(),
    })
}

/// Reads a label volume: [D, H, W], whole numbers from 0 to 255.
///
/// # Errors
/// As [`read`]; also if a value is not a label.
pub fn read_mask(path: &Path) -> Result<Array3<u8>, CodecError> {
    let samples = read(path)?.volume.samples;
    if samples.shape()[0] != 1
        || samples.iter().any(|v| v.fract() != 0.0 || !(0.0..=255.0).contains(v))
    {
        return Err(CodecError::unsupported(
            path,
            "a mask with values other than whole numbers from 0 to 255",
            "give a label volume",
        ));
    }
    Ok(samples.index_axis_move(ndarray::Axis(0), 0).mapv(|value| value as u8))
}

fn malformed(path: &Path, reason: impl Into<String>) -> CodecError {
    CodecError::malformed(path, "NIfTI", reason)
}

/// Checks that the file holds the whole volume and, in gzip, that its checksum is right, without keeping any of it.
///
/// # Errors
/// As [`read`].
pub(super) fn check_whole(path: &Path) -> Result<(), CodecError> {
    let (_, mut reader, volume) = open(path)?;
    let cut = |error: std::io::Error| malformed(path, error.to_string());
    let present = std::io::copy(&mut reader.by_ref().take(volume.size), &mut std::io::sink());
    volume.check(path, present.map_err(cut)?)?;
    // The checksum stands behind the last byte; what else may follow the volume has its limit.
    let rest = std::io::copy(&mut reader.take(MAX_TRAILING), &mut std::io::sink());
    rest.map_err(cut)?;
    Ok(())
}

/// Header and exactly the bytes of the voxels.
fn load(path: &Path) -> Result<(NiftiHeader, Vec<u8>), CodecError> {
    let (header, reader, volume) = open(path)?;
    let mut data = Vec::new();
    let read = reader.take(volume.size).read_to_end(&mut data);
    read.map_err(|error| malformed(path, error.to_string()))?;
    volume.check(path, data.len() as u64)?;
    Ok((header, data))
}

/// Where the voxels are, bytes.
struct Extent {
    offset: u64,
    size: u64,
}

impl Extent {
    fn check(&self, path: &Path, present: u64) -> Result<(), CodecError> {
        if present == self.size {
            return Ok(());
        }
        let (needed, present) = (self.offset + self.size, self.offset + present);
        Err(CodecError::Truncated {
            path: path.to_owned(),
            what: "its volume".into(),
            needed,
            present,
        })
    }
}

/// The header, and the file at its first voxel.
fn open(path: &Path) -> Result<(NiftiHeader, Box<dyn Read>, Extent), CodecError> {
    let io = |source| CodecError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io)?;
    let on_disk = file.metadata().map_err(io)?.len();
    let mut magic = [0; 2];
    file.read_exact(&mut magic).map_err(io)?;
    let file = File::open(path).map_err(io)?;
    let packed = magic == [0x1f, 0x8b];
    let mut reader: Box<dyn Read> =
        if packed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };

    let mut head = [0; HEADER];
    reader.read_exact(&mut head).map_err(|error| malformed(path, error.to_string()))?;
    let header =
        NiftiHeader::from_reader(&head[..]).map_err(|error| malformed(path, error.to_string()))?;
    let count: usize = shape(path, &header)?.iter().product();
    let size = (count * Format::of(path, &header)?.bytes) as u64;
    let offset = header.vox_offset;
    if !(352.0..=1e9).contains(&offset) {
        return Err(malformed(path, "its vox_offset is out of range"));
    }
    let skipped = offset as u64 - HEADER as u64;
    let needed = offset as u64 + size;
    let reachable = if packed { on_disk.saturating_mul(MAX_DEFLATE_RATIO) } else { on_disk };
    let short = |present| CodecError::Truncated {
        path: path.to_owned(),
        what: "its volume".into(),
        needed,
        present,
    };
    if needed > reachable {
        return Err(short(reachable));
    }
    let cut = |error: std::io::Error| malformed(path, error.to_string());
    let passed = std::io::copy(&mut reader.by_ref().take(skipped), &mut std::io::sink());
    let passed = passed.map_err(cut)?;
    if passed < skipped {
        return Err(short(HEADER as u64 + passed));
    }
    Ok((header, reader, Extent { offset: offset as u64, size }))
}

/// Columns, rows and slices; the axes beyond must be of length 1.
fn shape(path: &Path, header: &NiftiHeader) -> Result<[usize; 3], CodecError> {
    let dim = header.dim().map_err(|error| malformed(path, error.to_string()))?;
    let size = |axis: usize| dim.get(axis).map_or(1, |&n| usize::from(n));
    if (3..dim.len()).any(|axis| size(axis) != 1) {
        return Err(CodecError::unsupported(
            path,
            "more than one volume in a file (time points, vectors)",
            "split it and give one volume",
        ));
    }
    let shape = [size(0), size(1), size(2)];
    let declared = shape.iter().map(|&n| n as u64).product::<u64>()
        * if header.datatype == 128 { 3 } else { 1 };
    if declared == 0 {
        return Err(malformed(path, "it has no voxels"));
    }
    if declared > MAX_SAMPLES {
        return Err(CodecError::TooLarge { path: path.to_owned(), declared, limit: MAX_SAMPLES });
    }
    Ok(shape)
}

/// `scl_slope` and `scl_inter`; a slope of 0 (or a damaged one) means no scaling.
fn scaling(header: &NiftiHeader) -> (f64, f64) {
    let (slope, inter) = (f64::from(header.scl_slope), f64::from(header.scl_inter));
    if slope == 0.0 || !slope.is_finite() || !inter.is_finite() {
        (1.0, 0.0)
    } else {
        (slope, inter)
    }
}

/// How one voxel is stored.
struct Format {
    kind: NiftiType,
    endianness: Endianness,
    /// Bytes of a voxel.
    bytes: usize,
    channels: usize,
}

impl Format {
    fn of(path: &Path, header: &NiftiHeader) -> Result<Self, CodecError> {
        let kind = header.data_type().map_err(|error| malformed(path, error.to_string()))?;
        let (bytes, channels) = match kind {
            NiftiType::Uint8 | NiftiType::Int8 => (1, 1),
            NiftiType::Uint16 | NiftiType::Int16 => (2, 1),
            NiftiType::Uint32 | NiftiType::Int32 | NiftiType::Float32 => (4, 1),
            NiftiType::Uint64 | NiftiType::Int64 | NiftiType::Float64 => (8, 1),
            NiftiType::Rgb24 => (3, 3),
            other => {
                let what = format!("NIfTI of data type {other:?}");
                return Err(CodecError::unsupported(path, what, "convert it to float32"));
            }
        };
        Ok(Self { kind, endianness: header.endianness, bytes, channels })
    }

    fn values(&self, data: &[u8], slope: f64, inter: f64) -> Vec<f32> {
        let big = self.endianness == Endianness::Big;
        macro_rules! convert {
            ($type:ty, $widen:expr) => {
                data.chunks_exact(size_of::<$type>())
                    .map(|chunk| {
                        let bytes = chunk.try_into().expect("chunks have the size of the type");
                        let value = if big {
                            <$type>::from_be_bytes(bytes)
                        } else {
                            <$type>::from_le_bytes(bytes)
                        };
                        ($widen(value) * slope + inter) as f32
                    })
                    .collect()
            };
        }
        match self.kind {
            NiftiType::Int8 => convert!(i8, f64::from),
            NiftiType::Uint16 => convert!(u16, f64::from),
            NiftiType::Int16 => convert!(i16, f64::from),
            NiftiType::Uint32 => convert!(u32, f64::from),
            NiftiType::Int32 => convert!(i32, f64::from),
            NiftiType::Uint64 => convert!(u64, |value| value as f64),
            NiftiType::Int64 => convert!(i64, |value| value as f64),
            NiftiType::Float32 => convert!(f32, f64::from),
            NiftiType::Float64 => convert!(f64, |value: f64| value),
            _ => convert!(u8, f64::from),
        }
    }
}
