//! Judgement: from facts and a policy to a verdict, the same for live traffic, `explain` and the tests.
//!
//! Promises: pure, total and allocation-free. The candidates only shrink: `resolve` finds the home, `residency` makes
//! the clearance, `failover` orders what is left of it. Never: async, a clock, a log line, an error of the world (those
//! arrive as facts). Start reading at [`decide`].

pub mod facts;
mod failover;
pub mod narrate;
pub mod policy;
pub mod residency;
mod resolve;
pub mod route;
pub mod verdict;

use crate::model::outcome::Code;
use crate::model::region::{RegionId, RegionSet};

use facts::{Facts, Head, Ingress};
use policy::{ClassId, ClassSet, Policy};
use route::{Route, RouteMatch};
use verdict::{Decision, Home, Itinerary, Trail, Verdict};

/// Finds the route of a request: the first in the policy's order that matches.
pub fn match_route<'a>(head: &Head<'a>, policy: &Policy) -> RouteMatch<'a> {
    policy.routes.find(head)
}

/// Decides where a request may go, on its head alone.
pub fn decide(facts: &Facts<'_>, policy: &Policy) -> Decision {
    let mut trail = Trail::of(facts);
    let verdict = judge(facts, policy, &mut trail).unwrap_or_else(Verdict::Refuse);
    trail.note_report(&verdict, policy.local);
    Decision { verdict, trail }
}

fn judge(facts: &Facts<'_>, policy: &Policy, trail: &mut Trail) -> Result<Verdict, Code> {
    let route = facts.route.id.map(|id| policy.routes.route(id)).ok_or(Code::RouteNone)?;
    if let Some(public) = policy.public_class().filter(|_| facts.is_preflight && facts.ingress == Ingress::Client) {
        return answer_preflight(public, facts, policy, trail);
    }
    trail.classes = policy.classes_of(route, facts.claim)?;
    let home = resolve::home(facts, policy, route, trail)?;
    let ruling = residency::clear(policy, trail.classes, &home, facts.today);
    trail.note_ruling(&home, &ruling);
    let clearance = ruling.clearance.ok_or(ruling.cause)?;
    if home.region().is_some_and(|region| !clearance.contains(region)) {
        return Err(Code::HomeNotCleared);
    }
    let carriers = ruling.carriers.union(clearance.regions());
    match facts.ingress {
        Ingress::Client => {
            let itinerary = failover::plan(clearance, &home, facts, route.failover)?;
            travel(itinerary, carriers, &home, policy)
        }
        Ingress::Peer(peer) => serve_peer(peer, clearance, carriers, &home, facts, policy),
    }
}

/// A preflight carries nobody's data: it is judged as `public`, and the local region answers.
fn answer_preflight(public: ClassId, facts: &Facts<'_>, policy: &Policy, trail: &mut Trail) -> Result<Verdict, Code> {
    trail.classes = ClassSet::only(public);
    let home = Home::Unowned { jurisdiction: policy.jurisdiction_of_country(facts.country()) };
    let ruling = residency::clear(policy, trail.classes, &home, facts.today);
    trail.note_ruling(&home, &ruling);
    let here = ruling.clearance.and_then(|clearance| clearance.narrow(RegionSet::only(policy.local))).ok_or(ruling.cause)?;
    Ok(Verdict::Proceed(Itinerary::through(here, [policy.local].into_iter()).expect("the clearance holds the local region")))
}

/// Sends a client's request on its way, unless the proxy it came to may not carry it there, or has no way to: then the
/// client goes itself, to the owner, or to the best region for what nobody owns.
fn travel(itinerary: Itinerary, carriers: RegionSet, home: &Home, policy: &Policy) -> Result<Verdict, Code> {
    let first = itinerary.first();
    let has_way = first == policy.local || policy.region(first).has_gateway;
    if carriers.contains(policy.local) && has_way {
        return Ok(Verdict::Proceed(itinerary));
    }
    let may_be_sent = |region: &RegionId| home.region().is_none_or(|owner| owner == *region) && policy.region(*region).has_url;
    itinerary.regions().find(may_be_sent).map(Verdict::Redirect).ok_or(Code::CarrierNotCleared)
}

/// Serves a peer's request here or nowhere: narrowed to the local region, a loop cannot be expressed.
fn serve_peer(
    peer: RegionId,
    clearance: residency::Clearance,
    carriers: RegionSet,
    home: &Home,
    facts: &Facts<'_>,
    policy: &Policy,
) -> Result<Verdict, Code> {
    if !carriers.contains(peer) {
        return Err(Code::CarrierNotCleared);
    }
    let elsewhere = home.region().is_some_and(|region| region != policy.local);
    if elsewhere && !facts.is_read {
        return Err(Code::Misdirected);
    }
    let here = clearance.narrow(RegionSet::only(policy.local)).ok_or(Code::Misdirected)?;
    Ok(Verdict::Proceed(Itinerary::through(here, [policy.local].into_iter()).expect("the clearance holds the local region")))
}

/// Whether an answer that its upstream labelled with `label` may go back to `peer`, whose request `trail` tells of.
///
/// The label's classes join those that the request had: a label can only clear less.
pub fn may_return(trail: &Trail, label: ClassSet, peer: RegionId, policy: &Policy) -> bool {
    let Some(home) = trail.home else { return false };
    let ruling = residency::clear(policy, trail.classes.union(label), &home, trail.today);
    ruling
        .clearance
        .is_some_and(|clearance| clearance.contains(policy.local) && ruling.carriers.union(clearance.regions()).contains(peer))
}

/// The route of a decision, where one matched.
pub fn route_of<'p>(trail: &Trail, policy: &'p Policy) -> Option<&'p Route> {
    trail.route.map(|id| policy.routes.route(id))
}
