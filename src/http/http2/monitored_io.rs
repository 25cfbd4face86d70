//! The byte stream beneath an HTTP/2 connection: collects what is written, and limits how much is read before it yields.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::keepalive::{Activity, Keepalive};

/// A byte stream for `h2`. It records the last activity of the peer, yields after every [`READ_BEFORE_YIELD`] bytes read, and
/// collects the frames that are written.
///
/// `h2` flushes after almost every DATA frame, which would cost a system call and a TLS record each. [`FrameBatch::flushing`] writes
/// the collected frames once each time the connection has been polled.
pub struct MonitoredIo<S> {
    shared: Rc<RefCell<Shared<S>>>,
    activity: Rc<Activity>,
    /// Bytes read since the last yield.
    read: usize,
    /// Reads are pending until other tasks have run.
    is_yielding: Rc<Cell<bool>>,
}

/// Read at most 32 KiB, then yield, so that the tasks of the streams run before `h2` buffers more. Tiny frames cost `h2` many
/// times their size, and the buffer of `h2` does not shrink.
const READ_BEFORE_YIELD: usize = 32 << 10;

/// Frames are written at once when this many bytes are collected. A larger batch would only delay its first byte.
const MAX_BATCH: usize = 64 << 10;

/// The first capacity of a batch: a few heads, or a small response.
const FIRST_BATCH: usize = 2 << 10;

/// A stream, and the bytes that wait to be written to it.
struct Shared<S> {
    io: S,
    batch: BytesMut,
    /// TLS may hold written bytes back until it is flushed.
    needs_flush: bool,
}

/// The collected frames of a connection, and the stream itself after the connection has ended.
pub struct FrameBatch<S> {
    shared: Rc<RefCell<Shared<S>>>,
    activity: Rc<Activity>,
}

impl<S> MonitoredIo<S> {
    pub fn new(io: S) -> Self {
        Self {
            shared: Rc::new(RefCell::new(Shared { io, batch: BytesMut::new(), needs_flush: false })),
            activity: Rc::new(Activity::now()),
            read: 0,
            is_yielding: Rc::default(),
        }
    }

    /// Returns the batch of this stream, which the task of the connection must flush.
    pub fn batch(&self) -> FrameBatch<S> {
        FrameBatch { shared: Rc::clone(&self.shared), activity: Rc::clone(&self.activity) }
    }

    /// Returns the keep-alive of the connection, which sends a ping after `every` without activity and then waits `timeout`.
    pub fn keepalive(&self, every: Duration, timeout: Duration) -> Keepalive {
        Keepalive { activity: Rc::clone(&self.activity), every, timeout }
    }
}

impl<S: AsyncWrite + Unpin> FrameBatch<S> {
    /// Runs the work of a connection, and writes the collected frames after each time that it has been polled. Fails when a
    /// write fails.
    pub async fn flushing<T>(&self, work: impl Future<Output = T>) -> io::Result<T> {
        let mut work = pin!(work);
        poll_fn(|cx| {
            let done = work.as_mut().poll(cx);
            match self.shared.borrow_mut().poll_write_batch(&self.activity, cx) {
                Poll::Ready(Err(error)) if done.is_pending() => Poll::Ready(Err(error)),
                _ => done.map(Ok),
            }
        })
        .await
    }

    /// Returns the stream; `None` while the connection still holds it.
    pub fn into_stream(self) -> Option<S> {
        Rc::into_inner(self.shared).map(|shared| shared.into_inner().io)
    }
}

impl<S: AsyncWrite + Unpin> Shared<S> {
    /// Writes everything that waits.
    fn poll_write_batch(&mut self, activity: &Activity, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.batch.is_empty() {
            let written = Pin::new(&mut self.io).poll_write(cx, &self.batch);
            activity.note_write(written.is_pending());
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                size => self.batch.advance(size),
            }
            self.needs_flush = true;
        }
        if self.needs_flush {
            // An idle connection holds no buffer.
            self.batch = BytesMut::new();
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.needs_flush = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Collects bytes, as many as fit.
    fn collect(&mut self, bytes: &[u8]) -> usize {
        let size = bytes.len().min(MAX_BATCH - self.batch.len());
        if self.batch.capacity() == 0 {
            self.batch.reserve(size.max(FIRST_BATCH));
        }
        self.batch.extend_from_slice(&bytes[..size]);
        size
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
        let read = Pin::new(&mut monitored.shared.borrow_mut().io).poll_read(cx, buf);
        if read.is_ready() {
            monitored.activity.note_read();
            monitored.read += buf.filled().len() - before;
        } else {
            monitored.read = 0;
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for MonitoredIo<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let shared = &mut *self.shared.borrow_mut();
        if shared.batch.len() >= MAX_BATCH {
            ready!(shared.poll_write_batch(&self.activity, cx))?;
        }
        Poll::Ready(Ok(bufs.iter().map(|bytes| shared.collect(bytes)).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Does nothing, because [`FrameBatch::flushing`] writes the frames of all streams together.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shared = &mut *self.shared.borrow_mut();
        ready!(shared.poll_write_batch(&self.activity, cx))?;
        Pin::new(&mut shared.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// A stream that records each write, and takes nothing while it is stuck.
    #[derive(Default)]
    struct Recorder {
        writes: Rc<RefCell<Vec<usize>>>,
        is_stuck: Rc<Cell<bool>>,
        is_broken: Rc<Cell<bool>>,
    }

    impl AsyncWrite for Recorder {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            if self.is_broken.get() {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            if self.is_stuck.get() {
                return Poll::Pending;
            }
            self.writes.borrow_mut().push(buf.len());
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn frames_that_are_written_in_one_turn_leave_together() {
        let recorder = Recorder::default();
        let writes = Rc::clone(&recorder.writes);
        let mut io = MonitoredIo::new(recorder);
        let batch = io.batch();
        let work = async {
            for _ in 0..3 {
                for _ in 0..10 {
                    io.write_all(&[7; 1000]).await.unwrap();
                    io.flush().await.unwrap();
                }
                tokio::task::yield_now().await;
            }
        };
        batch.flushing(work).await.unwrap();
        assert_eq!(*writes.borrow(), [10_000; 3]);
        drop(io);
        assert!(batch.into_stream().is_some());
    }

    #[tokio::test]
    async fn a_reader_that_stops_stops_the_writer() {
        let recorder = Recorder::default();
        recorder.is_stuck.set(true);
        let mut io = MonitoredIo::new(recorder);
        let batch = io.batch();
        let written = Cell::new(0);
        let work = async {
            loop {
                written.set(written.get() + io.write(&[7; 1000]).await.unwrap());
            }
        };
        let mut flushing = pin!(batch.flushing::<()>(work));
        assert!(poll_fn(|cx| Poll::Ready(flushing.as_mut().poll(cx))).await.is_pending());
        assert_eq!(written.get(), MAX_BATCH);
    }

    #[tokio::test]
    async fn a_failed_write_ends_the_work() {
        let recorder = Recorder::default();
        recorder.is_broken.set(true);
        let mut io = MonitoredIo::new(recorder);
        let batch = io.batch();
        let work = async {
            io.write_all(b"x").await.unwrap();
            std::future::pending::<()>().await;
        };
        assert_eq!(batch.flushing(work).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
