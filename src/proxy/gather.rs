//! Gathers what a decision depends on. The same for live requests and for `explain`.

use std::net::IpAddr;
use std::time::SystemTime;

use crate::decision::facts::{Claim, Facts, Ingress, Lookup};
use crate::decision::policy::{ClassSet, Policy, Step};
use crate::decision::route::RouteMatch;
use crate::envelope::Envelope;
use crate::model::day::Day;
use crate::model::place::Place;
use crate::model::region::RegionId;
use crate::model::user::{Evidence, Proof, Record};
use crate::model::vitals::Vitals;
use crate::session::Hint;

use super::Snapshot;
use super::intake::{Identity, decode_segment};

/// What is asked about.
pub struct Question<'a> {
    pub route: RouteMatch<'a>,
    pub ingress: Ingress,
    pub is_read: bool,
    pub is_preflight: bool,
    pub client: IpAddr,
    pub identity: &'a Identity,
    /// What the caller's cookie remembers, where that may count.
    pub hint: Option<&'a Hint>,
    pub envelope: Option<&'a Envelope>,
    pub now: SystemTime,
}

/// What was found. Borrowed by the facts that are made of it.
pub struct Findings {
    /// The user whose data is touched: the route's `{user}`, else the caller.
    pub user: Option<(String, Proof)>,
    pub directory: Lookup<Record>,
    /// The directory was not asked, since the hint is its word still.
    pub is_remembered: bool,
    token: Lookup<RegionId>,
    hint: Option<Record>,
    pub place: Lookup<Place>,
    place_is_stale: bool,
    claim: Option<Claim>,
}

/// Asks the directory if the route's chain mentions it, and the GeoIP database for the client.
pub fn gather(question: &Question<'_>, snapshot: &Snapshot) -> Findings {
    let named = question.route.user.and_then(decode_segment).map(|user| (user, Proof::Proven));
    let user = named.or_else(|| question.identity.user.clone());
    let claim = question.envelope.map(|envelope| claim(envelope, &snapshot.policy));
    let stated = snapshot.policy.geo.networks.find(question.client).and_then(|network| network.country);
    let (place, is_from_database) = match (&claim, stated) {
        (Some(claim), _) => (claim.country.map_or(Lookup::Absent, |country| Lookup::Found(Place::in_country(country))), false),
        // An operator's country for its own network.
        (None, Some(country)) => (Lookup::Found(Place::in_country(country)), false),
        (None, None) => (place(question.client, snapshot), true),
    };
    let hint = hint(question, user.as_ref(), &snapshot.policy);
    let is_remembered = hint.is_some() && saves_lookup(question, snapshot);
    Findings {
        directory: if is_remembered { Lookup::NotAsked } else { directory(question, user.as_ref(), snapshot) },
        is_remembered,
        token: token(question, snapshot),
        hint,
        user,
        place,
        place_is_stale: is_from_database && is_stale(snapshot, question.now),
        claim,
    }
}

impl Findings {
    /// The facts of a decision.
    pub fn facts<'a>(&'a self, question: &Question<'a>, vitals: &'a Vitals) -> Facts<'a> {
        Facts {
            route: question.route,
            ingress: question.ingress,
            is_read: question.is_read,
            is_preflight: question.is_preflight,
            today: Day::of(question.now),
            client: question.client,
            directory: self.directory,
            token: self.token,
            hint: self.hint,
            proof: self.user.as_ref().map_or(Proof::Claimed, |(_, proof)| *proof),
            place: self.place,
            place_is_stale: self.place_is_stale,
            claim: self.claim.as_ref(),
            vitals,
        }
    }
}

fn directory(question: &Question<'_>, user: Option<&(String, Proof)>, snapshot: &Snapshot) -> Lookup<Record> {
    let chain = question.route.id.map(|id| &snapshot.policy.routes.route(id).chain);
    if !chain.is_some_and(|chain| chain.contains(&Step::Directory)) {
        return Lookup::NotAsked;
    }
    match (user, &snapshot.directory) {
        (None, _) => Lookup::NoKey,
        (Some(_), None) => Lookup::Unavailable,
        (Some((key, _)), Some(directory)) => directory.find(key).map_or(Lookup::Absent, Lookup::Found),
    }
}

/// The region that the route's claim names.
fn token(question: &Question<'_>, snapshot: &Snapshot) -> Lookup<RegionId> {
    let Some(claim) = question.route.id.and_then(|id| snapshot.policy.routes.route(id).claim.as_deref()) else {
        return Lookup::NotAsked;
    };
    let Some(token) = &question.identity.token else { return Lookup::NoKey };
    let Some(name) = token.claim(claim) else { return Lookup::Absent };
    snapshot.policy.find_region(&name).map_or(Lookup::Unavailable, Lookup::Found)
}

/// The record of the hint, if it is about the user whose data is touched.
fn hint(question: &Question<'_>, user: Option<&(String, Proof)>, policy: &Policy) -> Option<Record> {
    let hint = question.hint.filter(|hint| user.is_some_and(|(key, _)| *key == hint.user))?;
    let named = |name: &str| policy.jurisdictions().find(|(_, known)| *known == name).map(|(id, _)| id);
    let jurisdiction = match hint.jurisdiction.as_deref() {
        None => None,
        Some(name) => Some(named(name)?),
    };
    Some(Record { home: policy.find_region(&hint.home)?, jurisdiction })
}

/// Whether the directory need not be asked what the hint remembers: the table is still the one that said so, and the data needs no more
/// than the assertion that a cookie is.
fn saves_lookup(question: &Question<'_>, snapshot: &Snapshot) -> bool {
    let is_current = question.hint.zip(snapshot.directory.as_ref()).is_some_and(|(hint, table)| hint.table == table.version());
    let route = question.route.id.map(|id| snapshot.policy.routes.route(id));
    let route = route.filter(|route| route.chain.contains(&Step::Directory));
    is_current && route.is_some_and(|route| snapshot.policy.is_unlocked(route, Evidence::Asserted))
}

/// What the database knows of an address.
fn place(client: IpAddr, snapshot: &Snapshot) -> Lookup<Place> {
    match &snapshot.geoip {
        None => Lookup::NotAsked,
        Some(geoip) => geoip.place(client).map_or(Lookup::Absent, Lookup::Found),
    }
}

fn is_stale(snapshot: &Snapshot, now: SystemTime) -> bool {
    match (&snapshot.geoip, snapshot.geoip_max_age) {
        (Some(geoip), Some(most)) => geoip.age(now) > most,
        _ => false,
    }
}

/// A peer's words in this policy's numbers.
fn claim(envelope: &Envelope, policy: &Policy) -> Claim {
    let classes = envelope
        .classes
        .iter()
        .try_fold(ClassSet::EMPTY, |classes, name| policy.find_class(name).map(|class| classes.union(ClassSet::only(class))));
    Claim {
        home: envelope.home.as_deref().and_then(|name| policy.find_region(name)),
        evidence: envelope.evidence,
        country: envelope.country,
        classes,
    }
}
