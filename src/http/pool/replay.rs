//! A request body that can be sent again: an HTTP/2 server may report, a round trip later, that it did not process the request
//! (RFC 9113 section 8.7). Frames that were already read are buffered up to a limit.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::super::body::{Body, BodyError};

/// The maximum buffered size of one body. Most request bodies are smaller, and flow-control windows may hold much more.
const MAX_BUFFERED: usize = 64 << 10;

/// Memory that each buffered frame costs besides its bytes, so that a body in many small frames is limited too.
const FRAME_OVERHEAD: usize = 256;

/// Data smaller than this is copied, because the read buffer that it shares is several times larger.
const COPY_BELOW: usize = 4 << 10;

/// A body that records its frames in the replay buffer as they are read.
pub(super) struct RecordedBody(Rc<RefCell<State>>);

/// The recorded start of a body, from which the body can be sent again.
pub(super) struct ReplayBuffer(Rc<RefCell<State>>);

struct State {
    body: Body,
    entries: VecDeque<Entry>,
    bytes: u64,
    cost: usize,
    has_ended: bool,
    /// No frame that was read is missing, and the body has not failed.
    is_whole: bool,
}

enum Entry {
    Data(Bytes),
    Trailers(Box<HeaderMap>),
}

/// Copies small data, so that it does not keep its whole read buffer alive.
fn copy_if_small(data: &Bytes) -> Bytes {
    if data.len() < COPY_BELOW { Bytes::copy_from_slice(data) } else { data.clone() }
}

pub(super) fn keep(body: Body) -> (RecordedBody, ReplayBuffer) {
    let state =
        Rc::new(RefCell::new(State { body, entries: VecDeque::new(), bytes: 0, cost: 0, has_ended: false, is_whole: true }));
    (RecordedBody(Rc::clone(&state)), ReplayBuffer(state))
}

impl ReplayBuffer {
    /// Returns the body from its start, unless too much of it was read or it failed. The first sender then reads its end.
    pub fn again(self) -> Option<Body> {
        let mut state = self.0.borrow_mut();
        let rest = std::mem::replace(&mut state.body, Body::empty());
        let (entries, left) = (std::mem::take(&mut state.entries), state.bytes);
        state.is_whole.then(|| Body::streamed(ReplayedBody { entries, left, rest }))
    }
}

impl Drop for ReplayBuffer {
    /// Stops the recording, because the body will not be sent again.
    fn drop(&mut self) {
        self.0.borrow_mut().stop_recording();
    }
}

impl State {
    fn record(&mut self, outcome: &Result<Frame<Bytes>, BodyError>) {
        if !self.is_whole {
            return;
        }
        let entry = outcome.as_ref().ok().and_then(|frame| {
            let data = frame.data_ref().map(|data| Entry::Data(copy_if_small(data)));
            data.or_else(|| frame.trailers_ref().cloned().map(Box::new).map(Entry::Trailers))
        });
        let (bytes, fields) = match &entry {
            Some(Entry::Data(data)) => (data.len(), 0),
            Some(Entry::Trailers(trailers)) => (0, trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()),
            None => (0, 0),
        };
        (self.bytes, self.cost) = (self.bytes + bytes as u64, self.cost + bytes + fields + FRAME_OVERHEAD);
        match entry.filter(|_| self.cost <= MAX_BUFFERED) {
            Some(entry) => self.entries.push_back(entry),
            None => self.stop_recording(),
        }
    }

    fn stop_recording(&mut self) {
        self.is_whole = false;
        self.entries = VecDeque::new();
    }

    /// Whether the body has no more frames.
    fn is_spent(&self) -> bool {
        self.has_ended || self.body.is_end_stream()
    }
}

impl Drop for RecordedBody {
    /// Drops a finished body now and not with the response: dropping it marks the end of the upload, from which the response
    /// timeout runs.
    fn drop(&mut self) {
        let mut state = self.0.borrow_mut();
        let spent = state.is_spent().then(|| std::mem::replace(&mut state.body, Body::empty()));
        drop(state);
        drop(spent);
    }
}

impl HttpBody for RecordedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = self.0.borrow_mut();
        let polled = Pin::new(&mut state.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(outcome)) => {
                state.has_ended = outcome.as_ref().is_ok_and(Frame::is_trailers);
                state.record(outcome);
            }
            Poll::Ready(None) => state.has_ended = true,
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.borrow().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.borrow().body.size_hint()
    }
}

/// The buffered frames, then the rest of the body.
struct ReplayedBody {
    entries: VecDeque<Entry>,
    /// Bytes of the buffered frames.
    left: u64,
    rest: Body,
}

impl HttpBody for ReplayedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.entries.pop_front() {
            Some(Entry::Data(bytes)) => {
                self.left -= bytes.len() as u64;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Some(Entry::Trailers(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(*trailers)))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.entries.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + self.left);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + self.left);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    /// A body of these frames; the last may be an error.
    struct Frames(VecDeque<Result<Frame<Bytes>, BodyError>>);

    impl HttpBody for Frames {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            Poll::Ready(self.0.pop_front())
        }
    }

    fn data(byte: u8, size: usize) -> Result<Frame<Bytes>, BodyError> {
        Ok(Frame::data(Bytes::from(vec![byte; size])))
    }

    fn trailers() -> HeaderMap {
        HeaderMap::from_iter([(http::header::ETAG, "x".parse().unwrap())])
    }

    /// The body and trailers of the second attempt, after the first attempt has read `read` frames.
    async fn after(read: usize, frames: Vec<Result<Frame<Bytes>, BodyError>>) -> Option<(Vec<u8>, Option<HeaderMap>)> {
        let (mut recorded, replay_buffer) = keep(Body::streamed(Frames(frames.into())));
        for _ in 0..read {
            let _ = recorded.frame().await;
        }
        let again = replay_buffer.again();
        assert!(recorded.frame().await.is_none(), "the first sender has nothing left to send");
        let whole = again?.collect().await.unwrap();
        let trailers = whole.trailers().cloned();
        Some((whole.to_bytes().to_vec(), trailers))
    }

    #[tokio::test]
    async fn the_replayed_body_is_the_same_however_much_was_read() {
        for read in 0..=4 {
            let frames = vec![data(1, 2), data(2, 3), Ok(Frame::trailers(trailers()))];
            assert_eq!(after(read, frames).await, Some((vec![1, 1, 2, 2, 2], Some(trailers()))), "{read} frames read");
        }
    }

    #[tokio::test]
    async fn a_large_or_failed_body_is_not_replayed() {
        let most = MAX_BUFFERED - FRAME_OVERHEAD;
        let large = || vec![data(1, most), data(2, 1)];
        assert!(after(1, large()).await.is_some_and(|(body, _)| body.len() == most + 1));
        assert_eq!(after(2, large()).await, None);
        let small = || (0..=MAX_BUFFERED / FRAME_OVERHEAD).map(|_| data(1, 1)).collect::<Vec<_>>();
        assert_eq!(after(small().len(), small()).await, None, "the overhead of small frames counts");
        assert_eq!(after(2, vec![data(1, 1), Err("broken".into())]).await, None);
    }

    /// A body that records when it is dropped.
    struct Watched(Frames, Rc<std::cell::Cell<bool>>);

    impl Drop for Watched {
        fn drop(&mut self) {
            self.1.set(true);
        }
    }

    impl HttpBody for Watched {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            Pin::new(&mut self.0).poll_frame(cx)
        }

        fn is_end_stream(&self) -> bool {
            self.0.0.is_empty()
        }
    }

    #[tokio::test]
    async fn a_body_that_was_sent_whole_is_dropped_before_the_response() {
        for (read, is_spent) in [(0, false), (1, false), (2, true)] {
            let is_dropped = Rc::new(std::cell::Cell::new(false));
            let body = Watched(Frames([data(1, 1), data(2, 1)].into()), Rc::clone(&is_dropped));
            let (mut recorded, replay_buffer) = keep(Body::streamed(body));
            for _ in 0..read {
                let _ = recorded.frame().await;
            }
            drop(recorded);
            assert_eq!(is_dropped.get(), is_spent, "{read} frames read");
            assert_eq!(replay_buffer.again().unwrap().collect().await.unwrap().to_bytes()[..], [1, 2]);
        }
    }

    #[tokio::test]
    async fn nothing_is_buffered_once_the_replay_buffer_is_dropped() {
        let (mut recorded, replay_buffer) = keep(Body::streamed(Frames([data(1, 1), data(2, 1)].into())));
        let _ = recorded.frame().await;
        drop(replay_buffer);
        let _ = recorded.frame().await;
        assert!(recorded.0.borrow().entries.is_empty());
    }

    #[tokio::test]
    async fn a_replayed_body_has_the_length_of_the_whole() {
        let (mut recorded, replay_buffer) = keep(Body::whole("hello"));
        assert_eq!(recorded.size_hint().exact(), Some(5));
        let _ = recorded.frame().await;
        assert_eq!(replay_buffer.again().unwrap().size_hint().exact(), Some(5));
    }
}
