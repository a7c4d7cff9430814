//! Answers on their way out. However slowly they are taken, little of each is in memory.

use std::fs::File;
use std::io::{Error, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, ReadBuf};

use super::connections::Place;

/// Bytes that are handed over at once.
const PIECE: usize = 64 << 10;

/// The body of an answer in pieces, so that it is dropped, and its place with it, only when the peer has taken nearly all.
pub(super) struct Outgoing {
    rest: Body,
    next: Bytes,
    _place: Place,
}

impl Outgoing {
    pub(super) fn new(body: Body, place: Place) -> Self {
        Self { rest: body, next: Bytes::new(), _place: place }
    }
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.next.is_empty() {
            match ready!(Pin::new(&mut self.rest).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.next = bytes,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                other => return Poll::Ready(other),
            }
        }
        let length = self.next.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.next.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.next.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, next) = (self.rest.size_hint(), self.next.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(next));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(next));
        }
        hint
    }
}

/// A file as the body of an answer, read as the peer takes it.
pub(super) struct FileBody {
    file: tokio::fs::File,
    left: u64,
    piece: Vec<u8>,
}

impl FileBody {
    /// The next `bytes` of `file`.
    pub(super) fn new(file: File, bytes: u64) -> Self {
        let mut file = tokio::fs::File::from_std(file);
        file.set_max_buf_size(PIECE);
        Self { file, left: bytes, piece: vec![0; PIECE] }
    }
}

impl HttpBody for FileBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let Self { file, left, piece } = &mut *self;
        let most = usize::try_from(*left).map_or(PIECE, |left| left.min(PIECE));
        let mut into = ReadBuf::new(&mut piece[..most]);
        let read = ready!(Pin::new(file).poll_read(context, &mut into));
        let bytes = Bytes::copy_from_slice(into.filled());
        *left -= bytes.len() as u64;
        Poll::Ready(Some(match read {
            Ok(()) if bytes.is_empty() => Err(ErrorKind::UnexpectedEof.into()),
            Ok(()) => Ok(Frame::data(bytes)),
            Err(error) => Err(error),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
