//! Multipart bodies (RFC 2046 section 5.1.1), taken apart as they come.
//!
//! A part may have no headers at all. At most 16 KiB of a part's headers are held; of its content nothing that could be
//! handed on.

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::BytesMut;
use memchr::memmem::Finder;

/// Of one part.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// Why a body cannot be taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("it ends before its last boundary")]
    Unfinished,
    #[error("a boundary is followed by something else than the end of its line")]
    Boundary,
    #[error("a part's headers cannot be read")]
    Headers,
    #[error("a part's headers are longer than {MAX_HEADER_BYTES} bytes")]
    HeadersTooLong,
}

/// What comes next in a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// A part begins.
    Part(HeaderMap),
    /// Some of its content.
    Content(Bytes),
    /// It ends.
    EndOfPart,
    /// The last part has ended. What follows in the body has no meaning.
    End,
    /// More of the body is needed.
    More,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Preamble,
    /// Behind a boundary.
    Boundary,
    Headers,
    Content,
    End,
}

pub(super) struct Splitter {
    /// CRLF, two hyphens and the boundary.
    delimiter: Finder<'static>,
    buffer: BytesMut,
    at: At,
}

impl Splitter {
    pub(super) fn new(boundary: &str) -> Self {
        let delimiter = Finder::new(&format!("\r\n--{boundary}")).into_owned();
        // The first boundary may be the first line: then nothing ends the line before it.
        Self { delimiter, buffer: BytesMut::from(&b"\r\n"[..]), at: At::Preamble }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next event; `ended`: nothing more is pushed.
    pub(super) fn next(&mut self, ended: bool) -> Result<Event, Malformed> {
        loop {
            let event = match self.at {
                At::Preamble => self.preamble(),
                At::Boundary => self.boundary()?,
                At::Headers => self.headers()?,
                At::Content => Some(self.content()),
                At::End => Some(Event::End),
            };
            match event {
                None => {}
                Some(Event::More) if ended => return Err(Malformed::Unfinished),
                Some(event) => return Ok(event),
            }
        }
    }

    /// Bytes that may be the beginning of a delimiter.
    fn doubtful(&self) -> usize {
        self.delimiter.needle().len() - 1
    }

    fn preamble(&mut self) -> Option<Event> {
        if let Some(start) = self.delimiter.find(&self.buffer) {
            let _ = self.buffer.split_to(start + self.delimiter.needle().len());
            self.at = At::Boundary;
            return None;
        }
        let useless = self.buffer.len().saturating_sub(self.doubtful());
        let _ = self.buffer.split_to(useless);
        Some(Event::More)
    }

    fn boundary(&mut self) -> Result<Option<Event>, Malformed> {
        if self.buffer.starts_with(b"--") {
            self.at = At::End;
            return Ok(None);
        }
        // Space that some transport put there.
        let is_padding = |byte: &u8| matches!(byte, b' ' | b'\t');
        let padding = self.buffer.iter().take_while(|byte| is_padding(byte)).count();
        let rest = &self.buffer[padding..];
        if rest.starts_with(b"\r\n") {
            let _ = self.buffer.split_to(padding + 2);
            self.at = At::Headers;
            return Ok(None);
        }
        let may_become = |end: &[u8]| rest.len() < 2 && end.starts_with(rest);
        if padding < MAX_HEADER_BYTES && (may_become(b"\r\n") || padding == 0 && may_become(b"--"))
        {
            return Ok(Some(Event::More));
        }
        Err(Malformed::Boundary)
    }

    fn headers(&mut self) -> Result<Option<Event>, Malformed> {
        let delimiter = self.delimiter.needle();
        let length = if self.buffer.starts_with(delimiter) {
            0 // Neither headers nor content.
        } else if self.buffer.starts_with(b"\r\n") {
            // Whether it is that cannot be told yet.
            if self.buffer.len() < delimiter.len() && delimiter.starts_with(&self.buffer) {
                return Ok(Some(Event::More));
            }
            2
        } else {
            match memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                Some(end) if end <= MAX_HEADER_BYTES => end + 4,
                None if self.buffer.len() <= MAX_HEADER_BYTES => return Ok(Some(Event::More)),
                _ => return Err(Malformed::HeadersTooLong),
            }
        };
        let headers = parse(&self.buffer.split_to(length))?;
        self.at = At::Content;
        Ok(Some(Event::Part(headers)))
    }

    fn content(&mut self) -> Event {
        match self.delimiter.find(&self.buffer) {
            Some(0) => {
                let _ = self.buffer.split_to(self.delimiter.needle().len());
                self.at = At::Boundary;
                Event::EndOfPart
            }
            Some(end) => Event::Content(self.buffer.split_to(end).freeze()),
            None => match self.buffer.len().saturating_sub(self.doubtful()) {
                0 => Event::More,
                safe => Event::Content(self.buffer.split_to(safe).freeze()),
            },
        }
    }
}

fn parse(lines: &[u8]) -> Result<HeaderMap, Malformed> {
    let text = std::str::from_utf8(lines).map_err(|_| Malformed::Headers)?;
    let mut headers = HeaderMap::new();
    for line in text.split("\r\n").filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or(Malformed::Headers)?;
        let name =
            HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| Malformed::Headers)?;
        let value = HeaderValue::from_str(value.trim()).map_err(|_| Malformed::Headers)?;
        headers.try_append(name, value).map_err(|_| Malformed::HeadersTooLong)?;
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The parts of `body`, pushed in pieces of `piece` bytes: the headers' number and the content.
    fn split(body: &[u8], piece: usize) -> Result<Vec<(usize, Vec<u8>)>, Malformed> {
        let mut splitter = Splitter::new("edge");
        let mut pieces = body.chunks(piece.max(1));
        let mut parts = Vec::new();
        let mut ended = false;
        loop {
            match splitter.next(ended)? {
                Event::Part(headers) => parts.push((headers.len(), Vec::new())),
                Event::Content(bytes) => parts.last_mut().unwrap().1.extend_from_slice(&bytes),
                Event::EndOfPart => {}
                Event::End => return Ok(parts),
                Event::More => match pieces.next() {
                    Some(piece) => splitter.push(piece),
                    None => ended = true,
                },
            }
        }
    }

    #[test]
    fn parts_come_out_however_the_body_is_cut() {
        let body = b"to be passed over\r\n--edge \t\r\nContent-Type: a/b\r\nX: y\r\n\r\none\r\n--edg\r\n\
                     \r\n--edge\r\n\r\nno headers\r\n--edge\r\n\r\n\r\n\r\n--edge\r\n\r\n--edge--\r\nmore";
        let part = |headers, content: &[u8]| (headers, content.to_vec());
        let parts =
            [part(2, b"one\r\n--edg\r\n"), part(0, b"no headers"), part(0, b"\r\n"), part(0, b"")];
        for piece in 1..body.len() {
            assert_eq!(split(body, piece).as_deref(), Ok(&parts[..]), "{piece}");
        }
        assert_eq!(split(b"--edge--", 3), Ok(vec![]));
    }

    #[test]
    fn what_is_no_multipart_body_is_refused_with_its_reason() {
        for (body, why) in [
            (&b""[..], Malformed::Unfinished),
            (b"no boundary", Malformed::Unfinished),
            (b"--edge\r\n\r\nhalf", Malformed::Unfinished),
            (b"--edge\r\n\r\nhalf\r\n--edge", Malformed::Unfinished),
            (b"--edge\r\n\r\nhalf\r\n--edge\r\n", Malformed::Unfinished),
            (b"--edges\r\n\r\nx\r\n--edges--", Malformed::Boundary),
            (b"--edge\r\nno header\r\n\r\nx\r\n--edge--", Malformed::Headers),
            (b"--edge\r\na b: c\r\n\r\nx\r\n--edge--", Malformed::Headers),
        ] {
            for piece in [1, 2, 1000] {
                assert_eq!(split(body, piece), Err(why), "{}", String::from_utf8_lossy(body));
            }
        }
        let long = [b"--edge\r\nx: ".to_vec(), vec![b'y'; 20_000]].concat();
        assert_eq!(split(&long, 100), Err(Malformed::HeadersTooLong));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_do_not_depend_on_how_they_are_cut(
            pieces in proptest::collection::vec(prop_oneof![
                Just(b"--edge".to_vec()), Just(b"\r\n".to_vec()), Just(b"--".to_vec()), Just(b"a: b".to_vec()),
                proptest::collection::vec(any::<u8>(), 0..9),
            ], 0..30),
            piece in 1_usize..9,
        ) {
            let body = pieces.concat();
            prop_assert_eq!(split(&body, piece), split(&body, body.len()));
        }
    }
}
