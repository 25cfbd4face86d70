//! HTTP/1.1 connections: one request at a time, kept open by the worker that opened them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::super::body::Body;
use super::super::framing::{ExchangeState, RequestKind, ResponseGate};
use super::super::tunnel::{CONNECT, Wire};
use super::{InformationalSender, Reply, SendCause, SendError, SendOptions, form};
use crate::transport::dial::{self, DialError, Server};
use crate::transport::stream::Stream;

/// The maximum number of idle connections of one worker to one upstream, for each [`Key`].
const MAX_IDLE: usize = 64;

/// Shorter than the keep-alive of common servers (Node 5 s, nginx 75 s), so that the proxy closes first and loses no request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// As many as [`ResponseGate`] accepts.
const MAX_HEADERS: usize = 256;

/// Fits the largest response head that [`ResponseGate`] accepts. Also bounds the request data that waits for a slow server.
const MAX_BUFFER: usize = 72 << 10;

/// One worker's idle connections; the most recently used is reused first.
#[derive(Clone, Default)]
pub(super) struct Http1Pool {
    idle: Rc<RefCell<HashMap<Key, Vec<Idle>>>>,
}

/// A connection that began with the PROXY protocol header of one client serves no other client.
type Key = (Arc<str>, Option<Bytes>);

struct Idle {
    connection: Connection,
    server: Server,
    since: Instant,
}

struct Connection {
    sender: SendRequest<Body>,
    gate: ResponseGate<Stream>,
    link: Rc<ExchangeState>,
    remote: Option<SocketAddr>,
    /// Aborts the connection's task on drop, because a cancelled request may be blocked on a server that does not read.
    _driver: AbortOnDropHandle<()>,
}

impl Connection {
    fn is_usable(&self) -> bool {
        self.sender.is_ready() && !self.link.is_faulty() && self.gate.is_quiet()
    }
}

impl Http1Pool {
    /// Sends a request and waits for the response head.
    ///
    /// If an idle connection turns out to be closed, it returns the request unsent and the next connection is tried, so no
    /// request is sent twice.
    pub(super) async fn send(
        &self,
        server: &Server,
        mut request: Request<Body>,
        options: &SendOptions,
    ) -> Result<Response<Body>, SendError> {
        while let Some(connection) = self.take(server, options) {
            match self.send_on(connection, server, request, options).await {
                Err(SendError { unsent: Some(unsent), .. }) => request = *unsent,
                outcome => return outcome,
            }
        }
        match dial::open(server, &options.dial, true).await {
            Ok(stream) => self.send_on_stream(stream, server, request, options).await,
            Err(error) => Err(SendError::dial(error, request)),
        }
    }

    /// Sends a request on a connection that has just been opened.
    pub(super) async fn send_on_stream(
        &self,
        stream: Stream,
        server: &Server,
        request: Request<Body>,
        options: &SendOptions,
    ) -> Result<Response<Body>, SendError> {
        match handshake(stream, server, options).await {
            Ok(connection) => self.send_on(connection, server, request, options).await,
            Err(error) => Err(SendError::dial(error, request)),
        }
    }

    async fn send_on(
        &self,
        mut connection: Connection,
        server: &Server,
        mut request: Request<Body>,
        options: &SendOptions,
    ) -> Result<Response<Body>, SendError> {
        if form::for_http1(&mut request).is_none() {
            return Err(SendError::form(request));
        }
        connection.link.ask(if request.method() == Method::HEAD { RequestKind::Head } else { RequestKind::Other });
        forward_informational(&mut request);
        let response = connection.sender.try_send_request(request).await.map_err(SendError::of)?;
        self.put_when_ready(connection, server, options);
        Ok(response.map(Body::from))
    }

    /// Takes the most recently used connection that is usable. Older ones stay until [`Self::sweep`] closes them.
    fn take(&self, server: &Server, options: &SendOptions) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&key(server, options))?;
        let now = Instant::now();
        while let Some(idle) = connections.pop() {
            let is_current = now - idle.since < IDLE_TIMEOUT && idle.server.is_same(server);
            if is_current && server.leads_to(idle.connection.remote) && idle.connection.is_usable() {
                return Some(idle.connection);
            }
        }
        None
    }

    /// Returns the connection to the pool when its response has been read to the end.
    fn put_when_ready(&self, mut connection: Connection, server: &Server, options: &SendOptions) {
        let (idle, server, key) = (Rc::clone(&self.idle), server.clone(), key(server, options));
        tokio::task::spawn_local(async move {
            if connection.sender.ready().await.is_err() || connection.link.is_faulty() {
                return;
            }
            let mut idle = idle.borrow_mut();
            let connections = idle.entry(key).or_default();
            if connections.len() < MAX_IDLE {
                connections.push(Idle { connection, server, since: Instant::now() });
            }
        });
    }

    /// Closes connections that have been idle for too long. The worker calls it periodically.
    pub(super) fn sweep(&self) {
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain(|idle| idle.since.elapsed() < IDLE_TIMEOUT && idle.connection.sender.is_ready());
            !connections.is_empty()
        });
    }
}

/// Forwards informational responses.
fn forward_informational(request: &mut Request<Body>) {
    if let Some(informational) = InformationalSender::of(request) {
        hyper::ext::on_informational(request, move |response| informational.send(response.status(), response.headers().clone()));
    }
}

fn key(server: &Server, options: &SendOptions) -> Key {
    (Arc::clone(&server.authority), options.dial.greeting.clone())
}

async fn handshake(stream: Stream, server: &Server, options: &SendOptions) -> Result<Connection, DialError> {
    let (link, remote) = (Rc::new(ExchangeState::default()), stream.remote());
    let gate = ResponseGate::new(stream, Rc::clone(&link), options.dial.write_stall);
    let handshake = builder().handshake(TokioIo::new(gate.clone())).await;
    let (sender, connection) = handshake.map_err(|error| broken(server, error))?;
    let driver = tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "upstream connection ended with an error");
        }
    });
    Ok(Connection { sender, gate, link, remote, _driver: AbortOnDropHandle::new(driver) })
}

fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_headers(MAX_HEADERS).max_buf_size(MAX_BUFFER);
    builder
}

fn broken(server: &Server, error: hyper::Error) -> DialError {
    DialError::Connect { authority: server.authority.to_string(), source: std::io::Error::other(error) }
}

/// Requests a tunnel on a new connection that never joins the pool.
pub(super) async fn upgrade(
    server: &Server,
    mut request: Request<Body>,
    protocol: &str,
    options: &SendOptions,
) -> Result<Reply, SendError> {
    let stream = match dial::open(server, &options.dial, true).await {
        Ok(stream) => stream,
        Err(error) => return Err(SendError::dial(error, request)),
    };
    let Some(accept) = form::for_upgrade(&mut request, protocol) else { return Err(SendError::form(request)) };
    let link = Rc::new(ExchangeState::default());
    let is_connect = protocol == CONNECT;
    link.ask(if is_connect { RequestKind::Connect } else { RequestKind::Upgrade });
    let gate = ResponseGate::new(stream, Rc::clone(&link), options.dial.write_stall);
    let (mut sender, connection) = match builder().handshake(TokioIo::new(gate)).await {
        Ok(pair) => pair,
        Err(error) => return Err(SendError::dial(broken(server, error), request)),
    };
    // HTTP ends on this connection after 101, or a 2xx to CONNECT: hyper returns the stream and the bytes that it read ahead.
    let (stream_sender, stream_receiver) = tokio::sync::oneshot::channel::<(TokioIo<ResponseGate<Stream>>, Bytes)>();
    tokio::task::spawn_local(async move {
        if let Ok(parts) = connection.without_shutdown().await {
            let _ = stream_sender.send((parts.io, parts.read_buf));
        }
    });
    let response = sender.try_send_request(request).await.map_err(SendError::of)?;
    let is_open = if is_connect { response.status().is_success() } else { response.status() == StatusCode::SWITCHING_PROTOCOLS };
    if !is_open {
        // The task above drives the connection until the response body has ended.
        return Ok(Reply::Answered(response.map(Body::from)));
    }
    let (parts, _) = response.into_parts();
    let agreed = is_connect || form::agrees(&parts.headers, protocol, accept.as_deref());
    match stream_receiver.await {
        Ok((io, read_ahead)) if agreed => Ok(Reply::Opened(parts, wire_of(io.into_inner(), read_ahead))),
        Ok(_) | Err(_) => Err(SendError { cause: SendCause::OtherUpgrade, unsent: None }),
    }
}

fn wire_of(gate: ResponseGate<Stream>, read_ahead: Bytes) -> Wire {
    let (reader, writer) = tokio::io::split(gate);
    Box::pin(tokio::io::join(tokio::io::AsyncReadExt::chain(std::io::Cursor::new(read_ahead), reader), writer))
}
