//! A request's body that may have to be sent again: the other end of an HTTP/2 connection may say, a round trip later, that it has
//! not looked at the request (RFC 9113 section 8.7). What was taken of the body by then is kept, while it is little.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::super::body::{Body, BodyError};

/// How much memory of one body is kept. Most requests with a body are smaller, and it is little beside what the streams may hold.
const MOST_KEPT: usize = 64 << 10;

/// What a piece costs besides its bytes: a body in many small ones is not cheap.
const COST_OF_PIECE: usize = 256;

/// What is read at once is some times larger than this.
const SMALL: usize = 4 << 10;

/// A body, for whoever sends it.
pub(super) struct Lent(Rc<RefCell<State>>);

/// The same body, for whoever may have to send it again.
pub(super) struct ReplayBuffer(Rc<RefCell<State>>);

struct State {
    body: Body,
    taken: VecDeque<Piece>,
    bytes: u64,
    cost: usize,
    has_ended: bool,
    /// Nothing that was taken is missing, and the body has not broken off.
    is_whole: bool,
}

enum Piece {
    Data(Bytes),
    Trailers(Box<HeaderMap>),
}

/// The bytes alone: a small piece must not hold the whole of what it was read with.
fn own(data: &Bytes) -> Bytes {
    if data.len() < SMALL { Bytes::copy_from_slice(data) } else { data.clone() }
}

pub(super) fn keep(body: Body) -> (Lent, ReplayBuffer) {
    let state =
        Rc::new(RefCell::new(State { body, taken: VecDeque::new(), bytes: 0, cost: 0, has_ended: false, is_whole: true }));
    (Lent(Rc::clone(&state)), ReplayBuffer(state))
}

impl ReplayBuffer {
    /// The body from its beginning, unless too much of it was taken. Whoever it was lent to sees the end of it.
    pub fn again(self) -> Option<Body> {
        let mut state = self.0.borrow_mut();
        let rest = std::mem::replace(&mut state.body, Body::empty());
        let (taken, left) = (std::mem::take(&mut state.taken), state.bytes);
        state.is_whole.then(|| Body::streamed(Again { taken, left, rest }))
    }
}

impl Drop for ReplayBuffer {
    /// Nobody will ask for it again.
    fn drop(&mut self) {
        self.0.borrow_mut().forget();
    }
}

impl State {
    fn note(&mut self, outcome: &Result<Frame<Bytes>, BodyError>) {
        if !self.is_whole {
            return;
        }
        let piece = outcome.as_ref().ok().and_then(|frame| {
            let data = frame.data_ref().map(|data| Piece::Data(own(data)));
            data.or_else(|| frame.trailers_ref().cloned().map(Box::new).map(Piece::Trailers))
        });
        let (bytes, fields) = match &piece {
            Some(Piece::Data(data)) => (data.len(), 0),
            Some(Piece::Trailers(trailers)) => (0, trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()),
            None => (0, 0),
        };
        (self.bytes, self.cost) = (self.bytes + bytes as u64, self.cost + bytes + fields + COST_OF_PIECE);
        match piece.filter(|_| self.cost <= MOST_KEPT) {
            Some(piece) => self.taken.push_back(piece),
            None => self.forget(),
        }
    }

    fn forget(&mut self) {
        self.is_whole = false;
        self.taken = VecDeque::new();
    }

    /// Whether nothing is to come.
    fn is_spent(&self) -> bool {
        self.has_ended || self.body.is_end_stream()
    }
}

impl Drop for Lent {
    /// A body that is at its end learns of it now, and not with the answer: the wait for that begins here.
    fn drop(&mut self) {
        let mut state = self.0.borrow_mut();
        let spent = state.is_spent().then(|| std::mem::replace(&mut state.body, Body::empty()));
        drop(state);
        drop(spent);
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = self.0.borrow_mut();
        let polled = Pin::new(&mut state.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(outcome)) => {
                state.has_ended = outcome.as_ref().is_ok_and(Frame::is_trailers);
                state.note(outcome);
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

/// What was taken, and then the rest.
struct Again {
    taken: VecDeque<Piece>,
    /// Bytes of what was taken.
    left: u64,
    rest: Body,
}

impl HttpBody for Again {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.taken.pop_front() {
            Some(Piece::Data(bytes)) => {
                self.left -= bytes.len() as u64;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Some(Piece::Trailers(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(*trailers)))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.taken.is_empty() && self.rest.is_end_stream()
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

    /// A body in these pieces; the last may be why there are no more.
    struct Pieces(VecDeque<Result<Frame<Bytes>, BodyError>>);

    impl HttpBody for Pieces {
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

    /// What is sent the second time, after so many pieces of the first.
    async fn after(taken: usize, pieces: Vec<Result<Frame<Bytes>, BodyError>>) -> Option<(Vec<u8>, Option<HeaderMap>)> {
        let (mut lent, kept) = keep(Body::streamed(Pieces(pieces.into())));
        for _ in 0..taken {
            let _ = lent.frame().await;
        }
        let again = kept.again();
        assert!(lent.frame().await.is_none(), "the first sender has nothing left to send");
        let whole = again?.collect().await.unwrap();
        let trailers = whole.trailers().cloned();
        Some((whole.to_bytes().to_vec(), trailers))
    }

    #[tokio::test]
    async fn however_much_was_taken_it_is_the_same_body_again() {
        for taken in 0..=4 {
            let pieces = vec![data(1, 2), data(2, 3), Ok(Frame::trailers(trailers()))];
            assert_eq!(after(taken, pieces).await, Some((vec![1, 1, 2, 2, 2], Some(trailers()))), "{taken} pieces taken");
        }
    }

    #[tokio::test]
    async fn too_much_of_it_is_not_kept_and_what_broke_off_is_not_repeated() {
        let most = MOST_KEPT - COST_OF_PIECE;
        let large = || vec![data(1, most), data(2, 1)];
        assert!(after(1, large()).await.is_some_and(|(body, _)| body.len() == most + 1));
        assert_eq!(after(2, large()).await, None);
        let small = || (0..=MOST_KEPT / COST_OF_PIECE).map(|_| data(1, 1)).collect::<Vec<_>>();
        assert_eq!(after(small().len(), small()).await, None, "many small pieces are much");
        assert_eq!(after(2, vec![data(1, 1), Err("broken".into())]).await, None);
    }

    /// A body that tells when it is dropped.
    struct Telling(Pieces, Rc<std::cell::Cell<bool>>);

    impl Drop for Telling {
        fn drop(&mut self) {
            self.1.set(true);
        }
    }

    impl HttpBody for Telling {
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
    async fn a_body_that_was_sent_whole_learns_of_its_end_before_the_answer() {
        for (taken, is_spent) in [(0, false), (1, false), (2, true)] {
            let told = Rc::new(std::cell::Cell::new(false));
            let body = Telling(Pieces([data(1, 1), data(2, 1)].into()), Rc::clone(&told));
            let (mut lent, kept) = keep(Body::streamed(body));
            for _ in 0..taken {
                let _ = lent.frame().await;
            }
            drop(lent);
            assert_eq!(told.get(), is_spent, "{taken} pieces taken");
            assert_eq!(kept.again().unwrap().collect().await.unwrap().to_bytes()[..], [1, 2]);
        }
    }

    #[tokio::test]
    async fn nothing_is_kept_for_nobody() {
        let (mut lent, kept) = keep(Body::streamed(Pieces([data(1, 1), data(2, 1)].into())));
        let _ = lent.frame().await;
        drop(kept);
        let _ = lent.frame().await;
        assert!(lent.0.borrow().taken.is_empty());
    }

    #[tokio::test]
    async fn its_length_is_that_of_the_whole() {
        let (mut lent, kept) = keep(Body::whole("hello"));
        assert_eq!(lent.size_hint().exact(), Some(5));
        let _ = lent.frame().await;
        assert_eq!(kept.again().unwrap().size_hint().exact(), Some(5));
    }
}
