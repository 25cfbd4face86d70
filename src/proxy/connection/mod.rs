//! One connection: detects its protocol, then serves HTTP under limits until the connection ends or the process drains.

mod handshake;
mod http1;
mod http2;

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::Instant;

use crate::decision::facts::Ingress;
use crate::http::connection::ConnectionState;
use crate::transport::listener::Accepted;
use crate::transport::stream::Stream;
use crate::transport::tcp_info::{self, TcpInfo};
use crate::transport::tls::ClientTls;

use super::Phase;
use super::admission::Connections;
use super::ingress::{ConnectionContext, ListenerOptions};
use super::intake::Arrival;
use super::worker::{Shared, Worker};

/// The security and the options of a listener.
#[derive(Clone)]
pub struct ListenerConfig {
    pub security: Security,
    pub options: Arc<ListenerOptions>,
}

/// The transport security of a listener.
#[derive(Clone)]
pub enum Security {
    Cleartext,
    Clients(Arc<ClientTls>),
    /// Mutual TLS: the certificate proves the region.
    Peers(Arc<ServerConfig>),
}

/// One address may open a tenth of the connections that have not proven a region yet, so that it cannot use up all of them.
const UNPROVEN_ADDRESSES: usize = 10;

/// The first bytes of HTTP/2 with prior knowledge (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a connection to its end.
pub async fn serve(worker: Rc<Worker>, accepted: Accepted, listener_config: ListenerConfig) {
    // The boxes keep the memory of an idle HTTP/1 connection small.
    let established = Box::pin(establish(Rc::clone(&worker), accepted, listener_config)).await;
    let Some(Established { stream, begun, first, begins_http2, context, until_closed }) = established else { return };
    if begins_http2 {
        Box::pin(http2::serve(worker, stream, first, context)).await;
    } else {
        http1::serve(worker, stream, (begun, first), context).await;
    }
    drop(until_closed);
}

/// A connection whose protocol is known.
struct Established {
    stream: Stream,
    begun: Instant,
    /// Bytes that have been read to find the protocol.
    first: BytesMut,
    begins_http2: bool,
    context: Rc<ConnectionContext>,
    /// Dropped when the connection has closed.
    until_closed: (tcp_info::Open, Option<Counted>),
}

/// Finishes the handshake and finds the protocol. `None` if the connection must not be served.
async fn establish(worker: Rc<Worker>, accepted: Accepted, listener_config: ListenerConfig) -> Option<Established> {
    let limits = worker.snapshot().limits;
    let Accepted { stream, remote, local } = accepted;
    let options = Arc::clone(&listener_config.options);
    let opening = handshake::open(&worker, stream, remote, listener_config);
    let opened = tokio::time::timeout(limits.header_timeout, opening).await.ok()??;
    let arrival = Arrival {
        ingress: opened.ingress,
        remote: opened.remote.ip().to_canonical(),
        port: opened.remote.port(),
        local,
        is_tls: opened.is_http2.is_some(),
    };
    // A client that negotiated HTTP/2 must send its preface in time, because `h2` itself would wait forever.
    let begun = Instant::now();
    let (stream, first, begins_http2) = find_protocol(opened.stream, limits.header_timeout).await?;
    let is_peer = matches!(arrival.ingress, Ingress::Peer(_));
    // Peers must use HTTP/2, because only an HTTP/2 connection is closed when its certificate is revoked.
    if opened.is_http2.is_some_and(|agreed| agreed != begins_http2) || (is_peer && !begins_http2) {
        return None;
    }
    let buffers = match arrival.ingress {
        Ingress::Client => worker.buffers(&limits),
        Ingress::Peer(_) => worker.buffers_of_peer(),
    };
    let (tcp_info, open) = TcpInfo::of(&stream);
    let context = ConnectionContext {
        arrival,
        site: opened.site,
        tls_version: opened.tls_version,
        client_certificate: opened.client_certificate,
        peer_chain: opened.peer_chain,
        options,
        connection_state: Rc::default(),
        tcp_info,
        buffers,
    };
    let until_closed = (open, opened.counted);
    Some(Established { stream, begun, first, begins_http2, context: Rc::new(context), until_closed })
}

/// Reads enough bytes to distinguish HTTP/2 from HTTP/1.
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

/// How long a client may continue to send after the last response, and how long it may pause meanwhile.
const LINGER: Duration = Duration::from_secs(10);
const LINGER_QUIET: Duration = Duration::from_secs(2);

/// Waits until the client closes its side, because closing a socket with unread bytes resets it and the client loses the last
/// response. Discards up to `max` received bytes.
async fn linger(stream: &mut (impl AsyncRead + Unpin), max: u64) {
    let rest = async {
        let (mut space, mut stream) = (vec![0; 4 << 10], stream.take(max));
        while let Ok(Ok(1..)) = tokio::time::timeout(LINGER_QUIET, stream.read(&mut space)).await {}
    };
    let _ = tokio::time::timeout(LINGER, rest).await;
}

/// How long a connection that was accepted before the drain may take to send its first request, which may be in flight.
const FIRST_REQUEST_GRACE: Duration = Duration::from_secs(1);

/// Waits until a connection must accept no further requests, because the process drains.
async fn drain_started(worker: &Worker, connection_state: &ConnectionState) {
    // Drop the value at once: it holds the lock of the watch channel, which must not be held while sleeping.
    drop(worker.shared.phase.clone().wait_for(|phase| *phase != Phase::Serving).await);
    if !connection_state.has_request() {
        let _ = tokio::time::timeout(FIRST_REQUEST_GRACE, connection_state.request.notified()).await;
    }
}

/// Counts an open connection until it is dropped.
pub struct Counted {
    worker: Rc<Worker>,
    address: IpAddr,
    counter: fn(&Shared) -> &Connections,
}

impl Counted {
    /// Counts a client's connection if the limits allow it. The error is the metric label of the limit.
    pub fn enter(worker: &Rc<Worker>, address: IpAddr) -> Result<Self, &'static str> {
        let limits = worker.snapshot().limits;
        worker.shared.connections.enter(address, limits.connections, limits.connections_per_address)?;
        Ok(Self { worker: Rc::clone(worker), address, counter: |shared| &shared.connections })
    }

    /// Counts a connection that has not proven a region yet.
    fn enter_unproven(worker: &Rc<Worker>, address: IpAddr) -> Option<Self> {
        let max = worker.snapshot().limits.handshakes;
        let max_per_address = (max / UNPROVEN_ADDRESSES).max(1);
        worker.shared.unproven.enter(address, max, max_per_address).ok()?;
        Some(Self { worker: Rc::clone(worker), address, counter: |shared| &shared.unproven })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.counter)(&self.worker.shared).leave(self.address);
    }
}
