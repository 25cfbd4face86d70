//! A stream of HTTP/2 as a byte stream: what CONNECT makes of it (RFC 9113 section 8.5, RFC 8441).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::body::poll_room;

/// Both directions of one stream. Dropping it before both have ended resets the stream.
pub struct Tunnel {
    incoming: RecvStream,
    outgoing: SendStream<Bytes>,
    /// Bytes that came and have not been read; the other end may send as many more as were.
    unread: Bytes,
}

impl Tunnel {
    pub const fn new(incoming: RecvStream, outgoing: SendStream<Bytes>) -> Self {
        Self { incoming, outgoing, unread: Bytes::new() }
    }
}

fn broken(error: h2::Error) -> io::Error {
    if error.is_reset() { io::ErrorKind::ConnectionReset.into() } else { io::Error::other(error) }
}

impl AsyncRead for Tunnel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let tunnel = self.get_mut();
        while tunnel.unread.is_empty() {
            match ready!(tunnel.incoming.poll_data(cx)) {
                Some(Ok(bytes)) => tunnel.unread = bytes,
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let step = tunnel.unread.len().min(buf.remaining());
        buf.put_slice(&tunnel.unread[..step]);
        tunnel.unread.advance(step);
        // An error says that the stream has ended, which is found at the next read.
        let _ = tunnel.incoming.flow_control().release_capacity(step);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let tunnel = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        tunnel.outgoing.reserve_capacity(buf.len());
        let room = ready!(poll_room(&mut tunnel.outgoing, cx)).ok_or(io::ErrorKind::BrokenPipe)?;
        let step = room.min(buf.len());
        tunnel.outgoing.send_data(Bytes::copy_from_slice(&buf[..step]), false).map_err(broken)?;
        Poll::Ready(Ok(step))
    }

    /// The connection's own task writes what it was given.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().outgoing.send_data(Bytes::new(), true).map_err(broken))
    }
}
