//! Bodies on their way in and out of a stream, piece by piece, each no faster than the other side takes it.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio_util::task::AbortOnDropHandle;

use super::super::body::{Body, BodyError};

/// A body that comes on a stream. Its sender may send more as soon as a piece is taken; of an answer, whose window is the larger,
/// when the next is asked for: whoever took the last one may be holding it for long.
pub struct Received {
    stream: RecvStream,
    /// What is still to come, where the head said how much.
    left: Option<u64>,
    /// What was taken, and does not yet make room for more.
    unreleased: usize,
    is_answer: bool,
    data_ended: bool,
    /// The request that this is the answer to may still be on its way.
    upload: Option<Upload>,
}

impl Received {
    pub fn new(stream: RecvStream, head: &HeaderMap) -> Self {
        let left = head.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Self { stream, left, unreleased: 0, is_answer: false, data_ended: false, upload: None }
    }

    /// The body of an answer: whoever gives it up has no use for the rest of the request either.
    pub fn answering(stream: RecvStream, head: &HeaderMap, upload: Option<Upload>) -> Self {
        let mut body = Self::new(stream, head);
        (body.is_answer, body.upload) = (true, upload);
        body
    }

    fn release(&mut self) {
        // An error says that the stream has ended, which is found at the next piece.
        let _ = self.stream.flow_control().release_capacity(std::mem::take(&mut self.unreleased));
    }

    /// The answer is complete. What is left of the request is still sent, unless the other end says that it wants none.
    fn end(&mut self) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.upload.take().into_iter().for_each(|upload| drop(upload.detach()));
        Poll::Ready(None)
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let body = self.get_mut();
        if !body.data_ended {
            body.release();
            match ready!(body.stream.poll_data(cx)) {
                Some(Ok(bytes)) => {
                    body.unreleased += bytes.len();
                    if !body.is_answer {
                        body.release();
                    }
                    body.left = body.left.map(|left| left.saturating_sub(bytes.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => body.data_ended = true,
            }
        }
        match ready!(body.stream.poll_trailers(cx)) {
            Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Ok(None) => body.end(),
            Err(error) => Poll::Ready(Some(Err(error.into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let left = if self.is_end_stream() { Some(0) } else { self.left };
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if self.is_end_stream() {
            self.upload.take().into_iter().for_each(|upload| drop(upload.detach()));
        }
    }
}

/// A request's body that is being sent by a task of its own. Dropping it ends the task, and so resets the stream.
pub type Upload = AbortOnDropHandle<()>;

/// Sends a body and ends the stream with it. A body that breaks off resets the stream for the reason given, and so does an
/// other end that takes nothing for as long as `stall`. Returns early when the other end wants no more.
///
/// A piece is asked for before room for it: room that is held for a body with nothing to say is missing to other streams.
pub async fn send(body: Body, mut stream: SendStream<Bytes>, broken: Reason, stall: Duration) {
    let mut body = pin!(body);
    loop {
        let next = poll_fn(|cx| match stream.poll_reset(cx) {
            Poll::Ready(_) => Poll::Ready(Err(())),
            Poll::Pending => body.as_mut().poll_frame(cx).map(Ok),
        });
        let is_over = match next.await {
            Err(()) => return,
            Ok(None) => return drop(stream.send_data(Bytes::new(), true)),
            Ok(Some(Err(_))) => return stream.send_reset(broken),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    let is_last = body.is_end_stream();
                    match send_piece(&mut stream, data, is_last, stall).await {
                        Ok(()) => is_last,
                        Err(Untaken::Over) => return,
                        Err(Untaken::Stuck) => return stream.send_reset(broken),
                    }
                }
                // A stream that takes no trailers has ended.
                Err(frame) => frame.into_trailers().map(|trailers| drop(stream.send_trailers(trailers))).is_ok(),
            },
        };
        if is_over {
            return;
        }
    }
}

/// Why a piece was not taken.
enum Untaken {
    /// The other end has ended the stream.
    Over,
    Stuck,
}

/// A piece holds the whole of what it was read into. One that is smaller is copied out of it, for many of them may wait.
const SMALL: usize = 4 << 10;

/// Hands a piece over, no more of it at once than there is room for.
async fn send_piece(stream: &mut SendStream<Bytes>, data: Bytes, is_last: bool, stall: Duration) -> Result<(), Untaken> {
    let mut data = if data.len() < SMALL { Bytes::copy_from_slice(&data) } else { data };
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = tokio::time::timeout(stall, poll_fn(|cx| poll_room(stream, cx))).await;
        let room = room.map_err(|_| Untaken::Stuck)?.ok_or(Untaken::Over)?;
        let piece = data.split_to(room.min(data.len()));
        let is_last = is_last && data.is_empty();
        stream.send_data(piece, is_last).map_err(|_| Untaken::Over)?;
        if is_last {
            return Ok(());
        }
    }
    // An empty piece that is not the last says nothing.
    if is_last { stream.send_data(Bytes::new(), true).map_err(|_| Untaken::Over) } else { Ok(()) }
}

/// How many bytes the other end takes, at least one; `None` if it never will.
pub(super) fn poll_room(stream: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<Option<usize>> {
    loop {
        let room = stream.capacity();
        if room > 0 {
            return Poll::Ready(Some(room));
        }
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Poll::Ready(None),
        }
    }
}
