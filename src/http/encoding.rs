//! Content codings of request bodies (RFC 9110 section 8.4): gzip and deflate are undone, others are refused by name.
//!
//! Every limit of a body holds for what comes out. At most 2 MiB are unpacked at once, so that a small body that unpacks to
//! much meets the limit before it takes memory.

use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::middleware::Next;
use axum::response::IntoResponse;
use flate2::write::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress, Status};
use hyper::body::{Body as HttpBody, Frame};

use super::problem::Problem;

/// Unpacked at once by `Decompress`.
const PIECE: usize = 64 << 10;

/// Handed at once to the gzip decoder, which unpacks all of it. Deflate makes at most 1032 bytes of one.
const PACKED_PIECE: usize = 2 << 10;

/// What a request may be packed with.
pub(super) const ACCEPTED: &str = "gzip, deflate";

/// Hands the request on with its body unpacked.
pub(super) async fn unpack(request: Request, next: Next) -> Response<Body> {
    let unpacking = match Unpacking::of(request.headers()) {
        Ok(None) => return next.run(request).await,
        Ok(Some(unpacking)) => unpacking,
        Err(coding) => return unknown(&coding),
    };
    let (mut head, body) = request.into_parts();
    head.headers.remove(header::CONTENT_ENCODING);
    head.headers.remove(header::CONTENT_LENGTH);
    let body = Body::new(Unpacked { packed: body, input: Bytes::new(), unpacking, ended: false });
    next.run(Request::from_parts(head, body)).await
}

fn unknown(coding: &str) -> Response<Body> {
    let error =
        format!("Content-Encoding {coding:?} is not known here; send one of {ACCEPTED}, or none");
    let mut answer =
        Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", error)
            .into_response();
    // RFC 9110 section 12.5.3: which codings would have been taken.
    answer.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static(ACCEPTED));
    answer
}

/// Why a packed body cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the body is not what its Content-Encoding {coding} says: {problem}")]
pub(super) struct Damaged {
    coding: &'static str,
    problem: &'static str,
}

impl Damaged {
    /// The reason of a failed read, if it is this.
    pub(super) fn of(error: &axum::Error) -> Option<&Self> {
        let mut error: &(dyn std::error::Error + 'static) = error;
        loop {
            if let Some(damaged) = error.downcast_ref() {
                return Some(damaged);
            }
            error = error.source()?;
        }
    }
}

enum Unpacking {
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    /// The zlib format (RFC 1950), as RFC 9110 section 8.4.1.2 has it; some clients leave its two bytes out.
    Deflate {
        state: Option<Decompress>,
        is_whole: bool,
    },
}

impl Unpacking {
    /// What undoes the request's coding; the coding's name if it is not known.
    fn of(headers: &HeaderMap) -> Result<Option<Self>, String> {
        let mut found = None;
        for value in headers.get_all(header::CONTENT_ENCODING) {
            for coding in value.to_str().unwrap_or("?").split(',').map(str::trim) {
                let coding = coding.to_ascii_lowercase();
                let unpacking = match coding.as_str() {
                    "" | "identity" => continue,
                    "gzip" | "x-gzip" => Self::Gzip(Box::new(MultiGzDecoder::new(Vec::new()))),
                    "deflate" => Self::Deflate { state: None, is_whole: false },
                    _ => return Err(coding),
                };
                if found.replace(unpacking).is_some() {
                    return Err(format!("{coding} on top of another"));
                }
            }
        }
        Ok(found)
    }

    fn damaged(&self, problem: &'static str) -> Damaged {
        let coding = match self {
            Self::Gzip(_) => "gzip",
            Self::Deflate { .. } => "deflate",
        };
        Damaged { coding, problem }
    }

    /// Unpacks a part of `input`, and takes it off.
    fn step(&mut self, input: &mut Bytes) -> Result<Bytes, Damaged> {
        match self {
            Self::Gzip(decoder) => {
                let piece = input.split_to(input.len().min(PACKED_PIECE));
                match decoder.write_all(&piece) {
                    Ok(()) => Ok(std::mem::take(decoder.get_mut()).into()),
                    Err(_) => Err(self.damaged("it is damaged, or something follows it")),
                }
            }
            Self::Deflate { state, is_whole } => {
                let first = input[0];
                // Method 8 and a window of at most 32 KiB: no raw deflate stream of any use begins so.
                let state = state
                    .get_or_insert_with(|| Decompress::new(first & 0x0F == 8 && first >> 4 <= 7));
                let mut out = Vec::with_capacity(PIECE);
                let before = state.total_in();
                let done = state.decompress_vec(input, &mut out, FlushDecompress::None);
                let taken = (state.total_in() - before) as usize;
                let stuck = taken == 0 && out.is_empty();
                match done {
                    Ok(Status::StreamEnd) if !*is_whole => *is_whole = true,
                    Ok(_) if !*is_whole && !stuck => {}
                    Ok(_) => return Err(self.damaged("something follows its end")),
                    Err(_) => return Err(self.damaged("it is damaged")),
                }
                let _ = input.split_to(taken);
                Ok(out.into())
            }
        }
    }

    /// Nothing more comes.
    fn end(&mut self) -> Result<Bytes, Damaged> {
        match self {
            Self::Gzip(decoder) => match decoder.try_finish() {
                Ok(()) => Ok(std::mem::take(decoder.get_mut()).into()),
                Err(_) => Err(self.damaged("it ends too early, or its checksum is wrong")),
            },
            Self::Deflate { is_whole: true, .. } => Ok(Bytes::new()),
            Self::Deflate { .. } => Err(self.damaged("it ends too early")),
        }
    }
}

/// A body as it was before it was packed.
struct Unpacked {
    packed: Body,
    input: Bytes,
    unpacking: Unpacking,
    ended: bool,
}

impl HttpBody for Unpacked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { packed, input, unpacking, ended } = self.get_mut();
        loop {
            let out = if !input.is_empty() {
                unpacking.step(input)
            } else if *ended {
                return Poll::Ready(None);
            } else {
                match ready!(Pin::new(&mut *packed).poll_frame(context)) {
                    Some(Ok(frame)) => {
                        *input = frame.into_data().unwrap_or_default();
                        continue;
                    }
                    Some(Err(error)) => {
                        *ended = true;
                        return Poll::Ready(Some(Err(error)));
                    }
                    None => {
                        *ended = true;
                        unpacking.end()
                    }
                }
            };
            match out {
                Ok(out) if out.is_empty() => {}
                Ok(out) => return Poll::Ready(Some(Ok(Frame::data(out)))),
                Err(damaged) => {
                    (*ended, *input) = (true, Bytes::new());
                    return Poll::Ready(Some(Err(axum::Error::new(damaged))));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use http_body_util::BodyExt;
    use proptest::prelude::*;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn unpacked(coding: &'static str, packed: Vec<u8>) -> Result<Vec<u8>, String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
        let unpacking = Unpacking::of(&headers)?.expect("it is packed");
        let body = Unpacked { packed: packed.into(), input: Bytes::new(), unpacking, ended: false };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bytes = runtime.block_on(BodyExt::collect(body));
        let told = |error: axum::Error| Damaged::of(&error).expect("a reason").to_string();
        Ok(bytes.map_err(told)?.to_bytes().to_vec())
    }

    #[test]
    fn every_form_of_gzip_and_deflate_is_undone() {
        let text: Vec<u8> = (0..300_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        assert_eq!(unpacked("gzip", gzip(&text)).unwrap(), text);
        let (a, b) = text.split_at(1000);
        assert_eq!(unpacked("X-GZIP", [gzip(a), gzip(b)].concat()).unwrap(), text, "two members");
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::best());
        zlib.write_all(&text).unwrap();
        assert_eq!(unpacked("identity, deflate", zlib.finish().unwrap()).unwrap(), text);
        let mut raw = DeflateEncoder::new(Vec::new(), Compression::fast());
        raw.write_all(&text).unwrap();
        assert_eq!(unpacked("deflate", raw.finish().unwrap()).unwrap(), text, "without the header");
    }

    #[test]
    fn what_is_cut_damaged_or_something_else_is_told() {
        let packed = gzip(b"some text that is long enough to be cut");
        for bad in [&packed[..packed.len() - 3], &packed[..5], b"", b"no gzip at all"] {
            let told = unpacked("gzip", bad.to_vec()).unwrap_err();
            assert!(told.contains("Content-Encoding gzip"), "{told}");
        }
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::best());
        zlib.write_all(b"some text").unwrap();
        let zlib = zlib.finish().unwrap();
        for bad in [&zlib[..4], b"", &[&zlib[..], b"more"].concat()] {
            assert!(unpacked("deflate", bad.to_vec()).is_err(), "{bad:?}");
        }
        for coding in ["br", "gzip, gzip", "zstd"] {
            assert!(unpacked(coding, packed.clone()).is_err(), "{coding}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = unpacked("gzip", bytes.clone());
            let _ = unpacked("deflate", bytes);
        }
    }
}
