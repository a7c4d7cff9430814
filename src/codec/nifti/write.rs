use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use ndarray::Array3;

use super::NiftiGrid;
use crate::codec::{CodecError, Source};
use crate::domain::Geometry;

const FORMAT: &str = "NIfTI mask";
const UINT8: i16 = 2;
/// Header and the four bytes that say no extension follows.
const VOX_OFFSET: usize = 352;

/// A mask ([D, H, W]) as `.nii.gz`, uint8, on the grid of its image: a NIfTI source's spatial fields are
/// repeated as they stood, any other grid is written as qform and sform. Without either: 1 mm voxels
/// that claim no place in space. The same mask gives the same bytes.
///
/// # Errors
/// If a side of the mask exceeds what NIfTI-1 can declare.
pub fn encode_mask(
    source: &Source,
    geometry: Option<&Geometry>,
    mask: &Array3<u8>,
) -> Result<Vec<u8>, CodecError> {
    let grid = match (source, geometry) {
        (Source::Nifti(grid), _) => (**grid).clone(),
        (_, Some(geometry)) => NiftiGrid::from_geometry(geometry),
        (_, None) => NiftiGrid {
            qform_code: 0,
            sform_code: 0,
            pixdim: [1.0; 4],
            quatern: [0.0; 6],
            srow: [[0.0; 4]; 3],
            xyzt_units: 2,
        },
    };
    let header = header(&grid, mask)?;
    // Standard layout iterates columns fastest, as the file wants it.
    let voxels: Vec<u8> = mask.iter().copied().collect();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder
        .write_all(&header)
        .and_then(|()| encoder.write_all(&voxels))
        .and_then(|()| encoder.finish())
        .map_err(|error| CodecError::encode(FORMAT, error))
}

/// The fields of `nifti1.h` that are not zero, each at its offset, little-endian.
fn header(grid: &NiftiGrid, mask: &Array3<u8>) -> Result<[u8; VOX_OFFSET], CodecError> {
    let (slices, rows, columns) = mask.dim();
    let mut bytes = [0; VOX_OFFSET];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &348_i32.to_le_bytes());
    put(38, b"r");
    for (axis, size) in [3, columns, rows, slices, 1, 1, 1, 1].into_iter().enumerate() {
        let size = i16::try_from(size)
            .map_err(|_| CodecError::encode(FORMAT, "a side is longer than 32767 voxels"))?;
        put(40 + 2 * axis, &size.to_le_bytes());
    }
    put(70, &UINT8.to_le_bytes());
    put(72, &8_i16.to_le_bytes());
    for (index, size) in grid.pixdim.iter().enumerate() {
        put(76 + 4 * index, &size.to_le_bytes());
    }
    put(108, &(VOX_OFFSET as f32).to_le_bytes());
    put(112, &1_f32.to_le_bytes());
    put(123, &[grid.xyzt_units & 7]);
    put(252, &grid.qform_code.to_le_bytes());
    put(254, &grid.sform_code.to_le_bytes());
    let spatial = grid.quatern.iter().chain(grid.srow.iter().flatten());
    for (index, value) in spatial.enumerate() {
        put(256 + 4 * index, &value.to_le_bytes());
    }
    put(344, b"n+1\0");
    Ok(bytes)
}
