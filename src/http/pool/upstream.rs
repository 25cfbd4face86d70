//! Connections to upstreams, in whatever they speak.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use http::{Request, Response};

use super::super::body::Body;
use super::super::window::Window;
use super::http1::{self, Http1Pool};
use super::http2::Http2Pool;
use super::{InFlight, Reply, SendCause, SendError, SendOptions};
use crate::transport::dial::{self, DialError, HttpVersion, Server};

/// HTTP/2 connections to one upstream by one worker.
const HTTP2_CONNECTIONS: usize = 2;

/// One worker's connections to all upstreams.
#[derive(Clone, Default)]
pub struct UpstreamPool {
    http1: Http1Pool,
    http2: Http2Pool<Arc<str>>,
    /// What the servers that leave the choice to the handshake have chosen.
    chosen: Rc<RefCell<HashMap<Arc<str>, HttpVersion>>>,
}

/// An answer, and what counts the request as in flight on a connection that others share: to be kept until the answer has ended.
pub type Shared<T> = (T, Option<InFlight>);

impl UpstreamPool {
    /// Sends a request and waits for the head of the answer.
    pub async fn send(
        &self,
        server: &Server,
        request: Request<Body>,
        options: &SendOptions,
    ) -> Result<Shared<Response<Body>>, SendError> {
        let known = self.chosen.borrow().get(&server.authority).copied();
        let alone = |response| (response, None);
        match if server.http_version == HttpVersion::Negotiated {
            known.unwrap_or(HttpVersion::Negotiated)
        } else {
            server.http_version
        } {
            HttpVersion::Http1 => self.http1.send(server, request, options).await.map(alone),
            HttpVersion::Http2 => self.send_http2(server, request, options).await,
            HttpVersion::Negotiated => {
                let stream = match dial::open(server, &options.dial, false).await {
                    Ok(stream) => stream,
                    Err(error) => return Err(SendError::dial(error, request)),
                };
                let http_version = if stream.chose_http2() { HttpVersion::Http2 } else { HttpVersion::Http1 };
                self.chosen.borrow_mut().insert(Arc::clone(&server.authority), http_version);
                match http_version {
                    // The connection is spent on learning: the pool opens its own.
                    HttpVersion::Http2 => self.send_http2(server, request, options).await,
                    HttpVersion::Http1 | HttpVersion::Negotiated => {
                        self.http1.send_on_stream(stream, server, request, options).await.map(alone)
                    }
                }
            }
        }
    }

    async fn send_http2(
        &self,
        server: &Server,
        request: Request<Body>,
        options: &SendOptions,
    ) -> Result<Shared<Response<Body>>, SendError> {
        let key = Arc::clone(&server.authority);
        let outcome = self.http2.send(key, server, HTTP2_CONNECTIONS, request, options).await;
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
        options: &SendOptions,
    ) -> Result<Shared<Reply>, SendError> {
        let known = self.chosen.borrow().get(&server.authority).copied();
        let http_version = if server.http_version == HttpVersion::Negotiated {
            known.unwrap_or(HttpVersion::Negotiated)
        } else {
            server.http_version
        };
        if http_version == HttpVersion::Http2 {
            return self.open_http2(server, request, protocol, options).await;
        }
        // Who would choose HTTP/2 may serve upgrades of HTTP/1.1 as well: many do, and few know RFC 8441.
        let opened = http1::upgrade(server, request, protocol, options).await;
        match opened {
            Err(SendError { cause: SendCause::Dial(DialError::Connect { .. }), unsent: Some(request) })
                if http_version == HttpVersion::Negotiated =>
            {
                self.open_http2(server, *request, protocol, options).await
            }
            opened => opened.map(|reply| (reply, None)),
        }
    }

    async fn open_http2(
        &self,
        server: &Server,
        request: Request<Body>,
        protocol: &str,
        options: &SendOptions,
    ) -> Result<Shared<Reply>, SendError> {
        let key = Arc::clone(&server.authority);
        let opened = self.http2.open(key, server, HTTP2_CONNECTIONS, request, protocol, options).await;
        opened.map(|(reply, in_flight)| (reply, Some(in_flight)))
    }

    /// Closes what has been idle for too long, leads to a server that is none of `servers`, or has a window that is none of `windows`;
    /// called now and then by the worker.
    pub fn sweep<'s>(&self, servers: impl Iterator<Item = &'s Server> + Clone, windows: &[Window]) {
        self.http1.sweep();
        self.http2.retain(windows, |_, server| servers.clone().any(|current| current.is_same(server)));
    }
}
