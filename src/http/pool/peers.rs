//! Connections to the peers' gateways, each to the region that the permit names.

use http::Response;
use rustls_pki_types::CertificateDer;

use crate::decision::permit::Permitted;
use crate::model::region::RegionId;
use crate::transport::dial::Server;

use super::super::body::Body;
use super::super::window::{Window, Windows};
use super::http2::Http2Pool;
use super::{BoxedRequest, Reply, SendError, SendOptions, StreamInFlight};

/// The gateway of a region, through which its peers reach it.
#[derive(Clone, Debug)]
pub struct Gateway {
    pub region: RegionId,
    pub server: Server,
}

/// One worker's connections to all peers.
#[derive(Clone, Default)]
pub struct PeerPool(Http2Pool<RegionId>);

impl PeerPool {
    /// Sends a request to its region's gateway and waits for the head of the response.
    ///
    /// The guard counts the request as in flight; keep it until the response's body has ended.
    pub async fn send(
        &self,
        gateway: &Gateway,
        connections: usize,
        permitted: Permitted<BoxedRequest>,
        options: &SendOptions,
    ) -> Result<(Response<Body>, StreamInFlight), SendError> {
        let request = permitted.redeem(gateway.region)?;
        self.0.send(gateway.region, &gateway.server, connections, request, options).await
    }

    /// Asks for a tunnel of `protocol` by extended CONNECT (RFC 8441), or by CONNECT itself.
    pub async fn open(
        &self,
        gateway: &Gateway,
        connections: usize,
        permitted: Permitted<BoxedRequest>,
        protocol: &str,
        options: &SendOptions,
    ) -> Result<(Reply, StreamInFlight), SendError> {
        let request = permitted.redeem(gateway.region)?;
        self.0.open(gateway.region, &gateway.server, connections, request, protocol, options).await
    }

    /// Opens the connections that are not open, so that no request waits for three round trips. A failure is reported by the
    /// next request.
    pub async fn warm(&self, gateway: &Gateway, connections: usize, window: Window, options: &SendOptions) {
        self.0.warm(gateway.region, &gateway.server, connections, window, options).await;
    }

    /// Closes idle connections that lead to a gateway that is no longer current, or whose window is not one of `windows`.
    pub fn retain(&self, windows: Windows, is_current: impl Fn(&RegionId, &Server) -> bool) {
        self.0.retain(windows, is_current);
    }

    /// Closes at once every connection whose gateway presented certificates that `is_trusted` rejects, together with the
    /// streams on it: a revoked peer keeps nothing.
    pub fn close_untrusted(&self, is_trusted: impl Fn(&[CertificateDer<'_>]) -> bool) {
        self.0.close_untrusted(is_trusted);
    }
}
