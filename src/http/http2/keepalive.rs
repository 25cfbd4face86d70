//! Whether the other end of a connection is still there.

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// A byte stream that notes when its other end last gave a sign of life, and gives no more than [`MOST_IN_A_TURN`] at once.
pub struct MonitoredIo<S> {
    io: Rc<RefCell<S>>,
    signs: Rc<Signs>,
    /// Bytes read since others had their turn.
    read: usize,
    /// It waits for others to have it.
    is_others_turn: Rc<Cell<bool>>,
}

/// What has been read lies in `h2` until whoever it is for has had a turn, and in tiny frames costs many times what it weighs; the room
/// for the most that ever lay there is kept.
const MOST_IN_A_TURN: usize = 32 << 10;

/// What is left of a byte stream when the connection that was made of it has ended.
pub struct Remains<S>(Rc<RefCell<S>>);

impl<S> Remains<S> {
    /// The stream, if the connection has let go of it.
    pub fn take(self) -> Option<S> {
        Rc::into_inner(self.0).map(RefCell::into_inner)
    }
}

struct Signs {
    /// When something came, or a write that had to wait went on.
    last: Cell<Instant>,
    /// A write waits: whoever asks for a sign of life is behind it.
    is_blocked: Cell<bool>,
}

impl Signs {
    fn note_written<T>(&self, written: &Poll<io::Result<T>>) {
        let was_blocked = self.is_blocked.replace(written.is_pending());
        if was_blocked && written.is_ready() {
            self.last.set(Instant::now());
        }
    }
}

impl<S> MonitoredIo<S> {
    pub fn new(io: S) -> Self {
        Self {
            io: Rc::new(RefCell::new(io)),
            signs: Rc::new(Signs { last: Cell::new(Instant::now()), is_blocked: Cell::new(false) }),
            read: 0,
            is_others_turn: Rc::default(),
        }
    }

    /// Gets the stream back when the connection has ended.
    pub fn remains(&self) -> Remains<S> {
        Remains(Rc::clone(&self.io))
    }

    /// Looks after the connection that is made of this stream: it is asked after every silence of `every`, and has `patience`.
    pub fn keepalive(&self, every: Duration, patience: Duration) -> Keepalive {
        Keepalive { signs: Rc::clone(&self.signs), every, patience }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for MonitoredIo<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let listening = self.get_mut();
        if listening.read >= MOST_IN_A_TURN {
            listening.read = 0;
            listening.is_others_turn.set(true);
            let (is_others_turn, waker) = (Rc::clone(&listening.is_others_turn), cx.waker().clone());
            // Behind all that have been woken by now.
            tokio::task::spawn_local(async move {
                is_others_turn.set(false);
                waker.wake();
            });
        }
        if listening.is_others_turn.get() {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut *listening.io.borrow_mut()).poll_read(cx, buf);
        if read.is_ready() {
            listening.signs.last.set(Instant::now());
            listening.read += buf.filled().len() - before;
        } else {
            listening.read = 0;
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for MonitoredIo<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut *self.io.borrow_mut()).poll_write(cx, buf);
        self.signs.note_written(&written);
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io.borrow_mut()).poll_shutdown(cx)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut *self.io.borrow_mut()).poll_write_vectored(cx, bufs);
        self.signs.note_written(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.borrow().is_write_vectored()
    }
}

/// Asks for a sign of life after a silence.
pub struct Keepalive {
    signs: Rc<Signs>,
    every: Duration,
    patience: Duration,
}

impl Keepalive {
    /// Ends when the other end has given no sign of life for `patience` after it was asked. Whoever takes nothing of what is
    /// written is not judged here: the question waits behind it.
    pub async fn lost(self, mut pings: PingPong) {
        loop {
            let quiet_at = self.signs.last.get() + self.every;
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
                    Err(_) if self.signs.last.get() >= asked || self.signs.is_blocked.get() => {}
                    Err(_) => return,
                }
            }
        }
    }
}
