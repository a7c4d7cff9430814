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

    /// Of a grey table: the largest value of as many bits as its entries need. Some writers declare 16 bits for entries of
    /// 12, which would be almost black.
    pub(super) fn of_true_depth(self) -> Self {
        let largest = self.values.iter().copied().max().unwrap_or(0);
        let needed = 2_f32.powi((16 - largest.leading_zeros() as i32).max(1)) - 1.0;
        Self { maximum: needed.min(self.maximum), ..self }
    }

    /// Where entries leave the first one's value and where they reach the last one's: black and white, or white and
    /// black where they fall. `None` if both ends are alike.
    pub(super) fn rise(&self) -> Option<(f64, f64)> {
        let (&first, &last) = (self.values.first()?, self.values.last()?);
        let leaves = self.values.iter().position(|&value| value != first)?.saturating_sub(1);
        let reaches = self.values.len() - self.values.iter().rev().position(|&v| v != last)?;
        let at = |index: usize| (self.first + index as i64) as f64;
        match first.cmp(&last) {
            std::cmp::Ordering::Less => Some((at(leaves), at(reaches))),
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Greater => Some((at(reaches), at(leaves))),
        }
    }

    /// Values beyond the table take its first or last entry.
    pub(super) fn map(&self, stored: i64) -> f32 {
        let index = (stored - self.first).clamp(0, self.values.len() as i64 - 1);
        f32::from(self.values[index as usize])
    }
}
