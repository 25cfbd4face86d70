//! Whether the other end of a connection is still there.

use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// A byte stream that notes when it was last heard of.
pub struct Listening<S> {
    io: S,
    heard: Rc<Cell<Instant>>,
}

impl<S> Listening<S> {
    pub fn new(io: S) -> Self {
        Self { io, heard: Rc::new(Cell::new(Instant::now())) }
    }

    /// Looks after the connection that is made of this stream.
    pub fn keepalive(&self, every: Duration, patience: Duration) -> Keepalive {
        Keepalive { heard: Rc::clone(&self.heard), every, patience }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Listening<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if read.is_ready() {
            self.heard.set(Instant::now());
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Listening<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// Asks for a sign of life after a silence.
pub struct Keepalive {
    heard: Rc<Cell<Instant>>,
    every: Duration,
    patience: Duration,
}

impl Keepalive {
    /// Ends when the other end has said nothing at all for `patience` after it was asked. A long queue in front of the answer is
    /// no silence.
    pub async fn lost(self, mut pings: PingPong) {
        loop {
            let quiet_at = self.heard.get() + self.every;
            if Instant::now() < quiet_at {
                tokio::time::sleep_until(quiet_at).await;
                continue;
            }
            if pings.send_ping(Ping::opaque()).is_err() {
                // The connection has ended; whoever drives it knows.
                return pending().await;
            }
            let mut pong = pin!(poll_fn(|cx| pings.poll_pong(cx)));
            loop {
                let asked = Instant::now();
                match tokio::time::timeout(self.patience, pong.as_mut()).await {
                    Ok(Ok(_)) => break,
                    Ok(Err(_)) => return pending().await,
                    Err(_) if self.heard.get() >= asked => {}
                    Err(_) => return,
                }
            }
        }
    }
}
