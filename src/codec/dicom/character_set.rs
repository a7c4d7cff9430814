//! Text in the character sets of PS3.3 section C.12.1.1.2, with and without code extensions (ISO 2022, PS3.5 section 6.1.2).
//!
//! Decoding is strict: what a set does not hold gives no text rather than a wrong one. Text that is only passed on is
//! copied as bytes, together with the name of its set, and need not be decodable.

use encoding_rs::{
    EUC_JP, EUC_KR, Encoding, GB18030, GBK, ISO_8859_2, ISO_8859_3, ISO_8859_4, ISO_8859_5,
    ISO_8859_6, ISO_8859_7, ISO_8859_8, ISO_8859_15, UTF_8, WINDOWS_874, WINDOWS_1252,
    WINDOWS_1254,
};

const ESCAPE: u8 = 0x1B;

/// The value of `SpecificCharacterSet`.
#[derive(Debug, Clone, Copy)]
pub(super) enum CharacterSet {
    /// No code extensions: the whole text in one encoding.
    Whole(&'static Encoding),
    /// Graphic sets G0 and G1 at the beginning; escape sequences change them.
    Switched(Lower, Option<Upper>),
    /// A name that is not known; it may still be ASCII.
    Unknown,
}

/// A set in G0, bytes 0x21 to 0x7E.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lower {
    Ascii,
    /// JIS X 0201 romaji: ASCII but for the tilde. The place of the backslash, a yen sign, separates values in DICOM.
    Romaji,
    /// Two bytes a character.
    JisX0208,
    JisX0212,
}

/// A set in G1, bytes 0xA1 to 0xFE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upper {
    /// JIS X 0201.
    Katakana,
    /// One byte a character.
    Latin(&'static Encoding),
    /// Two bytes a character: KS X 1001 or GB 2312.
    Pairs(&'static Encoding),
}

impl Default for CharacterSet {
    fn default() -> Self {
        Self::Switched(Lower::Ascii, None)
    }
}

/// Escape sequences (PS3.3 tables C.12-3 and C.12-4), without the escape character.
const TO_LOWER: [(&[u8], Lower); 4] = [
    (b"(B", Lower::Ascii),
    (b"(J", Lower::Romaji),
    (b"$B", Lower::JisX0208),
    (b"$(D", Lower::JisX0212),
];
const TO_UPPER: [(&[u8], Upper); 14] = [
    (b")I", Upper::Katakana),
    (b"-A", Upper::Latin(WINDOWS_1252)),
    (b"-B", Upper::Latin(ISO_8859_2)),
    (b"-C", Upper::Latin(ISO_8859_3)),
    (b"-D", Upper::Latin(ISO_8859_4)),
    (b"-F", Upper::Latin(ISO_8859_7)),
    (b"-G", Upper::Latin(ISO_8859_6)),
    (b"-H", Upper::Latin(ISO_8859_8)),
    (b"-L", Upper::Latin(ISO_8859_5)),
    (b"-M", Upper::Latin(WINDOWS_1254)),
    (b"-T", Upper::Latin(WINDOWS_874)),
    (b"-b", Upper::Latin(ISO_8859_15)),
    (b"$)C", Upper::Pairs(EUC_KR)),
    (b"$)A", Upper::Pairs(GBK)),
];

impl CharacterSet {
    /// From the bytes of `SpecificCharacterSet`. The first value says what text begins in. The others name what escape
    /// sequences may lead to; whether one was announced makes no difference to what it says.
    pub(super) fn new(value: &[u8]) -> Self {
        let first = value.split(|&byte| byte == b'\\').next().unwrap_or_default();
        // Misspelt names are common: "ISO IR 100", "ISO-IR 100", "ISO_IR_100".
        let name: String = String::from_utf8_lossy(first)
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .collect::<String>()
            .to_ascii_uppercase();
        let switched = |upper| Self::Switched(Lower::Ascii, Some(upper));
        let latin = |encoding| switched(Upper::Latin(encoding));
        match name.as_str() {
            "GB18030" => return Self::Whole(GB18030),
            "GBK" | "GB2312" => return Self::Whole(GBK),
            "UTF8" => return Self::Whole(UTF_8),
            "" => return Self::default(),
            _ => {}
        }
        let number = name.strip_prefix("ISO2022IR").or_else(|| name.strip_prefix("ISOIR"));
        match number {
            // The sets of Japanese in G0 are led to by escape sequences alone.
            Some("6" | "87" | "159") => Self::default(),
            Some("13") => Self::Switched(Lower::Romaji, Some(Upper::Katakana)),
            Some("58") => switched(Upper::Pairs(GBK)),
            Some("149") => switched(Upper::Pairs(EUC_KR)),
            Some("100") => latin(WINDOWS_1252),
            Some("101") => latin(ISO_8859_2),
            Some("109") => latin(ISO_8859_3),
            Some("110") => latin(ISO_8859_4),
            Some("126") => latin(ISO_8859_7),
            Some("127") => latin(ISO_8859_6),
            Some("138") => latin(ISO_8859_8),
            Some("144") => latin(ISO_8859_5),
            Some("148") => latin(WINDOWS_1254),
            Some("166") => latin(WINDOWS_874),
            Some("203") => latin(ISO_8859_15),
            Some("192") => Self::Whole(UTF_8),
            _ => Self::Unknown,
        }
    }

    /// `None` if the bytes are not in the set. `is_name`: of a person, whose components and groups begin anew.
    pub(super) fn decode(self, bytes: &[u8], is_name: bool) -> Option<String> {
        match self {
            Self::Whole(encoding) => encoding
                .decode_without_bom_handling_and_without_replacement(bytes)
                .map(std::borrow::Cow::into_owned),
            Self::Switched(lower, upper) => switched(bytes, (lower, upper), is_name),
            Self::Unknown => switched(bytes, (Lower::Ascii, None), is_name),
        }
    }
}

fn switched(mut bytes: &[u8], initial: (Lower, Option<Upper>), is_name: bool) -> Option<String> {
    let (mut lower, mut upper) = initial;
    let mut text = String::new();
    while let Some((&byte, rest)) = bytes.split_first() {
        if byte == ESCAPE {
            if let Some((sequence, set)) = TO_LOWER.iter().find(|(to, _)| rest.starts_with(to)) {
                (lower, bytes) = (*set, &rest[sequence.len()..]);
            } else {
                let (sequence, set) = TO_UPPER.iter().find(|(to, _)| rest.starts_with(to))?;
                (upper, bytes) = (Some(*set), &rest[sequence.len()..]);
            }
            continue;
        }
        let is_pair = matches!(lower, Lower::JisX0208 | Lower::JisX0212);
        let length = match byte {
            0x21..=0x7E if is_pair => {
                let second = *rest.first().filter(|second| (0x21..=0x7E).contains(*second))?;
                let pair = [byte | 0x80, second | 0x80];
                if lower == Lower::JisX0208 {
                    push(&mut text, EUC_JP, &pair)?;
                } else {
                    push(&mut text, EUC_JP, &[0x8F, pair[0], pair[1]])?;
                }
                2
            }
            0x00..=0x7F => {
                // Text begins anew behind what separates values, lines and parts of a name (PS3.5 section 6.1.2.5.3).
                let separates = matches!(byte, b'\\' | b'\r' | b'\n' | b'\t' | 0x0C)
                    || is_name && matches!(byte, b'^' | b'=');
                if separates {
                    (lower, upper) = initial;
                }
                text.push(if lower == Lower::Romaji && byte == b'~' {
                    '\u{203E}'
                } else {
                    byte.into()
                });
                1
            }
            _ => match upper? {
                Upper::Katakana => {
                    let offset = byte.checked_sub(0xA1).filter(|offset| *offset <= 0x3E)?;
                    text.push(char::from_u32(0xFF61 + u32::from(offset))?);
                    1
                }
                // Control characters, which these encodings fill with letters of their own.
                Upper::Latin(_) if byte < 0xA0 => return None,
                Upper::Latin(encoding) => {
                    push(&mut text, encoding, &[byte])?;
                    1
                }
                Upper::Pairs(encoding) => {
                    let second = *rest.first().filter(|second| **second >= 0xA1 && byte >= 0xA1)?;
                    push(&mut text, encoding, &[byte, second])?;
                    2
                }
            },
        };
        bytes = &bytes[length..];
    }
    Some(text)
}

fn push(text: &mut String, encoding: &'static Encoding, bytes: &[u8]) -> Option<()> {
    text.push_str(&encoding.decode_without_bom_handling_and_without_replacement(bytes)?);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(set: &str, bytes: &[u8]) -> Option<String> {
        CharacterSet::new(set.as_bytes()).decode(bytes, true)
    }

    /// The examples of PS3.5 annexes H, I, J and K.
    #[test]
    fn names_of_the_standards_examples_are_read() {
        let cases: [(&str, &[u8], &str); 7] = [
            (
                "\\ISO 2022 IR 87",
                b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
                "Yamada^Tarou=山田^太郎=やまだ^たろう",
            ),
            (
                "ISO 2022 IR 13\\ISO 2022 IR 87",
                b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
                "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
            ),
            (
                "\\ISO 2022 IR 149",
                b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
                "Hong^Gildong=洪^吉洞=홍^길동",
            ),
            (
                "\\ISO 2022 IR 58",
                b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=",
                "Zhang^XiaoDong=张^小东=",
            ),
            ("ISO_IR 192", "Wang^XiaoDong=王^小东=".as_bytes(), "Wang^XiaoDong=王^小东="),
            ("GB18030", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab=", "Wang^XiaoDong=王^小东="),
            ("\\ISO 2022 IR 159", b"\x1b$(D0!\x1b(B", "丂"),
        ];
        for (set, bytes, expected) in cases {
            assert_eq!(name(set, bytes).as_deref(), Some(expected), "{set}");
        }
    }

    #[test]
    fn single_byte_sets_are_told_apart() {
        let cases: [(&str, &[u8], &str); 13] = [
            ("ISO_IR 100", b"M\xfcller^J\xf6rg", "Müller^Jörg"),
            ("ISO IR 100", b"M\xfcller", "Müller"),
            ("ISO_IR_100", b"M\xfcller", "Müller"),
            ("ISO 2022 IR 6\\ISO 2022 IR 100", b"M\x1b-A\xfcller^J\x1b-A\xf6rg", "Müller^Jörg"),
            ("ISO_IR 101", b"\xa3\xb1czny^\xa6wit", "Łączny^Świt"),
            ("ISO_IR 109", b"\xb5\xa1", "µĦ"),
            ("ISO_IR 110", b"\xbf\xbd", "ŋŊ"),
            ("ISO_IR 126", b"\xc4\xe9\xef", "Διο"),
            ("ISO_IR 127", b"\xe2\xc8", "قب"),
            ("ISO_IR 138", b"\xf9\xf8\xe5\xef", "שרון"),
            ("ISO_IR 144", b"\xbb\xee\xda", "Люк"),
            ("ISO_IR 148", b"\xc7avu\xfeo\xf0lu", "Çavuşoğlu"),
            ("ISO_IR 203", b"\xa4\xbd", "€œ"),
        ];
        for (set, bytes, expected) in cases {
            assert_eq!(name(set, bytes).as_deref(), Some(expected), "{set}");
        }
        assert_eq!(name("ISO_IR 166", b"\xb9\xd2\xc1").as_deref(), Some("นาม"));
    }

    #[test]
    fn what_a_set_does_not_hold_gives_no_text() {
        let cases: [(&str, &[u8]); 6] = [
            ("", b"M\xfcller"),
            ("ISO_IR 4711", b"M\xfcller"),
            ("ISO_IR 192", b"M\xfcller"),
            ("ISO_IR 100", b"\x93quoted\x94"),
            ("\\ISO 2022 IR 87", b"\x1b$B;"),
            ("\\ISO 2022 IR 87", b"\x1b$X;3"),
        ];
        for (set, bytes) in cases {
            assert_eq!(name(set, bytes), None, "{set}");
        }
        assert_eq!(name("ISO_IR 4711", b"plain").as_deref(), Some("plain"));
    }

    #[test]
    fn sets_begin_anew_in_each_part_of_a_name_and_nowhere_else() {
        let bytes = b"\x1b-A\xfc^\xfc";
        assert_eq!(CharacterSet::new(b"\\ISO 2022 IR 100").decode(bytes, true), None);
        let text = CharacterSet::new(b"\\ISO 2022 IR 100").decode(bytes, false);
        assert_eq!(text.as_deref(), Some("ü^ü"));
        let value = CharacterSet::new(b"\\ISO 2022 IR 100").decode(b"\x1b-A\xfc\\\xfc", false);
        assert_eq!(value, None);
    }
}
