//! A byte stream, with or without TLS.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A connection, with its TLS handshake done, that is ready for HTTP.
pub enum Stream {
    Plain(TcpStream),
    /// A Unix socket.
    Local(UnixStream),
    Accepted(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    Dialed(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Stream {
    /// The certificates that a dialed server presented; empty without TLS.
    pub fn peer_certificates(&self) -> Vec<CertificateDer<'static>> {
        match self {
            Self::Dialed(stream) => stream.get_ref().1.peer_certificates().map(<[_]>::to_vec).unwrap_or_default(),
            Self::Plain(_) | Self::Local(_) | Self::Accepted(_) => Vec::new(),
        }
    }

    /// Whether there is no TLS on the connection.
    pub const fn is_plain(&self) -> bool {
        matches!(self, Self::Plain(_) | Self::Local(_))
    }

    /// The remote address; `None` if the socket is no longer connected, or is a Unix socket.
    pub fn remote(&self) -> Option<SocketAddr> {
        match self {
            Self::Plain(stream) => stream.peer_addr().ok(),
            Self::Accepted(stream) => stream.get_ref().0.peer_addr().ok(),
            Self::Dialed(stream) => stream.get_ref().0.peer_addr().ok(),
            Self::Local(_) => None,
        }
    }

    /// Ends the connection if written data is not acknowledged within `limit`, and turns on TCP keepalive probes. A setting that
    /// the system refuses only delays the detection of a lost connection.
    pub fn expect_acknowledgement(&self, limit: Duration) {
        let descriptor = self.descriptor();
        let socket = socket2::SockRef::from(&descriptor);
        let probes = socket2::TcpKeepalive::new().with_time(limit / 2).with_interval(limit / 4).with_retries(3);
        let _ = (socket.set_tcp_user_timeout(Some(limit)), socket.set_tcp_keepalive(&probes));
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Self::Plain(stream) => stream.as_fd(),
            Self::Local(stream) => stream.as_fd(),
            Self::Accepted(stream) => stream.get_ref().0.as_fd(),
            Self::Dialed(stream) => stream.get_ref().0.as_fd(),
        }
    }

    /// Whether the handshake chose HTTP/2 (ALPN).
    pub fn chose_http2(&self) -> bool {
        let chosen = match self {
            Self::Plain(_) | Self::Local(_) => None,
            Self::Accepted(stream) => stream.get_ref().1.alpn_protocol(),
            Self::Dialed(stream) => stream.get_ref().1.alpn_protocol(),
        };
        chosen == Some(b"h2")
    }
}

macro_rules! delegate {
    ($self:ident, $inner:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Plain($inner) => $call,
            Stream::Local($inner) => $call,
            Stream::Accepted($inner) => $call,
            Stream::Dialed($inner) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        delegate!(self, inner => Pin::new(inner).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        delegate!(self, inner => Pin::new(inner).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, inner => Pin::new(inner).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, inner => Pin::new(inner).poll_shutdown(cx))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        delegate!(self, inner => Pin::new(inner).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(inner) => inner.is_write_vectored(),
            Self::Local(inner) => inner.is_write_vectored(),
            Self::Accepted(inner) => inner.is_write_vectored(),
            Self::Dialed(inner) => inner.is_write_vectored(),
        }
    }
}
