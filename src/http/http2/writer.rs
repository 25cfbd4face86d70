//! Outgoing data of a stream, limited by the peer's flow-control window and by the number of queued frames.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, SendStream};
use http::HeaderMap;

/// Maximum number of data frames of one body that are queued, because each costs `h2` hundreds of bytes more than its data.
const MAX_QUEUED: usize = 16;

/// Data of a body that waits to be written.
#[derive(Debug, Default)]
pub struct Piece {
    bytes: Bytes,
    /// `None` for the empty frame that ends a body.
    _slot: Option<Slot>,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

/// The number of queued frames of one body, and the task that waits until one of them is written.
#[derive(Debug, Default)]
struct Queue {
    length: Cell<usize>,
    writer: RefCell<Option<Waker>>,
}

#[derive(Debug)]
struct Slot(Rc<Queue>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.length.set(self.0.length.get() - 1);
        if let Some(writer) = self.0.writer.take() {
            writer.wake();
        }
    }
}

/// The sending direction of a stream.
pub struct StreamWriter {
    stream: SendStream<Piece>,
    queue: Rc<Queue>,
}

/// The peer has ended the stream.
pub struct Over;

impl StreamWriter {
    pub fn new(stream: SendStream<Piece>) -> Self {
        Self { stream, queue: Rc::default() }
    }

    /// Waits for flow-control capacity; returns how many of the `wanted` bytes may be queued, at least one.
    pub fn poll_room(&mut self, wanted: usize, cx: &mut Context<'_>) -> Poll<Result<usize, Over>> {
        if self.queue.length.get() >= MAX_QUEUED {
            self.queue.writer.replace(Some(cx.waker().clone()));
            return self.stream.poll_reset(cx).map(|_| Err(Over));
        }
        self.stream.reserve_capacity(wanted);
        loop {
            let room = self.stream.capacity();
            if room > 0 {
                return Poll::Ready(Ok(room.min(wanted)));
            }
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Err(Over)),
            }
        }
    }

    /// Queues data for which there is capacity.
    pub fn put(&mut self, bytes: Bytes, is_last: bool) -> Result<(), Over> {
        self.queue.length.set(self.queue.length.get() + 1);
        let piece = Piece { bytes, _slot: Some(Slot(Rc::clone(&self.queue))) };
        self.stream.send_data(piece, is_last).map_err(|_| Over)
    }

    /// Ends the stream.
    pub fn end(&mut self) -> Result<(), Over> {
        self.stream.send_data(Piece::default(), true).map_err(|_| Over)
    }

    /// Ends the stream with trailers.
    pub fn end_with(&mut self, trailers: HeaderMap) -> Result<(), Over> {
        self.stream.send_trailers(trailers).map_err(|_| Over)
    }

    /// Resets the stream.
    pub fn reset(&mut self, reason: Reason) {
        self.stream.send_reset(reason);
    }

    /// Ready once the peer has reset the stream.
    pub fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        self.stream.poll_reset(cx).map(|_| Over)
    }
}
