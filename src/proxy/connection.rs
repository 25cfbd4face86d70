//! One connection: its protocol is found, then HTTP is served on it under limits until it ends or the process drains.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::decision::facts::Ingress;
use crate::transport::framing::{Gate, Signals};
use crate::transport::pool::LocalExecutor;
use crate::transport::stream::Stream;
use crate::transport::tls;

use super::intake::Arrival;
use super::{Limits, Worker, request};

/// How a listener treats its connections; taken from the snapshot for each.
#[derive(Clone)]
pub enum Door {
    Cleartext,
    Clients(Arc<ServerConfig>),
    /// Mutual TLS: the certificate proves the region.
    Peers(Arc<ServerConfig>),
}

/// The first bytes of HTTP/2 with prior knowledge (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// HTTP/2 for clients: many, small and untrusted.
const CLIENT_STREAMS: u32 = 100;
const CLIENT_STREAM_WINDOW: u32 = 64 << 10;
const CLIENT_CONNECTION_WINDOW: u32 = 1 << 20;

/// HTTP/2 for peers: few, far away and proven.
const PEER_STREAMS: u32 = 1000;
const PEER_STREAM_WINDOW: u32 = 4 << 20;
const PEER_CONNECTION_WINDOW: u32 = 256 << 20;

/// Serves a connection to its end.
pub async fn serve(worker: Rc<Worker>, stream: TcpStream, remote: SocketAddr, door: Door) {
    let limits = worker.snapshot().limits;
    let address = remote.ip().to_canonical();
    let handshake = tokio::time::timeout(limits.header_timeout, open(&worker, stream, door)).await;
    let Ok(Some((stream, ingress, is_tls, is_http2))) = handshake else { return };
    let arrival = Arrival { ingress, remote: address, is_tls };
    // Whoever agreed on HTTP/2 has to begin with its preface, in time: hyper itself would wait for ever.
    let Some((stream, first, begins_http2)) = find_protocol(stream, limits.header_timeout).await else { return };
    if is_http2.is_none_or(|agreed| agreed == begins_http2) {
        speak(worker, stream, first, arrival, begins_http2, &limits).await;
    }
}

type Opened = (Stream, Ingress, bool, Option<bool>);

/// Finishes the handshake; `None` for a connection that is not to be served.
async fn open(worker: &Worker, stream: TcpStream, door: Door) -> Option<Opened> {
    let (config, is_for_peers) = match door {
        Door::Cleartext => return Some((Stream::Plain(stream), Ingress::Client, false, None)),
        Door::Clients(config) => (config, false),
        Door::Peers(config) => (config, true),
    };
    let stream = match TlsAcceptor::from(config).accept(stream).await {
        Ok(stream) => stream,
        Err(error) if is_for_peers => {
            tracing::warn!(%error, "a connection for peers was refused");
            return None;
        }
        Err(error) => {
            tracing::debug!(%error, "a TLS handshake failed");
            return None;
        }
    };
    let (_, session) = stream.get_ref();
    let is_http2 = session.alpn_protocol() == Some(b"h2");
    let ingress = if is_for_peers {
        let region = session.peer_certificates().and_then(tls::region_of);
        Ingress::Peer(known_peer(worker, region.as_deref())?)
    } else {
        Ingress::Client
    };
    Some((Stream::Accepted(Box::new(stream)), ingress, true, Some(is_http2)))
}

/// The region that a peer's certificate names, if it is another region of this policy.
fn known_peer(worker: &Worker, name: Option<&str>) -> Option<crate::model::region::RegionId> {
    let snapshot = worker.snapshot();
    let region = name.and_then(|name| snapshot.policy.find_region(name)).filter(|region| *region != snapshot.policy.local);
    if region.is_none() {
        tracing::warn!(region = name, "a peer was refused: its certificate names no other region of this policy");
    }
    region
}

/// Reads as many bytes as it takes to tell HTTP/2 with prior knowledge from HTTP/1.
async fn find_protocol(mut stream: Stream, limit: Duration) -> Option<(Stream, BytesMut, bool)> {
    let mut first = BytesMut::with_capacity(4096);
    let read = async {
        loop {
            if first.len() >= PREFACE.len() || !PREFACE.starts_with(&first) {
                return first.starts_with(PREFACE);
            }
            if !matches!(stream.read_buf(&mut first).await, Ok(1..)) {
                return false;
            }
        }
    };
    let is_http2 = tokio::time::timeout(limit, read).await.ok()?;
    (!first.is_empty()).then_some((stream, first, is_http2))
}

async fn speak(worker: Rc<Worker>, stream: Stream, first: BytesMut, arrival: Arrival, is_http2: bool, limits: &Limits) {
    let signals = Rc::new(Signals::default());
    // HTTP/2 has its own framing: the gate only gives back the bytes that were read ahead.
    signals.tunnel.set(is_http2);
    let io = TokioIo::new(Gate::new(stream, first, limits.head(), Rc::clone(&signals)));
    let drained = worker.shared.draining.clone();
    let watched = Rc::clone(&signals);
    let service = {
        let worker = Rc::clone(&worker);
        service_fn(move |request: hyper::Request<Incoming>| {
            let (worker, in_flight) = (Rc::clone(&worker), InFlight::count(Rc::clone(&signals)));
            async move {
                let response = request::handle(worker, arrival, request).await;
                drop(in_flight);
                Ok::<_, Infallible>(response)
            }
        })
    };
    if is_http2 {
        let connection = http2_builder(arrival.ingress, limits).serve_connection(io, service);
        // A peer's connections are few, and kept open on purpose.
        let is_peer = matches!(arrival.ingress, Ingress::Peer(_));
        let idle_limit = (!is_peer).then_some(limits.keep_alive * HTTP2_PATIENCE);
        let farewell = if is_peer { worker.snapshot().farewell } else { Duration::ZERO };
        finish(connection, end_of_http2(drained, watched, idle_limit, farewell), |connection| connection.graceful_shutdown())
            .await;
    } else {
        let connection = http1_builder(limits).serve_connection(io, service);
        finish(connection, end_of_http1(drained, watched), |connection| connection.graceful_shutdown()).await;
    }
}

/// An idle HTTP/2 connection may stay this many times longer than one of HTTP/1: it stands for several of them.
const HTTP2_PATIENCE: u32 = 5;

type Draining = tokio::sync::watch::Receiver<bool>;

/// When an HTTP/1 connection is to take nothing new: at the drain, once it has sent the request that was on its way. Idle
/// ones are ended by the gate.
async fn end_of_http1(mut drained: Draining, signals: Rc<Signals>) {
    let _ = drained.wait_for(|draining| *draining).await;
    if !signals.has_request.get() {
        let _ = tokio::time::timeout(FIRST_REQUEST_GRACE, signals.request.notified()).await;
    }
}

/// When an HTTP/2 connection is to take nothing new: at the drain, or when it has asked nothing for too long. Its GOAWAY
/// says which streams are still served.
/// A peer is heard for the time of a farewell, in which its probes learn of the drain.
async fn end_of_http2(mut drained: Draining, signals: Rc<Signals>, idle_limit: Option<Duration>, farewell: Duration) {
    let quiet = async {
        let Some(limit) = idle_limit else { return std::future::pending().await };
        loop {
            if signals.in_flight.get() > 0 {
                signals.idle.notified().await;
            } else if tokio::time::timeout(limit, signals.request.notified()).await.is_err() {
                return;
            }
        }
    };
    // The value that is waited for is a lock: it must not be held while sleeping.
    let told = async { drop(drained.wait_for(|draining| *draining).await) };
    tokio::select! {
        () = told => tokio::time::sleep(farewell).await,
        () = quiet => {}
    }
}

/// Counts a request as being served while it lives.
struct InFlight(Rc<Signals>);

impl InFlight {
    fn count(signals: Rc<Signals>) -> Self {
        signals.in_flight.set(signals.in_flight.get() + 1);
        signals.has_request.set(true);
        signals.request.notify_waiters();
        Self(signals)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
        if self.0.in_flight.get() == 0 {
            self.0.idle.notify_waiters();
        }
    }
}

fn http1_builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    // The gate keeps the time and judges the size; these are what hyper itself holds in memory.
    builder.timer(TokioTimer::new()).header_read_timeout(None).max_headers(limits.headers + 8);
    builder.max_buf_size((limits.header_bytes + 8192).max(64 << 10)).half_close(true);
    builder
}

fn http2_builder(ingress: Ingress, limits: &Limits) -> http2::Builder<LocalExecutor> {
    let (streams, stream_window, window) = match ingress {
        Ingress::Client => (CLIENT_STREAMS, CLIENT_STREAM_WINDOW, CLIENT_CONNECTION_WINDOW),
        Ingress::Peer(_) => (PEER_STREAMS, PEER_STREAM_WINDOW, PEER_CONNECTION_WINDOW),
    };
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams)
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(window)
        .max_header_list_size(limits.header_bytes as u32)
        .max_send_buf_size(64 << 10)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10));
    builder
}

/// How long a connection that was accepted before the drain may take to send its first request: it is on its way.
const FIRST_REQUEST_GRACE: Duration = Duration::from_secs(1);

/// Drives a connection until `end` says that it is to take nothing new; then it ends with what it has.
async fn finish<C, E>(connection: C, end: impl Future<Output = ()>, shut_down: impl FnOnce(std::pin::Pin<&mut C>))
where
    C: Future<Output = Result<(), E>>,
    E: std::fmt::Display,
{
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = end => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            shut_down(connection.as_mut());
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Counts a connection out when it ends.
pub struct Counted {
    worker: Rc<Worker>,
    address: std::net::IpAddr,
}

impl Counted {
    /// Counts a client's connection in; `None` if the limits do not allow it.
    pub fn enter(worker: &Rc<Worker>, address: std::net::IpAddr) -> Result<Self, &'static str> {
        let limits = worker.snapshot().limits;
        worker.shared.connections.enter(address, &limits)?;
        Ok(Self { worker: Rc::clone(worker), address })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.worker.shared.connections.leave(self.address);
    }
}
