//! Judgement: makes a decision from facts and a policy, the same for live traffic, `explain` and the tests.
//!
//! Promises: pure, total and allocation-free. Each step can only remove regions: `resolve` finds the home, `residency`
//! makes the clearance, regions without the service are left out, and `failover` orders the remaining regions. Never: async, a clock, a log line, an I/O error (failed
//! lookups arrive as facts). Start reading at [`decide`].

#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::wildcard_enum_match_arm
    )
)]

pub mod facts;
mod failover;
pub mod home;
pub mod lines;
pub mod narrate;
pub mod permit;
pub mod policy;
pub mod residency;
mod resolve;
pub mod verdict;

use crate::model::outcome::{Code, Rule};
use crate::model::region::{RegionId, RegionSet};

use facts::{Credential, Facts, Ingress, Lookup};
use home::Home;
use policy::Policy;
use policy::class::ClassSet;
use policy::route::{Head, Route, RouteMatch};
use verdict::{Decision, Itinerary, Trail, Verdict};

/// Finds the route of a request: the first match in the policy's order.
pub fn match_route<'a>(head: &Head<'a>, policy: &Policy) -> RouteMatch<'a> {
    policy.routes.find(head)
}

/// Decides where a request may go, from its head alone.
#[inline(never)] // a stage of benches/stages
pub fn decide(facts: &Facts<'_>, policy: &Policy) -> Decision {
    let mut trail = Trail::of(facts, policy.local);
    let verdict = judge(facts, policy, &mut trail).unwrap_or_else(Verdict::Refuse);
    Decision { verdict, trail }
}

fn judge(facts: &Facts<'_>, policy: &Policy, trail: &mut Trail) -> Result<Verdict, Code> {
    let route = facts.route.id.map(|id| policy.routes.route(id)).ok_or(Code::RouteNone)?;
    if facts.directory == Lookup::Unverifiable {
        return Err(Code::Malformed(Rule::User));
    }
    trail.classes = facts.claimed.ok_or(Code::ClassUnknown)?.union(ClassSet::only(route.class));
    check_credential(facts.credential, policy, trail.classes)?;
    let caller = resolve::home_of_caller(facts, policy, trail)?;
    let found = resolve::home(facts, policy, route, trail)?;
    let home = caller.unwrap_or(found);
    trail.home = Some(home);
    trail.other_home = caller.map(|_| found);
    let ruling = residency::clear(policy, trail.classes, trail.homes(), facts.today, facts.is_preflight);
    trail.note_ruling(&ruling);
    let clearance = ruling.clearance.ok_or(ruling.cause)?;
    if home.region().is_some_and(|region| !clearance.contains(region)) {
        return Err(Code::HomeNotCleared);
    }
    let carriers = ruling.carriers.union(clearance.regions());
    let clearance = clearance.narrow(policy.regions_for(route.service)).ok_or(Code::ServiceMissing)?;
    match facts.ingress {
        Ingress::Client => {
            let itinerary = failover::plan(clearance, &home, facts, route)?;
            forward_or_redirect(itinerary, carriers, &home, policy)
        }
        Ingress::Peer(peer) => serve_peer(peer, clearance, carriers, &home, facts, policy),
    }
}

/// Refuses a token that does not verify and, if the policy says so, a credential of another kind. Such a caller is not
/// anonymous, because the app may accept the credential. Requests for data that may be anywhere are exempt.
fn check_credential(credential: Credential, policy: &Policy, classes: ClassSet) -> Result<(), Code> {
    match credential {
        Credential::Absent | Credential::Verified => Ok(()),
        Credential::Unverifiable | Credential::Unread if policy.may_be_anywhere(classes) => Ok(()),
        Credential::Unverifiable => Err(Code::TokenUnverified),
        Credential::Unread if policy.refuses_unread_credentials => Err(Code::CredentialUnread),
        Credential::Unread => Ok(()),
    }
}

/// Forwards a client's request if the local proxy may carry it and can reach the owner's proxy. Otherwise redirects the
/// client to the owner or, for an unowned request, to the first cleared region with a public URL.
fn forward_or_redirect(itinerary: Itinerary, carriers: RegionSet, home: &Home, policy: &Policy) -> Result<Verdict, Code> {
    let is_reachable = |region| region == policy.local || policy.region(region).has_gateway;
    let may_skip = home.region().is_none();
    if carriers.contains(policy.local)
        && (may_skip || is_reachable(itinerary.first()))
        && let Some(reachable) = itinerary.only(is_reachable)
    {
        return Ok(Verdict::Proceed(reachable));
    }
    let is_owner = |region: RegionId| home.region().is_none_or(|owner| owner == region);
    let may_be_sent = |region: &RegionId| *region != policy.local && is_owner(*region) && policy.region(*region).has_url;
    itinerary.regions().find(may_be_sent).map(Verdict::Redirect).ok_or(Code::CarrierNotCleared)
}

/// Serves a peer's request in the local region or refuses it. The itinerary has no other region, so the request cannot loop.
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

/// The route of a decision, if one matched.
pub fn route_of<'p>(trail: &Trail, policy: &'p Policy) -> Option<&'p Route> {
    trail.route.map(|id| policy.routes.route(id))
}
