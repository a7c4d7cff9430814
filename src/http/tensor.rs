//! Tensors of the Open Inference Protocol: every datatype that an image can have, in JSON and as bytes.

use std::fmt;

use half::{bf16, f16};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};

/// Of elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Fp32,
    Fp64,
    Bf16,
}

/// An element as JSON has it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Element {
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Real(f64),
    Text,
    Null,
}

impl fmt::Display for Element {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(out),
            Self::Signed(value) => value.fmt(out),
            Self::Unsigned(value) => value.fmt(out),
            // Great ones with their exponent.
            Self::Real(value) => fmt::Debug::fmt(value, out),
            Self::Text => "a text".fmt(out),
            Self::Null => "null".fmt(out),
        }
    }
}

/// `data` of a tensor: numbers or truth values, flat in row-major order or nested as the shape is.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Data {
    elements: Vec<Element>,
    /// Lengths of the nested arrays, the outermost first.
    lengths: Vec<usize>,
}

impl Data {
    /// The values for `shape`, whose product is `count`.
    ///
    /// # Errors
    /// What does not fit, with its place.
    pub(super) fn values(
        &self,
        datatype: Datatype,
        shape: &[usize],
        count: usize,
    ) -> Result<Vec<f32>, String> {
        if self.elements.len() != count {
            return Err(format!("data has {} values, its shape says {count}", self.elements.len()));
        }
        if self.lengths.len() > 1 && self.lengths != shape {
            return Err(format!("data is nested as {:?}, its shape says {shape:?}", self.lengths));
        }
        let value = |(index, element): (usize, &Element)| {
            datatype.value(*element).map_err(|why| format!("data[{index}] = {element} {why}"))
        };
        self.elements.iter().enumerate().map(value).collect()
    }
}

impl Datatype {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => 1,
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => 2,
            Self::Uint32 | Self::Int32 | Self::Fp32 => 4,
            Self::Uint64 | Self::Int64 | Self::Fp64 => 8,
        }
    }

    fn name(self) -> String {
        format!("{self:?}").to_uppercase()
    }

    /// Least and greatest value of an integer type.
    fn range(self) -> Option<(i128, i128)> {
        let unsigned = |bits: u32| Some((0, (1_i128 << bits) - 1));
        let signed = |bits: u32| Some((-(1_i128 << (bits - 1)), (1_i128 << (bits - 1)) - 1));
        match self {
            Self::Bool => Some((0, 1)),
            Self::Uint8 => unsigned(8),
            Self::Uint16 => unsigned(16),
            Self::Uint32 => unsigned(32),
            Self::Uint64 => unsigned(64),
            Self::Int8 => signed(8),
            Self::Int16 => signed(16),
            Self::Int32 => signed(32),
            Self::Int64 => signed(64),
            Self::Fp16 | Self::Fp32 | Self::Fp64 | Self::Bf16 => None,
        }
    }

    fn value(self, element: Element) -> Result<f32, String> {
        match self.range() {
            Some(range) => self.whole(element, range),
            None => self.real(element),
        }
    }

    fn whole(self, element: Element, (least, most): (i128, i128)) -> Result<f32, String> {
        let value = match element {
            Element::Bool(value) if self == Self::Bool => i128::from(value),
            Element::Bool(_) | Element::Text | Element::Null => return Err(self.no_number()),
            Element::Signed(value) => value.into(),
            Element::Unsigned(value) => value.into(),
            Element::Real(value) if value.fract() == 0.0 && value.abs() < 1e30 => value as i128,
            Element::Real(_) => {
                return Err(format!("is no whole number, as {} has it", self.name()));
            }
        };
        if (least..=most).contains(&value) {
            return Ok(value as f32);
        }
        Err(format!("does not fit {} ({least} to {most})", self.name()))
    }

    fn real(self, element: Element) -> Result<f32, String> {
        let value = match element {
            Element::Bool(_) | Element::Text | Element::Null => return Err(self.no_number()),
            Element::Signed(value) => value as f64,
            Element::Unsigned(value) => value as f64,
            Element::Real(value) => value,
        };
        let value = match self {
            Self::Fp16 => f16::from_f64(value).to_f32(),
            Self::Bf16 => bf16::from_f64(value).to_f32(),
            _ => value as f32,
        };
        self.finite(value)
    }

    fn no_number(self) -> String {
        format!("is no number, as {} has it", self.name())
    }

    /// The model computes in single precision.
    fn finite(self, value: f32) -> Result<f32, String> {
        if value.is_finite() {
            return Ok(value);
        }
        Err(match self {
            Self::Fp16 | Self::Bf16 => format!("is no finite {}", self.name()),
            _ => "is no finite number of single precision".to_owned(),
        })
    }

    /// Little-endian values; `data` has a whole number of them.
    ///
    /// # Errors
    /// What does not fit, with its place.
    pub(super) fn read(self, data: &[u8]) -> Result<Vec<f32>, String> {
        match self {
            Self::Bool => {
                let read = |[byte]: [u8; 1]| match byte {
                    0 | 1 => Ok(f32::from(byte)),
                    _ => Err((byte.to_string(), "is neither 0 nor 1".to_owned())),
                };
                each(data, read)
            }
            Self::Uint8 => each(data, |b| Ok(f32::from(u8::from_le_bytes(b)))),
            Self::Int8 => each(data, |b| Ok(f32::from(i8::from_le_bytes(b)))),
            Self::Uint16 => each(data, |b| Ok(f32::from(u16::from_le_bytes(b)))),
            Self::Int16 => each(data, |b| Ok(f32::from(i16::from_le_bytes(b)))),
            Self::Uint32 => each(data, |b| Ok(u32::from_le_bytes(b) as f32)),
            Self::Int32 => each(data, |b| Ok(i32::from_le_bytes(b) as f32)),
            Self::Uint64 => each(data, |b| Ok(u64::from_le_bytes(b) as f32)),
            Self::Int64 => each(data, |b| Ok(i64::from_le_bytes(b) as f32)),
            Self::Fp16 => each(data, |b| self.told(f16::from_le_bytes(b).to_f64())),
            Self::Bf16 => each(data, |b| self.told(bf16::from_le_bytes(b).to_f64())),
            Self::Fp32 => each(data, |b| self.told(f32::from_le_bytes(b).into())),
            Self::Fp64 => each(data, |b| self.told(f64::from_le_bytes(b))),
        }
    }

    fn told(self, value: f64) -> Result<f32, (String, String)> {
        self.finite(value as f32).map_err(|why| (format!("{value:?}"), why))
    }
}

/// Reads elements of `N` bytes. What cannot be read is told with its value, and why.
fn each<const N: usize>(
    data: &[u8],
    read: impl Fn([u8; N]) -> Result<f32, (String, String)>,
) -> Result<Vec<f32>, String> {
    let (elements, _) = data.as_chunks::<N>();
    let value = |(index, bytes): (usize, &[u8; N])| {
        read(*bytes).map_err(|(value, why)| format!("element {index} = {value} {why}"))
    };
    elements.iter().enumerate().map(value).collect()
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut data = Self::default();
        let mut lengths = Vec::new();
        Level { depth: 0, elements: &mut data.elements, lengths: &mut lengths }
            .deserialize(deserializer)?;
        if lengths.is_empty() {
            return Err(D::Error::custom("data is no array"));
        }
        data.lengths = lengths;
        Ok(data)
    }
}

/// What stands at one depth of nested arrays: another array, or an element.
struct Level<'a> {
    depth: usize,
    elements: &'a mut Vec<Element>,
    /// Of the arrays that have ended, by depth.
    lengths: &'a mut Vec<usize>,
}

impl Level<'_> {
    fn element<E: Error>(self, element: Element) -> Result<(), E> {
        // The first element shows how deep all of them lie.
        if self.elements.is_empty() {
            self.lengths.resize(self.depth, usize::MAX);
        }
        if self.lengths.len() != self.depth {
            return Err(E::custom(format!(
                "data[{}] lies in another depth than those before it",
                self.elements.len()
            )));
        }
        self.elements.push(element);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "a number or a truth value at data[{}]", self.elements.len())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.element(Element::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.element(Element::Signed(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.element(Element::Unsigned(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.element(Element::Real(value))
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        self.element(Element::Text)
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.element(Element::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Self { depth, elements, lengths } = self;
        let mut length = 0;
        while items
            .next_element_seed(Level {
                depth: depth + 1,
                elements: &mut *elements,
                lengths: &mut *lengths,
            })?
            .is_some()
        {
            length += 1;
        }
        if lengths.len() <= depth {
            lengths.resize(depth + 1, usize::MAX); // an empty array
        }
        match &mut lengths[depth] {
            known if *known == usize::MAX => *known = length,
            known if *known == length => {}
            known => {
                return Err(A::Error::custom(format!(
                    "the nested arrays of data are not equally long: {known} and {length}, before data[{}]",
                    elements.len()
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Datatype::*;

    const ALL: [Datatype; 13] =
        [Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Fp16, Fp32, Fp64, Bf16];

    fn json(datatype: Datatype, data: &str) -> Result<Vec<f32>, String> {
        let data: Data = serde_json::from_str(data).map_err(|error| error.to_string())?;
        let count = data.elements.len();
        data.values(datatype, &[count], count)
    }

    #[test]
    fn every_datatype_is_read_from_json_and_from_bytes() {
        for datatype in ALL {
            assert_eq!(json(datatype, "[0, 1, 1.0]"), Ok(vec![0.0, 1.0, 1.0]), "{datatype:?}");
            let named: Datatype = serde_json::from_str(&format!("{:?}", datatype.name())).unwrap();
            assert_eq!(named, datatype);
        }
        for (datatype, bytes) in [
            (Bool, vec![0, 1]),
            (Uint8, vec![0, 1]),
            (Int8, vec![0, 1]),
            (Uint16, [0_u16, 1].map(u16::to_le_bytes).concat()),
            (Int16, [0_i16, 1].map(i16::to_le_bytes).concat()),
            (Uint32, [0_u32, 1].map(u32::to_le_bytes).concat()),
            (Int32, [0_i32, 1].map(i32::to_le_bytes).concat()),
            (Uint64, [0_u64, 1].map(u64::to_le_bytes).concat()),
            (Int64, [0_i64, 1].map(i64::to_le_bytes).concat()),
            (Fp16, vec![0, 0, 0, 0x3C]),
            (Bf16, vec![0, 0, 0x80, 0x3F]),
            (Fp32, [0_f32, 1.0].map(f32::to_le_bytes).concat()),
            (Fp64, [0_f64, 1.0].map(f64::to_le_bytes).concat()),
        ] {
            assert_eq!(bytes.len(), 2 * datatype.bytes());
            assert_eq!(datatype.read(&bytes), Ok(vec![0.0, 1.0]), "{datatype:?}");
        }
        assert_eq!(json(Bool, "[true, false]"), Ok(vec![1.0, 0.0]));
        assert_eq!(json(Int8, "[-128, 127]"), Ok(vec![-128.0, 127.0]));
        assert_eq!(Int8.read(&[0x80]), Ok(vec![-128.0]));
        assert_eq!(json(Uint64, "[18446744073709551615]"), Ok(vec![u64::MAX as f32]));
        assert_eq!(json(Fp16, "[65504, -1.5]"), Ok(vec![65504.0, -1.5]));
    }

    #[test]
    fn what_does_not_fit_is_told_with_its_value_and_place() {
        for (datatype, data, told) in [
            (Uint8, "[0, 300]", "data[1] = 300 does not fit UINT8 (0 to 255)"),
            (Uint8, "[-1]", "data[0] = -1 does not fit UINT8 (0 to 255)"),
            (Uint8, "[-1.5]", "data[0] = -1.5 is no whole number, as UINT8 has it"),
            (Uint8, "[true]", "data[0] = true is no number, as UINT8 has it"),
            (Fp32, "[0, true]", "data[1] = true is no number, as FP32 has it"),
            (Int16, "[1, 2, -32769]", "data[2] = -32769 does not fit INT16 (-32768 to 32767)"),
            (Bool, "[2]", "data[0] = 2 does not fit BOOL (0 to 1)"),
            (Fp16, "[65520]", "data[0] = 65520 is no finite FP16"),
            (Fp32, "[1e300]", "is no finite number of single precision"),
            (
                Uint64,
                "[18446744073709551616]",
                "data[0] = 1.8446744073709552e19 does not fit UINT64",
            ),
            (Int64, "[9223372036854775808]", "does not fit INT64"),
            (Int32, "[\"7\"]", "data[0] = a text is no number, as INT32 has it"),
            (Int32, "[null]", "data[0] = null is no number, as INT32 has it"),
            (Int32, "[{}]", "a number or a truth value at data[0]"),
            (Int32, "7", "data is no array"),
        ] {
            let error = json(datatype, data).unwrap_err();
            assert!(error.contains(told), "{data}: {error}");
        }
        for (datatype, bytes, told) in [
            (Bool, vec![1, 2], "element 1 = 2 is neither 0 nor 1"),
            (Fp32, [1.0, f32::NAN].map(f32::to_le_bytes).concat(), "element 1 = NaN"),
            (Fp64, 1e300_f64.to_le_bytes().to_vec(), "element 0 = 1e300 is no finite number"),
            (Fp16, vec![0, 0x7C], "element 0 = inf is no finite FP16"),
        ] {
            let error = datatype.read(&bytes).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn data_is_flat_or_nested_as_its_shape_is() {
        let values = |data: &str, shape: &[usize]| {
            let data: Data = serde_json::from_str(data).map_err(|error| error.to_string())?;
            data.values(Int8, shape, shape.iter().product())
        };
        let flat = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        for data in ["[1,2,3,4,5,6]", "[[1,2,3],[4,5,6]]"] {
            assert_eq!(values(data, &[2, 3]), Ok(flat.clone()), "{data}");
        }
        for (data, told) in [
            ("[[1,2],[3,4],[5,6]]", "nested as [3, 2], its shape says [2, 3]"),
            ("[[1,2,3],[4,5]]", "not equally long"),
            ("[1,[2,3],4,5,6]", "another depth"),
            ("[[1,2,3],4,5,6]", "another depth"),
            ("[]", "data has 0 values"),
            ("[[],[]]", "data has 0 values"),
            ("[1,2,3]", "data has 3 values, its shape says 6"),
        ] {
            let error = values(data, &[2, 3]).unwrap_err();
            assert!(error.contains(told), "{data}: {error}");
        }
    }
}
