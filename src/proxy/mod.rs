//! The data plane: from a connection to a response.
//!
//! Promises: a request is judged on its head before its body is touched, served start to end on one thread, and leaves
//! this region only as its itinerary says. Never: a header field that a stranger could have forged reaches an upstream.
//! Start reading at `request`.

pub mod admission;
pub mod body;
pub mod connection;
pub mod delivery;
pub mod headers;
pub mod ingress;
pub mod intake;
mod limits;
pub mod reply;
pub mod request;
pub mod worker;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use crate::decision::policy::Policy;
use crate::engine;
use crate::model::region::RegionId;
use crate::session::Seal;
use crate::tokens::Tokens;
use crate::transport::dial::Server;
use crate::transport::tls::{ClientTls, PeerTls};
use crate::upstreams::Upstreams;

pub use limits::Limits;

/// Everything that requests are served by; replaced whole, never changed.
pub struct Snapshot {
    /// The basis of judgement.
    pub judging: Arc<engine::snapshot::Snapshot>,
    pub intake: intake::Settings,
    pub limits: Limits,
    pub privacy: Privacy,
    /// Origins whose CORS preflights this proxy answers where the user cannot be known; see `request`.
    pub cors_origins: Vec<Box<str>>,
    pub tokens: Option<Arc<Tokens>>,
    pub seal: Option<Arc<Seal>>,
    pub upstreams: Arc<Upstreams>,
    pub gateways: HashMap<RegionId, Server>,
    /// The certificates of every listener for clients.
    pub sites: Vec<Arc<ClientTls>>,
    /// The certificates by which peers prove their regions.
    pub peers: Option<Arc<PeerTls>>,
    pub urls: HashMap<RegionId, http::Uri>,
    pub log_requests: bool,
    /// How long the port for peers stays open at the drain, so that their probes learn of it.
    pub drain_notice: Duration,
}

impl Snapshot {
    pub fn policy(&self) -> &Policy {
        &self.judging.policy
    }
}

/// The rules on what the proxy reveals to clients and peers.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Privacy {
    /// Refusals and redirects that depend on a user's record look the same to callers who have not proven who they are.
    pub uniform_refusals: bool,
    /// Tracing header fields that cross a border all the same.
    pub tracing_across_borders: Vec<HeaderName>,
}

/// The life of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Serving,
    /// It takes no new requests, and no other process serves the region.
    Draining,
    /// It takes no new requests, because a successor does.
    Succeeded,
}
