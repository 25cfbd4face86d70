//! Random policies and situations, judged by the functions that judge live traffic.
//!
//! An independent checker judges each of them too, and properties must hold in all of them. Homes, classes and clearances are
//! computed from the situation, never read from the decision under test. Every case derives from a seed, which a failure prints.

use std::collections::BTreeMap;

use domicile::decision::verdict::Decision;
use fastrand::Rng;

use crate::checker::{self, Evidence, Limits, Outcome, Proof, Situation, limits, needs_directory};
use crate::support;
use crate::worlds::{self, is_only_reported, outcome};

/// The number of policies that the checker judges too.
const JUDGED_WORLDS: u64 = 10_000;
/// The number of policies for each of the other properties.
const WORLDS: u64 = 1_200;
const SITUATIONS_IN_EACH: usize = 4;

/// One random situation in one random world, and the program's decision.
struct Case<'a> {
    world: &'a checker::World,
    program: &'a support::World,
    situation: &'a Situation,
    decision: &'a Decision,
    seed: u64,
}

impl Case<'_> {
    fn outcome(&self) -> Outcome {
        outcome(self.decision)
    }

    /// The regions that the decision sends the request or its client to.
    fn destinations(&self) -> Vec<usize> {
        destinations(&self.outcome())
    }

    /// The limits of a request that is not refused.
    fn limits(&self) -> Limits {
        limits(self.world, self.situation)
            .unwrap_or_else(|| panic!("the checker refuses this request before its limits are known\n{}", self.story()))
    }

    /// Judges another situation in the same world.
    fn judged_as(&self, situation: &Situation) -> Decision {
        worlds::judge(self.program, situation)
    }

    fn story(&self) -> String {
        format!("seed {}\nworld: {:#?}\nsituation: {:#?}\nfound: {:?}", self.seed, self.world, self.situation, self.outcome())
    }
}

fn destinations(outcome: &Outcome) -> Vec<usize> {
    match outcome {
        Outcome::Proceed(stops) => stops.clone(),
        Outcome::Redirect(region) => vec![*region],
        Outcome::Refuse(_) => Vec::new(),
    }
}

fn is_subset(some: &[usize], all: &[usize]) -> bool {
    some.iter().all(|region| all.contains(region))
}

/// The regions that the decision clears.
fn clearance_of(decision: &Decision) -> Vec<usize> {
    decision.trail.clearance.iter().map(|region| region.index()).collect()
}

/// Calls `check` with every situation of every world, and counts the cases for which it returns true.
fn count_cases(worlds: u64, mut check: impl FnMut(&Case) -> bool) -> usize {
    let mut count = 0;
    for seed in 0..worlds {
        let mut random = Rng::with_seed(seed);
        let world = worlds::world(&mut random);
        let program = worlds::program(&world);
        for _ in 0..SITUATIONS_IN_EACH {
            let situation = worlds::situation(&mut random, &world);
            let decision = worlds::judge(&program, &situation);
            let case = Case { world: &world, program: &program, situation: &situation, decision: &decision, seed };
            count += usize::from(check(&case));
        }
    }
    count
}

/// Fails unless `property` returns `Some(true)` in at least `least` cases and never `Some(false)`. It returns `None` for a case
/// to which it does not apply.
fn holds_in_every_world(least: usize, property: impl Fn(&Case) -> Option<bool>) {
    let count = count_cases(WORLDS, |case| match property(case) {
        Some(true) => true,
        Some(false) => panic!("{}", case.story()),
        None => false,
    });
    assert!(count >= least, "the property applies to only {count} cases");
}

/// The kinds of a case. The comparison must reach each kind often enough ([`LEAST`]).
fn kinds_of(case: &Case, outcome: &Outcome, is_only_reported: bool) -> Vec<&'static str> {
    let mut kinds = match outcome {
        Outcome::Proceed(stops) if stops[0] == case.world.local => vec!["served here"],
        Outcome::Proceed(_) => vec!["forwarded"],
        Outcome::Redirect(_) => vec!["redirected"],
        Outcome::Refuse(code) => vec!["refused", code],
    };
    let proceeds = matches!(outcome, Outcome::Proceed(_));
    if destinations(outcome).len() > 1 {
        kinds.push("several stops");
    }
    if is_only_reported {
        kinds.push(if proceeds { "reported" } else { "redirect reported" });
    }
    if proceeds && case.situation.peer.is_some() {
        kinds.push("served for a peer");
    }
    if case.situation.is_preflight {
        kinds.push(if proceeds { "preflight sent on" } else { "preflight not sent on" });
    }
    if let Some(limits) = limits(case.world, case.situation) {
        kinds.push(match limits.owner {
            None => "unowned",
            Some(_) => match limits.evidence {
                Evidence::Inferred => "inferred",
                Evidence::Asserted => "asserted",
                Evidence::Recorded => "recorded",
            },
        });
        let stated = case.situation.statement.as_ref().and_then(|statement| statement.home);
        if stated.is_some() && stated != limits.owner {
            kinds.push("for a peer with other tables");
        }
        if limits.judges_two_users && proceeds {
            kinds.push("two users");
        }
    }
    kinds
}

/// The minimum number of cases of each kind in the comparison, about half of the actual number.
const LEAST: [(&str, usize); 32] = [
    ("for a peer with other tables", 900),
    ("preflight sent on", 140),
    ("preflight not sent on", 500),
    ("served here", 3000),
    ("forwarded", 2500),
    ("several stops", 1400),
    ("served for a peer", 600),
    ("two users", 160),
    ("redirected", 600),
    ("reported", 1200),
    ("redirect reported", 100),
    ("unowned", 1000),
    ("inferred", 8000),
    ("asserted", 2500),
    ("recorded", 2900),
    ("refused", 13_000),
    ("route.none", 700),
    ("request.malformed_user", 150),
    ("residency.class_unknown", 350),
    ("token.unverified", 800),
    ("token.other_credential", 350),
    ("directory.unavailable", 900),
    ("home.unresolved", 1500),
    ("home.unknown_region", 150),
    ("residency.evidence_too_weak", 3500),
    ("residency.nowhere_cleared", 2200),
    ("residency.home_not_cleared", 800),
    ("residency.carrier_not_cleared", 400),
    ("peer.misdirected", 300),
    ("failover.home_down", 800),
    ("failover.service_missing", 200),
    ("failover.all_down", 140),
];

#[test]
fn the_program_and_an_independent_checker_agree() {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    let count = count_cases(JUDGED_WORLDS, |case| {
        let expected = checker::judge(case.world, case.situation);
        let is_only_reported = is_only_reported(case.decision);
        if (case.outcome(), is_only_reported) != (expected.outcome.clone(), expected.reported) {
            wrong.push(format!("{}, reported: {is_only_reported}\nexpected: {expected:?}", case.story()));
        }
        for kind in kinds_of(case, &expected.outcome, expected.reported) {
            *kinds.entry(kind).or_default() += 1;
        }
        true
    });
    let smallest = wrong.iter().min_by_key(|story| story.len());
    if let Some(story) = smallest {
        panic!("{} of {count} cases are judged differently; the smallest of them:\n{story}", wrong.len());
    }
    assert_eq!(count, 40_000);
    for (kind, least) in LEAST {
        let reached = kinds.get(kind).copied().unwrap_or_default();
        assert!(reached >= least, "only {reached} cases are `{kind}`: {kinds:#?}");
    }
}

#[test]
fn a_request_goes_only_where_its_data_is_cleared() {
    holds_in_every_world(1000, |case| {
        let destinations = case.destinations();
        (!destinations.is_empty()).then(|| {
            let cleared = case.limits().clearance;
            is_subset(&destinations, &cleared) && is_subset(&clearance_of(case.decision), &cleared)
        })
    });
}

#[test]
fn no_region_carries_data_that_it_may_not_carry() {
    holds_in_every_world(1000, |case| match case.outcome() {
        Outcome::Proceed(_) => {
            let carrier = case.situation.peer.unwrap_or(case.world.local);
            Some(case.limits().carriers.contains(&carrier))
        }
        Outcome::Redirect(_) | Outcome::Refuse(_) => None,
    });
}

#[test]
fn a_client_is_redirected_to_another_region_that_has_a_url_and_to_no_other_than_the_owner() {
    holds_in_every_world(100, |case| match case.outcome() {
        Outcome::Redirect(target) => {
            let may_be_sent = target != case.world.local && case.world.regions[target].has_url;
            Some(may_be_sent && case.limits().owner.is_none_or(|owner| owner == target))
        }
        Outcome::Proceed(_) | Outcome::Refuse(_) => None,
    });
}

#[test]
fn taking_a_region_away_never_adds_a_stop() {
    holds_in_every_world(1000, |case| {
        let Outcome::Proceed(stops) = case.outcome() else { return None };
        let is_client = case.situation.peer.is_none();
        Some(stops.iter().all(|lost| {
            let mut situation = case.situation.clone();
            situation.down.push(*lost);
            let rest: Vec<_> = stops.iter().copied().filter(|stop| !is_client || stop != lost).collect();
            match outcome(&case.judged_as(&situation)) {
                Outcome::Proceed(stops) => is_subset(&stops, &rest),
                Outcome::Redirect(_) | Outcome::Refuse(_) => true,
            }
        }))
    });
}

#[test]
fn a_region_that_takes_no_requests_is_never_tried() {
    holds_in_every_world(400, |case| {
        let is_affected = case.situation.peer.is_none() && !case.situation.down.is_empty();
        (is_affected && !case.destinations().is_empty())
            .then(|| case.destinations().iter().all(|region| !case.situation.down.contains(region)))
    });
}

#[test]
fn a_region_without_the_service_of_the_route_is_never_tried() {
    holds_in_every_world(400, |case| {
        let route = &case.world.routes[case.decision.trail.route?.index()];
        let (serves, is_client) =
            (|region: usize| case.world.regions[region].services.contains(&route.service), case.situation.peer.is_none());
        let is_up = |region: usize| !is_client || !case.situation.down_services.contains(&(region, route.service));
        (!case.destinations().is_empty()).then(|| case.destinations().iter().all(|region| serves(*region) && is_up(*region)))
    });
}

#[test]
fn the_health_of_another_service_changes_nothing() {
    holds_in_every_world(1000, |case| {
        let route = &case.world.routes[case.decision.trail.route?.index()];
        let mut situation = case.situation.clone();
        for region in 0..case.world.regions.len() {
            situation
                .down_services
                .extend((0..worlds::SERVICES).filter(|service| *service != route.service).map(|service| (region, service)));
        }
        Some(case.judged_as(&situation) == *case.decision)
    });
}

#[test]
fn a_region_without_a_gateway_is_never_forwarded_to() {
    holds_in_every_world(300, |case| match case.outcome() {
        Outcome::Proceed(stops) if stops != [case.world.local] => {
            Some(stops.iter().all(|stop| *stop == case.world.local || case.world.regions[*stop].has_gateway))
        }
        Outcome::Proceed(_) | Outcome::Redirect(_) | Outcome::Refuse(_) => None,
    });
}

#[test]
fn a_peers_request_is_served_here_or_nowhere() {
    holds_in_every_world(100, |case| {
        case.situation.peer?;
        match case.outcome() {
            Outcome::Proceed(stops) => Some(stops == [case.world.local]),
            Outcome::Redirect(_) => Some(false),
            Outcome::Refuse(_) => None,
        }
    });
}

#[test]
fn an_owned_write_goes_home_or_nowhere() {
    holds_in_every_world(200, |case| {
        if case.situation.is_read() || case.destinations().is_empty() {
            return None;
        }
        case.limits().owner.map(|owner| case.destinations() == [owner])
    });
}

#[test]
fn an_owned_request_goes_home_first_if_its_home_takes_requests() {
    holds_in_every_world(500, |case| {
        if case.situation.peer.is_some() || case.destinations().is_empty() {
            return None;
        }
        let owner = case.limits().owner?;
        let route = &case.world.routes[case.decision.trail.route?.index()];
        let is_down = case.situation.down.contains(&owner) || case.situation.down_services.contains(&(owner, route.service));
        let serves = case.world.regions[owner].services.contains(&route.service);
        let recovering = &case.situation.recovering;
        let is_settled = |region: &usize| *region != owner && !recovering.contains(region);
        let comes_last = recovering.contains(&owner) && case.destinations().iter().any(is_settled);
        Some((case.destinations()[0] == owner) == (serves && !is_down && !comes_last))
    });
}

#[test]
fn the_same_input_gives_the_same_decision() {
    holds_in_every_world(WORLDS as usize * SITUATIONS_IN_EACH, |case| {
        let again = worlds::judge(&worlds::program(case.world), case.situation);
        Some(again == *case.decision)
    });
}

#[test]
fn a_dead_directory_never_turns_into_a_guess_for_data_that_must_stay() {
    holds_in_every_world(50, |case| {
        let depends = !case.world.directory_available && needs_directory(case.world, case.situation)?;
        depends.then(|| case.outcome() == Outcome::Refuse("directory.unavailable"))
    });
}

#[test]
fn another_class_never_adds_a_clearance() {
    holds_in_every_world(1000, |case| {
        let before = clearance_of(case.decision);
        (!before.is_empty()).then(|| {
            case.world.classes.iter().all(|class| {
                let mut situation = case.situation.clone();
                situation.labels.push(class.name.clone());
                let labelled = case.judged_as(&situation);
                is_subset(&clearance_of(&labelled), &before) && is_subset(&destinations(&outcome(&labelled)), &before)
            })
        })
    });
}

#[test]
fn a_weaker_proof_of_the_key_never_adds_a_clearance() {
    holds_in_every_world(500, |case| {
        let (key, proof) = case.situation.caller.clone()?;
        if proof == Proof::Claimed {
            return None;
        }
        let claimed = Situation { caller: Some((key, Proof::Claimed)), ..case.situation.clone() };
        let claimed = case.judged_as(&claimed);
        Some(is_subset(&clearance_of(&claimed), &clearance_of(case.decision)))
    });
}

#[test]
fn without_its_transfers_a_policy_never_clears_more() {
    holds_in_every_world(1000, |case| {
        let before = clearance_of(case.decision);
        if before.is_empty() {
            return None;
        }
        let mut world = case.world.clone();
        world.classes.iter_mut().for_each(|class| class.transfers.clear());
        let strict = worlds::judge(&worlds::program(&world), case.situation);
        Some(is_subset(&clearance_of(&strict), &before))
    });
}

#[test]
fn a_request_is_reported_exactly_if_enforcing_every_class_changes_its_first_destination() {
    holds_in_every_world(1000, |case| {
        let first = *case.destinations().first()?;
        let mut world = case.world.clone();
        world.classes.iter_mut().for_each(|class| class.report_only = false);
        let enforced = worlds::judge(&worlds::program(&world), case.situation);
        let goes_the_same_way = match (case.outcome(), outcome(&enforced)) {
            (Outcome::Proceed(_), Outcome::Proceed(stops)) => stops[0] == first,
            (Outcome::Redirect(_), Outcome::Redirect(target)) => target == first,
            (_, _) => false,
        };
        Some(is_only_reported(case.decision) != goes_the_same_way)
    });
}
