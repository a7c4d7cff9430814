use std::path::Path;

use dicom_core::Tag;

use super::data_set::DataSet;
use crate::codec::CodecError;

/// A lookup table (PS3.3 C.7.6.3.1.5 and C.11.1.1): stored value to output value.
#[derive(Debug)]
pub(super) struct Lut {
    first: i64,
    values: Vec<u16>,
    /// Largest value the entries can hold.
    pub(super) maximum: f32,
}

impl Lut {
    /// `signed`: whether stored values are, and with them the first mapped value.
    pub(super) fn read(
        path: &Path,
        object: &DataSet,
        descriptor: Tag,
        data: Tag,
        signed: bool,
    ) -> Result<Self, CodecError> {
        let malformed = |reason: &str| CodecError::malformed(path, "DICOM", reason);
        let Some(&[entries, first, bits]) = object.numbers(descriptor)?.as_deref() else {
            return Err(malformed("a lookup table descriptor is missing or not three numbers"));
        };
        let bytes = object.bulk(data)?.ok_or_else(|| {
            CodecError::unsupported(path, "a segmented palette", "convert to RGB")
        })?;
        // Written as US or SS whatever the table is: read all three as 16 bits.
        let entries = match entries as i32 & 0xffff {
            0 => 65536,
            n => n as usize,
        };
        let first = first as i64 & 0xffff;
        let first = if signed && first > 0x7fff { first - 0x1_0000 } else { first };
        // 8-bit entries may be packed in bytes or each stand in a word.
        let values: Vec<u16> = if bits == 8.0 && bytes.len() < 2 * entries {
            bytes.iter().take(entries).map(|&byte| u16::from(byte)).collect()
        } else {
            let word = |pair: &[u8]| u16::from_le_bytes([pair[0], pair[1]]);
            bytes.chunks_exact(2).take(entries).map(word).collect()
        };
        if values.len() < entries || !(1.0..=16.0).contains(&bits) {
            return Err(malformed("a lookup table is shorter than it declares"));
        }
        Ok(Self { first, values, maximum: 2_f32.powf(bits as f32) - 1.0 })
    }

    /// Values beyond the table take its first or last entry.
    pub(super) fn map(&self, stored: i64) -> f32 {
        let index = (stored - self.first).clamp(0, self.values.len() as i64 - 1);
        f32::from(self.values[index as usize])
    }
}
