//! State that a client connection's HTTP service and the gate below it share.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use http::Response;
use tokio::io::AsyncWrite;
use tokio::sync::Notify;

use super::super::tunnel::Wire;

/// Takes over a byte stream after HTTP has ended on it, for example to serve a tunnel.
pub type Handover = Box<dyn FnOnce(Wire) -> Pin<Box<dyn Future<Output = ()>>>>;

/// The shared state of one connection.
#[derive(Default)]
pub struct ConnectionState {
    in_flight: Cell<usize>,
    finished: Cell<u64>,
    has_request: Cell<bool>,
    /// The connection does not carry HTTP/1 (any more), so bytes pass unchecked.
    tunnel: Cell<bool>,
    handover: RefCell<Option<Handover>>,
    /// Informational responses that wait to be written.
    interim: RefCell<BytesMut>,
    interim_waker: RefCell<Option<Waker>>,
    reader: RefCell<Option<Waker>>,
    lingers: Cell<bool>,
    /// Notified when the connection must close at once.
    pub abort: Notify,
    /// Notified when the last request in flight has ended.
    pub idle: Notify,
    /// Notified when a request begins.
    pub request: Notify,
}

impl ConnectionState {
    /// For an HTTP/2 connection, which has its own framing: the gate checks nothing, and only replays the bytes read ahead.
    pub fn for_http2() -> Rc<Self> {
        let connection_state = Self::default();
        connection_state.tunnel.set(true);
        Rc::new(connection_state)
    }

    /// Requests in flight. While there are any, a silent client waits for a response and is not idle.
    pub fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Whether a request has been served or is in flight.
    pub fn has_request(&self) -> bool {
        self.has_request.get()
    }

    /// Number of requests served or in flight.
    pub fn requests(&self) -> u64 {
        self.finished.get() + self.in_flight.get() as u64
    }

    pub(super) fn is_tunnel(&self) -> bool {
        self.tunnel.get()
    }

    /// Ends HTTP on this connection after the response to the current request; `handover` then gets the byte stream.
    pub fn hand_over(&self, handover: Handover) {
        self.tunnel.set(true);
        self.handover.replace(Some(handover));
    }

    /// Marks the connection to linger on close, because the response came before the whole request was read. Lingering reads
    /// and discards what the client still sends, because unread bytes would cause a TCP reset that loses the response.
    pub fn linger(&self) {
        self.lingers.set(true);
    }

    pub fn lingers(&self) -> bool {
        self.lingers.get()
    }

    pub fn take_handover(&self) -> Option<Handover> {
        self.handover.take()
    }

    /// Sends an informational response and waits until it is written. The final response must not be returned before that,
    /// because hyper would write it first.
    pub async fn inform(&self, response: &Response<()>) {
        head_of(response, &mut self.interim.borrow_mut());
        poll_fn(|cx| {
            if self.interim.borrow().is_empty() {
                return Poll::Ready(());
            }
            self.interim_waker.replace(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    pub(super) fn poll_inform<W: AsyncWrite>(&self, cx: &mut Context<'_>, mut io: Pin<&mut W>) -> Poll<io::Result<()>> {
        let mut interim = self.interim.borrow_mut();
        while !interim.is_empty() {
            match ready!(io.as_mut().poll_write(cx, &interim))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => interim.advance(written),
            }
        }
        if let Some(interim_waker) = self.interim_waker.take() {
            interim_waker.wake();
        }
        Poll::Ready(Ok(()))
    }

    /// Waits until `heads` requests have been answered.
    pub(super) fn poll_finished(&self, cx: &mut Context<'_>, heads: u64) -> Poll<()> {
        if self.finished.get() >= heads {
            return Poll::Ready(());
        }
        self.reader.replace(Some(cx.waker().clone()));
        Poll::Pending
    }
}

fn head_of(response: &Response<()>, head: &mut BytesMut) {
    let status = response.status();
    head.extend_from_slice(b"HTTP/1.1 ");
    head.extend_from_slice(status.as_str().as_bytes());
    head.extend_from_slice(b" ");
    head.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    head.extend_from_slice(b"\r\n");
    for (name, value) in response.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
}

/// Counts a request as in flight until it is dropped.
pub struct ExchangeInFlight(Rc<ConnectionState>);

impl ExchangeInFlight {
    pub fn count(connection_state: &Rc<ConnectionState>) -> Self {
        connection_state.in_flight.set(connection_state.in_flight.get() + 1);
        connection_state.has_request.set(true);
        connection_state.request.notify_waiters();
        Self(Rc::clone(connection_state))
    }
}

impl Drop for ExchangeInFlight {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
        self.0.finished.set(self.0.finished.get() + 1);
        if self.0.in_flight.get() == 0 {
            self.0.idle.notify_waiters();
        }
        if let Some(reader) = self.0.reader.take() {
            reader.wake();
        }
    }
}
