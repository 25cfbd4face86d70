//! Bodies on their way in and out of a stream, piece by piece, each no faster than the other side takes it.

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

/// A body that comes on a stream. Its sender may send more as soon as a piece is taken; of an answer, whose window is the larger,
/// when the next is asked for: whoever took the last one may be holding it for long.
pub struct Received {
    reader: StreamReader,
    /// What is still to come, where the head said how much.
    left: Option<u64>,
    /// What was taken, and does not yet make room for more.
    taken: usize,
    is_answer: bool,
    data_ended: bool,
    /// The request that this is the answer to may still be on its way.
    upload: Option<Upload>,
}

impl Received {
    pub fn new(stream: RecvStream, head: &HeaderMap) -> Self {
        let left = head.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Self { reader: StreamReader::new(stream), left, taken: 0, is_answer: false, data_ended: false, upload: None }
    }

    /// The body of an answer: whoever gives it up has no use for the rest of the request either.
    pub fn answering(stream: RecvStream, head: &HeaderMap, upload: Option<Upload>) -> Self {
        let mut body = Self::new(stream, head);
        (body.is_answer, body.upload) = (true, upload);
        body
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
            body.reader.make_room(std::mem::take(&mut body.taken));
            match ready!(body.reader.poll_piece(cx)) {
                Some(Ok(bytes)) => {
                    if body.is_answer {
                        body.taken = bytes.len();
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

/// A request's body that is being sent by a task of its own. Dropping it ends the task, and so resets the stream.
pub type Upload = AbortOnDropHandle<()>;

/// Sends a body and ends the stream with it. A body that breaks off resets the stream for the reason given, and so does an
/// other end that takes nothing for as long as `stall`. Returns early when the other end wants no more.
///
/// A piece is asked for before room for it: room that is held for a body with nothing to say is missing to other streams.
pub async fn send(body: Body, mut stream: StreamWriter, broken: Reason, stall: Duration) {
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
                    send_piece(&mut stream, data, is_last, stall).await.map(|()| is_last)
                }
                // A stream that takes no trailers has ended.
                Err(frame) => frame
                    .into_trailers()
                    .map_or(Ok(false), |trailers| stream.end_with(trailers).map(|()| true).map_err(Unsent::from)),
            },
        };
        match sent {
            Ok(false) => {}
            Ok(true) | Err(Unsent::Over) => return,
            Err(Unsent::Broken) => return stream.reset(broken),
        }
    }
}

/// Why a body was not sent to its end.
enum Unsent {
    /// The other end has ended the stream.
    Over,
    /// The body broke off, or the other end takes nothing of it.
    Broken,
}

impl From<Over> for Unsent {
    fn from(_: Over) -> Self {
        Self::Over
    }
}

/// A piece holds the whole of what it was read into. One that is smaller is copied out of it, for many of them may wait.
const SMALL: usize = 4 << 10;

/// Hands a piece over, no more of it at once than there is room for.
async fn send_piece(stream: &mut StreamWriter, data: Bytes, is_last: bool, stall: Duration) -> Result<(), Unsent> {
    let mut data = if data.len() < SMALL { Bytes::copy_from_slice(&data) } else { data };
    while !data.is_empty() {
        let room = tokio::time::timeout(stall, poll_fn(|cx| stream.poll_room(data.len(), cx))).await;
        let piece = data.split_to(room.map_err(|_| Unsent::Broken)??);
        let is_last = is_last && data.is_empty();
        stream.put(piece, is_last)?;
        if is_last {
            return Ok(());
        }
    }
    // An empty piece that is not the last says nothing.
    if is_last { Ok(stream.end()?) } else { Ok(()) }
}
