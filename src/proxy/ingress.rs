//! A connection, as its requests see it: whose it is, what was shown on it, which rules hold for all that come in there.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderValue;
use ipnet::IpNet;

use crate::transport::framing::Signals;
use crate::transport::tls::{Challenges, Site};

use super::intake::Arrival;

/// What holds for all that come in here.
#[derive(Clone, Default)]
pub struct HouseRules {
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
pub struct Session {
    pub arrival: Arrival,
    /// The certificate that was shown; `None` without TLS, and for peers.
    pub site: Option<Site>,
    /// `Client-Cert` (RFC 9440), for a client that has proven one.
    pub client_certificate: Option<HeaderValue>,
    pub house_rules: Arc<HouseRules>,
    pub signals: Rc<Signals>,
    /// The tasks that serve the streams of HTTP/2.
    pub streams: RefCell<HashMap<tokio::task::Id, tokio::task::AbortHandle>>,
}

impl Session {
    pub fn new(
        arrival: Arrival,
        (site, client_certificate): (Option<Site>, Option<HeaderValue>),
        house_rules: Arc<HouseRules>,
        signals: Rc<Signals>,
    ) -> Self {
        Self { arrival, site, client_certificate, house_rules, signals, streams: RefCell::default() }
    }

    /// Ends what the current task serves: the stream of HTTP/2, or the connection of HTTP/1.
    pub fn cutter(&self) -> Box<dyn Fn()> {
        let stream = tokio::task::try_id().and_then(|id| self.streams.borrow().get(&id).cloned());
        let signals = Rc::clone(&self.signals);
        Box::new(move || match &stream {
            Some(stream) => stream.abort(),
            None => signals.cut.notify_waiters(),
        })
    }
}
