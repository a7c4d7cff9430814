//! How long a peer may keep the server waiting: silence and the least rate are one account of time.
//!
//! Waiting is charged to the account, every byte that moves pays some of it back. A peer that is silent, and one that
//! moves a byte now and then, run out of it alike; a peer that moves at least the least rate never does.

use std::future::Future;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::connections::Line;

/// A peer's account of time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Longest silence: what the account holds at most.
    patience: Duration,
    bytes_per_second: u32,
    left: Duration,
}

impl Pace {
    pub(super) fn new(patience: Duration, bytes_per_second: u32) -> Self {
        Self { patience, bytes_per_second, left: patience }
    }

    /// How long the peer may be waited for now.
    pub(super) fn left(&self) -> Duration {
        self.left
    }

    /// `bytes` moved after a wait of `waited` for the peer.
    pub(super) fn moved(&mut self, waited: Duration, bytes: usize) {
        let earned = match self.bytes_per_second {
            0 if bytes > 0 => self.patience,
            0 => Duration::ZERO,
            rate => Duration::from_secs_f64(bytes as f64 / f64::from(rate)),
        };
        self.left = (self.left.saturating_sub(waited) + earned).min(self.patience);
    }
}

/// How long what a peer still sends is read and thrown away when everything has been said.
const LINGER: Duration = Duration::from_secs(1);

/// A stream whose peer has to take what is written to it at the least rate. Otherwise writing fails with `TimedOut`.
///
/// Shutting it down waits a little for the peer to end its own side: closing it while bytes come would reset the connection,
/// and with it the answer that the peer has not read yet (RFC 9112 section 9.6).
pub(super) struct Paced<S> {
    stream: S,
    /// Until when the peer is waited for at the end.
    lingering: Option<Pin<Box<Sleep>>>,
    pace: Pace,
    /// Since when the peer takes nothing, and when its time is over.
    blocked: Option<(Instant, Pin<Box<Sleep>>)>,
    line: Arc<Line>,
}

impl<S> Paced<S> {
    pub(super) fn new(stream: S, pace: Pace, line: Arc<Line>) -> Self {
        Self { stream, lingering: None, pace, blocked: None, line }
    }

    /// Charges the wait for a write that has ended, or ends one that takes too long.
    fn account<T>(
        &mut self,
        context: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        let Poll::Ready(done) = polled else {
            let left = self.pace.left();
            let (_, over) =
                self.blocked.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(left))));
            ready!(over.as_mut().poll(context));
            let slow = "the client takes its answer too slowly";
            return Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, slow)));
        };
        let waited = self.blocked.take().map_or(Duration::ZERO, |(since, _)| since.elapsed());
        let bytes = done.as_ref().map_or(0, bytes);
        self.pace.moved(waited, bytes);
        if bytes > 0 {
            self.line.moved();
        }
        Poll::Ready(done)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.account(context, polled, |written| *written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.account(context, polled, |written| *written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.account(context, polled, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            let polled = Pin::new(&mut self.stream).poll_shutdown(context);
            ready!(self.account(context, polled, |()| 0))?;
        }
        let Self { stream, lingering, .. } = &mut *self;
        let over = lingering.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut waste = [0; 4096];
        while over.as_mut().poll(context).is_pending() {
            let mut into = ReadBuf::new(&mut waste);
            match ready!(Pin::new(&mut *stream).poll_read(context, &mut into)) {
                Ok(()) if !into.filled().is_empty() => {}
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_byte_now_and_then_runs_out_of_time_as_silence_does() {
        let mut pace = Pace::new(30 * SECOND, 1000);
        let mut seconds = 0;
        while pace.left() >= SECOND {
            pace.moved(SECOND, 1);
            seconds += 1;
        }
        assert!((29..=31).contains(&seconds), "{seconds}");
    }

    #[test]
    fn who_keeps_the_least_rate_is_waited_for_as_long_as_it_takes() {
        let mut pace = Pace::new(30 * SECOND, 1000);
        for _ in 0..1000 {
            pace.moved(10 * SECOND, 10_000);
        }
        assert_eq!(pace.left(), 30 * SECOND);
    }

    #[test]
    fn bytes_that_came_fast_are_no_leave_to_fall_silent_for_longer() {
        let mut pace = Pace::new(30 * SECOND, 1000);
        pace.moved(Duration::ZERO, 1 << 30);
        assert_eq!(pace.left(), 30 * SECOND);
        pace.moved(31 * SECOND, 0);
        assert!(pace.left().is_zero());
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_given_up() {
        let (here, _there) = tokio::io::duplex(1000);
        let pace = Pace::new(Duration::from_millis(50), 1_000_000);
        let mut paced = Paced::new(here, pace, Line::for_tests());
        let error = paced.write_all(&[0; 5000]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_reader_that_is_slow_and_not_too_slow_gets_everything() {
        let (here, mut there) = tokio::io::duplex(1000);
        let mut paced = Paced::new(here, Pace::new(30 * SECOND, 1), Line::for_tests());
        let reading = tokio::spawn(async move {
            let (mut taken, mut piece) = (0, [0; 1000]);
            loop {
                match there.read(&mut piece).await.unwrap() {
                    0 => return taken,
                    count => taken += count,
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        paced.write_all(&vec![0; 100_000]).await.unwrap();
        drop(paced);
        assert_eq!(reading.await.unwrap(), 100_000);
    }
}
