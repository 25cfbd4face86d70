//! What goes out on a stream: no more at once than the other end takes, and no more pieces than are worth waiting for.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, SendStream};
use http::HeaderMap;

/// How many pieces of one body may wait to be written, however small they are: each costs `h2` hundreds of bytes more than it weighs.
const MOST_PIECES: usize = 16;

/// A piece of a body that waits to be written.
#[derive(Debug, Default)]
pub struct Piece {
    bytes: Bytes,
    /// `None` for the end of a body.
    _place: Option<Place>,
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

/// The pieces of one body that wait, and who waits for one of them to go.
#[derive(Debug, Default)]
struct Queue {
    length: Cell<usize>,
    writer: RefCell<Option<Waker>>,
}

#[derive(Debug)]
struct Place(Rc<Queue>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.length.set(self.0.length.get() - 1);
        if let Some(writer) = self.0.writer.take() {
            writer.wake();
        }
    }
}

/// One direction of a stream.
pub struct StreamWriter {
    stream: SendStream<Piece>,
    queue: Rc<Queue>,
}

/// The other end has ended the stream.
pub struct Over;

impl StreamWriter {
    pub fn new(stream: SendStream<Piece>) -> Self {
        Self { stream, queue: Rc::default() }
    }

    /// How many of so many bytes may be put now, at least one.
    pub fn poll_room(&mut self, wanted: usize, cx: &mut Context<'_>) -> Poll<Result<usize, Over>> {
        if self.queue.length.get() >= MOST_PIECES {
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

    /// Puts a piece for which there is room.
    pub fn put(&mut self, bytes: Bytes, is_last: bool) -> Result<(), Over> {
        self.queue.length.set(self.queue.length.get() + 1);
        let piece = Piece { bytes, _place: Some(Place(Rc::clone(&self.queue))) };
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

    /// Breaks the stream off.
    pub fn reset(&mut self, reason: Reason) {
        self.stream.send_reset(reason);
    }

    /// Ready once the other end wants no more.
    pub fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        self.stream.poll_reset(cx).map(|_| Over)
    }
}
