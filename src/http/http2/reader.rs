//! What comes on a stream: taken from the connection as it comes, and kept close until somebody wants it.
//!
//! A window counts bytes (RFC 9113 section 5.2), while each frame that waits costs `h2` hundreds more than it carries, and may keep
//! all of what it was read with. A window of one-byte frames would cost three hundred times as much as the window says.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::HeaderMap;
use tokio_util::task::AbortOnDropHandle;

/// One direction of a stream, in order: its data, then how it ended.
pub struct StreamReader {
    state: Rc<RefCell<State>>,
    /// Takes what comes while nobody asks; needed until the end has come.
    _taker: Option<AbortOnDropHandle<()>>,
}

/// How a stream ended: with or without trailers, or too early.
pub type Ending = Result<Option<HeaderMap>, h2::Error>;

struct State {
    stream: RecvStream,
    waiting: Waiting,
    /// Bytes that were taken, and do not make room for more yet.
    held: usize,
    /// All data have come; trailers may follow.
    data_ended: bool,
    ending: Option<Ending>,
    reader: Option<Waker>,
}

impl StreamReader {
    /// Takes over a stream, together with what has come on it.
    pub fn new(stream: RecvStream) -> Self {
        let mut state = State { stream, waiting: Waiting::default(), held: 0, data_ended: false, ending: None, reader: None };
        let has_ended = state.take_in(&mut Context::from_waker(Waker::noop())).is_ready();
        let state = Rc::new(RefCell::new(state));
        let taker = (!has_ended).then(|| {
            let state = Rc::downgrade(&state);
            AbortOnDropHandle::new(tokio::task::spawn_local(poll_fn(move |cx| match state.upgrade() {
                Some(state) => state.borrow_mut().take_in(cx),
                None => Poll::Ready(()),
            })))
        });
        Self { state, _taker: taker }
    }

    /// The next piece; `None` at the end of the data. Makes no room for more: that is for whoever is done with the piece.
    pub fn poll_piece(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        let state = &mut *self.state.borrow_mut();
        match (state.waiting.take(), &mut state.ending) {
            (Some(piece), _) => Poll::Ready(Some(Ok(piece))),
            (None, Some(Ok(_))) => Poll::Ready(None),
            // It is told once; then nothing more comes.
            (None, Some(ending)) => Poll::Ready(std::mem::replace(ending, Ok(None)).err().map(Err)),
            (None, None) if state.data_ended => Poll::Ready(None),
            (None, None) => state.wait(cx),
        }
    }

    /// How it ended, once all data have been taken.
    pub fn poll_ending(&self, cx: &mut Context<'_>) -> Poll<Ending> {
        let mut state = self.state.borrow_mut();
        match &mut state.ending {
            Some(ending) => Poll::Ready(std::mem::replace(ending, Ok(None))),
            None => state.wait(cx),
        }
    }

    /// Lets the other end send so much more.
    pub fn make_room(&self, bytes: usize) {
        self.state.borrow_mut().make_room(bytes);
    }

    /// Whether nothing is to come, not even trailers.
    pub fn has_ended(&self) -> bool {
        let state = self.state.borrow();
        state.waiting.is_empty() && matches!(state.ending, Some(Ok(None)))
    }
}

impl State {
    /// Takes what has come; ready once it has ended.
    fn take_in(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let polled = self.poll_stream(cx);
        if !self.waiting.is_empty() || self.data_ended || self.ending.is_some() {
            self.reader.take().into_iter().for_each(Waker::wake);
        }
        polled
    }

    fn poll_stream(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(piece)) => {
                    self.held += piece.len();
                    self.waiting.put(piece);
                }
                Some(Err(error)) => {
                    self.ending = Some(Err(error));
                    return Poll::Ready(());
                }
                None => self.data_ended = true,
            }
        }
        self.ending = Some(ready!(self.stream.poll_trailers(cx)));
        Poll::Ready(())
    }

    fn make_room(&mut self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.held -= bytes;
        // An error says that the stream has ended, which is found at the next piece.
        let _ = self.stream.flow_control().release_capacity(bytes);
    }

    fn wait<T>(&mut self, cx: &Context<'_>) -> Poll<T> {
        self.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for State {
    /// The other direction may go on for long, and the room is that of the whole connection.
    fn drop(&mut self) {
        self.make_room(self.held);
    }
}

/// Pieces in their order; small ones that wait behind others are joined.
#[derive(Default)]
struct Waiting {
    pieces: VecDeque<Bytes>,
    /// Small pieces, behind all others.
    joined: BytesMut,
}

/// What a piece was read with is some times larger than this, and stays as long as the piece.
const SMALL: usize = 8 << 10;
const MOST_JOINED: usize = 16 << 10;

/// Doubled, it ends at what may be joined.
const FIRST_JOINED: usize = 256;

impl Waiting {
    fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.joined.is_empty()
    }

    fn put(&mut self, piece: Bytes) {
        if self.is_empty() || piece.len() >= SMALL {
            self.close();
            return self.pieces.push_back(piece);
        }
        if self.joined.len() + piece.len() > MOST_JOINED {
            self.close();
        }
        if self.joined.capacity() == 0 {
            self.joined.reserve(FIRST_JOINED.max(piece.len().next_power_of_two()));
        }
        self.joined.extend_from_slice(&piece);
    }

    fn take(&mut self) -> Option<Bytes> {
        self.pieces.pop_front().or_else(|| (!self.joined.is_empty()).then(|| std::mem::take(&mut self.joined).freeze()))
    }

    /// Lets nothing be joined to what was.
    fn close(&mut self) {
        if !self.joined.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.joined).freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(byte: u8, size: usize) -> Bytes {
        Bytes::from(vec![byte; size])
    }

    #[test]
    fn small_pieces_that_wait_are_joined_in_their_order() {
        let mut waiting = Waiting::default();
        for (byte, size) in [(1, 10), (2, 20), (3, 30), (4, SMALL), (5, 50), (6, 60)] {
            waiting.put(piece(byte, size));
        }
        assert_eq!(waiting.take(), Some(piece(1, 10)), "nobody else waited then");
        assert_eq!(waiting.take(), Some([piece(2, 20), piece(3, 30)].concat().into()));
        assert_eq!(waiting.take(), Some(piece(4, SMALL)), "a large one is left as it is");
        assert_eq!(waiting.take(), Some([piece(5, 50), piece(6, 60)].concat().into()));
        assert!(waiting.take().is_none() && waiting.is_empty());
    }

    #[tokio::test]
    async fn what_nobody_wants_any_more_takes_no_room_from_other_streams() {
        let (near, far) = tokio::io::duplex(1 << 20);
        let work = async {
            let (client, server) = tokio::join!(h2::client::handshake(near), h2::server::handshake(far));
            let ((mut client, connection), mut server) = (client.unwrap(), server.unwrap());
            tokio::task::spawn_local(connection);
            let mut upload = || client.send_request(http::Request::post("http://a.test/").body(()).unwrap(), false).unwrap();
            let (_answer, mut first) = upload();
            let (_answer, mut second) = upload();
            let window = vec![7; 65_535];
            first.send_data(window.clone().into(), false).unwrap();
            let (request, mut answer) = server.accept().await.unwrap().unwrap();
            // The other direction goes on.
            let _answer = answer.send_response(http::Response::new(()), false).unwrap();
            tokio::task::spawn_local(async move {
                while let Some(Ok(request)) = server.accept().await {
                    std::mem::forget(request)
                }
            });
            let reader = StreamReader::new(request.into_body());
            let mut come = 0;
            while come < window.len() {
                come += poll_fn(|cx| reader.poll_piece(cx)).await.unwrap().unwrap().len();
            }
            second.reserve_capacity(1);
            assert_eq!(second.capacity(), 0, "the connection's window is used up");
            drop(reader);
            poll_fn(|cx| second.poll_capacity(cx)).await.unwrap().unwrap();
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), tokio::task::LocalSet::new().run_until(work)).await.unwrap();
    }

    #[test]
    fn a_window_of_the_smallest_pieces_is_little_more_than_its_bytes() {
        let mut waiting = Waiting::default();
        for _ in 0..64 << 10 {
            waiting.put(piece(7, 1));
        }
        assert!(waiting.joined.capacity() <= MOST_JOINED);
        let pieces: Vec<_> = std::iter::from_fn(|| waiting.take()).collect();
        assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>(), 64 << 10);
        assert!(pieces.len() <= 6, "{} pieces", pieces.len());
    }
}
