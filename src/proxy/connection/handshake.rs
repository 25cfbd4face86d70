//! From a TCP connection to a stream of whom we know.

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::decision::facts::Ingress;
use crate::model::region::RegionId;
use crate::transport::stream::Stream;
use crate::transport::tls::{self, Site};

use super::super::Worker;
use super::Door;

/// A stream that is ready for HTTP.
pub(super) struct Opened {
    pub stream: Stream,
    pub ingress: Ingress,
    pub site: Option<Site>,
    /// Whether the handshake agreed on HTTP/2; `None` without TLS.
    pub is_http2: Option<bool>,
}

/// Finishes the handshake; `None` for a connection that is not to be served.
pub(super) async fn open(worker: &Worker, stream: TcpStream, door: Door) -> Option<Opened> {
    match door {
        Door::Cleartext => Some(Opened { stream: Stream::Plain(stream), ingress: Ingress::Client, site: None, is_http2: None }),
        Door::Clients(tls) => {
            let stream = accept(&tls.config, stream).await.inspect_err(|error| tracing::debug!(%error, "a TLS handshake failed"));
            let stream = stream.ok()?;
            let (_, session) = stream.get_ref();
            let site = Some(Site::shown(&tls, session.server_name()));
            Some(Opened { is_http2: Some(chose_http2(session)), stream: boxed(stream), ingress: Ingress::Client, site })
        }
        Door::Peers(config) => {
            let stream = accept(&config, stream).await;
            let stream = stream.inspect_err(|error| tracing::warn!(%error, "a connection for peers was refused")).ok()?;
            let (_, session) = stream.get_ref();
            let region = session.peer_certificates().and_then(tls::region_of);
            let ingress = Ingress::Peer(known_peer(worker, region.as_deref())?);
            Some(Opened { is_http2: Some(chose_http2(session)), stream: boxed(stream), ingress, site: None })
        }
    }
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
