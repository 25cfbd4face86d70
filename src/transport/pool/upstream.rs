//! Connections to upstreams, in whatever they speak.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use http::{Request, Response};

use super::super::body::Body;
use super::super::dial::{self, Approach, DialError, Server, Speaks};
use super::super::window::Window;
use super::http1::{self, Http1Pool};
use super::http2::Http2Pool;
use super::{InFlight, Reply, SendCause, SendError};

/// HTTP/2 connections to one upstream by one worker.
const HTTP2_CONNECTIONS: usize = 2;

/// One worker's connections to all upstreams.
#[derive(Clone, Default)]
pub struct UpstreamPool {
    http1: Http1Pool,
    http2: Http2Pool<Arc<str>>,
    /// What the servers that leave the choice to the handshake have chosen.
    chosen: Rc<RefCell<HashMap<Arc<str>, Speaks>>>,
}

/// An answer, and what counts the request as in flight on a connection that others share: to be kept until the answer has ended.
pub type Shared<T> = (T, Option<InFlight>);

impl UpstreamPool {
    /// Sends a request and waits for the head of the answer.
    pub async fn send(
        &self,
        server: &Server,
        request: Request<Body>,
        approach: &Approach,
    ) -> Result<Shared<Response<Body>>, SendError> {
        let known = self.chosen.borrow().get(&server.authority).copied();
        let alone = |response| (response, None);
        match if server.speaks == Speaks::Either { known.unwrap_or(Speaks::Either) } else { server.speaks } {
            Speaks::Http1 => self.http1.send(server, request, approach).await.map(alone),
            Speaks::Http2 => self.send_http2(server, request, approach).await,
            Speaks::Either => {
                let stream = match dial::open(server, approach, false).await {
                    Ok(stream) => stream,
                    Err(error) => return Err(SendError::dial(error, request)),
                };
                let speaks = if stream.chose_http2() { Speaks::Http2 } else { Speaks::Http1 };
                self.chosen.borrow_mut().insert(Arc::clone(&server.authority), speaks);
                match speaks {
                    // The connection is spent on learning: the pool opens its own.
                    Speaks::Http2 => self.send_http2(server, request, approach).await,
                    Speaks::Http1 | Speaks::Either => {
                        self.http1.send_on_stream(stream, server, request, approach).await.map(alone)
                    }
                }
            }
        }
    }

    async fn send_http2(
        &self,
        server: &Server,
        request: Request<Body>,
        approach: &Approach,
    ) -> Result<Shared<Response<Body>>, SendError> {
        let key = Arc::clone(&server.authority);
        let outcome = self.http2.send(key, server, HTTP2_CONNECTIONS, request, approach).await;
        if outcome.is_err() {
            // It may have changed its mind.
            self.chosen.borrow_mut().remove(&server.authority);
        }
        outcome.map(|(response, in_flight)| (response, Some(in_flight)))
    }

    /// Asks for a tunnel: an upgrade of HTTP/1.1, or extended CONNECT (RFC 8441) where the upstream speaks HTTP/2 alone; or by
    /// CONNECT itself.
    pub async fn open(
        &self,
        server: &Server,
        request: Request<Body>,
        protocol: &str,
        approach: &Approach,
    ) -> Result<Shared<Reply>, SendError> {
        let known = self.chosen.borrow().get(&server.authority).copied();
        let speaks = if server.speaks == Speaks::Either { known.unwrap_or(Speaks::Either) } else { server.speaks };
        if speaks == Speaks::Http2 {
            return self.open_http2(server, request, protocol, approach).await;
        }
        // Who would choose HTTP/2 may serve upgrades of HTTP/1.1 as well: many do, and few know RFC 8441.
        let opened = http1::upgrade(server, request, protocol, approach).await;
        match opened {
            Err(SendError { cause: SendCause::Dial(DialError::Connect { .. }), unsent: Some(request) })
                if speaks == Speaks::Either =>
            {
                self.open_http2(server, *request, protocol, approach).await
            }
            opened => opened.map(|reply| (reply, None)),
        }
    }

    async fn open_http2(
        &self,
        server: &Server,
        request: Request<Body>,
        protocol: &str,
        approach: &Approach,
    ) -> Result<Shared<Reply>, SendError> {
        let key = Arc::clone(&server.authority);
        let opened = self.http2.open(key, server, HTTP2_CONNECTIONS, request, protocol, approach).await;
        opened.map(|(reply, in_flight)| (reply, Some(in_flight)))
    }

    /// Closes what has been idle for too long, leads to a server that is none of `servers`, or has a window that is none of `windows`;
    /// called now and then by the worker.
    pub fn sweep<'s>(&self, servers: impl Iterator<Item = &'s Server> + Clone, windows: &[Window]) {
        self.http1.sweep();
        self.http2.retain(windows, |_, server| servers.clone().any(|current| current.is_same(server)));
    }
}
