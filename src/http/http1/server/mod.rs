//! The server side of a connection: one request after the other, then the tunnel of an upgrade or CONNECT.

mod request_body;
mod response;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use http::header::CONNECTION;
use http::{Method, Request, Response};
use tokio::time::Instant;

use super::super::body::Body;
use super::super::io::{BufferedStream, Deadline, Deadlines};
use super::super::tunnel::Handover;
use super::codec::{Asked, BodyDecoder, HeadLimits, RequestHead, informational_head, read_request};
use crate::model::outcome::Code;
use request_body::RequestBody;

/// How long the request of a client that has closed its sending side is still worked on. A client that has gone away cannot be
/// told from one that only has nothing more to send.
const HALF_CLOSE_GRACE: Duration = Duration::from_millis(500);

/// How much a client may send ahead while its request is worked on.
const MAX_READ_AHEAD: usize = 16 << 10;

/// The server side of one connection. The connection's task, the bodies of its requests and their response channels share it.
pub struct ServerConnection {
    inner: RefCell<Inner>,
    handover: RefCell<Option<Handover>>,
    is_aborted: Cell<bool>,
    /// The connection's task.
    task: RefCell<Option<Waker>>,
    limits: HeadLimits,
    /// Whether the request of a client that has closed its sending side is worked on to its end.
    allows_half_close: bool,
}

struct Inner {
    /// `None` once the connection has ended.
    io: Option<BufferedStream>,
    /// How many of the received bytes are known not to contain the end of a head.
    seen: usize,
    /// The number of the current request on this connection.
    number: u64,
    /// The body of the current request.
    body: BodyDecoder,
    /// Somebody may still read the body.
    has_reader: bool,
    expects_continue: bool,
    /// The final response has begun.
    is_responding: bool,
    /// The client has closed its sending side.
    is_half_closed: bool,
    /// The task that reads the body.
    reader: Option<Waker>,
    deadline: Deadline,
    /// When the wait for the first head began; `None` after it.
    begun: Option<Instant>,
}

/// How HTTP on a connection has ended.
pub enum Ended {
    /// The connection must close.
    Closed {
        /// The client may still be sending, so the last response is lost if the connection closes at once.
        lingers: bool,
    },
    /// The client has gone away or does not read, or the connection was aborted.
    Gone,
    /// The response has opened a tunnel.
    Tunnel(Handover),
}

/// The next event on a connection between two requests.
enum Next {
    Request(Box<RequestHead>),
    Refused(Code),
    Closed,
}

/// The client has gone away, or does not read.
struct Gone;

impl ServerConnection {
    /// Serves a connection that began at `begun`.
    pub fn new(
        io: BufferedStream,
        begun: Instant,
        limits: HeadLimits,
        allows_half_close: bool,
        deadlines: &Deadlines,
    ) -> Rc<Self> {
        let inner = Inner {
            io: Some(io),
            seen: 0,
            number: 0,
            body: BodyDecoder::Ended,
            has_reader: false,
            expects_continue: false,
            is_responding: false,
            is_half_closed: false,
            reader: None,
            deadline: deadlines.deadline(),
            begun: Some(begun),
        };
        Rc::new(Self {
            inner: RefCell::new(inner),
            handover: RefCell::default(),
            is_aborted: Cell::new(false),
            task: RefCell::default(),
            limits,
            allows_half_close,
        })
    }

    /// Serves requests until the connection ends, [`Self::abort`] is called, or `drain` completes and no request is in flight.
    /// `handle` gets the code of the refusal in place of a request that is malformed; the connection closes after its response.
    pub async fn serve<F>(
        self: &Rc<Self>,
        handle: impl Fn(Result<Request<Body>, Code>) -> F,
        drain: Pin<&mut impl Future<Output = ()>>,
    ) -> Ended
    where
        F: Future<Output = Response<Body>>,
    {
        let mut serving = pin!(self.serve_all(handle, drain));
        poll_fn(|cx| {
            if self.is_aborted.get() {
                return Poll::Ready(Ended::Gone);
            }
            let mut task = self.task.borrow_mut();
            if !task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
                *task = Some(cx.waker().clone());
            }
            drop(task);
            serving.as_mut().poll(cx)
        })
        .await
    }

    /// Ends the connection at once, in any state.
    pub fn abort(&self) {
        self.is_aborted.set(true);
        self.task.borrow().iter().for_each(Waker::wake_by_ref);
    }

    /// Opens a tunnel after the response to the current request: `handover` gets the byte stream.
    pub fn hand_over(&self, handover: Handover) {
        self.handover.replace(Some(handover));
    }

    /// Takes the stream after HTTP has ended. Request bodies that are still read then fail.
    pub fn take_stream(&self) -> Option<BufferedStream> {
        // A handover that is not used holds the request that holds this connection.
        drop(self.handover.take());
        let inner = &mut *self.inner.borrow_mut();
        inner.reader.take().into_iter().for_each(Waker::wake);
        inner.io.take()
    }

    /// Sends an informational response. Returns when it is written.
    pub async fn inform(&self, response: &Response<()>) {
        let mut is_written = false;
        poll_fn(|cx| {
            let inner = &mut *self.inner.borrow_mut();
            let Some(io) = inner.io.as_mut().filter(|_| !inner.is_responding) else { return Poll::Ready(()) };
            if !std::mem::replace(&mut is_written, true) {
                informational_head(response.status(), response.headers(), &mut io.out);
            }
            // The connection's task reports an error.
            io.poll_send(cx).map(drop)
        })
        .await;
    }

    async fn serve_all<F>(
        self: &Rc<Self>,
        handle: impl Fn(Result<Request<Body>, Code>) -> F,
        mut drain: Pin<&mut impl Future<Output = ()>>,
    ) -> Ended
    where
        F: Future<Output = Response<Body>>,
    {
        let mut is_draining = false;
        loop {
            let next = poll_fn(|cx| {
                let next = self.poll_head(cx);
                // A client that has begun to send a request gets its response.
                if next.is_pending() && self.inner.borrow().is_idle() && drain.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Next::Closed);
                }
                next
            });
            let (received, mut asked) = match next.await {
                Next::Closed => return Ended::Closed { lingers: false },
                Next::Refused(code) => (Err(code), Asked::by_unknown()),
                Next::Request(head) => {
                    let (request, asked) = self.begin(*head);
                    (Ok(request), asked)
                }
            };
            let Ok(response) = self.while_connected(Box::pin(handle(received))).await else { return Ended::Gone };
            is_draining = is_draining || poll_fn(|cx| Poll::Ready(drain.as_mut().poll(cx).is_ready())).await;
            let may_send_more = asked.keeps_alive || response.headers().contains_key(CONNECTION);
            asked.keeps_alive = asked.keeps_alive && !is_draining;
            let handover = self.handover.take();
            asked.opens_tunnel = handover.is_some();
            let Ok(keeps_alive) = self.respond(response, asked).await else { return Ended::Gone };
            if let Some(handover) = handover {
                return Ended::Tunnel(handover);
            }
            self.reader_done().await;
            let is_whole = self.skip_body();
            if !keeps_alive || !is_whole {
                return Ended::Closed { lingers: may_send_more || !is_whole };
            }
        }
    }

    /// Waits for the next request head, within its timeouts.
    fn poll_head(&self, cx: &mut Context<'_>) -> Poll<Next> {
        let inner = &mut *self.inner.borrow_mut();
        let Some(io) = &mut inner.io else { return Poll::Ready(Next::Closed) };
        let was_empty = io.received.is_empty();
        if was_empty {
            // An idle connection holds no buffer.
            io.received = BytesMut::new();
        }
        loop {
            if !io.received.is_empty() {
                match read_request(&mut io.received, &mut inner.seen, &self.limits) {
                    Ok(Some(head)) => {
                        inner.deadline.clear();
                        inner.begun = None;
                        return Poll::Ready(Next::Request(Box::new(head)));
                    }
                    Ok(None) => {}
                    Err(code) => return Poll::Ready(Next::Refused(code)),
                }
            }
            match io.poll_receive(cx) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Next::Closed),
                Poll::Pending => break,
            }
        }
        let is_empty = io.received.is_empty();
        if !inner.deadline.is_set() || was_empty != is_empty {
            match inner.begun {
                Some(begun) => inner.deadline.set(begun + self.limits.timeout),
                None if is_empty => inner.deadline.set_idle(Instant::now() + self.limits.keep_alive),
                None => inner.deadline.set(Instant::now() + self.limits.timeout),
            }
        }
        // While no request has begun, the connection closes without a response.
        let after = if is_empty { Next::Closed } else { Next::Refused(Code::RequestTimeout) };
        inner.deadline.poll_passed(cx).map(|()| after)
    }

    fn begin(self: &Rc<Self>, head: RequestHead) -> (Request<Body>, Asked) {
        let asked = Asked {
            is_head: head.parts.method == Method::HEAD,
            version: head.parts.version,
            takes_trailers: head.takes_trailers,
            keeps_alive: head.keeps_alive,
            opens_tunnel: false,
        };
        let inner = &mut *self.inner.borrow_mut();
        inner.number += 1;
        inner.has_reader = false;
        (inner.body, inner.expects_continue, inner.is_responding) = (head.body, head.expects_continue, false);
        let body = if inner.body.has_ended() {
            Body::empty()
        } else {
            inner.has_reader = true;
            Body::streamed(RequestBody { connection: Rc::clone(self), number: inner.number, left: inner.body.left() })
        };
        (Request::from_parts(head.parts, body), asked)
    }

    /// Awaits `work`, unless the client goes away.
    async fn while_connected<T>(&self, mut work: Pin<Box<impl Future<Output = T>>>) -> Result<T, Gone> {
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending => self.inner.borrow_mut().poll_gone(cx, self.allows_half_close).map(Err),
        })
        .await
    }

    fn with_io<T>(&self, work: impl FnOnce(&mut BufferedStream) -> T) -> Option<T> {
        self.inner.borrow_mut().io.as_mut().map(work)
    }
}

impl Asked {
    /// For a request that could not be read: the response must be understood by any client.
    const fn by_unknown() -> Self {
        Self { is_head: false, version: http::Version::HTTP_11, takes_trailers: false, keeps_alive: false, opens_tunnel: false }
    }
}

impl Inner {
    /// No byte of a next request has arrived.
    fn is_idle(&self) -> bool {
        self.io.as_ref().is_none_or(|io| io.received.is_empty())
    }

    /// Completes when the client has gone away while its request is worked on. Reads ahead, because only a read tells.
    fn poll_gone(&mut self, cx: &mut Context<'_>, allows_half_close: bool) -> Poll<Gone> {
        let Some(io) = &mut self.io else { return Poll::Ready(Gone) };
        // Until the body has arrived, its reader finds out.
        if !self.body.has_ended() && self.has_reader {
            return Poll::Pending;
        }
        while !self.is_half_closed && io.received.len() < MAX_READ_AHEAD {
            match io.poll_receive(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => self.is_half_closed = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Gone),
            }
        }
        if !self.is_half_closed || allows_half_close {
            return Poll::Pending;
        }
        if !self.deadline.is_set() {
            self.deadline.set(Instant::now() + HALF_CLOSE_GRACE);
        }
        self.deadline.poll_passed(cx).map(|()| Gone)
    }
}

#[cfg(test)]
mod tests;
