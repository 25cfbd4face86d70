//! Turns a TCP connection into a stream with a known client or peer: PROXY protocol, then TLS.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;

use ipnet::IpNet;
use rustls::ProtocolVersion;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::decision::facts::Ingress;
use crate::model::region::RegionId;
use crate::proxy::Snapshot;
use crate::transport::proxy_protocol;
use crate::transport::stream::Stream;
use crate::transport::tls::{self, ACME_TLS, Site};

use super::super::worker::Worker;
use super::{Counted, ListenerConfig, Security};

/// A stream that is ready for HTTP.
pub(super) struct Opened {
    pub stream: Stream,
    /// The address of the client: the remote address, or the one in the PROXY protocol header.
    pub remote: SocketAddr,
    /// Counts the connection against the client address in the PROXY protocol header.
    pub counted: Option<Counted>,
    pub ingress: Ingress,
    pub site: Option<Site>,
    pub client_certificate: Option<Vec<u8>>,
    /// The certificate chain with which a peer proved its region.
    pub peer_chain: Vec<CertificateDer<'static>>,
    /// Whether the handshake agreed on HTTP/2; `None` without TLS.
    pub is_http2: Option<bool>,
    /// The version of TLS, such as `TLSv1.3`; `None` without TLS.
    pub tls_version: Option<&'static str>,
}

/// Finishes the handshake. `None` if the connection must not be served.
pub(super) async fn open(
    worker: &Rc<Worker>,
    mut stream: TcpStream,
    remote: SocketAddr,
    listener_config: ListenerConfig,
) -> Option<Opened> {
    let (mut remote, mut counted) = (remote, None);
    if let Some(networks) = &listener_config.options.proxy_protocol {
        remote = read_source(worker, &mut stream, remote, networks).await?;
        match Counted::enter(worker, remote.ip().to_canonical()) {
            Ok(entered) => counted = Some(entered),
            Err(limit) => return refused(worker, limit, "connection limit reached"),
        }
    }
    let opened = |stream| Opened {
        stream,
        remote,
        counted,
        ingress: Ingress::Client,
        site: None,
        client_certificate: None,
        peer_chain: Vec::new(),
        is_http2: None,
        tls_version: None,
    };
    match listener_config.security {
        Security::Cleartext => Some(opened(Stream::Plain(stream))),
        Security::Clients(tls) => {
            let Some(_in_flight) = worker.shared.handshakes.enter(worker.snapshot().limits.handshakes) else {
                return refused(worker, "handshakes", "too many TLS handshakes in flight");
            };
            let stream = match accept(&tls.config, stream).await {
                Ok(stream) => stream,
                Err(error) => return refused(worker, "tls", &error.to_string()),
            };
            let (_, tls_state) = stream.get_ref();
            // A TLS-ALPN-01 challenge ends with the handshake.
            if tls_state.alpn_protocol() == Some(ACME_TLS) {
                return None;
            }
            let site = Some(Site::shown(&tls, tls_state.server_name()));
            let (is_http2, client_certificate) = (Some(chose_http2(tls_state)), certificate_of(tls_state));
            let tls_version = version_of(tls_state);
            Some(Opened { is_http2, tls_version, client_certificate, site, ..opened(boxed(stream)) })
        }
        Security::Peers(config) => {
            let Some(_unproven) = Counted::enter_unproven(worker, remote.ip().to_canonical()) else {
                return refused(worker, "unproven", "too many connections that have not proven a region yet");
            };
            let stream = accept(&config, stream).await;
            let stream = stream.inspect_err(|error| warn_of_peer(worker, &format!("TLS handshake failed: {error}"))).ok()?;
            let (_, tls_state) = stream.get_ref();
            let chain = tls_state.peer_certificates().map(<[_]>::to_vec).unwrap_or_default();
            let Some(peer) = peer_of(&worker.snapshot(), &chain) else {
                warn_of_peer(worker, "the certificate does not name another region of the policy");
                return None;
            };
            let (is_http2, tls_version) = (Some(chose_http2(tls_state)), version_of(tls_state));
            Some(Opened { is_http2, tls_version, ingress: Ingress::Peer(peer), peer_chain: chain, ..opened(boxed(stream)) })
        }
    }
}

/// Reads the client address from the PROXY protocol header. `None` if the remote address is not allowed or the header is invalid.
async fn read_source(worker: &Worker, stream: &mut TcpStream, remote: SocketAddr, networks: &[IpNet]) -> Option<SocketAddr> {
    let address = remote.ip().to_canonical();
    if !networks.iter().any(|network| network.contains(&address)) {
        return refused(worker, "proxy_protocol", &format!("`{address}` is not listed in `proxy_protocol.from`"));
    }
    match proxy_protocol::read(stream).await {
        Ok(source) => Some(source.unwrap_or(remote)),
        Err(error) => refused(worker, "proxy_protocol", &error.to_string()),
    }
}

/// The client certificate, without its chain (DER).
fn certificate_of(tls_state: &rustls::ServerConnection) -> Option<Vec<u8>> {
    Some(tls_state.peer_certificates()?.first()?.to_vec())
}

type Accepted = tokio_rustls::server::TlsStream<TcpStream>;

async fn accept(config: &std::sync::Arc<rustls::ServerConfig>, stream: TcpStream) -> std::io::Result<Accepted> {
    TlsAcceptor::from(std::sync::Arc::clone(config)).accept(stream).await
}

fn chose_http2(tls_state: &rustls::ServerConnection) -> bool {
    tls_state.alpn_protocol() == Some(b"h2")
}

fn version_of(tls_state: &rustls::ServerConnection) -> Option<&'static str> {
    match tls_state.protocol_version()? {
        ProtocolVersion::TLSv1_3 => Some("TLSv1.3"),
        ProtocolVersion::TLSv1_2 => Some("TLSv1.2"),
        _ => None,
    }
}

fn boxed(stream: Accepted) -> Stream {
    Stream::Accepted(Box::new(stream))
}

/// The region that a chain names, if it is another region of this policy.
fn peer_of(snapshot: &Snapshot, chain: &[CertificateDer<'_>]) -> Option<RegionId> {
    let region = snapshot.policy().find_region(&tls::region_of(chain)?)?;
    (region != snapshot.policy().local).then_some(region)
}

/// Counts a refused connection and logs the reason.
fn refused<T>(worker: &Worker, reason: &'static str, why: &str) -> Option<T> {
    worker.metrics.connection_refused(reason);
    tracing::debug!(reason, why, "connection refused");
    None
}

/// Counts a refused peer connection. Logs at most once a second, so that repeated attempts do not flood the log.
fn warn_of_peer(worker: &Worker, why: &str) {
    worker.metrics.connection_refused("peer");
    if let Some(suppressed) = worker.warnings.admit("peer", why, std::time::Instant::now()) {
        tracing::warn!(why, suppressed, "peer connection refused");
    }
}

/// Waits until a peer's certificate no longer proves its region, because it was revoked or has expired, or because the region was
/// removed from the policy.
pub(super) async fn disproven(worker: &Worker, chain: &[CertificateDer<'_>]) {
    loop {
        // Register for notifications before the check, so that no change in between is missed.
        let mut changed = pin!(worker.changed.notified());
        changed.as_mut().enable();
        let snapshot = worker.snapshot();
        let proves = snapshot.peers.as_ref().is_some_and(|peers| peers.still_proves(chain));
        if !proves || peer_of(&snapshot, chain).is_none() {
            return;
        }
        changed.await;
    }
}
