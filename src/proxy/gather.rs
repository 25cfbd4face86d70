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
use crate::model::user::{Proof, Record};
use crate::model::vitals::Vitals;

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
    pub envelope: Option<&'a Envelope>,
    pub now: SystemTime,
}

/// What was found. Borrowed by the facts that are made of it.
pub struct Findings {
    /// The user whose data is touched: the route's `{user}`, else the caller.
    pub user: Option<(String, Proof)>,
    pub directory: Lookup<Record>,
    token: Lookup<RegionId>,
    hint: Option<RegionId>,
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
    Findings {
        directory: directory(question, user.as_ref(), snapshot),
        token: token(question, snapshot),
        hint: hint(question, user.as_ref(), &snapshot.policy),
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

/// The hint's home, if it is about the user whose data is touched.
fn hint(question: &Question<'_>, user: Option<&(String, Proof)>, policy: &Policy) -> Option<RegionId> {
    let hint = question.identity.hint.as_ref().filter(|hint| user.is_some_and(|(key, _)| *key == hint.user))?;
    policy.find_region(&hint.home)
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
