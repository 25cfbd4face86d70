//! The body of a request. It reads from the connection itself.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::super::super::io::BufferedStream;
use super::super::codec::{BodyError, Decoded, informational_head};
use super::{Inner, ServerConnection};

impl ServerConnection {
    /// Waits while the rest of the request body is still read, because the response came before its end.
    pub(super) async fn reader_done(&self) {
        poll_fn(|_| {
            let inner = self.inner.borrow();
            if inner.has_reader && !inner.body.has_ended() && inner.io.is_some() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    /// Discards the part of the request body that has arrived; returns whether that was the rest of it.
    pub(super) fn skip_body(&self) -> bool {
        let inner = &mut *self.inner.borrow_mut();
        let Some(io) = &mut inner.io else { return false };
        while !inner.body.has_ended() && !inner.expects_continue {
            match inner.body.decode(&mut io.received) {
                Ok(Decoded::Data(_) | Decoded::Trailers(_) | Decoded::Ended) => {}
                Ok(Decoded::Incomplete) | Err(_) => return false,
            }
        }
        inner.body.has_ended()
    }
}

impl Inner {
    fn is_flushed(&self) -> bool {
        self.io.as_ref().is_none_or(BufferedStream::is_flushed)
    }

    /// Reads the next piece of the current request's body.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            let Some(io) = &mut self.io else { return Poll::Ready(Some(Err(BodyError::Incomplete))) };
            match self.body.decode(&mut io.received) {
                Err(error) => return Poll::Ready(Some(Err(error))),
                Ok(Decoded::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Decoded::Trailers(trailers)) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Ok(Decoded::Ended) => return Poll::Ready(None),
                Ok(Decoded::Incomplete) => {}
            }
            if std::mem::take(&mut self.expects_continue) && !self.is_responding {
                informational_head(StatusCode::CONTINUE, &HeaderMap::new(), &mut io.out);
            }
            // While a response is written, the connection's task writes.
            if !self.is_responding && !io.is_flushed() {
                let _ = io.poll_send(cx);
            }
            match io.poll_receive_body(cx, self.body.left().unwrap_or(u64::MAX)) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Some(Err(BodyError::Incomplete))),
                Poll::Pending => {
                    if !self.reader.as_ref().is_some_and(|reader| reader.will_wake(cx.waker())) {
                        self.reader = Some(cx.waker().clone());
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}

/// The body of one request.
pub(super) struct RequestBody {
    pub connection: Rc<ServerConnection>,
    /// The number of its request. Once the connection serves another request, this body has ended.
    pub number: u64,
    /// Bytes that have not been returned yet, if the head has a length.
    pub left: Option<u64>,
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let body = self.get_mut();
        let (polled, is_handed_back) = {
            let inner = &mut *body.connection.inner.borrow_mut();
            if inner.number != body.number {
                return Poll::Ready(None);
            }
            let was_flushed = inner.is_flushed();
            let polled = inner.poll_body(cx);
            // The connection's task may wait for what was written here.
            (polled, inner.body.has_ended() || was_flushed != inner.is_flushed())
        };
        if let (Poll::Ready(Some(Ok(frame))), Some(left)) = (&polled, &mut body.left) {
            *left -= frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        // From now on the connection's task reads, to find out when the client goes away.
        if is_handed_back
            && let Some(task) = &*body.connection.task.borrow()
            && !task.will_wake(cx.waker())
        {
            task.wake_by_ref();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let inner = self.connection.inner.borrow();
        inner.number != self.number || inner.body.has_ended()
    }

    fn size_hint(&self) -> SizeHint {
        let left = if self.is_end_stream() { Some(0) } else { self.left };
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let inner = &mut *self.connection.inner.borrow_mut();
        if inner.number == self.number {
            inner.has_reader = false;
            if !inner.body.has_ended() {
                self.connection.task.borrow().iter().for_each(Waker::wake_by_ref);
            }
        }
    }
}
