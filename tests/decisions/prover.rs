//! The prover against random situations: what one of them breaks, the prover finds.

use domicile::decision::policy::Policy;
use domicile::decision::policy::class::ClassId;
use domicile::decision::policy::route::RouteId;
use domicile::decision::verdict::{Decision, Verdict};
use domicile::model::day::Day;
use domicile::model::jurisdiction::{Jurisdiction, JurisdictionId};
use domicile::model::region::{RegionId, RegionSet};
use domicile::model::user::Evidence;
use domicile::prove::{About, Assertion, Claim, Kind, MAX_ASSERTIONS, Proven, Sources, prove};
use fastrand::Rng;

use crate::checker;
use crate::worlds::{self, TODAY, outcome};

/// The number of policies, unless `DOMICILE_PROVER_WORLDS` says otherwise.
const WORLDS: u64 = 60;
const ASSERTIONS_IN_EACH: usize = 12;
const SITUATIONS_IN_EACH: usize = 250;

fn maybe<T>(random: &mut Rng, make: impl FnOnce(&mut Rng) -> T) -> Option<T> {
    (random.u8(..3) == 0).then(|| make(random))
}

fn assertion(random: &mut Rng, world: &checker::World) -> Assertion {
    let (jurisdictions, regions) = (world.jurisdictions.len(), world.regions.len());
    let about = About {
        data: maybe(random, |random| ClassId::new(random.usize(..world.classes.len())).unwrap()),
        of: maybe(random, |random| match random.usize(..jurisdictions + 2) {
            0 => Jurisdiction::Elsewhere,
            1 => Jurisdiction::Unknown,
            other => Jurisdiction::Named(JurisdictionId::new(other - 2).unwrap()),
        }),
        route: maybe(random, |random| RouteId::new(random.usize(..world.routes.len()))),
        evidence: maybe(random, |random| Evidence::ALL[random.usize(..3)]),
        kind: maybe(random, |random| Kind::ALL[random.usize(..3)]),
    };
    let some: RegionSet = (0..regions).filter(|_| random.bool()).filter_map(RegionId::new).collect();
    let claim = match random.u8(..7) {
        0 | 1 => Claim::NeverIn(some),
        2 | 3 => Claim::AlwaysIn(some),
        4 => Claim::NeverCarriedBy(some),
        5 => Claim::NeverProceeds,
        _ => Claim::NeverRedirects,
    };
    Assertion { about, claim }
}

/// Whether a decision breaks an assertion, without the prover's own code.
fn breaks(assertion: &Assertion, decision: &Decision, kind: Kind) -> bool {
    let (about, trail) = (&assertion.about, &decision.trail);
    let homes: Vec<_> = trail.homes().collect();
    let evidence = homes.first().and_then(|home| home.evidence()).unwrap_or(Evidence::Inferred);
    let is_about = about.data.is_none_or(|class| trail.classes.iter().any(|found| found == class))
        && about.of.is_none_or(|user| homes.iter().any(|home| home.jurisdiction() == user))
        && about.route.is_none_or(|route| Some(route) == trail.route)
        && about.evidence.is_none_or(|wanted| wanted == evidence)
        && about.kind.is_none_or(|wanted| wanted == kind);
    let (destinations, proceeds) = match &decision.verdict {
        Verdict::Proceed(itinerary) => (itinerary.regions().collect::<Vec<_>>(), true),
        Verdict::Redirect(region) => (vec![*region], false),
        Verdict::Refuse(_) => return false,
    };
    let is_wrong = match assertion.claim {
        Claim::NeverIn(regions) => destinations.iter().any(|region| regions.contains(*region)),
        Claim::AlwaysIn(regions) => destinations.iter().any(|region| !regions.contains(*region)),
        Claim::NeverCarriedBy(regions) => {
            proceeds && regions.contains(trail.carrier) && destinations.iter().any(|region| *region != trail.carrier)
        }
        Claim::NeverProceeds => proceeds,
        Claim::NeverRedirects => !proceeds,
    };
    is_about && is_wrong
}

/// The most specific statement about a destination or the carrier that a decision breaks, if it is not a refusal.
fn most_specific(random: &mut Rng, decision: &Decision, kind: Kind) -> Option<Assertion> {
    let trail = &decision.trail;
    let homes: Vec<_> = trail.homes().collect();
    let classes: Vec<_> = trail.classes.iter().collect();
    if decision.refusal().is_some() {
        return None;
    }
    let about = About {
        data: Some(classes[random.usize(..classes.len())]),
        of: Some(homes[random.usize(..homes.len())].jurisdiction()),
        route: trail.route,
        evidence: Some(homes[0].evidence().unwrap_or(Evidence::Inferred)),
        kind: Some(kind),
    };
    let claim = match &decision.verdict {
        Verdict::Refuse(_) => return None,
        Verdict::Redirect(_) if random.bool() => Claim::NeverRedirects,
        Verdict::Redirect(region) => Claim::NeverIn(RegionSet::only(*region)),
        Verdict::Proceed(itinerary) => {
            let stops: Vec<_> = itinerary.regions().collect();
            let stop = stops[random.usize(..stops.len())];
            if stop != trail.carrier && random.bool() {
                Claim::NeverCarriedBy(RegionSet::only(trail.carrier))
            } else {
                Claim::NeverIn(RegionSet::only(stop))
            }
        }
    };
    Some(Assertion { about, claim })
}

fn proven(policy: &Policy, assertions: &[Assertion], world: &checker::World) -> Proven {
    let sources = Sources { claimed_keys: true, hints: true, places: true, old_places: world.geoip_stale };
    prove(policy, assertions, sources, Day::parse(TODAY).unwrap())
}

#[test]
fn a_statement_that_a_random_situation_breaks_is_found_to_be_broken() {
    let (mut broken, mut kept) = (0, 0);
    let worlds = std::env::var("DOMICILE_PROVER_WORLDS").map_or(WORLDS, |count| count.parse().unwrap());
    for seed in 0..worlds {
        let mut random = Rng::with_seed(seed);
        let world = worlds::world(&mut random);
        let program = worlds::program(&world);
        let mut assertions: Vec<_> = (0..ASSERTIONS_IN_EACH).map(|_| assertion(&mut random, &world)).collect();
        let situations: Vec<_> = (0..SITUATIONS_IN_EACH).map(|_| worlds::situation(&mut random, &world)).collect();
        let decisions: Vec<_> = situations.iter().map(|situation| worlds::judge(&program, situation)).collect();
        let kind_of = |index: usize| match (situations[index].is_preflight, decisions[index].trail.is_read) {
            (true, _) => Kind::Preflight,
            (false, true) => Kind::Read,
            (false, false) => Kind::Write,
        };
        let specific = decisions.iter().enumerate().filter_map(|(index, one)| most_specific(&mut random, one, kind_of(index)));
        assertions.extend(specific.take(MAX_ASSERTIONS - ASSERTIONS_IN_EACH));
        let proof = proven(program.policy(), &assertions, &world);
        let is_found = |index| proof.broken.iter().any(|(found, _)| *found == Some(index));
        assert!(!proof.broken.iter().any(|(found, _)| found.is_none()), "seed {seed}: {:?}", proof.broken);
        for (at, decision) in decisions.iter().enumerate() {
            for (index, assertion) in assertions.iter().enumerate().filter(|(_, one)| breaks(one, decision, kind_of(at))) {
                assert!(
                    is_found(index),
                    "seed {seed}: {assertion:?} is broken\nworld: {world:?}\nsituation: {:?}\n{:?} {:?}",
                    situations[at],
                    outcome(decision),
                    decision.trail
                );
            }
        }
        broken += (0..ASSERTIONS_IN_EACH).filter(|index| is_found(*index)).count();
        kept += (0..ASSERTIONS_IN_EACH).filter(|index| !is_found(*index)).count();
    }
    let all = worlds as usize * ASSERTIONS_IN_EACH;
    assert!(broken * 4 > all && kept * 8 > all, "{broken} broken, {kept} kept");
}
