//! A connection, as its requests see it: whose it is, what was shown on it, which rules hold for all that come in there.

use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderValue, Response, StatusCode};
use ipnet::IpNet;
use rustls_pki_types::CertificateDer;

use crate::http::framing::{ConnectionState, Handover};
use crate::http::http2::Exchange;
use crate::http::window::Buffers;
use crate::transport::tls::{Challenges, Site};

use super::intake::Arrival;

/// The options of a listener, which hold for all its connections.
#[derive(Clone, Default)]
pub struct ListenerOptions {
    /// Networks whose connections begin with a header of the PROXY protocol; then all have to.
    pub proxy_protocol: Option<Vec<IpNet>>,
    /// The port of HTTPS that every client is sent to.
    pub redirect: Option<u16>,
    /// `Strict-Transport-Security`, said with every answer.
    pub hsts: Option<HeaderValue>,
    /// Answers to an ACME server, on listeners in the clear.
    pub challenges: Option<Arc<Challenges>>,
}

/// A connection, as its requests see it.
pub struct ConnectionContext {
    pub arrival: Arrival,
    /// The certificate that was shown; `None` without TLS, and for peers.
    pub site: Option<Site>,
    /// The certificate that a client has proven (DER).
    pub client_certificate: Option<Vec<u8>>,
    /// By what a peer has proven its region.
    pub peer_chain: Vec<CertificateDer<'static>>,
    pub options: Arc<ListenerOptions>,
    pub connection_state: Rc<ConnectionState>,
    /// The flow-control budget that its requests share.
    pub buffers: Rc<Buffers>,
}

/// The way back to whoever made a request, besides the answer itself.
#[derive(Clone)]
pub enum ResponseChannel {
    /// HTTP/1: the connection, which serves one request at a time.
    Connection(Rc<ConnectionState>),
    /// HTTP/2: the request's own stream.
    Stream(Rc<Exchange>),
}

impl ResponseChannel {
    /// Sends an interim answer before the answer.
    pub async fn inform(&self, answer: Response<()>) {
        match self {
            Self::Connection(connection_state) => connection_state.inform(&answer).await,
            Self::Stream(exchange) => exchange.inform(answer),
        }
    }

    /// Asks for the body that a client holds back until then (`Expect`). Over HTTP/1 hyper asks when the body is read.
    pub fn ask_for_body(&self) {
        if let Self::Stream(exchange) = self {
            let mut answer = Response::new(());
            *answer.status_mut() = StatusCode::CONTINUE;
            exchange.inform(answer);
        }
    }

    /// Has the bytes that follow the answer given to `handover`: it opens a tunnel.
    pub fn hand_over(&self, handover: Handover) {
        match self {
            Self::Connection(connection_state) => connection_state.hand_over(handover),
            Self::Stream(exchange) => exchange.hand_over(handover),
        }
    }

    /// Breaks the answer off, wherever it stands.
    pub fn cutter(&self) -> Box<dyn Fn()> {
        match self {
            Self::Connection(connection_state) => {
                let connection_state = Rc::clone(connection_state);
                Box::new(move || connection_state.cut.notify_waiters())
            }
            Self::Stream(exchange) => exchange.cutter(),
        }
    }
}
