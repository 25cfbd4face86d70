//! Keep-alive pings that detect a dead connection, and a limit on how much a connection reads before it yields.

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

/// A byte stream that records the last activity of the peer, and yields after every [`READ_BEFORE_YIELD`] bytes read.
pub struct MonitoredIo<S> {
    io: Rc<RefCell<S>>,
    activity: Rc<Activity>,
    /// Bytes read since the last yield.
    read: usize,
    /// Reads are pending until other tasks have run.
    is_yielding: Rc<Cell<bool>>,
}

/// Read at most 32 KiB, then yield, so that the tasks of the streams run before `h2` buffers more. Tiny frames cost `h2` many
/// times their size, and the buffer of `h2` does not shrink.
const READ_BEFORE_YIELD: usize = 32 << 10;

/// Gives a byte stream back after the HTTP/2 connection on it has ended.
pub struct Remains<S>(Rc<RefCell<S>>);

impl<S> Remains<S> {
    /// Returns the stream; `None` while the connection still holds it.
    pub fn take(self) -> Option<S> {
        Rc::into_inner(self.0).map(RefCell::into_inner)
    }
}

struct Activity {
    /// When bytes last arrived, or a blocked write last continued.
    last: Cell<Instant>,
    /// A write is blocked, so a ping has to wait behind it.
    is_blocked: Cell<bool>,
}

impl Activity {
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
            activity: Rc::new(Activity { last: Cell::new(Instant::now()), is_blocked: Cell::new(false) }),
            read: 0,
            is_yielding: Rc::default(),
        }
    }

    /// Returns a handle that gives the stream back when the connection has ended.
    pub fn remains(&self) -> Remains<S> {
        Remains(Rc::clone(&self.io))
    }

    /// Returns the keep-alive of the connection, which sends a ping after `every` without activity and then waits `timeout`.
    pub fn keepalive(&self, every: Duration, timeout: Duration) -> Keepalive {
        Keepalive { activity: Rc::clone(&self.activity), every, timeout }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for MonitoredIo<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let monitored = self.get_mut();
        if monitored.read >= READ_BEFORE_YIELD {
            monitored.read = 0;
            monitored.is_yielding.set(true);
            let (is_yielding, waker) = (Rc::clone(&monitored.is_yielding), cx.waker().clone());
            // This task runs after all tasks that are already woken.
            tokio::task::spawn_local(async move {
                is_yielding.set(false);
                waker.wake();
            });
        }
        if monitored.is_yielding.get() {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut *monitored.io.borrow_mut()).poll_read(cx, buf);
        if read.is_ready() {
            monitored.activity.last.set(Instant::now());
            monitored.read += buf.filled().len() - before;
        } else {
            monitored.read = 0;
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for MonitoredIo<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut *self.io.borrow_mut()).poll_write(cx, buf);
        self.activity.note_written(&written);
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
        self.activity.note_written(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.borrow().is_write_vectored()
    }
}

/// Sends pings on a connection without activity.
pub struct Keepalive {
    activity: Rc<Activity>,
    every: Duration,
    timeout: Duration,
}

impl Keepalive {
    /// Completes when the peer shows no activity for `timeout` after a ping. Does not complete while a write is blocked,
    /// because the ping waits behind it.
    pub async fn lost(self, mut pings: PingPong) {
        loop {
            let ping_at = self.activity.last.get() + self.every;
            if Instant::now() < ping_at {
                tokio::time::sleep_until(ping_at).await;
                continue;
            }
            if pings.send_ping(Ping::opaque()).is_err() {
                // The connection has ended, and its own task reports that.
                return pending().await;
            }
            let mut pong = pin!(poll_fn(|cx| pings.poll_pong(cx)));
            loop {
                let sent_at = Instant::now();
                match tokio::time::timeout(self.timeout, pong.as_mut()).await {
                    Ok(Ok(_)) => break,
                    Ok(Err(_)) => return pending().await,
                    Err(_) if self.activity.last.get() >= sent_at || self.activity.is_blocked.get() => {}
                    Err(_) => return,
                }
            }
        }
    }
}
