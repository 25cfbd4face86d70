//! The facts about one request when it is judged.

use std::net::IpAddr;

use crate::model::country::CountryCode;
use crate::model::day::Day;
use crate::model::place::Place;
use crate::model::region::RegionId;
use crate::model::user::{Evidence, Proof, Record};
use crate::model::vitals::Vitals;

use super::policy::class::ClassSet;
use super::policy::route::RouteMatch;

/// The sender of the request, proven by the connection and never by a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ingress {
    Client,
    Peer(RegionId),
}

/// The result of looking one thing up: errors of the world arrive as facts.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Lookup<T> {
    /// Nothing in the chain needs it.
    NotAsked,
    /// The request names no user.
    NoKey,
    Absent,
    /// It could not be asked: never the same as absent.
    Unavailable,
    /// The request presents it in a form that cannot be read or verified.
    Unverifiable,
    Found(T),
}

/// The home and the country that the sending peer found; believed only under its certificate.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct PeerStatement {
    /// `None` when nobody owns the request.
    pub home: Option<RegionId>,
    pub evidence: Option<Evidence>,
    pub country: Option<CountryCode>,
}

/// Whether the request presents a credential that this process can read.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Credential {
    /// No credential, or no tokens are configured.
    #[default]
    Absent,
    Verified,
    /// A token that does not verify: expired, unknown key, presented twice or malformed.
    Unverifiable,
    /// A credential of another kind, such as Basic: the app may read it, this process cannot.
    Unread,
}

/// Everything a decision depends on besides the policy.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub route: RouteMatch<'a>,
    pub ingress: Ingress,
    /// A GET or HEAD without an upgrade: what may be repeated and moved.
    pub is_read: bool,
    /// One reading of the wall clock.
    pub today: Day,
    /// The client's true address.
    pub client: IpAddr,
    /// The record of the user whose data is touched: the route's `{user}`, else the caller. `Unverifiable` for a `{user}`
    /// segment that cannot be decoded.
    pub directory: Lookup<Record>,
    /// The caller's own record, asked where the path names a user whom the directory does not have.
    pub caller: Lookup<Record>,
    pub caller_proof: Proof,
    /// The region that the chain's claim of a verified token names; `Unavailable` if the claim names no region.
    pub token: Lookup<RegionId>,
    pub credential: Credential,
    /// The directory record in our own sealed cookie. Where the directory was not asked, the record still holds unchanged.
    pub hint: Option<Record>,
    /// How well the key of the user in `directory` is proven.
    pub proof: Proof,
    pub place: Lookup<Place>,
    /// The GeoIP database is older than its `max_age`: good for latency, not for residency.
    pub place_is_stale: bool,
    pub peer: Option<&'a PeerStatement>,
    /// The classes claimed besides the route's: by the peer, and by the label of a response. `None` if one of them is not
    /// a class of this policy.
    pub claimed: Option<ClassSet>,
    pub vitals: &'a Vitals,
}

impl Facts<'_> {
    /// The country of the client: the peer's word for a peer's request, else what GeoIP found.
    pub fn country(&self) -> Option<CountryCode> {
        match (self.peer, self.place) {
            (Some(statement), _) => statement.country,
            (None, Lookup::Found(place)) => place.country,
            (None, _) => None,
        }
    }
}
