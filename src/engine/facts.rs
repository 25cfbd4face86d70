//! Makes the facts of a decision, for live requests, `explain`, the case book, the property tests and the benches alike.

use std::net::IpAddr;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::decision::facts::{Facts, Lookup, PeerStatement};
use crate::decision::match_route;
use crate::decision::policy::Policy;
use crate::decision::policy::chain::Step;
use crate::decision::policy::class::ClassSet;
use crate::decision::policy::route::{Head, Route, RouteMatch};
use crate::directory::{Answer, Directory};
use crate::model::day::Day;
use crate::model::place::Place;
use crate::model::region::RegionId;
use crate::model::user::{Evidence, Proof, Record};
use crate::model::vitals::Vitals;
use crate::peer::Envelope;

use super::path::decode_segment;
use super::question::Question;
use super::snapshot::{JudgingSnapshot, Moment};

/// Maximum time of a directory lookup; a slower directory counts as unavailable.
pub const DIRECTORY_DEADLINE: Duration = Duration::from_secs(1);

/// The results of all lookups for one request. The facts borrow from them.
pub struct Findings<'q> {
    question: &'q Question,
    route: RouteMatch<'q>,
    today: Day,
    /// The user whose data is touched: the route's `{user}`, else the caller.
    pub user: Option<(String, Proof)>,
    pub directory: Lookup<Record>,
    /// The caller's own record, looked up only if the path names a user who is not in the directory.
    pub caller: Lookup<Record>,
    /// The directory was not asked, because the sealed cookie was issued from the current table.
    pub is_from_hint: bool,
    token: Lookup<RegionId>,
    caller_token: Lookup<RegionId>,
    hint: Option<Record>,
    pub place: Lookup<Place>,
    place_is_stale: bool,
    statement: Option<PeerStatement>,
    claimed: Option<ClassSet>,
}

/// The user whose data a request touches.
enum Subject {
    /// The user that the path names.
    Named(String),
    Caller,
    /// The path has a user segment that cannot be decoded.
    Undecodable,
}

/// Looks up everything that the decision about a request depends on. `labels` are the data classes of the response; they
/// are empty before there is a response.
pub async fn find<'q>(question: &'q Question, labels: &[Box<str>], moment: &Moment) -> Findings<'q> {
    let snapshot = &*moment.snapshot;
    let policy = &snapshot.policy;
    let (host, path, fields) = (&question.host, &question.path, &question.fields);
    let head = Head { method: question.method, host, path, client: question.client, fields };
    let matched = match_route(&head, policy);
    let route = matched.id.map(|id| policy.routes.route(id));
    let caller = question.identity.caller.as_ref();
    let subject = subject(matched.user, route);
    let user = match &subject {
        Subject::Named(name) => Some((name.clone(), Proof::Proven)),
        Subject::Caller => caller.cloned(),
        Subject::Undecodable => None,
    };
    let key = user.as_ref().map(|(key, _)| key.as_str());
    let hint = hint(question, key, policy);
    let claimed = claimed(question.envelope.as_ref(), labels, policy);
    let is_from_hint = hint.is_some() && saves_lookup(question, route, claimed, snapshot);
    let asks_directory = route.is_some_and(|route| route.chain.contains(&Step::Directory));
    let directory = match (&subject, asks_directory && !is_from_hint) {
        (Subject::Undecodable, _) => Lookup::Unverifiable,
        (_, false) => Lookup::NotAsked,
        (_, true) => ask(snapshot.directory.as_deref(), key).await,
    };
    let other = caller.filter(|(caller, _)| Some(caller.as_str()) != key);
    let caller = match (&subject, directory, other) {
        (Subject::Named(_), Lookup::Absent, Some((caller, _))) => ask(snapshot.directory.as_deref(), Some(caller)).await,
        _ => Lookup::NotAsked,
    };
    let has_record = matches!(directory, Lookup::Found(_)) || matches!(caller, Lookup::Found(_)) || is_from_hint;
    let caller_token = match (&subject, directory) {
        (Subject::Named(name), Lookup::Absent | Lookup::NotAsked) if !has_record && !is_holder(question, name) => {
            claimed_home(question, route, policy)
        }
        _ => Lookup::NotAsked,
    };
    let statement = question.envelope.as_ref().map(|envelope| statement(envelope, policy));
    let (place, is_from_database) = place(question.client, statement.as_ref(), snapshot);
    Findings {
        question,
        route: matched,
        today: moment.today,
        directory,
        caller,
        is_from_hint,
        token: token(question, &subject, route, policy),
        caller_token,
        hint,
        user,
        place,
        place_is_stale: is_from_database && moment.geoip_is_stale,
        statement,
        claimed,
    }
}

impl Findings<'_> {
    /// The facts of the decision.
    pub fn facts<'a>(&'a self, vitals: &'a Vitals) -> Facts<'a> {
        let identity = &self.question.identity;
        Facts {
            route: self.route,
            ingress: self.question.ingress,
            is_preflight: self.question.is_preflight,
            is_read: self.question.is_read,
            today: self.today,
            client: self.question.client,
            directory: self.directory,
            caller: self.caller,
            caller_proof: identity.caller.as_ref().map_or(Proof::Claimed, |(_, proof)| *proof),
            token: self.token,
            caller_token: self.caller_token,
            credential: identity.credential,
            hint: self.hint,
            proof: self.user.as_ref().map_or(Proof::Claimed, |(_, proof)| *proof),
            place: self.place,
            place_is_stale: self.place_is_stale,
            peer: self.statement.as_ref(),
            claimed: self.claimed,
            vitals,
        }
    }
}

fn subject(segment: Option<&str>, route: Option<&Route>) -> Subject {
    let Some(segment) = segment else { return Subject::Caller };
    let Some(name) = decode_segment(segment) else { return Subject::Undecodable };
    let is_alias = route.is_some_and(|route| route.aliases.iter().any(|alias| **alias == *name));
    if is_alias { Subject::Caller } else { Subject::Named(name) }
}

/// Looks up one key in the directory, for at most [`DIRECTORY_DEADLINE`].
async fn ask(directory: Option<&Directory>, key: Option<&str>) -> Lookup<Record> {
    let Some(key) = key else { return Lookup::NoKey };
    let Some(directory) = directory else { return Lookup::Unavailable };
    let mut answer = pin!(directory.find(key));
    // A table in memory responds at once, and needs no timer.
    let answer = match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => tokio::time::timeout(DIRECTORY_DEADLINE, answer).await.unwrap_or(Answer::Unavailable),
    };
    match answer {
        Answer::Found(record) => Lookup::Found(record),
        Answer::Absent => Lookup::Absent,
        Answer::Unavailable => Lookup::Unavailable,
    }
}

/// The region that the route's claim of the token names. A token states the home of its holder, so it says nothing about
/// another user whom the path names.
fn token(question: &Question, subject: &Subject, route: Option<&Route>, policy: &Policy) -> Lookup<RegionId> {
    match subject {
        Subject::Named(name) if !is_holder(question, name) => Lookup::NoKey,
        Subject::Named(_) | Subject::Caller | Subject::Undecodable => claimed_home(question, route, policy),
    }
}

/// Whether a user is the proven caller.
fn is_holder(question: &Question, name: &str) -> bool {
    question.identity.caller.as_ref().is_some_and(|(caller, proof)| caller == name && *proof == Proof::Proven)
}

/// The region that the route's claim of the caller's token names.
fn claimed_home(question: &Question, route: Option<&Route>, policy: &Policy) -> Lookup<RegionId> {
    let asks = route.filter(|route| route.chain.contains(&Step::Token));
    let Some(claim) = asks.and_then(|route| route.claim.as_deref()) else { return Lookup::NotAsked };
    let Some(token) = &question.identity.token else { return Lookup::NoKey };
    let Some(name) = token.claim(claim) else { return Lookup::Absent };
    policy.find_region(&name).map_or(Lookup::Unavailable, Lookup::Found)
}

/// The record in the hint, if it is about the user whose data is touched.
fn hint(question: &Question, key: Option<&str>, policy: &Policy) -> Option<Record> {
    let hint = question.identity.hint.as_ref().filter(|_| !question.ignores_hint.get());
    let hint = hint.filter(|hint| key == Some(hint.user.as_str()))?;
    let named = |name: &str| policy.jurisdictions().find(|(_, known)| *known == name).map(|(id, _)| id);
    let jurisdiction = match hint.jurisdiction.as_deref() {
        None => None,
        Some(name) => Some(named(name)?),
    };
    Some(Record { home: policy.find_region(&hint.home)?, jurisdiction })
}

/// Whether the hint replaces the directory lookup: it was issued from the current table, and the evidence `Asserted` is enough
/// for every class of the message.
fn saves_lookup(question: &Question, route: Option<&Route>, claimed: Option<ClassSet>, snapshot: &JudgingSnapshot) -> bool {
    let table = snapshot.table_version();
    let is_current = question.identity.hint.as_ref().is_some_and(|hint| Some(hint.table) == table);
    let asks = route.filter(|route| route.chain.contains(&Step::Directory));
    let (Some(route), Some(claimed), true) = (asks, claimed, is_current) else { return false };
    let classes = claimed.union(ClassSet::only(route.class));
    classes.iter().all(|class| snapshot.policy.class(class).rule.needs <= Evidence::Asserted)
}

/// The place of the client, and whether it was looked up in the database.
fn place(client: IpAddr, statement: Option<&PeerStatement>, snapshot: &JudgingSnapshot) -> (Lookup<Place>, bool) {
    if let Some(statement) = statement {
        return (statement.country.map_or(Lookup::Absent, |country| Lookup::Found(Place::in_country(country))), false);
    }
    // The country that the operator gives for a network outranks the database.
    if let Some(country) = snapshot.policy.geo.networks.find(client).and_then(|network| network.country) {
        return (Lookup::Found(Place::in_country(country)), false);
    }
    match &snapshot.geoip {
        None => (Lookup::NotAsked, true),
        Some(geoip) => (geoip.place(client).map_or(Lookup::Absent, Lookup::Found), true),
    }
}

/// The peer's statement, with the names resolved to the numbers of this policy.
fn statement(envelope: &Envelope, policy: &Policy) -> PeerStatement {
    PeerStatement {
        home: envelope.home.as_deref().and_then(|name| policy.find_region(name)),
        evidence: envelope.evidence,
        country: envelope.country,
    }
}

/// The classes claimed in addition to the route's; `None` if one of them is not a class of this policy.
fn claimed(envelope: Option<&Envelope>, labels: &[Box<str>], policy: &Policy) -> Option<ClassSet> {
    let by_peer = envelope.into_iter().flat_map(|envelope| envelope.classes.iter().map(String::as_str));
    let names = by_peer.chain(labels.iter().map(|label| &**label));
    let mut classes = ClassSet::EMPTY;
    for name in names {
        classes = classes.union(ClassSet::only(policy.find_class(name)?));
    }
    Some(classes)
}
