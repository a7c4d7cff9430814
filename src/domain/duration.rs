//! Durations as people write them: a whole number and a unit, such as `500ms`, `5s`, `2m`, `1h`.
//!
//! For `#[serde(with = "crate::domain::duration")]`. A bare number is refused, because seconds and
//! milliseconds are mistaken for each other in every configuration that allows one.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer, de::Error};

const UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// # Errors
/// A message that names the units, if `text` is not `<whole number><unit>`.
pub fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let millis = UNITS.iter().find(|(name, _)| *name == unit.trim()).map(|(_, millis)| *millis);
    number
        .parse::<u64>()
        .ok()
        .zip(millis)
        .and_then(|(number, millis)| number.checked_mul(millis))
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is not a duration; write a whole number with ms, s, m, h or d, such as \"500ms\""))
}

/// The shortest text that `parse` reads as the same duration; parts of a millisecond are dropped.
#[must_use]
pub fn format(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (name, unit) = UNITS
        .iter()
        .rev()
        .find(|(_, unit)| millis > 0 && millis.is_multiple_of(*unit))
        .unwrap_or(&UNITS[0]);
    format!("{}{name}", millis / unit)
}

/// # Errors
/// If the value is not text, or not a duration.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// # Errors
/// If the serializer fails.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*duration))
}

/// How a duration is written, for the JSON Schema.
#[derive(Debug)]
pub struct Text;

impl schemars::JsonSchema for Text {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[0-9]+ *(ms|s|m|h|d)$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_needs_a_number_and_a_unit() {
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse("5 s"), Ok(Duration::from_secs(5)));
        for bad in ["", "5", "s", "-1s", "1.5s", "5 minutes", "99999999999999999999s"] {
            assert!(parse(bad).unwrap_err().contains("ms, s, m, h or d"), "{bad}");
        }
    }

    #[test]
    fn formatting_reads_back() {
        for text in ["0ms", "1500ms", "5s", "2m", "36h", "7d"] {
            assert_eq!(format(parse(text).unwrap()), text);
        }
    }
}
