//! An HTTP/2 stream as a byte stream, after CONNECT (RFC 9113 section 8.5, RFC 8441).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::reader::StreamReader;
use super::writer::{Over, StreamWriter};

/// Both directions of one stream. Dropping it before both have ended resets the stream.
pub struct Tunnel {
    incoming: StreamReader,
    outgoing: StreamWriter,
    /// Bytes received but not read yet. Reading them releases their flow-control capacity.
    unread: Bytes,
}

impl Tunnel {
    pub const fn new(incoming: StreamReader, outgoing: StreamWriter) -> Self {
        Self { incoming, outgoing, unread: Bytes::new() }
    }
}

fn broken(error: h2::Error) -> io::Error {
    if error.is_reset() { io::ErrorKind::ConnectionReset.into() } else { io::Error::other(error) }
}

impl From<Over> for io::Error {
    fn from(_: Over) -> Self {
        io::ErrorKind::BrokenPipe.into()
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let tunnel = self.get_mut();
        while tunnel.unread.is_empty() {
            match ready!(tunnel.incoming.poll_piece(cx)) {
                Some(Ok(bytes)) => tunnel.unread = bytes,
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let step = tunnel.unread.len().min(buf.remaining());
        buf.put_slice(&tunnel.unread[..step]);
        tunnel.unread.advance(step);
        tunnel.incoming.make_room(step);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let tunnel = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let step = ready!(tunnel.outgoing.poll_room(buf.len(), cx))?;
        tunnel.outgoing.put(Bytes::copy_from_slice(&buf[..step]), false)?;
        Poll::Ready(Ok(step))
    }

    /// Does nothing, because the connection's own task writes the queued data.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(self.get_mut().outgoing.end()?))
    }
}
