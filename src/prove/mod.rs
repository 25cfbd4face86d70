//! Proves statements about a policy for every situation, through the same judgement as live traffic.
//!
//! Promises: a statement that is broken in some situation is found to be broken, with such a situation. Situations that judgement
//! cannot tell apart are judged once; the reductions are explained where they are made, and compared with random situations in
//! the tests. Never: a clock, a file. Start reading at [`prove`].

mod assertion;
mod lookups;

use std::collections::{BTreeMap, HashSet};

use crate::decision::decide;
use crate::decision::facts::{Credential, Facts, Ingress, Lookup};
use crate::decision::narrate;
use crate::decision::policy::Policy;
use crate::decision::policy::chain::{Reads, Step};
use crate::decision::policy::class::ClassSet;
use crate::decision::policy::route::{RouteId, RouteMatch};
use crate::decision::policy::rule::{Mode, Stays};
use crate::decision::residency;
use crate::decision::verdict::{Decision, Verdict};
use crate::model::day::Day;
use crate::model::region::{RegionId, RegionSet};
use crate::model::user::{Evidence, Proof};
use crate::model::vitals::{Health, RegionVitals, Vitals};

use assertion::Properties;
pub use assertion::{About, Assertion, Claim};
pub use lookups::Sources;
use lookups::{Found, Lookups};

/// The most assertions of one policy.
pub const MAX_ASSERTIONS: usize = 128;

/// A kind of request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// A GET or HEAD without an upgrade.
    Read,
    Write,
    /// A CORS preflight, which is judged as the method that it asks about.
    Preflight,
}

/// Every kind, and whether requests of the kind may leave their home as reads do.
const KINDS: [(Kind, bool); 4] = [(Kind::Read, true), (Kind::Write, false), (Kind::Preflight, true), (Kind::Preflight, false)];

impl Kind {
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Preflight];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Preflight => "preflight",
        }
    }
}

/// The result of a proof.
#[derive(Debug, Default)]
pub struct Proven {
    /// The situations that were judged.
    pub situations: u64,
    /// For each statement that is broken, the first situation in which it is. `None` is the promise of every policy: no request and
    /// no client leaves the clearance.
    pub broken: Vec<(Option<usize>, Story)>,
    /// The assertions that are about no request.
    pub idle: Vec<usize>,
}

/// A situation and its decision, in words.
#[derive(Debug)]
pub struct Story {
    pub title: String,
    /// Headings, and what they say.
    pub lines: Vec<(&'static str, String)>,
}

impl std::fmt::Display for Story {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}", self.title)?;
        self.lines.iter().try_for_each(|(heading, text)| write!(out, "\n  {heading:<10} {text}"))
    }
}

/// Judges every situation in which a request can arrive in any region of the policy, from `today` on, and returns the statements
/// that are broken.
pub fn prove(policy: &Policy, assertions: &[Assertion], sources: Sources, today: Day) -> Proven {
    let mut proof = Proven::default();
    let groups = Groups::of(policy, assertions, sources, today);
    proof.idle = (0..assertions.len()).filter(|index| groups.admitted_by & (1 << index) == 0).collect();
    // The policies of the regions differ only in their own region.
    let mut policy = policy.clone();
    for local in policy.regions.iter() {
        policy.local = local;
        let vitals = all_vitals(&policy);
        for (key, group) in &groups.all {
            let mut judge = |ingress, vitals: &Vitals| {
                let facts =
                    group.lookups.facts(rest(group.route, ingress, (key.kind, key.is_read), group.classes, group.today, vitals));
                let decision = decide(&facts, &policy);
                proof.situations += 1;
                let is_broken =
                    |index: &usize| key.admitted_by & (1 << index) != 0 && assertions[*index].claim.is_broken_by(&decision);
                let broken = (0..assertions.len())
                    .filter(is_broken)
                    .map(Some)
                    .chain((!keeps_promise(&decision, &policy, key.kind)).then_some(None));
                for statement in broken {
                    if !proof.broken.iter().any(|(known, _)| *known == statement) {
                        proof.broken.push((statement, story(&facts, &decision, &policy)));
                    }
                }
            };
            if key.is_peer {
                let peers = policy.regions.iter().filter(|peer| *peer != local);
                peers.for_each(|peer| judge(Ingress::Peer(peer), &vitals[0]));
            } else {
                vitals.iter().for_each(|vitals| judge(Ingress::Client, vitals));
            }
        }
    }
    proof.broken.sort_by_key(|(statement, _)| *statement);
    proof
}

/// Whether every rule admits every destination for every home, and the carrier; without the code that makes clearances.
fn keeps_promise(decision: &Decision, policy: &Policy, kind: Kind) -> bool {
    let trail = &decision.trail;
    let admits = |region: RegionId| {
        trail.classes.iter().all(|class| {
            let rule = &policy.class(class).rule;
            let needed = if kind == Kind::Preflight && rule.stays != Stays::Anywhere { Evidence::Recorded } else { rule.needs };
            let place = policy.jurisdiction_of(region);
            rule.mode == Mode::Report
                || trail.homes().all(|home| {
                    home.evidence().unwrap_or(Evidence::Inferred) >= needed
                        && rule.admits(home.jurisdiction(), place, trail.today)
                })
        })
    };
    let carries = |region: RegionId| {
        let place = policy.jurisdiction_of(region);
        let carried = |class| policy.class(class).rule.mode == Mode::Report || policy.class(class).rule.carries(place);
        trail.classes.iter().all(carried)
    };
    match &decision.verdict {
        Verdict::Proceed(itinerary) => itinerary.regions().all(admits) && (admits(trail.carrier) || carries(trail.carrier)),
        Verdict::Redirect(region) => admits(*region),
        Verdict::Refuse(_) => true,
    }
}

/// What a decision depends on once the home and the clearance are known, besides the local region, the peer and the vitals.
#[derive(Clone, PartialEq, Eq, Hash)]
struct GroupKey {
    kind: Kind,
    is_read: bool,
    is_peer: bool,
    served_in: RegionSet,
    reads_leave: bool,
    /// The number of the region that owns the request.
    home: Option<usize>,
    clearance: RegionSet,
    carriers: RegionSet,
    /// The assertions that are about these requests, as bits.
    admitted_by: u128,
}

/// One request of a group.
struct Representative {
    route: RouteId,
    lookups: Lookups,
    classes: ClassSet,
    today: Day,
}

/// All requests, in groups that only the local region, the peer and the vitals tell apart. A request that is refused before these
/// matter is in no group: it breaks nothing.
#[derive(Default)]
struct Groups {
    all: Vec<(GroupKey, Representative)>,
    seen: HashSet<GroupKey>,
    /// The assertions that are about any request, as bits.
    admitted_by: u128,
}

impl Groups {
    fn of(policy: &Policy, assertions: &[Assertion], sources: Sources, today: Day) -> Self {
        let mut groups = Self::default();
        let mut known: BTreeMap<(bool, bool, Vec<usize>), Vec<Found>> = BTreeMap::new();
        let vitals = Vitals::unmeasured(policy.nearest_first());
        let mut judged = HashSet::new();
        for (index, rules) in policy.routes.all().iter().enumerate() {
            let route = RouteId::new(index);
            // Only assertions tell routes apart whose requests are judged alike.
            let is_named = assertions.iter().any(|assertion| assertion.about.route == Some(route));
            let names_a_user = rules.pattern.user_segment().is_some();
            let chain: Vec<usize> = rules.chain.iter().map(step_code).collect();
            let reads_leave = rules.failover.reads == Reads::Nearest;
            if !judged.insert((chain.clone(), names_a_user, rules.class, rules.service, reads_leave, is_named.then_some(index))) {
                continue;
            }
            for (is_peer, ingress) in [(false, Ingress::Client), (true, Ingress::Peer(policy.local))] {
                // Routes with the same chain find the same homes.
                let found = known.entry((is_peer, names_a_user, chain.clone())).or_insert_with(|| {
                    let rest = rest(route, ingress, (Kind::Read, true), ClassSet::EMPTY, today, &vitals);
                    lookups::homes(policy, route, sources, is_peer, &rest)
                });
                for classes in class_sets(policy, assertions) {
                    for day in days(policy, classes.union(ClassSet::only(rules.class)), today) {
                        let add = |found: &Found| groups.add(policy, assertions, found, (route, classes, day), is_peer);
                        found.iter().for_each(add);
                    }
                }
            }
        }
        // The first situation that breaks a statement is told, so the simple ones come first.
        groups.all.sort_by_key(|(_, one)| one.classes != ClassSet::EMPTY);
        groups
    }

    /// Adds the requests of a route with these lookups, of every kind.
    fn add(
        &mut self,
        policy: &Policy,
        assertions: &[Assertion],
        Found { homes, lookups }: &Found,
        (route, classes, today): (RouteId, ClassSet, Day),
        is_peer: bool,
    ) {
        let rules = policy.routes.route(route);
        let all_classes = classes.union(ClassSet::only(rules.class));
        for (kind, is_read) in KINDS {
            let request = Properties { classes: all_classes, homes, route, kind };
            let admits = |(_, assertion): &(usize, &Assertion)| assertion.about.admits(&request);
            let admitted_by = assertions.iter().enumerate().filter(admits).fold(0, |bits, (index, _)| bits | 1 << index);
            self.admitted_by |= admitted_by;
            let ruling = residency::clear(policy, all_classes, homes, today, kind == Kind::Preflight);
            let Some(clearance) = ruling.clearance else { continue };
            for (home, lookups) in lookups {
                let key = GroupKey {
                    kind,
                    is_read,
                    is_peer,
                    served_in: policy.regions_for(rules.service),
                    reads_leave: rules.failover.reads == Reads::Nearest,
                    home: *home,
                    clearance: clearance.regions(),
                    carriers: ruling.carriers,
                    admitted_by,
                };
                if self.seen.insert(key.clone()) {
                    self.all.push((key, Representative { route, lookups: *lookups, classes, today }));
                }
            }
        }
    }
}

/// The classes that a label may add. Each class that is added can only remove regions and carriers, so a destination or a carrier
/// that breaks a statement about some classes breaks it with the route's class and one other as well. Only for the absence of
/// redirects, a second class matters: the one that forbids the carrier.
fn class_sets(policy: &Policy, assertions: &[Assertion]) -> Vec<ClassSet> {
    let single = || policy.class_ids().map(ClassSet::only);
    let mut sets: Vec<_> = std::iter::once(ClassSet::EMPTY).chain(single()).collect();
    if assertions.iter().any(|assertion| assertion.claim == Claim::NeverRedirects) {
        sets.extend(single().flat_map(|one| single().map(move |other| one.union(other))));
    }
    sets
}

/// The days on which the transfers of some classes differ: today, and for each transfer its last day and the next.
fn days(policy: &Policy, classes: ClassSet, today: Day) -> Vec<Day> {
    let transfers = classes.iter().flat_map(|class| &policy.class(class).rule.transfers);
    let ends = transfers.map(|transfer| transfer.until).filter(|until| *until >= today);
    let mut days: Vec<_> = std::iter::once(today).chain(ends.flat_map(|until| [until, until.next()])).collect();
    days.sort_unstable();
    days.dedup();
    days
}

/// Every region takes requests, or only one of them. More regions only make itineraries longer, and each stop of an itinerary is
/// the only stop when the others are down. A recovering home behind a region without a gateway is the exception: the client is
/// redirected there.
fn all_vitals(policy: &Policy) -> Vec<Vitals> {
    let all = Vitals::unmeasured(policy.nearest_first());
    let health = |of: &dyn Fn(RegionId) -> Health| {
        let mut vitals = all.clone();
        let set = |region| vitals.set(region, RegionVitals { health: of(region), ..RegionVitals::default() });
        policy.regions.iter().for_each(set);
        vitals
    };
    let only = |alive: RegionId| health(&|region| if region == alive { Health::Up } else { Health::Down });
    let behind = |(home, other): (RegionId, RegionId)| {
        health(&|region| match region {
            region if region == home => Health::Recovering,
            region if region == other => Health::Up,
            _ => Health::Down,
        })
    };
    let without_gateway = || policy.regions.iter().filter(|region| !policy.region(*region).has_gateway);
    let pairs = policy.regions.iter().flat_map(|home| without_gateway().map(move |other| (home, other)));
    let pairs = pairs.filter(|(home, other)| home != other).map(behind);
    std::iter::once(all.clone()).chain(policy.regions.iter().map(only)).chain(pairs).collect()
}

/// The facts of a request, without the results of its lookups.
const fn rest(
    route: RouteId,
    ingress: Ingress,
    (kind, is_read): (Kind, bool),
    claimed: ClassSet,
    today: Day,
    vitals: &Vitals,
) -> Facts<'_> {
    Facts {
        route: RouteMatch { id: Some(route), user: None },
        ingress,
        is_preflight: matches!(kind, Kind::Preflight),
        is_read,
        today,
        client: std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        directory: Lookup::NotAsked,
        caller: Lookup::NotAsked,
        caller_proof: Proof::Claimed,
        token: Lookup::NotAsked,
        caller_token: Lookup::NotAsked,
        credential: Credential::Absent,
        hint: None,
        proof: Proof::Claimed,
        place: Lookup::NotAsked,
        place_is_stale: false,
        peer: None,
        claimed: Some(claimed),
        vitals,
    }
}

const fn step_code(step: &Step) -> usize {
    match step {
        Step::Directory => 1000,
        Step::Token => 1001,
        Step::GeoIp => 1002,
        Step::Latency => 1003,
        Step::Refuse => 1004,
        Step::Region(region) => region.index(),
    }
}

fn story(facts: &Facts<'_>, decision: &Decision, policy: &Policy) -> Story {
    let name = |region| policy.region_name(region);
    let kind = match (facts.is_read, facts.is_preflight) {
        (_, true) => Kind::Preflight,
        (true, false) => Kind::Read,
        (false, false) => Kind::Write,
    };
    let route = facts.route.id.map_or("?", |id| &*policy.routes.route(id).name);
    let sender = match facts.ingress {
        Ingress::Client => "a client".to_owned(),
        Ingress::Peer(peer) => format!("the proxy of {}", name(peer)),
    };
    let mut title =
        format!("a {} of route `{route}`, sent to {} by {sender}, on {}", kind.as_str(), name(policy.local), facts.today);
    let labels: Vec<_> = facts.claimed.iter().flat_map(|set| set.iter()).map(|class| &*policy.class(class).name).collect();
    if !labels.is_empty() {
        title += &format!(", with data of class {}", labels.join(" and "));
    }
    let down = policy.regions.iter().filter(|region| !facts.vitals.region(*region).health.takes_requests());
    let down: Vec<_> = down.map(name).collect();
    if !down.is_empty() {
        title += &format!(", while down: {}", down.join(", "));
    }
    let lines = narrate::narrate(decision, policy, facts.vitals).into_iter().map(|line| (line.heading, line.text)).collect();
    Story { title, lines }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::model::region::Registry;

    const FILE: &str = r#"region: eu-west
listen: ["127.0.0.1:1", { address: "127.0.0.1:2", peers: true }]
peer_tls: { certificate: c, key: k, authority: a }
jurisdictions: { eu: { countries: [EEA] }, us: { countries: [US] } }
regions:
  eu-west: { jurisdiction: eu, at: [53, -6], upstreams: "http://127.0.0.1:3", gateway: "https://127.0.0.1:2" }
  us-east: { jurisdiction: us, at: [39, -77], upstreams: "http://127.0.0.1:3", gateway: "https://127.0.0.1:2" }
data: { public: { stays: anywhere }, american: { stays: [us], carried_by: nobody }, carried: { stays: [us], carried_by: [eu] } }
routes: [{ name: all, match: {}, data: public, home: [latency] }]
audit: { directory: ledger }
"#;

    #[test]
    fn a_decision_that_a_rule_does_not_admit_breaks_the_promise() {
        let today = Day::parse("2026-01-01").unwrap();
        let parsed = config::parse(FILE, std::path::Path::new("a.yaml"), None, &mut Registry::default(), today);
        let policy = parsed.unwrap_or_else(|problems| panic!("{problems:?}")).policy;
        let vitals = &all_vitals(&policy);
        let decided =
            |vitals| decide(&rest(RouteId::new(0), Ingress::Client, (Kind::Read, true), ClassSet::EMPTY, today, vitals), &policy);
        let judged_as = |mut decision: Decision, class: &str, kind| {
            decision.trail.classes = ClassSet::only(policy.find_class(class).unwrap());
            keeps_promise(&decision, &policy, kind)
        };
        // Both regions, from eu-west; then only us-east.
        let (both, american) = (decided(&vitals[0]), decided(&vitals[2]));
        assert!(judged_as(both.clone(), "public", Kind::Read));
        assert!(!judged_as(both, "carried", Kind::Read), "eu-west may carry it, and not process it");
        assert!(judged_as(american.clone(), "carried", Kind::Read));
        assert!(!judged_as(american.clone(), "american", Kind::Read), "eu-west may not carry it");
        assert!(!judged_as(american, "carried", Kind::Preflight), "a preflight needs a record");
        let redirect = Decision { verdict: Verdict::Redirect(policy.find_region("eu-west").unwrap()), ..decided(&vitals[0]) };
        assert!(!judged_as(redirect, "american", Kind::Read));
    }
}
