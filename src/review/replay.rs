//! Judges logged requests under another policy: whose home would move, which requests would be refused or carried that were not.
//!
//! An access log has no keys and no whole addresses, so a replay takes the logged home as the user's record, and places a client by
//! its network. It judges as if all regions were up, and users as if their jurisdiction were that of their home.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use crate::decision::facts::{Credential, Facts, Ingress, Lookup};
use crate::decision::policy::Policy;
use crate::decision::policy::chain::Step;
use crate::decision::policy::class::ClassSet;
use crate::decision::policy::route::{Head, Method, NO_FIELDS, RouteId, RouteMatch};
use crate::decision::verdict::Verdict;
use crate::decision::{decide, match_route, narrate, route_of};
use crate::model::day::Day;
use crate::model::place::Place;
use crate::model::region::RegionId;
use crate::model::user::{Evidence, Proof, Record};
use crate::model::vitals::Vitals;

/// The most examples of one change.
const MAX_EXAMPLES: usize = 10;

/// A request of an access log. Fields that its line does not have are empty.
#[derive(Clone, Default, Debug)]
pub struct Logged {
    pub id: String,
    pub method: String,
    pub host: String,
    pub path: String,
    pub route: String,
    /// The client's network, without its last bits.
    pub client: Option<IpAddr>,
    /// A region, `unowned` or `none`.
    pub home: String,
    pub evidence: Option<Evidence>,
    pub served_by: String,
    pub verdict: String,
    pub code: String,
}

/// A kind of change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Change {
    HomeMoved,
    NewlyRefused,
    NewlyCarried,
    NewlyRedirected,
    NoLongerRefused,
}

impl Change {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HomeMoved => "home moved",
            Self::NewlyRefused => "newly refused",
            Self::NewlyCarried => "newly carried to another region",
            Self::NewlyRedirected => "newly redirected",
            Self::NoLongerRefused => "no longer refused",
        }
    }
}

/// The requests of one route that change in the same way.
#[derive(Default, Debug)]
pub struct Changed {
    pub count: u64,
    pub examples: Vec<String>,
}

/// The result of a replay.
#[derive(Default, Debug)]
pub struct Replay {
    pub judged: u64,
    /// Requests that a peer sent, that were refused for a reason that no policy has, such as a limit, or that cannot be matched, because
    /// their path is not logged and the policy has no route of their name.
    pub skipped: u64,
    /// Lines without the fields that a replay needs.
    pub unreadable: u64,
    /// By route and kind.
    pub changes: BTreeMap<(String, Change), Changed>,
}

impl Replay {
    /// Judges a request under a policy on a day. `place` finds the place of an address.
    pub fn add(&mut self, logged: &Logged, policy: &Policy, today: Day, place: impl Fn(IpAddr) -> Option<Place>) {
        let was_refused = logged.verdict == "refuse";
        if logged.method.is_empty() || logged.verdict.is_empty() || logged.home.is_empty() {
            self.unreadable = self.unreadable.saturating_add(1);
            return;
        }
        // Without its path, a request is judged by the name of its route.
        let is_unknown = logged.path.is_empty() && named(policy, &logged.route).id.is_none();
        if is_unknown || (was_refused && !is_of_policy(&logged.code)) {
            self.skipped = self.skipped.saturating_add(1);
            return;
        }
        self.judged = self.judged.saturating_add(1);
        let (method, client) = (Method::of(&logged.method), logged.client.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        let head = Head { method, host: &logged.host, path: &logged.path, client, fields: &NO_FIELDS };
        // A region that only carries a request logs its route and not its path.
        let route = if logged.path.is_empty() { named(policy, &logged.route) } else { match_route(&head, policy) };
        let vitals = Vitals::unmeasured(policy.nearest_first());
        let place = logged.client.and_then(place).map_or(Lookup::Absent, Lookup::Found);
        let facts = facts(policy, route, logged, client, place, today, &vitals);
        let decision = decide(&facts, policy);
        let home = match decision.trail.home {
            None => "none",
            Some(home) => home.region().map_or("unowned", |region| policy.region_name(region)),
        };
        let here = policy.region_name(policy.local);
        let is_refused = matches!(decision.verdict, Verdict::Refuse(_));
        let is_carried = matches!(&decision.verdict, Verdict::Proceed(itinerary) if itinerary.first() != policy.local);
        let is_redirected = matches!(decision.verdict, Verdict::Redirect(_));
        let was_carried = !was_refused && logged.verdict != "redirect" && logged.served_by != here;
        let changes = [
            (Change::HomeMoved, home != logged.home && home != "none" && logged.home != "none"),
            (Change::NewlyRefused, is_refused && !was_refused),
            (Change::NewlyCarried, is_carried && !was_carried && !was_refused),
            (Change::NewlyRedirected, is_redirected && !was_refused && logged.verdict != "redirect"),
            (Change::NoLongerRefused, !is_refused && was_refused),
        ];
        let route = route_of(&decision.trail, policy).map_or("none", |route| &route.name);
        for (change, _) in changes.into_iter().filter(|(_, holds)| *holds) {
            let changed = self.changes.entry((route.to_owned(), change)).or_default();
            changed.count = changed.count.saturating_add(1);
            if changed.examples.len() < MAX_EXAMPLES {
                let now = narrate::outcome(&decision, policy);
                let target = if logged.path.is_empty() {
                    format!("route {}", logged.route)
                } else {
                    format!("{}{}", logged.host, logged.path)
                };
                let was = match &*logged.verdict {
                    "refuse" => format!("refuse {}", logged.code),
                    "redirect" => format!("redirect {}", logged.home),
                    _ => format!("served by {}", logged.served_by),
                };
                let (method, id) = (&logged.method, &logged.id);
                changed.examples.push(format!("{id} {method} {target}: home {home}, {now}; was home {}, {was}", logged.home));
            }
        }
    }
}

/// Whether a refusal follows from a policy, and not from the state of the world or a limit.
fn is_of_policy(code: &str) -> bool {
    ["residency.", "home.", "route."].iter().any(|prefix| code.starts_with(prefix))
}

fn named<'n>(policy: &Policy, name: &str) -> RouteMatch<'n> {
    let position = policy.routes.all().iter().position(|route| *route.name == *name);
    RouteMatch { id: position.map(RouteId::new), user: None }
}

/// The facts of a logged request, as far as its line has them.
fn facts<'a>(
    policy: &Policy,
    route: RouteMatch<'a>,
    logged: &Logged,
    client: IpAddr,
    place: Lookup<Place>,
    today: Day,
    vitals: &'a Vitals,
) -> Facts<'a> {
    let chain = route.id.map_or(&[][..], |id| &policy.routes.route(id).chain);
    let home: Option<RegionId> = policy.find_region(&logged.home);
    let known = home.filter(|_| logged.evidence.is_some_and(|evidence| evidence > Evidence::Inferred));
    let proof = if logged.evidence == Some(Evidence::Recorded) { Proof::Proven } else { Proof::Vouched };
    Facts {
        route,
        ingress: Ingress::Client,
        is_preflight: false,
        is_read: matches!(&*logged.method, "GET" | "HEAD"),
        today,
        client,
        directory: match known {
            _ if !chain.contains(&Step::Directory) => Lookup::NotAsked,
            Some(home) => Lookup::Found(Record { home, jurisdiction: None }),
            None => Lookup::Absent,
        },
        caller: Lookup::NotAsked,
        caller_proof: Proof::Claimed,
        token: known.map_or(Lookup::NoKey, Lookup::Found),
        caller_token: Lookup::NotAsked,
        credential: Credential::Absent,
        hint: None,
        proof,
        place,
        place_is_stale: false,
        peer: None,
        claimed: Some(ClassSet::EMPTY),
        vitals,
    }
}
