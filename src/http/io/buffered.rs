//! A connection with bytes that were read ahead, bytes that wait to be written, and a write timeout.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::super::window::Window;
use super::stall::Stall;
use crate::transport::stream::Stream;

/// A connection whose reads return the bytes that were read ahead first, and whose writes fail when the other end does not read.
pub struct BufferedStream {
    stream: Stream,
    /// Bytes that were read and not used yet.
    pub received: BytesMut,
    /// Bytes that wait to be written: first the large pieces in order, then `out`.
    queue: VecDeque<Bytes>,
    pub out: BytesMut,
    /// TLS may hold written bytes back until it is flushed.
    needs_flush: bool,
    stall: Stall,
    /// The size of the next read of a body, and the largest size that it may reach.
    body_read: usize,
    max_body_read: usize,
}

/// The size of a read while no body is expected, and of the first read of a body.
const READ: usize = 16 << 10;

/// The largest size of a read while a body streams. It grows to it, because each read is a system call.
const MAX_BODY_READ: usize = 512 << 10;

/// The most pieces in one write.
const MAX_PIECES: usize = 16;

impl BufferedStream {
    /// Wraps a connection from which `received` has been read already. A write fails when the other end does not read for `stall`.
    pub fn new(stream: Stream, received: BytesMut, stall: Duration) -> Self {
        let (queue, out, needs_flush) = (VecDeque::new(), BytesMut::new(), false);
        Self { stream, received, queue, out, needs_flush, stall: Stall::after(stall), body_read: READ, max_body_read: READ }
    }

    /// Lets the reads of a body grow to half a window: while one read is being sent, the next one waits here.
    pub fn allow_reads_of(&mut self, window: Window) {
        self.max_body_read = MAX_BODY_READ.min(window.bytes() as usize / 2);
        self.body_read = self.body_read.min(self.max_body_read);
    }

    /// The underlying stream.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Reads more bytes into `received`; returns how many, and zero at the end of the connection.
    pub fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // Not initialized, because zeroing the buffer costs more than most reads. On the stack, so that a connection that waits
        // holds no buffer.
        let mut space = [const { MaybeUninit::uninit() }; READ];
        let mut space = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut space))?;
        let size = space.filled().len();
        self.received.extend_from_slice(space.filled());
        if size == READ {
            self.body_read = (4 * READ).min(self.max_body_read);
        }
        Poll::Ready(Ok(size))
    }

    /// Like [`Self::poll_receive`], while a body streams: the reads grow while they are full. `most` is the number of bytes that
    /// the body may still have.
    pub fn poll_receive_body(&mut self, cx: &mut Context<'_>, most: u64) -> Poll<io::Result<usize>> {
        let wanted = self.body_read.min(usize::try_from(most).unwrap_or(usize::MAX));
        if wanted <= READ || !self.received.is_empty() {
            return self.poll_receive(cx);
        }
        let mut space = BytesMut::with_capacity(wanted);
        let read = (&mut self.stream).take(wanted as u64).read_buf(&mut space).poll_once(cx);
        let size = match read {
            Poll::Ready(read) => read?,
            Poll::Pending => {
                self.body_read = READ;
                return Poll::Pending;
            }
        };
        if 4 * size < wanted {
            // A piece of the body keeps the whole buffer alive.
            self.received.extend_from_slice(&space);
        } else {
            self.received = space;
        }
        self.body_read = if size == wanted { (2 * wanted).min(self.max_body_read) } else { self.body_read };
        Poll::Ready(Ok(size))
    }

    /// Whether nothing waits to be written, here or in the TLS layer.
    pub fn is_flushed(&self) -> bool {
        self.is_written() && !self.needs_flush
    }

    fn is_written(&self) -> bool {
        self.queue.is_empty() && self.out.is_empty()
    }

    /// How many bytes wait to be written.
    pub fn waiting(&self) -> usize {
        self.out.len() + self.queue.iter().map(Bytes::len).sum::<usize>()
    }

    /// Appends a piece without copying it; `after` follows it.
    pub fn put(&mut self, piece: Bytes, after: &'static [u8]) {
        if !self.out.is_empty() {
            self.queue.push_back(self.out.split().freeze());
        }
        self.queue.push_back(piece);
        self.out.extend_from_slice(after);
    }

    /// Writes everything that waits.
    pub fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_written() {
            let written = self.poll_write_pieces(cx);
            let written = ready!(self.stall.unless(cx, written))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
            self.needs_flush = true;
        }
        if self.needs_flush {
            let flushed = Pin::new(&mut self.stream).poll_flush(cx);
            ready!(self.stall.unless(cx, flushed))?;
            self.needs_flush = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_pieces(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.stream);
        if self.queue.is_empty() {
            return stream.poll_write(cx, &self.out);
        }
        let mut pieces = [IoSlice::new(&[]); MAX_PIECES];
        let waiting = self.queue.iter().map(|piece| &**piece).chain([&*self.out]).filter(|piece| !piece.is_empty());
        let mut count = 0;
        for (slot, piece) in pieces.iter_mut().zip(waiting) {
            *slot = IoSlice::new(piece);
            count += 1;
        }
        stream.poll_write_vectored(cx, &pieces[..count])
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(first) = self.queue.front_mut() {
            let step = written.min(first.len());
            first.advance(step);
            written -= step;
            if !first.is_empty() {
                return;
            }
            self.queue.pop_front();
        }
        self.out.advance(written);
        if self.out.is_empty() {
            self.out = BytesMut::new();
        }
    }
}

/// Polls a future once.
trait PollOnce: Future + Sized {
    fn poll_once(self, cx: &mut Context<'_>) -> Poll<Self::Output> {
        pin!(self).poll(cx)
    }
}

impl<F: Future> PollOnce for F {}

impl AsyncRead for BufferedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let io = self.get_mut();
        if io.received.is_empty() {
            return Pin::new(&mut io.stream).poll_read(cx, buf);
        }
        let step = io.received.len().min(buf.remaining());
        buf.put_slice(&io.received.split_to(step));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for BufferedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let io = self.get_mut();
        let written = Pin::new(&mut io.stream).poll_write(cx, buf);
        io.stall.unless(cx, written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let io = self.get_mut();
        let flushed = Pin::new(&mut io.stream).poll_flush(cx);
        io.stall.unless(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let io = self.get_mut();
        let written = Pin::new(&mut io.stream).poll_write_vectored(cx, bufs);
        io.stall.unless(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
