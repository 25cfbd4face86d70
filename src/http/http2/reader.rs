//! Incoming data of a stream: received as it arrives, and buffered compactly until it is read.
//!
//! A flow-control window counts bytes of data (RFC 9113 section 5.2), but each frame that waits in `h2` costs hundreds of bytes
//! more, and may keep its whole read buffer alive. A window full of one-byte frames would cost three hundred times its size.

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
    /// Receives data while the caller does not poll; `None` if the stream has already ended.
    _receiver: Option<AbortOnDropHandle<()>>,
}

/// How a stream ended: with or without trailers, or with an error.
pub type Ending = Result<Option<HeaderMap>, h2::Error>;

struct State {
    stream: RecvStream,
    queue: Queue,
    /// Bytes received whose flow-control capacity is not released yet.
    unreleased: usize,
    /// All data has arrived; trailers may follow.
    data_ended: bool,
    ending: Option<Ending>,
    reader: Option<Waker>,
}

impl StreamReader {
    /// Takes over a stream and the data that has already arrived on it.
    pub fn new(stream: RecvStream) -> Self {
        let mut state = State { stream, queue: Queue::default(), unreleased: 0, data_ended: false, ending: None, reader: None };
        let has_ended = state.receive(&mut Context::from_waker(Waker::noop())).is_ready();
        let state = Rc::new(RefCell::new(state));
        let receiver = (!has_ended).then(|| {
            let state = Rc::downgrade(&state);
            AbortOnDropHandle::new(tokio::task::spawn_local(poll_fn(move |cx| match state.upgrade() {
                Some(state) => state.borrow_mut().receive(cx),
                None => Poll::Ready(()),
            })))
        });
        Self { state, _receiver: receiver }
    }

    /// Returns the next data; `None` at the end of the data. Does not release its flow-control capacity: the caller does, with
    /// [`make_room`](Self::make_room), when it has consumed the data.
    pub fn poll_piece(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        let state = &mut *self.state.borrow_mut();
        match (state.queue.take(), &mut state.ending) {
            (Some(data), _) => Poll::Ready(Some(Ok(data))),
            (None, Some(Ok(_))) => Poll::Ready(None),
            // The error is returned once; later polls return the end of the data.
            (None, Some(ending)) => Poll::Ready(std::mem::replace(ending, Ok(None)).err().map(Err)),
            (None, None) if state.data_ended => Poll::Ready(None),
            (None, None) => state.wait(cx),
        }
    }

    /// Returns how the stream ended; called after all data has been read.
    pub fn poll_ending(&self, cx: &mut Context<'_>) -> Poll<Ending> {
        let mut state = self.state.borrow_mut();
        match &mut state.ending {
            Some(ending) => Poll::Ready(std::mem::replace(ending, Ok(None))),
            None => state.wait(cx),
        }
    }

    /// Releases flow-control capacity, so that the peer may send `bytes` more.
    pub fn make_room(&self, bytes: usize) {
        self.state.borrow_mut().make_room(bytes);
    }

    /// Whether nothing more comes, not even trailers.
    pub fn has_ended(&self) -> bool {
        let state = self.state.borrow();
        state.queue.is_empty() && matches!(state.ending, Some(Ok(None)))
    }
}

impl State {
    /// Receives what has arrived; ready once the stream has ended.
    fn receive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let polled = self.poll_stream(cx);
        if !self.queue.is_empty() || self.data_ended || self.ending.is_some() {
            self.reader.take().into_iter().for_each(Waker::wake);
        }
        polled
    }

    fn poll_stream(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    self.unreleased += data.len();
                    self.queue.put(data);
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
        self.unreleased -= bytes;
        // An error means that the stream has ended, which the next poll reports.
        let _ = self.stream.flow_control().release_capacity(bytes);
    }

    fn wait<T>(&mut self, cx: &Context<'_>) -> Poll<T> {
        self.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for State {
    /// Releases the capacity of unread data, because it belongs to the window of the whole connection, and the other direction
    /// of the stream may stay open for long.
    fn drop(&mut self) {
        self.make_room(self.unreleased);
    }
}

/// Received data in order. Small data that waits behind other data is joined.
#[derive(Default)]
struct Queue {
    chunks: VecDeque<Bytes>,
    /// Small data that follows all of `chunks`.
    joined: BytesMut,
}

/// Smaller data is copied and joined, because its read buffer is several times larger and lives as long as the data.
const SMALL: usize = 8 << 10;
const MAX_JOINED: usize = 16 << 10;

/// The first capacity of `joined`. Doubling it reaches [`MAX_JOINED`] exactly.
const FIRST_JOINED: usize = 256;

impl Queue {
    fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.joined.is_empty()
    }

    fn put(&mut self, data: Bytes) {
        if self.is_empty() || data.len() >= SMALL {
            self.close();
            return self.chunks.push_back(data);
        }
        if self.joined.len() + data.len() > MAX_JOINED {
            self.close();
        }
        if self.joined.capacity() == 0 {
            self.joined.reserve(FIRST_JOINED.max(data.len().next_power_of_two()));
        }
        self.joined.extend_from_slice(&data);
    }

    fn take(&mut self) -> Option<Bytes> {
        self.chunks.pop_front().or_else(|| (!self.joined.is_empty()).then(|| std::mem::take(&mut self.joined).freeze()))
    }

    /// Moves `joined` to `chunks`, so that later data is not joined to it.
    fn close(&mut self) {
        if !self.joined.is_empty() {
            self.chunks.push_back(std::mem::take(&mut self.joined).freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(byte: u8, size: usize) -> Bytes {
        Bytes::from(vec![byte; size])
    }

    #[test]
    fn small_pieces_that_wait_are_joined_in_their_order() {
        let mut queue = Queue::default();
        for (byte, size) in [(1, 10), (2, 20), (3, 30), (4, SMALL), (5, 50), (6, 60)] {
            queue.put(data(byte, size));
        }
        assert_eq!(queue.take(), Some(data(1, 10)), "the first data is not joined");
        assert_eq!(queue.take(), Some([data(2, 20), data(3, 30)].concat().into()));
        assert_eq!(queue.take(), Some(data(4, SMALL)), "large data is not joined");
        assert_eq!(queue.take(), Some([data(5, 50), data(6, 60)].concat().into()));
        assert!(queue.take().is_none() && queue.is_empty());
    }

    #[tokio::test]
    async fn a_dropped_reader_releases_the_window_of_the_connection() {
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
            // The other direction of the stream stays open.
            let _answer = answer.send_response(http::Response::new(()), false).unwrap();
            tokio::task::spawn_local(async move {
                while let Some(Ok(request)) = server.accept().await {
                    std::mem::forget(request)
                }
            });
            let reader = StreamReader::new(request.into_body());
            let mut received = 0;
            while received < window.len() {
                received += poll_fn(|cx| reader.poll_piece(cx)).await.unwrap().unwrap().len();
            }
            second.reserve_capacity(1);
            assert_eq!(second.capacity(), 0, "the connection's window is used up");
            drop(reader);
            poll_fn(|cx| second.poll_capacity(cx)).await.unwrap().unwrap();
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), tokio::task::LocalSet::new().run_until(work)).await.unwrap();
    }

    #[test]
    fn a_window_of_one_byte_frames_costs_little_more_than_its_bytes() {
        let mut queue = Queue::default();
        for _ in 0..64 << 10 {
            queue.put(data(7, 1));
        }
        assert!(queue.joined.capacity() <= MAX_JOINED);
        let chunks: Vec<_> = std::iter::from_fn(|| queue.take()).collect();
        assert_eq!(chunks.iter().map(Bytes::len).sum::<usize>(), 64 << 10);
        assert!(chunks.len() <= 6, "{} chunks", chunks.len());
    }
}
