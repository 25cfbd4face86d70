//! HTTP/1.1 connections: one request at a time, kept open by the worker that opened them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, Response};
use tokio::time::Instant;

use super::super::body::Body;
use super::super::http1::{ClientConnection, ExchangeError, IdleConnections, Outcome, RequestKind};
use super::super::io::BufferedStream;
use super::super::sent::Sent;
use super::super::tunnel::CONNECT;
use super::{BoxedRequest, Reply, SendCause, SendError, SendOptions, form};
use crate::transport::dial::{self, Server};
use crate::transport::stream::Stream;

/// Shorter than the keep-alive of common servers (Node 5 s, nginx 75 s), so that the proxy closes first and loses no request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// One worker's idle connections.
#[derive(Clone, Default)]
pub(super) struct Http1Pool {
    servers: Rc<RefCell<HashMap<Arc<str>, Idle>>>,
    of_clients: Rc<RefCell<HashMap<Greeted, Idle>>>,
}

/// A connection that began with the PROXY protocol header of one client serves no other client.
type Greeted = (Arc<str>, Bytes);

/// The idle connections to one server.
struct Idle {
    server: Server,
    connections: Rc<IdleConnections>,
}

impl Idle {
    fn to(server: &Server) -> Self {
        Self { server: server.clone(), connections: IdleConnections::new() }
    }

    /// Returns the connections, and forgets those of an earlier configuration of the server.
    fn current(&mut self, server: &Server, most: usize) -> Rc<IdleConnections> {
        if !self.server.is_same(server) {
            *self = Self::to(server);
        }
        self.connections.limit(most);
        Rc::clone(&self.connections)
    }
}

impl Http1Pool {
    /// Sends a request and waits for the response head.
    ///
    /// If an idle connection turns out to be closed before a byte was sent, the next connection is tried, so no request is sent
    /// twice.
    pub(super) async fn send(
        &self,
        server: &Server,
        mut request: BoxedRequest,
        options: &SendOptions,
    ) -> Result<Response<Body>, SendError> {
        let idle = self.idle(server, options);
        let now = Instant::now();
        let usable = |since, remote| is_usable(server, now, since, remote);
        while let Some(connection) = (!options.is_fresh).then(|| idle.take(usable)).flatten() {
            match send_on(connection, request, options).await {
                Err(SendError { sent: Sent::Nothing, request: Some(unsent), .. }) => request = unsent,
                outcome => return outcome,
            }
        }
        match Box::pin(dial::open(server, &options.dial, true)).await {
            Ok(stream) => self.send_on_stream(stream, server, request, options).await,
            Err(error) => Err(SendError::dial(error, request)),
        }
    }
    /// Sends a request on a connection that has just been opened.
    pub(super) async fn send_on_stream(
        &self,
        stream: Stream,
        server: &Server,
        request: BoxedRequest,
        options: &SendOptions,
    ) -> Result<Response<Body>, SendError> {
        let home = Rc::downgrade(&self.idle(server, options));
        let io = BufferedStream::new(stream, BytesMut::new(), options.dial.write_stall);
        send_on(ClientConnection::new(io, home), request, options).await
    }

    fn idle(&self, server: &Server, options: &SendOptions) -> Rc<IdleConnections> {
        let authority = &server.authority;
        if let Some(greeting) = &options.dial.greeting {
            let key = (Arc::clone(authority), greeting.clone());
            let mut clients = self.of_clients.borrow_mut();
            return clients.entry(key).or_insert_with(|| Idle::to(server)).current(server, options.max_idle);
        }
        let mut servers = self.servers.borrow_mut();
        if let Some(idle) = servers.get_mut(&**authority) {
            return idle.current(server, options.max_idle);
        }
        let idle = servers.entry(Arc::clone(authority)).or_insert_with(|| Idle::to(server));
        idle.current(server, options.max_idle)
    }

    /// Closes connections that have been idle for too long or that their server has closed. The worker calls it periodically.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        let keeps = |idle: &mut Idle| {
            let has_connections = idle.connections.sweep(|since, remote| is_usable(&idle.server, now, since, remote));
            // A connection in use returns here.
            has_connections || Rc::weak_count(&idle.connections) > 0
        };
        self.servers.borrow_mut().retain(|_, idle| keeps(idle));
        self.of_clients.borrow_mut().retain(|_, idle| keeps(idle));
    }
}

fn is_usable(server: &Server, now: Instant, idle_since: Instant, remote: Option<SocketAddr>) -> bool {
    now - idle_since < IDLE_TIMEOUT && server.leads_to(remote)
}

async fn send_on(
    connection: Box<ClientConnection>,
    mut request: BoxedRequest,
    options: &SendOptions,
) -> Result<Response<Body>, SendError> {
    if form::for_http1(&mut request).is_none() {
        return Err(SendError::form(request));
    }
    let kind = if request.method() == Method::HEAD { RequestKind::Head } else { RequestKind::Other };
    match exchange(connection, request, kind, options).await? {
        Outcome::Response(head, body) => Ok(Response::from_parts(head, body)),
        Outcome::Tunnel(..) => unreachable!("only a request for a tunnel opens one"),
    }
}

/// Sends a request and forwards its informational responses.
async fn exchange(
    connection: Box<ClientConnection>,
    mut request: BoxedRequest,
    kind: RequestKind,
    options: &SendOptions,
) -> Result<Outcome, SendError> {
    let body = std::mem::replace(request.body_mut(), Body::empty());
    let informational = options.informational.as_deref();
    let forward = |status, fields| {
        if let Some(queue) = informational {
            queue.push(status, fields);
        }
    };
    connection.exchange(&request, body, kind, &options.buffers, forward).await.map_err(|ExchangeError { sent, cause, body }| {
        let request = body.map(|body| {
            *request.body_mut() = body;
            request
        });
        SendError { cause: SendCause::Broken(cause), sent, request }
    })
}

/// Requests a tunnel by an HTTP/1.1 upgrade, or by CONNECT, on a connection of its own.
pub(super) async fn upgrade(
    server: &Server,
    mut request: BoxedRequest,
    protocol: &str,
    options: &SendOptions,
) -> Result<Reply, SendError> {
    let stream = match dial::open(server, &options.dial, true).await {
        Ok(stream) => stream,
        Err(error) => return Err(SendError::dial(error, request)),
    };
    let Some(accept) = form::for_upgrade(&mut request, protocol) else { return Err(SendError::form(request)) };
    let is_connect = protocol == CONNECT;
    let kind = if is_connect { RequestKind::Connect } else { RequestKind::Upgrade };
    let io = BufferedStream::new(stream, BytesMut::new(), options.dial.write_stall);
    match exchange(ClientConnection::new(io, Weak::new()), request, kind, options).await? {
        Outcome::Response(head, body) => Ok(Reply::Answered(Response::from_parts(head, body))),
        Outcome::Tunnel(head, io) if is_connect || form::agrees(&head.headers, protocol, accept.as_deref()) => {
            Ok(Reply::Opened(head, Box::pin(io)))
        }
        Outcome::Tunnel(..) => Err(SendError { cause: SendCause::OtherUpgrade, sent: Sent::Partly, request: None }),
    }
}
