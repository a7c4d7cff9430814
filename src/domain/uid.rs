use std::fmt;

use sha2::{Digest, Sha256};

/// A DICOM unique identifier: up to 64 digits and dots, the first one a digit.
///
/// Stricter rules stand in PS3.5 section 9.1: no component is empty or begins with a zero. Objects that break them have
/// been in archives for decades and are passed on by every PACS, so a UID is taken as it stands and compared as it
/// stands: `1.02` and `1.2` are two. What it is made of makes it safe as a file name, which is why outside text
/// becomes one before it meets a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a DICOM UID ({length} characters; 1 to 64 digits and dots are allowed, the first a digit)"
)]
pub struct UidError {
    length: usize,
}

impl Uid {
    /// # Errors
    /// If `text`, less NUL or space padding, is not a UID.
    pub fn parse(text: &str) -> Result<Self, UidError> {
        let text = text.trim_matches(['\0', ' ']);
        let begins_with_digit = text.bytes().next().is_some_and(|byte| byte.is_ascii_digit());
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if begins_with_digit && is_plain && text.len() <= 64 {
            Ok(Self(text.to_owned()))
        } else {
            Err(UidError { length: text.len() })
        }
    }

    /// The same UID for the same parts, in the UUID-derived root 2.25 (PS3.5 annex B.2).
    #[must_use]
    pub fn derived(parts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        let digest = hash.finalize();
        let mut bytes = [0_u8; 16];
        bytes.copy_from_slice(&digest[..16]);
        bytes[6] = (bytes[6] & 0x0f) | 0x80; // version 8 of RFC 9562: custom, here a hash
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(format!("2.25.{}", u128::from_be_bytes(bytes)))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One object as others refer to it (SOP Instance Reference, PS3.3 table 10-11).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SopReference {
    pub sop_class_uid: Uid,
    pub sop_instance_uid: Uid,
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_text_is_refused_before_it_can_reach_a_path() {
        let long = format!("1.{}", "2".repeat(64));
        for bad in ["", ".", "..", "../1.2", ".1.2", "1.2/3", "1.2.a", "1.2\0.3", "-1", &long] {
            assert!(Uid::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(Uid::parse("1.2.840.10008.1.1\0").unwrap().as_str(), "1.2.840.10008.1.1");
    }

    #[test]
    fn what_archives_hold_is_taken_as_it_stands() {
        for odd in ["1.3.6.1.4.1.9590.100.1.2.008.00", "1.02", "1..2", "1.2.", "1"] {
            assert_eq!(Uid::parse(odd).unwrap().as_str(), odd);
        }
        assert_ne!(Uid::parse("1.02"), Uid::parse("1.2"));
    }

    #[test]
    fn derived_uids_are_valid_stable_and_keep_part_boundaries() {
        let uid = Uid::derived(&["a", "bc"]);
        assert_eq!(uid, Uid::derived(&["a", "bc"]));
        assert_ne!(uid, Uid::derived(&["ab", "c"]));
        assert_eq!(Uid::parse(uid.as_str()).unwrap(), uid);
    }
}
