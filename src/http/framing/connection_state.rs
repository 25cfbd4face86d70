//! What the service on top of a client's connection and the gate beneath it tell each other.

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

/// What is to become of a connection's bytes once HTTP has ended on it.
pub type Handover = Box<dyn FnOnce(Wire) -> Pin<Box<dyn Future<Output = ()>>>>;

/// The state of one connection, as far as both sides need it.
#[derive(Default)]
pub struct ConnectionState {
    in_flight: Cell<usize>,
    finished: Cell<u64>,
    has_request: Cell<bool>,
    /// The connection is no HTTP/1 (any more): bytes pass as they are.
    tunnel: Cell<bool>,
    handover: RefCell<Option<Handover>>,
    /// Interim answers that wait to be written.
    interim: RefCell<BytesMut>,
    informer: RefCell<Option<Waker>>,
    reader: RefCell<Option<Waker>>,
    lingers: Cell<bool>,
    /// PeerSettings when the connection is to end at once.
    pub cut: Notify,
    /// PeerSettings when no request is being served any more.
    pub idle: Notify,
    /// PeerSettings of every request.
    pub request: Notify,
}

impl ConnectionState {
    /// For a connection that has its own framing: the gate only gives back what was read ahead.
    pub fn for_http2() -> Rc<Self> {
        let connection_state = Self::default();
        connection_state.tunnel.set(true);
        Rc::new(connection_state)
    }

    /// Requests being served: while there are any, silence is the client waiting.
    pub fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Whether a request has been served, or is.
    pub fn has_request(&self) -> bool {
        self.has_request.get()
    }

    /// Requests that were served, or are.
    pub fn requests(&self) -> u64 {
        self.finished.get() + self.in_flight.get() as u64
    }

    pub(super) fn is_tunnel(&self) -> bool {
        self.tunnel.get()
    }

    /// Ends HTTP on this connection after the answer to the present request; `handover` gets its bytes.
    pub fn hand_over(&self, handover: Handover) {
        self.tunnel.set(true);
        self.handover.replace(Some(handover));
    }

    /// The connection ends after an answer that came before the request was read: what is still on its way is taken in.
    pub fn linger(&self) {
        self.lingers.set(true);
    }

    pub fn lingers(&self) -> bool {
        self.lingers.get()
    }

    pub fn take_handover(&self) -> Option<Handover> {
        self.handover.take()
    }

    /// Has an interim answer written. The answer itself may be given when this is done; hyper would write it first.
    pub async fn inform(&self, answer: &Response<()>) {
        head_of(answer, &mut self.interim.borrow_mut());
        poll_fn(|cx| {
            if self.interim.borrow().is_empty() {
                return Poll::Ready(());
            }
            self.informer.replace(Some(cx.waker().clone()));
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
        if let Some(informer) = self.informer.take() {
            informer.wake();
        }
        Poll::Ready(Ok(()))
    }

    /// Waits until as many requests as `heads` have been answered.
    pub(super) fn poll_finished(&self, cx: &mut Context<'_>, heads: u64) -> Poll<()> {
        if self.finished.get() >= heads {
            return Poll::Ready(());
        }
        self.reader.replace(Some(cx.waker().clone()));
        Poll::Pending
    }
}

fn head_of(answer: &Response<()>, head: &mut BytesMut) {
    let status = answer.status();
    head.extend_from_slice(b"HTTP/1.1 ");
    head.extend_from_slice(status.as_str().as_bytes());
    head.extend_from_slice(b" ");
    head.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    head.extend_from_slice(b"\r\n");
    for (name, value) in answer.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
}

/// Counts a request as being served while it lives.
pub struct InFlight(Rc<ConnectionState>);

impl InFlight {
    pub fn count(connection_state: &Rc<ConnectionState>) -> Self {
        connection_state.in_flight.set(connection_state.in_flight.get() + 1);
        connection_state.has_request.set(true);
        connection_state.request.notify_waiters();
        Self(Rc::clone(connection_state))
    }
}

impl Drop for InFlight {
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
