//! The client side of a connection: one request at a time, and its response.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::response::Parts;
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::task::coop::unconstrained;
use tokio::time::Instant;

use super::super::body::{Body, BodyError as AnyError};
use super::super::io::BufferedStream;
use super::super::sent::Sent;
use super::super::window::{Buffers, Share};
use super::codec::{BodyDecoder, BodyEncoder, BodyError, Decoded, RequestKind, ResponseHead, ResponseReader, request_head};

/// A connection to a server.
pub struct ClientConnection {
    io: BufferedStream,
    remote: Option<SocketAddr>,
    /// The connection has carried a response before, so the server may have closed it meanwhile.
    is_reused: bool,
    /// Where the connection goes when a response has ended, if it may carry another request.
    home: Weak<IdleConnections>,
    idle_since: Instant,
}

/// The idle connections to one server; the most recently used is reused first.
pub struct IdleConnections {
    #[expect(clippy::vec_box, reason = "a connection keeps its allocation from one request to the next")]
    connections: RefCell<Vec<Box<ClientConnection>>>,
    most: Cell<usize>,
}

/// Why there is no response.
pub struct ExchangeError {
    pub cause: AnyError,
    pub sent: Sent,
    /// The body of the request, unless a part of it was read. It is always present if nothing was sent.
    pub body: Option<Body>,
}

/// The response to a request.
pub enum Outcome {
    Response(Parts, Body),
    /// HTTP has ended on the connection.
    Tunnel(Parts, BufferedStream),
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the server closed the connection without a response")]
    Closed,
    #[error("malformed or unexpected response")]
    Malformed,
    #[error("the request's body failed: {0}")]
    Upload(AnyError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl IdleConnections {
    /// None, and no limit yet.
    pub fn new() -> Rc<Self> {
        Rc::new(Self { connections: RefCell::default(), most: Cell::new(0) })
    }

    /// Keeps at most `most` connections from now on.
    pub fn limit(&self, most: usize) {
        self.most.set(most);
    }

    /// Takes the most recently used connection for which `is_usable` returns true; closes those for which it does not.
    pub fn take(&self, is_usable: impl Fn(Instant, Option<SocketAddr>) -> bool) -> Option<Box<ClientConnection>> {
        let mut connections = self.connections.borrow_mut();
        while let Some(mut connection) = connections.pop() {
            if is_usable(connection.idle_since, connection.remote) && connection.is_quiet() {
                return Some(connection);
            }
        }
        None
    }

    /// Closes the connections that the server has closed, and those for which `is_usable` returns false. Returns whether any is
    /// left.
    pub fn sweep(&self, is_usable: impl Fn(Instant, Option<SocketAddr>) -> bool) -> bool {
        let mut connections = self.connections.borrow_mut();
        connections.retain_mut(|connection| is_usable(connection.idle_since, connection.remote) && connection.is_quiet());
        !connections.is_empty()
    }
}

impl ClientConnection {
    pub fn new(io: BufferedStream, home: Weak<IdleConnections>) -> Box<Self> {
        let remote = io.stream().remote();
        Box::new(Self { io, remote, is_reused: false, home, idle_since: Instant::now() })
    }

    /// Whether the connection is open and has received nothing since the last response ended. Unread bytes would be taken for the
    /// response to the next request.
    fn is_quiet(&mut self) -> bool {
        // INVARIANT: `release` keeps only connections without received bytes.
        // Without `unconstrained`, a task that has used up its budget would see every connection as quiet.
        let quiet = pin!(unconstrained(poll_fn(|cx| self.io.poll_receive(cx))));
        quiet.poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// Sends a request and waits for the head of its response. `on_informational` gets each informational response before it.
    pub async fn exchange(
        mut self: Box<Self>,
        request: &Request<impl Sized>,
        body: Body,
        kind: RequestKind,
        buffers: &Rc<Buffers>,
        mut on_informational: impl FnMut(StatusCode, HeaderMap),
    ) -> Result<Outcome, ExchangeError> {
        let mut upload = Upload::begin(&mut self.io, request.method(), request.uri(), request.headers(), body);
        let mut responses = ResponseReader::to(kind);
        let mut has_received = false;
        let head = poll_fn(|cx| {
            // The server may respond before it has read the request, and then close the connection, so a failed write is
            // reported only if there is no response.
            let failed = match upload.poll(&mut self.io, cx) {
                Poll::Ready(Err(error)) => Some(error),
                Poll::Ready(Ok(())) | Poll::Pending => None,
            };
            if let Some(Broken::Upload(error)) = failed {
                return Poll::Ready(Err(Broken::Upload(error)));
            }
            loop {
                if !self.io.received.is_empty() {
                    has_received = true;
                    match responses.read(&mut self.io.received) {
                        Ok(Some(head)) if head.parts.status.is_informational() && !head.opens_tunnel => {
                            on_informational(head.parts.status, head.parts.headers);
                            continue;
                        }
                        Ok(Some(head)) => return Poll::Ready(Ok(head)),
                        Ok(None) => {}
                        Err(_) => return Poll::Ready(Err(Broken::Malformed)),
                    }
                }
                match self.io.poll_receive(cx) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(failed.unwrap_or(Broken::Closed))),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(failed.unwrap_or(error.into()))),
                    Poll::Pending => return failed.map_or(Poll::Pending, |failed| Poll::Ready(Err(failed))),
                }
            }
        });
        match head.await {
            Ok(head) if head.opens_tunnel && self.io.is_flushed() => Ok(Outcome::Tunnel(head.parts, self.io)),
            Ok(head) if head.opens_tunnel => {
                // The rest of the request would be lost in the tunnel.
                Err(ExchangeError { cause: Broken::Malformed.into(), sent: Sent::Partly, body: None })
            }
            Ok(head) => Ok(self.answer(head, upload, buffers)),
            Err(cause) => {
                let sent = match cause {
                    _ if upload.is_untouched && upload.is_unread => Sent::Nothing,
                    // A write timeout is a fault of the server.
                    Broken::Io(ref error) if error.kind() == io::ErrorKind::TimedOut => Sent::Partly,
                    Broken::Closed | Broken::Io(_) if self.is_reused && !has_received => Sent::Stale,
                    _ => Sent::Partly,
                };
                let body = upload.is_unread.then(|| std::mem::replace(&mut upload.body, Body::empty()));
                Err(ExchangeError { cause: cause.into(), sent, body })
            }
        }
    }

    /// The response to the request, with the rest of the upload.
    fn answer(mut self: Box<Self>, head: ResponseHead, upload: Upload, buffers: &Rc<Buffers>) -> Outcome {
        let ResponseHead { parts, body: mut decoder, keeps_alive, .. } = head;
        // A small body has arrived with its head: the connection is then free at once.
        if let (Some(left), true) = (decoder.left(), upload.has_ended())
            && left <= self.io.received.len() as u64
        {
            let whole = decoder.decode(&mut self.io.received);
            if let Ok(decoded @ (Decoded::Data(_) | Decoded::Ended)) = whole {
                self.release(keeps_alive);
                let body = if let Decoded::Data(data) = decoded { Body::whole(data) } else { Body::empty() };
                return Outcome::Response(parts, body);
            }
        }
        let left = decoder.left();
        let share = buffers.share(Duration::ZERO);
        self.io.allow_reads_of(share.window());
        let body = ResponseBody { connection: Some(self), decoder, upload: Some(upload), keeps_alive, left, _share: share };
        Outcome::Response(parts, Body::streamed(body))
    }

    /// Returns the connection to the idle ones, if it may carry another request.
    fn release(mut self: Box<Self>, keeps_alive: bool) {
        let is_free = keeps_alive && self.io.received.is_empty() && self.io.is_flushed();
        let Some(home) = self.home.upgrade().filter(|_| is_free) else { return };
        // An idle connection holds no buffer.
        self.io.received = BytesMut::new();
        let mut connections = home.connections.borrow_mut();
        if connections.len() < home.most.get() {
            (self.is_reused, self.idle_since) = (true, Instant::now());
            connections.push(self);
        }
    }
}

/// A request that is being sent.
struct Upload {
    body: Body,
    encoder: BodyEncoder,
    /// No byte has been written.
    is_untouched: bool,
    /// Nothing of the body has been read.
    is_unread: bool,
    has_ended: bool,
}

impl Upload {
    /// Puts the head, and a small body that is at hand, into the output buffer.
    fn begin(io: &mut BufferedStream, method: &Method, target: &Uri, fields: &HeaderMap, body: Body) -> Self {
        let length = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
        let encoder = request_head(method, target, fields, length, &mut io.out);
        let has_ended = encoder == BodyEncoder::Empty;
        Self { body, encoder, is_untouched: true, is_unread: true, has_ended }
    }

    /// Whether the whole request is in the output buffer, and a part of it has been written.
    const fn has_ended(&self) -> bool {
        self.has_ended && !self.is_untouched
    }

    /// Sends more of the request; completes when it has been written.
    fn poll(&mut self, io: &mut BufferedStream, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        // The first frame leaves together with the head.
        let mut is_first = self.is_unread && !self.has_ended;
        loop {
            let mut is_waiting = false;
            if !self.has_ended && (std::mem::take(&mut is_first) || io.is_flushed()) {
                match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Pending => is_waiting = true,
                    Poll::Ready(frame) => {
                        self.is_unread = false;
                        self.write_frame(frame, io)?;
                    }
                }
            }
            if io.is_flushed() && !is_waiting && self.has_ended {
                return Poll::Ready(Ok(()));
            }
            let waiting = io.waiting();
            let sent = io.poll_send(cx);
            self.is_untouched = self.is_untouched && io.waiting() == waiting && waiting > 0;
            match sent {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Ready(Ok(())) if is_waiting => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
            }
        }
    }

    fn write_frame(&mut self, frame: Option<Result<Frame<Bytes>, AnyError>>, io: &mut BufferedStream) -> Result<(), Broken> {
        let written = match frame {
            Some(Err(error)) => return Err(Broken::Upload(error)),
            None => {
                self.has_ended = true;
                self.encoder.end(None, &mut io.out)
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => self.encoder.data(data, &mut io.out).and_then(|large| {
                    if let Some(large) = large {
                        io.put(large, self.encoder.after());
                    }
                    self.has_ended = self.body.is_end_stream();
                    if self.has_ended { self.encoder.end(None, &mut io.out) } else { Ok(()) }
                }),
                Err(frame) => {
                    self.has_ended = true;
                    self.encoder.end(frame.trailers_ref(), &mut io.out)
                }
            },
        };
        if self.has_ended {
            // Dropping the body marks the end of the upload, from which the response timeout runs.
            self.body = Body::empty();
        }
        written.map_err(|error| Broken::Upload(error.into()))
    }
}

/// The body of a response. It reads from the connection itself, and sends the rest of the request meanwhile.
struct ResponseBody {
    /// `None` once the body has ended.
    connection: Option<Box<ClientConnection>>,
    decoder: BodyDecoder,
    upload: Option<Upload>,
    keeps_alive: bool,
    /// Bytes that have not been returned yet, if the head has a length.
    left: Option<u64>,
    /// Its part of the budget of the client's connection, which the reads of the body may use.
    _share: Share,
}

impl ResponseBody {
    /// Sends more of the request. A server may close its receiving side after an early response, so a failed write only ends the
    /// upload.
    fn poll_upload(&mut self, cx: &mut Context<'_>) {
        let (Some(upload), Some(connection)) = (&mut self.upload, &mut self.connection) else { return };
        match upload.poll(&mut connection.io, cx) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => self.upload = None,
            Poll::Ready(Err(_)) => (self.upload, self.keeps_alive) = (None, false),
        }
    }

    /// Ends the body. The connection is reused if the whole request has been sent, and closed otherwise.
    fn end(&mut self) {
        let is_sent = self.upload.take().is_none_or(|upload| upload.has_ended());
        if let Some(connection) = self.connection.take() {
            connection.release(self.keeps_alive && is_sent);
        }
    }

    fn poll_decoded(&mut self, cx: &mut Context<'_>) -> Poll<Result<Decoded, AnyError>> {
        self.poll_upload(cx);
        let Some(connection) = &mut self.connection else { return Poll::Ready(Ok(Decoded::Ended)) };
        loop {
            match self.decoder.decode(&mut connection.io.received)? {
                Decoded::Incomplete => {}
                decoded => return Poll::Ready(Ok(decoded)),
            }
            let most = self.decoder.left().unwrap_or(u64::MAX);
            match connection.io.poll_receive_body(cx, most) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0)) => self.decoder.close()?,
                Poll::Ready(Err(error)) => {
                    let cause =
                        if error.kind() == io::ErrorKind::UnexpectedEof { BodyError::Incomplete.into() } else { error.into() };
                    return Poll::Ready(Err(cause));
                }
            }
        }
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = AnyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AnyError>>> {
        let body = self.get_mut();
        let frame = match std::task::ready!(body.poll_decoded(cx)) {
            Err(error) => {
                body.connection = None;
                return Poll::Ready(Some(Err(error)));
            }
            Ok(Decoded::Data(data)) => {
                body.left = body.left.map(|left| left - data.len() as u64);
                Some(Frame::data(data))
            }
            Ok(Decoded::Trailers(trailers)) => Some(Frame::trailers(trailers)),
            Ok(Decoded::Ended | Decoded::Incomplete) => None,
        };
        if body.decoder.has_ended() {
            body.end();
        }
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.connection.is_none() && self.decoder.has_ended()
    }

    fn size_hint(&self) -> SizeHint {
        let left = if self.is_end_stream() { Some(0) } else { self.left };
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::transport::stream::Stream;

    /// Whether a connection is kept after an early response to a request with a body of `size` bytes, none of which was read.
    fn is_kept(size: usize) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let stream = Stream::Plain(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
            let mut server = listener.accept().await.unwrap().0;
            let idle = IdleConnections::new();
            idle.limit(1);
            let io = BufferedStream::new(stream, BytesMut::new(), Duration::from_secs(60));
            let connection = ClientConnection::new(io, Rc::downgrade(&idle));
            server.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
            let request = Request::post("/").header("host", "a").body(()).unwrap();
            let body = Body::whole(vec![b'x'; size]);
            let outcome = connection.exchange(&request, body, RequestKind::Other, &Buffers::none(), |_, _| {}).await;
            assert!(matches!(outcome, Ok(Outcome::Response(head, _)) if head.status == StatusCode::UNAUTHORIZED));
            idle.take(|_, _| true).is_some()
        })
    }

    #[test]
    fn a_connection_with_a_part_of_its_request_unsent_is_not_kept() {
        assert!(is_kept(1000), "the whole request was written");
        assert!(!is_kept(64 << 20), "the system does not take that much at once");
    }
}
