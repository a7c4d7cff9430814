use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What an association runs over: a [`Wire`], or TLS over one.
pub trait Link: AsyncRead + AsyncWrite + Unpin + Send + Sync {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync> Link for T {}

/// When the kernel acknowledges what has come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Acknowledge {
    #[default]
    AtOnce,
    /// As the kernel likes, up to 40 ms later. Only of use to measure what that costs.
    Delayed,
}

/// A TCP connection for requests and responses.
///
/// Peers write a PDU in pieces: dcmtk its header and its value, pynetdicom command and data set. Where they leave Nagle's
/// algorithm on (RFC 9293 section 3.7.4), the second piece waits until the first is acknowledged, and a kernel that takes
/// this connection for interactive delays that for 40 ms (RFC 9293 section 3.8.6.3). Here what is read is acknowledged
/// at once, and what is written leaves at once. The kernel forgets the former with every answer: it is told after
/// each read.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    acknowledge: Acknowledge,
}

impl Wire {
    #[must_use]
    pub fn new(stream: TcpStream, acknowledge: Acknowledge) -> Self {
        let _ = stream.set_nodelay(true); // slower without it, but right
        let wire = Self { stream, acknowledge };
        wire.acknowledge();
        wire
    }

    fn acknowledge(&self) {
        #[cfg(target_os = "linux")]
        if self.acknowledge == Acknowledge::AtOnce {
            let _ = rustix::net::sockopt::set_tcp_quickack(&self.stream, true);
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            self.acknowledge();
        }
        read
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
