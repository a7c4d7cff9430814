use std::path::Path;

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::HttpError;
use crate::domain::credential;

/// Bearer tokens that are let in, as names and hashes: who reads the file cannot use it.
///
/// One SHA-256 is enough for tokens of 128 random bits or more (`openssl rand -hex 32`); it is no way to keep
/// passwords.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tokens(Vec<(String, [u8; 32])>);

impl Tokens {
    /// Reads a credentials file: lines of `NAME SHA256`; empty lines and lines after `#` are passed over.
    ///
    /// # Errors
    /// If it cannot be read, everyone can read it, or a line is of another form.
    pub fn read(path: &Path) -> Result<Self, HttpError> {
        let wrong = |problem: String| HttpError::credential(path, problem);
        Self::parse(&credential::read(path).map_err(wrong)?).map_err(wrong)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        let mut tokens = Vec::new();
        for (number, line) in lines.enumerate().filter(|(_, line)| !line.is_empty()) {
            let token = line
                .split_once(char::is_whitespace)
                .and_then(|(name, hash)| Some((name.to_owned(), parse_hash(hash.trim())?)));
            tokens.push(token.ok_or_else(|| {
                format!("line {} is not a name and a SHA-256 in hexadecimal", number + 1)
            })?);
        }
        if tokens.is_empty() {
            return Err("it holds no token; write lines of NAME SHA256".to_owned());
        }
        Ok(Self(tokens))
    }

    /// The name under which the token of a request is known.
    #[must_use]
    pub fn bearer(&self, headers: &HeaderMap) -> Option<&str> {
        let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = value.split_once(' ')?;
        if scheme.eq_ignore_ascii_case("bearer") { self.name_of(token.trim()) } else { None }
    }

    /// The name under which `token` is known. Takes the same time whichever it is.
    #[must_use]
    pub fn name_of(&self, token: &str) -> Option<&str> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        let mut found = u32::MAX;
        for (number, (_, known)) in self.0.iter().enumerate() {
            let same: Choice = known.ct_eq(&hash);
            found.conditional_assign(&(number as u32), same);
        }
        self.0.get(found as usize).map(|(name, _)| name.as_str())
    }
}

fn parse_hash(text: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::hex;

    #[test]
    fn a_token_is_known_by_its_hash_and_by_nothing_else() {
        let hash = hex(&Sha256::digest("secret"));
        let tokens = Tokens::parse(&format!("# who\nscanner {hash} # MR 1\n\n")).unwrap();
        assert_eq!(tokens.name_of("secret"), Some("scanner"));
        for wrong in ["", "Secret", "secret ", &hash] {
            assert_eq!(tokens.name_of(wrong), None, "{wrong}");
        }
        for bad in ["", "scanner", "scanner abc", &format!("{hash} scanner"), &format!("a {hash}0")]
        {
            assert!(Tokens::parse(bad).is_err(), "{bad}");
        }
    }
}
