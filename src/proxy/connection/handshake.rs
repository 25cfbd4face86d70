//! From a TCP connection to a stream of whom we know.

use std::net::SocketAddr;
use std::rc::Rc;

use base64::prelude::{BASE64_STANDARD, Engine};
use http::HeaderValue;
use ipnet::IpNet;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::decision::facts::Ingress;
use crate::model::region::RegionId;
use crate::transport::proxy_protocol;
use crate::transport::stream::Stream;
use crate::transport::tls::{self, ACME_TLS, Site};

use super::super::Worker;
use super::{Counted, Door, Lock};

/// A stream that is ready for HTTP.
pub(super) struct Opened {
    pub stream: Stream,
    /// The other end, or whom it speaks for.
    pub remote: SocketAddr,
    /// Counts the connection for whom the other end speaks for.
    pub counted: Option<Counted>,
    pub ingress: Ingress,
    pub site: Option<Site>,
    pub client_certificate: Option<HeaderValue>,
    /// Whether the handshake agreed on HTTP/2; `None` without TLS.
    pub is_http2: Option<bool>,
}

/// Finishes the handshake; `None` for a connection that is not to be served.
pub(super) async fn open(worker: &Rc<Worker>, mut stream: TcpStream, remote: SocketAddr, door: Door) -> Option<Opened> {
    let (mut remote, mut counted) = (remote, None);
    if let Some(networks) = &door.house_rules.proxy_protocol {
        remote = spoken_for(&mut stream, remote, networks).await?;
        counted = Some(Counted::enter(worker, remote.ip().to_canonical()).ok()?);
    }
    let opened = |stream| Opened {
        stream,
        remote,
        counted,
        ingress: Ingress::Client,
        site: None,
        client_certificate: None,
        is_http2: None,
    };
    match door.lock {
        Lock::Cleartext => Some(opened(Stream::Plain(stream))),
        Lock::Clients(tls) => {
            let Some(_under_way) = worker.shared.handshakes.enter(worker.snapshot().limits.handshakes) else {
                tracing::debug!("a connection was closed: too many TLS handshakes are under way");
                return None;
            };
            let stream = accept(&tls.config, stream).await.inspect_err(|error| tracing::debug!(%error, "a TLS handshake failed"));
            let stream = stream.ok()?;
            let (_, session) = stream.get_ref();
            // It only asked for a certificate.
            if session.alpn_protocol() == Some(ACME_TLS) {
                return None;
            }
            let site = Some(Site::shown(&tls, session.server_name()));
            let (is_http2, client_certificate) = (Some(chose_http2(session)), certificate_of(session));
            Some(Opened { is_http2, client_certificate, site, ..opened(boxed(stream)) })
        }
        Lock::Peers(config) => {
            let stream = accept(&config, stream).await;
            let stream = stream.inspect_err(|error| tracing::warn!(%error, "a connection for peers was refused")).ok()?;
            let (_, session) = stream.get_ref();
            let region = session.peer_certificates().and_then(tls::region_of);
            let ingress = Ingress::Peer(known_peer(worker, region.as_deref())?);
            Some(Opened { is_http2: Some(chose_http2(session)), ingress, ..opened(boxed(stream)) })
        }
    }
}

/// Whom the other end speaks for; `None` if it may not, or does not say.
async fn spoken_for(stream: &mut TcpStream, remote: SocketAddr, networks: &[IpNet]) -> Option<SocketAddr> {
    let address = remote.ip().to_canonical();
    if !networks.iter().any(|network| network.contains(&address)) {
        tracing::debug!(%address, "a connection was closed: the PROXY protocol is not taken from there");
        return None;
    }
    let source = proxy_protocol::read(stream).await;
    let source = source.inspect_err(|error| tracing::debug!(%address, %error, "a connection was closed"));
    Some(source.ok()?.unwrap_or(remote))
}

/// RFC 9440 section 2.2: the certificate alone, as a byte sequence.
fn certificate_of(session: &rustls::ServerConnection) -> Option<HeaderValue> {
    let certificate = session.peer_certificates()?.first()?;
    HeaderValue::from_str(&format!(":{}:", BASE64_STANDARD.encode(certificate))).ok()
}

type Accepted = tokio_rustls::server::TlsStream<TcpStream>;

async fn accept(config: &std::sync::Arc<rustls::ServerConfig>, stream: TcpStream) -> std::io::Result<Accepted> {
    TlsAcceptor::from(std::sync::Arc::clone(config)).accept(stream).await
}

fn chose_http2(session: &rustls::ServerConnection) -> bool {
    session.alpn_protocol() == Some(b"h2")
}

fn boxed(stream: Accepted) -> Stream {
    Stream::Accepted(Box::new(stream))
}

/// The region that a peer's certificate names, if it is another region of this policy.
fn known_peer(worker: &Worker, name: Option<&str>) -> Option<RegionId> {
    let snapshot = worker.snapshot();
    let region = name.and_then(|name| snapshot.policy.find_region(name)).filter(|region| *region != snapshot.policy.local);
    if region.is_none() {
        tracing::warn!(region = name, "a peer was refused: its certificate names no other region of this policy");
    }
    region
}
