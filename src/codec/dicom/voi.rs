//! What a reader is meant to see: padding, windows and lookup tables (PS3.3 C.7.5.1.1.2 and C.11.2).

use std::path::Path;

use dicom_dictionary_std::tags;

use super::data_set::DataSet;
use super::lut::Lut;
use crate::codec::CodecError;

/// Stored values between `PixelPaddingValue` and `PixelPaddingRangeLimit`: outside of what was imaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Padding {
    first: i64,
    last: i64,
}

impl Padding {
    pub(super) fn read(header: &DataSet) -> Result<Option<Self>, CodecError> {
        let read = |tag| header.number(tag).map(|value| value.map(|value| value as i64));
        let Some(value) = read(tags::PIXEL_PADDING_VALUE)? else {
            return Ok(None);
        };
        let limit = read(tags::PIXEL_PADDING_RANGE_LIMIT)?;
        let limit = limit.unwrap_or(value);
        Ok(Some(Self { first: value.min(limit), last: value.max(limit) }))
    }

    /// As written for `signed` values of 16 bits: some writers declare the other sign.
    pub(super) fn of_sign(self, signed: bool) -> Self {
        let fit = |value: i64| match value {
            0x8000..=0xffff if signed => value - 0x1_0000,
            -0x8000..=-1 if !signed => value + 0x1_0000,
            value => value,
        };
        let (first, last) = (fit(self.first), fit(self.last));
        Self { first: first.min(last), last: first.max(last) }
    }

    pub(super) fn is_within(self, lowest: i64, highest: i64) -> bool {
        lowest <= self.first && self.last <= highest
    }

    pub(super) fn covers(self, stored: i64) -> bool {
        (self.first..=self.last).contains(&stored)
    }
}

/// How modality values become shades of grey.
#[derive(Debug)]
pub(super) enum Voi {
    /// Nothing says so.
    Absent,
    /// In a straight line from black to white.
    Line { black: f64, white: f64 },
    /// `VOILUTFunction` SIGMOID.
    Sigmoid { centre: f64, width: f64 },
    /// `VOILUTSequence`.
    Table(Lut),
}

impl Voi {
    /// The first window, else the first table; both are alternatives (PS3.3 C.11.2). `signed`: whether modality values
    /// are.
    pub(super) fn read(path: &Path, voi: &DataSet, signed: bool) -> Result<Self, CodecError> {
        let (centre, width) = (voi.number(tags::WINDOW_CENTER)?, voi.number(tags::WINDOW_WIDTH)?);
        if let (Some(centre), Some(width)) = (centre, width) {
            match voi.text(tags::VOILUT_FUNCTION)?.as_deref() {
                Some("SIGMOID") if width > 0.0 => return Ok(Self::Sigmoid { centre, width }),
                Some("LINEAR_EXACT") if width > 0.0 => {
                    let (black, white) = (centre - width / 2.0, centre + width / 2.0);
                    return Ok(Self::Line { black, white });
                }
                None | Some("LINEAR") if width > 1.0 => {
                    let (middle, half) = (centre - 0.5, (width - 1.0) / 2.0);
                    return Ok(Self::Line { black: middle - half, white: middle + half });
                }
                _ => {}
            }
        }
        match voi.items(tags::VOILUT_SEQUENCE)?.first() {
            Some(item) => {
                let lut = Lut::read(path, item, tags::LUT_DESCRIPTOR, tags::LUT_DATA, signed)?;
                Ok(Self::Table(lut.of_true_depth()))
            }
            None => Ok(Self::Absent),
        }
    }

    /// Modality values that are shown black and white, where something says so. A curve has none but its ends.
    pub(super) fn range(&self) -> Option<(f64, f64)> {
        match self {
            Self::Absent => None,
            Self::Line { black, white } => Some((*black, *white)),
            Self::Sigmoid { centre, width } => Some((centre - width / 2.0, centre + width / 2.0)),
            Self::Table(lut) => lut.rise(),
        }
    }

    /// The shade, in [0, 1], that a curve gives to a modality value; `None` for lines, which [`Self::range`] describes.
    pub(super) fn curve(&self, value: f64) -> Option<f64> {
        match self {
            Self::Absent | Self::Line { .. } => None,
            Self::Sigmoid { centre, width } => {
                Some(1.0 / (1.0 + (-4.0 * (value - centre) / width).exp()))
            }
            Self::Table(lut) => {
                Some(f64::from(lut.map(value.round() as i64)) / f64::from(lut.maximum))
            }
        }
    }

    pub(super) fn is_curve(&self) -> bool {
        matches!(self, Self::Sigmoid { .. } | Self::Table(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_read_by_the_sign_of_the_pixels() {
        let declared = Padding { first: 0xf830, last: 0xf830 };
        assert!(declared.of_sign(true).covers(-2000) && !declared.of_sign(true).covers(0xf830));
        let declared = Padding { first: -10, last: 0 };
        assert!(declared.of_sign(true).covers(-5));
        assert!(Padding { first: -1, last: -1 }.of_sign(false).covers(0xffff));
    }

    #[test]
    fn a_sigmoid_is_half_at_its_centre_and_a_line_has_no_curve() {
        let sigmoid = Voi::Sigmoid { centre: 100.0, width: 40.0 };
        assert_eq!(sigmoid.curve(100.0), Some(0.5));
        assert!(sigmoid.curve(120.0).is_some_and(|shade| (shade - 0.880_797).abs() < 1e-6));
        assert_eq!(sigmoid.range(), Some((80.0, 120.0)));
        assert_eq!(Voi::Line { black: 0.0, white: 1.0 }.curve(0.5), None);
    }
}
