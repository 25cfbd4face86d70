//! One connection: its protocol is found, then HTTP is served on it under limits until it ends or the process drains.

mod handshake;
mod http1;
mod http2;

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rustls::ServerConfig;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::decision::facts::Ingress;
use crate::http::framing::ConnectionState;
use crate::http::window::Buffers;
use crate::transport::stream::Stream;
use crate::transport::tls::ClientTls;

use super::ingress::{ListenerOptions, Session};
use super::intake::Arrival;
use super::{Connections, Phase, Shared, Worker};

/// How a listener treats its connections.
#[derive(Clone)]
pub struct ListenerConfig {
    pub security: Security,
    pub options: Arc<ListenerOptions>,
}

/// What it takes to come in.
#[derive(Clone)]
pub enum Security {
    Cleartext,
    Clients(Arc<ClientTls>),
    /// Mutual TLS: the certificate proves the region.
    Peers(Arc<ServerConfig>),
}

/// How many addresses it takes to fill the places of those who have yet to prove to be peers.
const UNPROVEN_ADDRESSES: usize = 10;

/// The first bytes of HTTP/2 with prior knowledge (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a connection to its end.
pub async fn serve(worker: Rc<Worker>, stream: TcpStream, remote: SocketAddr, listener_config: ListenerConfig) {
    let limits = worker.snapshot().limits;
    let Ok(local) = stream.local_addr() else { return };
    let options = Arc::clone(&listener_config.options);
    let handshake = tokio::time::timeout(limits.header_timeout, handshake::open(&worker, stream, remote, listener_config)).await;
    let Ok(Some(opened)) = handshake else { return };
    let arrival = Arrival {
        ingress: opened.ingress,
        remote: opened.remote.ip().to_canonical(),
        port: opened.remote.port(),
        local,
        is_tls: opened.is_http2.is_some(),
    };
    // Whoever agreed on HTTP/2 has to begin with its preface, in time: hyper itself would wait for ever.
    let begun = Instant::now();
    let Some((stream, first, begins_http2)) = find_protocol(opened.stream, limits.header_timeout).await else { return };
    if opened.is_http2.is_some_and(|agreed| agreed != begins_http2) {
        return;
    }
    let connection_state = if begins_http2 { ConnectionState::for_http2() } else { Rc::default() };
    let buffers = match arrival.ingress {
        Ingress::Client => Buffers::of(limits.connection_buffer),
        Ingress::Peer(_) => Buffers::of_peer(),
    };
    let session = Session {
        arrival,
        site: opened.site,
        client_certificate: opened.client_certificate,
        peer_chain: opened.peer_chain,
        options,
        connection_state,
        buffers,
    };
    let session = Rc::new(session);
    if begins_http2 {
        http2::serve(worker, stream, (begun, first), session, &limits).await;
    } else {
        http1::serve(worker, stream, (begun, first), session, &limits).await;
    }
    drop(opened.counted);
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

/// How long a client may go on sending after the last answer, and how long it may be quiet meanwhile.
const LINGER: Duration = Duration::from_secs(10);
const LINGER_QUIET: Duration = Duration::from_secs(2);

/// Waits until the other end has ended as well: closing a socket on unread bytes resets it, and what was written last is lost with
/// them. What comes, up to so many bytes, is thrown away unread.
async fn linger(stream: &mut Stream, most: u64) {
    let rest = async {
        let (mut space, mut stream) = (vec![0; 4 << 10], stream.take(most));
        while let Ok(Ok(1..)) = tokio::time::timeout(LINGER_QUIET, stream.read(&mut space)).await {}
    };
    let _ = tokio::time::timeout(LINGER, rest).await;
}

/// How long a connection that was accepted before the drain may take to send its first request: it is on its way.
const FIRST_REQUEST_GRACE: Duration = Duration::from_secs(1);

/// Waits until nothing new is to be taken on a connection.
async fn leaving(worker: &Worker, connection_state: &ConnectionState) {
    // The value that is waited for is a lock: it must not be held while sleeping.
    drop(worker.shared.phase.clone().wait_for(|phase| *phase != Phase::Serving).await);
    if !connection_state.has_request() {
        let _ = tokio::time::timeout(FIRST_REQUEST_GRACE, connection_state.request.notified()).await;
    }
}

/// Counts a connection out when it ends.
pub struct Counted {
    worker: Rc<Worker>,
    address: IpAddr,
    among: fn(&Shared) -> &Connections,
}

impl Counted {
    /// Counts a client's connection in, unless the limits do not allow it; the reason is a metric label.
    pub fn enter(worker: &Rc<Worker>, address: IpAddr) -> Result<Self, &'static str> {
        let limits = worker.snapshot().limits;
        worker.shared.connections.enter(address, limits.connections, limits.connections_per_address)?;
        Ok(Self { worker: Rc::clone(worker), address, among: |shared| &shared.connections })
    }

    /// Counts a connection of somebody in who has yet to prove to be a peer.
    fn enter_unproven(worker: &Rc<Worker>, address: IpAddr) -> Option<Self> {
        let most = worker.snapshot().limits.handshakes;
        let most_per_address = (most / UNPROVEN_ADDRESSES).max(1);
        worker.shared.unproven.enter(address, most, most_per_address).ok()?;
        Some(Self { worker: Rc::clone(worker), address, among: |shared| &shared.unproven })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.among)(&self.worker.shared).leave(self.address);
    }
}
