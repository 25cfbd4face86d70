//! The facts about one request that a decision depends on.

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

/// The result of one lookup. A failed lookup is also a fact, so that every request gets a decision.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Lookup<T> {
    /// No lookup was made, because the decision does not need it or GeoIP is not configured.
    NotAsked,
    /// The request names no user, or has no verified token.
    NoKey,
    Absent,
    /// The lookup failed. Never the same as `Absent`, because a record may exist.
    Unavailable,
    /// The request contains the key in a form that cannot be decoded or verified.
    Unverifiable,
    Found(T),
}

/// The home and the country that the sending peer found; trusted only under the peer's certificate.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct PeerStatement {
    /// `None` if no region owns the request.
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
    /// A credential of another kind, such as Basic, which the app can verify and this process cannot.
    Unread,
}

/// Everything a decision depends on besides the policy.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub route: RouteMatch<'a>,
    pub ingress: Ingress,
    /// A CORS preflight, which names no user: browsers send it without credentials.
    pub is_preflight: bool,
    /// A GET or HEAD without an upgrade. Only a read may be repeated or fail over to another region.
    pub is_read: bool,
    /// The current day in UTC.
    pub today: Day,
    /// The client's own address, not that of a proxy in front of this one.
    pub client: IpAddr,
    /// The record of the user whose data is touched: the route's `{user}`, else the caller. `Unverifiable` for a `{user}`
    /// segment that cannot be decoded.
    pub directory: Lookup<Record>,
    /// The caller's own record, looked up only if the path names a user who is not in the directory.
    pub caller: Lookup<Record>,
    pub caller_proof: Proof,
    /// The region that the route's claim of a verified token names; `Unavailable` if the claim names no region.
    pub token: Lookup<RegionId>,
    /// The same for the caller, read only if the path names another user who has no record.
    pub caller_token: Lookup<RegionId>,
    pub credential: Credential,
    /// The directory record in our own sealed cookie. If the directory was not asked, the record is still current.
    pub hint: Option<Record>,
    /// How well the key of the user in `directory` is proven.
    pub proof: Proof,
    pub place: Lookup<Place>,
    /// The GeoIP database is older than its `max_age`: it still selects a region, but proves no jurisdiction.
    pub place_is_stale: bool,
    pub peer: Option<&'a PeerStatement>,
    /// The classes claimed in addition to the route's, by the peer and by the labels of a response. `None` if one of them
    /// is not a class of this policy.
    pub claimed: Option<ClassSet>,
    pub vitals: &'a Vitals,
}

impl Facts<'_> {
    /// The country of the client: from the peer for a peer's request, otherwise from GeoIP.
    pub fn country(&self) -> Option<CountryCode> {
        match (self.peer, self.place) {
            (Some(statement), _) => statement.country,
            (None, Lookup::Found(place)) => place.country,
            (None, _) => None,
        }
    }
}
