//! The connection of a request: its client or peer, its certificates, the options of its listener, and the way to send an
//! informational response or open a tunnel.

use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderValue, Response, StatusCode};
use ipnet::IpNet;
use rustls_pki_types::CertificateDer;

use crate::http::connection::ConnectionState;
use crate::http::http1::ServerConnection;
use crate::http::http2::Exchange;
use crate::http::tunnel::Handover;
use crate::http::window::Buffers;
use crate::transport::tcp_info::TcpInfo;
use crate::transport::tls::{Challenges, Site};

use super::intake::Arrival;

/// The options of a listener, which apply to all its connections.
#[derive(Clone, Default)]
pub struct ListenerOptions {
    /// `Some` requires a PROXY protocol header on every connection, and accepts connections from these networks only.
    pub proxy_protocol: Option<Vec<IpNet>>,
    /// Redirects every request to HTTPS on this port.
    pub redirect: Option<u16>,
    /// The `Strict-Transport-Security` header of every response.
    pub hsts: Option<HeaderValue>,
    /// Responses to ACME HTTP-01 challenges, on cleartext listeners.
    pub challenges: Option<Arc<Challenges>>,
    /// Serves the request of a client that has closed its sending side (TCP half-close). Otherwise the client is taken to have gone
    /// away.
    pub allows_half_close: bool,
}

/// The connection of a request.
pub struct ConnectionContext {
    pub arrival: Arrival,
    /// The certificate that the proxy presented; `None` without TLS, and for peers.
    pub site: Option<Site>,
    /// The version of TLS, such as `TLSv1.3`; `None` without TLS.
    pub tls_version: Option<&'static str>,
    /// The verified client certificate (DER).
    pub client_certificate: Option<Vec<u8>>,
    /// The certificate chain with which a peer proved its region.
    pub peer_chain: Vec<CertificateDer<'static>>,
    pub options: Arc<ListenerOptions>,
    pub connection_state: Rc<ConnectionState>,
    pub tcp_info: TcpInfo,
    /// The flow-control budget that its requests share.
    pub buffers: Rc<Buffers>,
}

/// Sends informational responses to the client of a request, opens its tunnel, or aborts its response.
#[derive(Clone)]
pub enum ResponseChannel {
    /// HTTP/1: the connection, which serves one request at a time.
    Connection(Rc<ServerConnection>),
    /// HTTP/2: the request's own stream.
    Stream(Rc<Exchange>),
}

impl ResponseChannel {
    /// Sends an informational response. Over HTTP/1, waits until it is written.
    pub async fn inform(&self, response: Response<()>) {
        match self {
            Self::Connection(connection) => connection.inform(&response).await,
            Self::Stream(exchange) => exchange.inform(response),
        }
    }

    /// Sends `100 Continue` over HTTP/2, for a client that waits for it before it sends the body (`Expect`). Over HTTP/1, the
    /// connection sends it when the body is first read.
    pub fn send_continue(&self) {
        if let Self::Stream(exchange) = self {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::CONTINUE;
            exchange.inform(response);
        }
    }

    /// Opens a tunnel: `handover` gets the byte stream after the response.
    pub fn hand_over(&self, handover: Handover) {
        match self {
            Self::Connection(connection) => connection.hand_over(handover),
            Self::Stream(exchange) => exchange.hand_over(handover),
        }
    }

    /// Returns a function that aborts the response in any state.
    pub fn abort_handle(&self) -> Box<dyn Fn()> {
        match self {
            Self::Connection(connection) => {
                let connection = Rc::downgrade(connection);
                Box::new(move || connection.upgrade().iter().for_each(|connection| connection.abort()))
            }
            Self::Stream(exchange) => exchange.abort_handle(),
        }
    }
}
