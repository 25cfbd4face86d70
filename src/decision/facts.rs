//! What is known of one request when it is judged.

use std::net::IpAddr;

use crate::model::country::CountryCode;
use crate::model::day::Day;
use crate::model::place::Place;
use crate::model::region::RegionId;
use crate::model::user::{Evidence, Proof, Record};
use crate::model::vitals::Vitals;

use super::policy::ClassSet;
use super::route::{Method, RouteMatch};

/// The part of a request that a route is matched against.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    pub method: Method,
    /// In lower case, without port or trailing dot.
    pub host: &'a str,
    /// In the one canonical form; starts with a slash.
    pub path: &'a str,
}

/// Who brought the request, proven by the connection and never by a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ingress {
    Client,
    Peer(RegionId),
}

/// What came of asking for one thing: errors of the world arrive as facts.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Lookup<T> {
    /// Nothing in the chain needs it.
    NotAsked,
    /// The request names no user.
    NoKey,
    Absent,
    /// It could not be asked: never the same as absent.
    Unavailable,
    Found(T),
}

/// What the peer that sent the request says of it; believed only under its certificate.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Claim {
    /// The home it found; `None` when nobody owns the request.
    pub home: Option<RegionId>,
    pub evidence: Option<Evidence>,
    pub country: Option<CountryCode>,
    /// The classes it judged by; `None` if it names one that this policy does not have.
    pub classes: Option<ClassSet>,
}

/// Everything a decision depends on besides the policy.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub route: RouteMatch<'a>,
    pub ingress: Ingress,
    /// A GET or HEAD without an upgrade: what may be repeated and moved.
    pub is_read: bool,
    /// A browser asks whether it may ask (CORS): an OPTIONS without body, key or credentials.
    pub is_preflight: bool,
    /// One reading of the wall clock.
    pub today: Day,
    /// The client's true address.
    pub client: IpAddr,
    pub directory: Lookup<Record>,
    /// The region that the chain's claim of a verified token names; `Unavailable` for one that is no region.
    pub token: Lookup<RegionId>,
    /// What our own sealed cookie remembers of the directory. Where that was not asked, it still holds word for word.
    pub hint: Option<Record>,
    /// How well the user's key is proven, when there is one.
    pub proof: Proof,
    pub place: Lookup<Place>,
    /// The GeoIP database is older than its `max_age`: good for latency, not for residency.
    pub place_is_stale: bool,
    pub claim: Option<&'a Claim>,
    pub vitals: &'a Vitals,
}

impl Facts<'_> {
    /// The country of the client: the peer's word for a peer's request, else what GeoIP found.
    pub fn country(&self) -> Option<CountryCode> {
        match (self.claim, self.place) {
            (Some(claim), _) => claim.country,
            (None, Lookup::Found(place)) => place.country,
            (None, _) => None,
        }
    }
}
