//! Connections to upstreams, over HTTP/1.1 or HTTP/2.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use http::Response;

use super::super::body::Body;
use super::super::window::Windows;
use super::http1::{self, Http1Pool};
use super::http2::Http2Pool;
use super::{BoxedRequest, Reply, SendCause, SendError, SendOptions, StreamInFlight};
use crate::decision::permit::Permitted;
use crate::model::region::RegionId;
use crate::transport::dial::{self, DialError, HttpVersion, Server};

/// The number of HTTP/2 connections of one worker to one upstream.
const HTTP2_CONNECTIONS: usize = 2;

/// One worker's connections to all upstreams of a region.
#[derive(Clone)]
pub struct UpstreamPool {
    region: RegionId,
    http1: Http1Pool,
    http2: Http2Pool<Arc<str>>,
    /// The HTTP version that ALPN selected, by authority, for servers with [`HttpVersion::Negotiated`].
    chosen: Rc<RefCell<HashMap<Arc<str>, HttpVersion>>>,
}

/// A response, and the guard that counts its request as in flight on a shared HTTP/2 connection. Keep the guard until the
/// response has ended.
pub type Shared<T> = (T, Option<StreamInFlight>);

impl UpstreamPool {
    /// A pool of connections to the upstreams of `region`. It sends only requests that are permitted there.
    pub fn of(region: RegionId) -> Self {
        Self { region, http1: Http1Pool::default(), http2: Http2Pool::default(), chosen: Rc::default() }
    }

    /// Sends a request and waits for the response head.
    pub async fn send(
        &self,
        server: &Server,
        permitted: Permitted<BoxedRequest>,
        options: &SendOptions,
    ) -> Result<Shared<Response<Body>>, SendError> {
        let request = permitted.redeem(self.region)?;
        let known = self.chosen.borrow().get(&server.authority).copied();
        let unguarded = |response| (response, None);
        match if server.http_version == HttpVersion::Negotiated {
            known.unwrap_or(HttpVersion::Negotiated)
        } else {
            server.http_version
        } {
            HttpVersion::Http1 => self.http1.send(server, request, options).await.map(unguarded),
            HttpVersion::Http2 => Box::pin(self.send_http2(server, request, options)).await,
            HttpVersion::Negotiated => Box::pin(self.send_negotiated(server, request, options)).await,
        }
    }

    /// Sends a request on a new connection, with the version that the server chooses.
    async fn send_negotiated(
        &self,
        server: &Server,
        request: BoxedRequest,
        options: &SendOptions,
    ) -> Result<Shared<Response<Body>>, SendError> {
        let stream = match dial::open(server, &options.dial, false).await {
            Ok(stream) => stream,
            Err(error) => return Err(SendError::dial(error, request)),
        };
        let http_version = if stream.chose_http2() { HttpVersion::Http2 } else { HttpVersion::Http1 };
        self.chosen.borrow_mut().insert(Arc::clone(&server.authority), http_version);
        match http_version {
            // This connection is dropped, because the HTTP/2 pool dials its own.
            HttpVersion::Http2 => self.send_http2(server, request, options).await,
            HttpVersion::Http1 | HttpVersion::Negotiated => {
                self.http1.send_on_stream(stream, server, request, options).await.map(|response| (response, None))
            }
        }
    }

    async fn send_http2(
        &self,
        server: &Server,
        request: BoxedRequest,
        options: &SendOptions,
    ) -> Result<Shared<Response<Body>>, SendError> {
        let key = Arc::clone(&server.authority);
        let outcome = self.http2.send(key, server, HTTP2_CONNECTIONS, request, options).await;
        if outcome.is_err() {
            // Negotiate again, because the server may no longer choose HTTP/2.
            self.chosen.borrow_mut().remove(&server.authority);
        }
        outcome.map(|(response, in_flight)| (response, Some(in_flight)))
    }

    /// Requests a tunnel: by an HTTP/1.1 upgrade, by extended CONNECT (RFC 8441) if the upstream speaks only HTTP/2, or by plain
    /// CONNECT.
    pub async fn open(
        &self,
        server: &Server,
        permitted: Permitted<BoxedRequest>,
        protocol: &str,
        options: &SendOptions,
    ) -> Result<Shared<Reply>, SendError> {
        let request = permitted.redeem(self.region)?;
        let known = self.chosen.borrow().get(&server.authority).copied();
        let http_version = if server.http_version == HttpVersion::Negotiated {
            known.unwrap_or(HttpVersion::Negotiated)
        } else {
            server.http_version
        };
        if http_version == HttpVersion::Http2 {
            return self.open_http2(server, request, protocol, options).await;
        }
        // Try an HTTP/1.1 upgrade first, because many servers that prefer HTTP/2 support it, and few support RFC 8441.
        let opened = http1::upgrade(server, request, protocol, options).await;
        match opened {
            Err(SendError { cause: SendCause::Dial(DialError::Connect { .. }), request: Some(request), .. })
                if http_version == HttpVersion::Negotiated =>
            {
                self.open_http2(server, request, protocol, options).await
            }
            opened => opened.map(|reply| (reply, None)),
        }
    }

    async fn open_http2(
        &self,
        server: &Server,
        request: BoxedRequest,
        protocol: &str,
        options: &SendOptions,
    ) -> Result<Shared<Reply>, SendError> {
        let key = Arc::clone(&server.authority);
        let opened = self.http2.open(key, server, HTTP2_CONNECTIONS, request, protocol, options).await;
        opened.map(|(reply, in_flight)| (reply, Some(in_flight)))
    }

    /// Closes connections that have been idle for too long, whose server is not in `servers`, or whose window is not in
    /// `windows`. The worker calls it periodically.
    pub fn sweep<'s>(&self, servers: impl Iterator<Item = &'s Server> + Clone, windows: Windows) {
        self.http1.sweep();
        self.chosen.borrow_mut().retain(|authority, _| servers.clone().any(|current| current.authority == *authority));
        self.http2.retain(windows, |_, server| servers.clone().any(|current| current.is_same(server)));
    }
}
