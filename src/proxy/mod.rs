//! The data plane: from a connection to a response.
//!
//! Promises: a request is judged on its head before its body is read, served from start to end on one thread, and leaves this
//! region only as its itinerary says. Never: a header that a client could have forged reaches an upstream.
//! Start reading at `request`.

pub mod actions;
pub mod admission;
pub mod body;
pub mod connection;
pub mod headers;
pub mod ingress;
pub mod intake;
mod limits;
pub mod read_monitor;
pub mod reply;
pub mod request;
mod warnings;
pub mod worker;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use crate::decision::policy::Policy;
use crate::engine;
use crate::http::pool::Gateway;
use crate::model::region::RegionId;
use crate::model::vitals::Vitals;
use crate::passwords::Passwords;
use crate::services::Services;
use crate::session::Seal;
use crate::tokens::Tokens;
use crate::transport::tls::{ClientTls, PeerTls};

use actions::Actions;
use admission::overload;
use headers::Exposure;

pub use limits::Limits;

/// The configuration and the tables that requests are served with. A reload replaces the whole snapshot and never modifies it.
pub struct Snapshot {
    /// The policy and the tables that decisions are made from.
    pub judging: Arc<engine::snapshot::JudgingSnapshot>,
    pub intake: intake::Settings,
    pub limits: Limits,
    pub overload: overload::Settings,
    pub privacy: Privacy,
    /// Origins whose CORS preflights this proxy answers itself if the user cannot be determined; see `request`.
    pub cors_origins: Vec<Box<str>>,
    /// The actions of the policy's routes, by their numbers.
    pub actions: Vec<Option<Arc<Actions>>>,
    /// The password files that the actions name.
    pub passwords: HashMap<PathBuf, Arc<Passwords>>,
    pub tokens: Option<Arc<Tokens>>,
    pub seal: Option<Arc<Seal>>,
    pub services: Arc<Services>,
    pub gateways: HashMap<RegionId, Gateway>,
    /// The certificates of every listener for clients.
    pub sites: Vec<Arc<ClientTls>>,
    /// The certificates with which peers prove their regions.
    pub peers: Option<Arc<PeerTls>>,
    pub urls: HashMap<RegionId, http::Uri>,
    /// How long the listener for peers stays open during a drain, so that the probes of peers detect the drain.
    pub drain_notice: Duration,
}

/// The usual round trip per kilometre: light in fibre takes 10 us for both ways, and cables are longer than the great circle.
const ROUND_TRIP_PER_KM: Duration = Duration::from_micros(15);

impl Snapshot {
    pub fn policy(&self) -> &Policy {
        &self.judging.policy
    }

    /// The measured round trip to a region, or an estimate from its distance until it is measured.
    pub fn round_trip_to(&self, region: RegionId, vitals: &Vitals) -> Duration {
        let policy = self.policy();
        let estimate = || {
            let km = policy.region(policy.local).at.distance_km(policy.region(region).at);
            ROUND_TRIP_PER_KM.mul_f32(km)
        };
        vitals.region(region).round_trip.unwrap_or_else(estimate)
    }
}

/// Limits on what the proxy reveals to clients and peers.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Privacy {
    /// Unauthenticated callers get the same response for all refusals and redirects that depend on a user's record.
    pub uniform_refusals: bool,
    /// Tracing headers that are not removed at a border.
    pub tracing_across_borders: Vec<HeaderName>,
    /// The clients that see how their requests were handled.
    pub exposure: Exposure,
}

/// The state of the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Serving,
    /// The process accepts no new requests, and no other process serves the region.
    Draining,
    /// The process accepts no new requests, because its successor does.
    Succeeded,
}
