//! `Accept` (RFC 9110 section 12.5.1).

use axum::http::{HeaderMap, header};

/// What a client accepts, in no order.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Accept(Vec<Range>);

/// A media range such as `text/*;q=0.5`.
#[derive(Debug, Clone, PartialEq)]
struct Range {
    /// In lower case.
    essence: String,
    /// Names in lower case; without `q`.
    parameters: Vec<(String, String)>,
    quality: f32,
}

/// How much a client wants something.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub(super) struct Wanted {
    pub(super) quality: f32,
    /// It was named itself, not by a wildcard.
    pub(super) by_name: bool,
}

impl Accept {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let values = headers.get_all(header::ACCEPT).iter();
        let texts = values.filter_map(|value| value.to_str().ok());
        Self(texts.flat_map(|text| text.split(',')).filter_map(Range::parse).collect())
    }

    /// The client says nothing about what it accepts.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How much the client wants `essence`, as the most specific of its ranges says. A range's parameters have to be among
    /// `parameters` (`charset` aside). `None` if it does not accept it.
    pub(super) fn wants(&self, essence: &str, parameters: &[(&str, &str)]) -> Option<Wanted> {
        let fits = |range: &&Range| {
            range.parameters.iter().all(|(name, value)| {
                name == "charset"
                    || parameters.iter().any(|&(known, of)| known == name && of == value)
            })
        };
        let specific = |range: &Range| match range.essence.as_str() {
            exact if exact == essence => Some((2, range.parameters.len())),
            "*/*" => Some((0, 0)),
            some => {
                let kind = some.strip_suffix("/*")?;
                (essence.split('/').next() == Some(kind)).then_some((1, 0))
            }
        };
        let found = self.0.iter().filter(fits).filter_map(|range| Some((specific(range)?, range)));
        // Of several that are as specific, the first.
        let (specific, range) = found.reduce(|a, b| if b.0 > a.0 { b } else { a })?;
        (range.quality > 0.0).then_some(Wanted { quality: range.quality, by_name: specific.0 == 2 })
    }
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let essence = parts.next().filter(|essence| !essence.is_empty())?.to_ascii_lowercase();
        let mut range = Self { essence, parameters: Vec::new(), quality: 1.0 };
        for part in parts {
            let Some((name, value)) = part.split_once('=') else { continue };
            let (name, value) = (name.trim().to_ascii_lowercase(), value.trim().trim_matches('"'));
            if name == "q" {
                range.quality = value.parse().unwrap_or(0.0_f32).clamp(0.0, 1.0);
            } else {
                range.parameters.push((name, value.to_owned()));
            }
        }
        Some(range)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn quality(accept: &'static str, essence: &str) -> Option<f32> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        Some(Accept::of(&headers).wants(essence, &[("version", "1.0.0")])?.quality)
    }

    #[test]
    fn the_most_specific_range_says_how_much_something_is_wanted() {
        let accept = "text/*;q=0.3, text/plain;q=0.7, */*;q=0.5, image/png;q=0";
        assert_eq!(quality(accept, "text/plain"), Some(0.7));
        assert_eq!(quality(accept, "text/html"), Some(0.3));
        assert_eq!(quality(accept, "image/jpeg"), Some(0.5));
        assert_eq!(quality(accept, "image/png"), None);
        assert_eq!(quality("Text/PLAIN; Q=0.2; version=\"1.0.0\"", "text/plain"), Some(0.2));
        assert_eq!(quality("text/plain; charset=utf-8", "text/plain"), Some(1.0));
        assert_eq!(quality("text/plain;version=2.0.0", "text/plain"), None, "another version");
        assert_eq!(quality("text/plain;q=x", "text/plain"), None);
        assert_eq!(quality("", "text/plain"), None);
    }
}
