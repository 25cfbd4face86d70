//! Bodies received and sent on a stream, with backpressure in both directions.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio_util::task::AbortOnDropHandle;

use super::super::body::{Body, BodyError};
use super::reader::StreamReader;
use super::writer::{Over, StreamWriter};

/// A body received on a stream. For a request body, flow-control capacity is released as soon as data is returned. For a
/// response body, whose window is larger, capacity is released when the next data is polled, because the caller may hold the
/// last data for long.
pub struct Received {
    reader: StreamReader,
    /// Bytes still to come, if the head has a `Content-Length`.
    left: Option<u64>,
    /// Bytes returned to the caller whose flow-control capacity is not released yet.
    unreleased: usize,
    is_response: bool,
    data_ended: bool,
    /// For a response: the upload of its request, which may still be in flight.
    upload: Option<Upload>,
}

impl Received {
    pub fn new(stream: RecvStream, head: &HeaderMap) -> Self {
        let left = head.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Self { reader: StreamReader::new(stream), left, unreleased: 0, is_response: false, data_ended: false, upload: None }
    }

    /// The body of a response. Dropping it before its end also aborts the upload of the request.
    pub fn answering(stream: RecvStream, head: &HeaderMap, upload: Option<Upload>) -> Self {
        let mut body = Self::new(stream, head);
        (body.is_response, body.upload) = (true, upload);
        body
    }

    /// Ends a complete body. The rest of the request body is still sent, unless the server resets the stream.
    fn end(&mut self) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.upload.take().into_iter().for_each(|upload| drop(upload.detach()));
        Poll::Ready(None)
    }
}

impl From<Received> for Body {
    fn from(body: Received) -> Self {
        Self::streamed(body)
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let body = self.get_mut();
        if !body.data_ended {
            body.reader.make_room(std::mem::take(&mut body.unreleased));
            match ready!(body.reader.poll_piece(cx)) {
                Some(Ok(bytes)) => {
                    if body.is_response {
                        body.unreleased = bytes.len();
                    } else {
                        body.reader.make_room(bytes.len());
                    }
                    body.left = body.left.map(|left| left.saturating_sub(bytes.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => body.data_ended = true,
            }
        }
        match ready!(body.reader.poll_ending(cx)) {
            Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Ok(None) => body.end(),
            Err(error) => Poll::Ready(Some(Err(error.into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.reader.has_ended()
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

/// A task that sends a request body. Dropping it aborts the task, which resets the stream.
pub type Upload = AbortOnDropHandle<()>;

/// Sends a body and ends the stream. If the body fails, or the peer reads nothing for `stall`, the stream is reset with
/// `reason`. Returns early when the peer resets the stream.
///
/// The body is polled before flow-control capacity is reserved, because other streams cannot use the capacity that an idle
/// body has reserved.
pub async fn send(body: Body, mut stream: StreamWriter, reason: Reason, stall: Duration) {
    let mut body = pin!(body);
    loop {
        let next = poll_fn(|cx| match stream.poll_over(cx) {
            Poll::Ready(over) => Poll::Ready(Err(over)),
            Poll::Pending => body.as_mut().poll_frame(cx).map(Ok),
        });
        let sent = match next.await {
            Err(Over) => return,
            Ok(None) => stream.end().map(|()| true).map_err(Unsent::from),
            Ok(Some(Err(_))) => Err(Unsent::Broken),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    let is_last = body.is_end_stream();
                    send_data(&mut stream, data, is_last, stall).await.map(|()| is_last)
                }
                // Sending trailers fails only if the stream has ended.
                Err(frame) => frame
                    .into_trailers()
                    .map_or(Ok(false), |trailers| stream.end_with(trailers).map(|()| true).map_err(Unsent::from)),
            },
        };
        match sent {
            Ok(false) => {}
            Ok(true) | Err(Unsent::Over) => return,
            Err(Unsent::Broken) => return stream.reset(reason),
        }
    }
}

/// Why a body was not sent completely.
enum Unsent {
    /// The peer has ended the stream.
    Over,
    /// The body failed, or the peer does not read it.
    Broken,
}

impl From<Over> for Unsent {
    fn from(_: Over) -> Self {
        Self::Over
    }
}

/// Smaller data is copied before it is queued, because a `Bytes` keeps its whole read buffer alive, and many small frames
/// may be queued.
const SMALL: usize = 4 << 10;

/// Queues data for sending, at most as much at once as the flow-control window allows.
async fn send_data(stream: &mut StreamWriter, data: Bytes, is_last: bool, stall: Duration) -> Result<(), Unsent> {
    let mut data = if data.len() < SMALL { Bytes::copy_from_slice(&data) } else { data };
    while !data.is_empty() {
        let room = tokio::time::timeout(stall, poll_fn(|cx| stream.poll_room(data.len(), cx))).await;
        let part = data.split_to(room.map_err(|_| Unsent::Broken)??);
        let is_last = is_last && data.is_empty();
        stream.put(part, is_last)?;
        if is_last {
            return Ok(());
        }
    }
    // Empty data is sent only to end the stream.
    if is_last { Ok(stream.end()?) } else { Ok(()) }
}
