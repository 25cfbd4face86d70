//! Properties that hold in every world. Policies, facts and vitals are random from a seed, and a failure names the seed.

use std::net::IpAddr;

use domicile::decision::facts::{Claim, Facts, Head, Ingress, Lookup};
use domicile::decision::policy::{
    ClassId, ClassSet, DataClass, Draft, Failover, GeoRules, Network, Networks, Otherwise, Policy, Reads, Region, Step, Writes,
};
use domicile::decision::residency::{Carriers, Mode, ResidencyRule, Stays, Transfer};
use domicile::decision::policy::route::{HostPattern, Method, MethodSet, PathPattern, Pattern, Route};
use domicile::decision::verdict::{Decision, Verdict};
use domicile::decision::{decide, match_route};
use domicile::model::country::{Continent, CountryCode};
use domicile::model::day::Day;
use domicile::model::jurisdiction::{Jurisdiction, JurisdictionId, JurisdictionSet};
use domicile::model::outcome::Code;
use domicile::model::place::{Coordinates, Place};
use domicile::model::region::{RegionId, RegionSet};
use domicile::model::user::{Evidence, Proof, Record};
use domicile::model::vitals::{Health, PolicyHash, RegionVitals, Vitals};
use fastrand::Rng;

const WORLDS: u64 = 3000;
const REQUESTS_IN_EACH: usize = 12;
const COUNTRIES: [&str; 8] = ["DE", "FR", "US", "JP", "BR", "GB", "ZA", "IN"];

fn one_of<T: Copy>(random: &mut Rng, items: &[T]) -> T {
    items[random.usize(..items.len())]
}

fn today() -> Day {
    Day::parse("2026-06-01").unwrap()
}

fn jurisdiction(index: usize) -> JurisdictionId {
    JurisdictionId::new(index).unwrap()
}

fn jurisdictions(random: &mut Rng, count: usize) -> JurisdictionSet {
    (0..count)
        .filter(|_| random.bool())
        .fold(JurisdictionSet::default(), |set, index| set.with(Jurisdiction::Named(jurisdiction(index))))
}

fn rule(random: &mut Rng, count: usize) -> ResidencyRule {
    let stays = match random.u8(..4) {
        0 => Stays::Anywhere,
        1 => Stays::In(jurisdictions(random, count)),
        _ => Stays::Home,
    };
    let carried_by = match random.u8(..3) {
        0 => Carriers::Anyone,
        1 => Carriers::Only(jurisdictions(random, count)),
        _ => Carriers::Nobody,
    };
    let transfer = |random: &mut Rng| Transfer {
        from: match random.u8(..4) {
            0 => Jurisdiction::Elsewhere,
            1 => Jurisdiction::Unknown,
            _ => Jurisdiction::Named(jurisdiction(random.usize(..count))),
        },
        to: jurisdictions(random, count),
        basis: "contract".into(),
        until: Day::parse(one_of(random, &["2026-05-31", "2026-06-01", "2030-01-01"])).unwrap(),
    };
    let transfers = (0..random.usize(..3)).map(|_| transfer(random)).collect();
    let mode = if random.u8(..8) == 0 { Mode::Report } else { Mode::Enforce };
    ResidencyRule { stays, needs: one_of(random, &Evidence::ALL), carried_by, transfers, mode }
}

fn policy(random: &mut Rng) -> Policy {
    let (places, laws, classes) = (random.usize(1..9), random.usize(1..5), random.usize(1..5));
    let regions: Vec<_> = (0..places)
        .map(|index| {
            let at = Coordinates { latitude: random.f32() * 120.0 - 60.0, longitude: random.f32() * 360.0 - 180.0 };
            let jurisdiction = jurisdiction(random.usize(..laws));
            (
                RegionId::new(index).unwrap(),
                Region { name: format!("r{index}").into(), jurisdiction, at, has_url: random.bool(), has_gateway: true },
            )
        })
        .collect();
    let region = |random: &mut Rng| RegionId::new(random.usize(..places)).unwrap();
    let mut countries: Vec<_> = COUNTRIES.iter().map(|code| CountryCode::parse(code).unwrap()).collect();
    let jurisdictions = (0..laws)
        .map(|index| {
            let share = random.usize(..=countries.len() / laws);
            (jurisdiction(index), format!("j{index}").into(), countries.drain(..share).collect())
        })
        .collect();
    let routes = (0..random.usize(1..4))
        .map(|index| {
            let mut chain: Vec<Step> = [Step::Directory, Step::GeoIp].into_iter().filter(|_| random.bool()).collect();
            chain.push(match random.u8(..3) {
                0 => Step::Refuse,
                1 => Step::Latency,
                _ => Step::Region(region(random)),
            });
            let path = if random.bool() { format!("/{index}/{{user}}/**") } else { format!("/{index}/**") };
            let pattern = Pattern { host: HostPattern::Any, path: PathPattern::parse(&path).unwrap(), methods: MethodSet::ALL };
            let failover = Failover { reads: one_of(random, &[Reads::Never, Reads::Nearest]), writes: Writes::Never };
            let class = ClassId::new(random.usize(..classes)).unwrap();
            Route { name: path.into(), pattern, class, chain, claim: None, failover, upgrades: vec![], body: None }
        })
        .collect();
    let network = |random: &mut Rng| {
        let country = random.bool().then(|| CountryCode::parse(one_of(random, &COUNTRIES)).unwrap());
        (IpAddr::from([10, random.u8(..4), 0, 0]), 16, Network { home: region(random), country })
    };
    let listed = |random: &mut Rng| random.u8(..4) == 0;
    let (mut by_country, mut by_continent) = (Vec::new(), Vec::new());
    for code in COUNTRIES.iter().filter_map(|code| CountryCode::parse(code)) {
        if listed(random) {
            by_country.push((code, region(random)));
        }
    }
    for continent in Continent::ALL {
        if listed(random) {
            by_continent.push((continent, region(random)));
        }
    }
    let geo = GeoRules {
        networks: Networks::build((0..random.usize(..3)).map(|_| network(random)).collect::<Vec<_>>()),
        countries: by_country,
        continents: by_continent,
        otherwise: match random.u8(..3) {
            0 => Otherwise::Next,
            1 => Otherwise::Region(region(random)),
            _ => Otherwise::Nearest,
        },
        unknown: random.bool().then(|| region(random)),
    };
    let local = region(random);
    let classes = (0..classes).map(|index| DataClass { name: format!("c{index}").into(), rule: rule(random, laws) }).collect();
    Policy::compile(Draft { local, regions, jurisdictions, classes, routes, geo, hash: PolicyHash::default() })
}

/// The parts of one request's facts, owned.
struct World {
    path: String,
    ingress: Ingress,
    is_read: bool,
    client: IpAddr,
    directory: Lookup<Record>,
    proof: Proof,
    place: Lookup<Place>,
    stale: bool,
    claim: Option<Claim>,
    vitals: Vitals,
}

fn world(random: &mut Rng, policy: &Policy) -> World {
    let regions: Vec<_> = policy.regions.iter().collect();
    let laws: Vec<_> = policy.jurisdictions().map(|(id, _)| id).collect();
    let country = |random: &mut Rng| random.bool().then(|| CountryCode::parse(one_of(random, &COUNTRIES)).unwrap());
    let record =
        |random: &mut Rng| Record { home: one_of(random, &regions), jurisdiction: random.bool().then(|| one_of(random, &laws)) };
    let mut vitals = Vitals::unmeasured(policy.nearest_first());
    for region in &regions {
        vitals.set(*region, RegionVitals { health: one_of(random, &Health::ALL), ..RegionVitals::default() });
    }
    let is_peer = random.u8(..3) == 0 && regions.len() > 1;
    let claim = is_peer.then(|| Claim {
        home: random.bool().then(|| one_of(random, &regions)),
        evidence: random.bool().then(|| one_of(random, &Evidence::ALL)),
        country: country(random),
        classes: (random.u8(..8) > 0).then(|| ClassSet::only(ClassId::new(random.usize(..policy.class_ids().count())).unwrap())),
    });
    let peer = regions[(regions.iter().position(|region| *region == policy.local).unwrap() + 1) % regions.len()];
    let place = match &claim {
        Some(claim) => claim.country.map_or(Lookup::Absent, |code| Lookup::Found(Place::in_country(code))),
        None => country(random).map_or(Lookup::Absent, |code| Lookup::Found(Place::in_country(code))),
    };
    World {
        path: format!("/{}/someone/x", random.u8(..3)),
        ingress: if is_peer { Ingress::Peer(peer) } else { Ingress::Client },
        is_read: random.bool(),
        client: IpAddr::from([10, random.u8(..5), 1, 1]),
        directory: match random.u8(..5) {
            0 => Lookup::NoKey,
            1 => Lookup::Absent,
            2 => Lookup::Unavailable,
            _ => Lookup::Found(record(random)),
        },
        proof: one_of(random, &[Proof::Claimed, Proof::Proven]),
        place,
        stale: random.u8(..6) == 0,
        claim,
        vitals,
    }
}

impl World {
    fn facts<'a>(&'a self, policy: &Policy, vitals: &'a Vitals) -> Facts<'a> {
        let method = if self.is_read { Method::Get } else { Method::Post };
        Facts {
            route: match_route(&Head { method, host: "a.test", path: &self.path }, policy),
            ingress: self.ingress,
            is_read: self.is_read,
            is_preflight: false,
            today: today(),
            client: self.client,
            directory: self.directory,
            token: Lookup::NotAsked,
            hint: None,
            proof: self.proof,
            place: self.place,
            place_is_stale: self.stale,
            claim: self.claim.as_ref(),
            vitals,
        }
    }

    fn decide(&self, policy: &Policy) -> Decision {
        decide(&self.facts(policy, &self.vitals), policy)
    }
}

/// Calls `check` for every request of every world.
fn in_every_world(check: impl Fn(&Policy, &World, &Decision, &str)) {
    let mut proceeded = 0;
    for seed in 0..WORLDS {
        let mut random = Rng::with_seed(seed);
        let policy = policy(&mut random);
        for request in 0..REQUESTS_IN_EACH {
            let world = world(&mut random, &policy);
            let decision = world.decide(&policy);
            proceeded += usize::from(matches!(decision.verdict, Verdict::Proceed(_)));
            check(&policy, &world, &decision, &format!("seed {seed}, request {request}"));
        }
    }
    assert!(proceeded > 2000, "enough requests proceed: {proceeded}");
}

fn stops(decision: &Decision) -> RegionSet {
    match &decision.verdict {
        Verdict::Proceed(itinerary) => itinerary.regions().collect(),
        Verdict::Redirect(_) | Verdict::Refuse(_) => RegionSet::EMPTY,
    }
}

/// Whether the residency rules allow the user's data to be processed in a region: an independent and simple implementation.
fn is_lawful(policy: &Policy, decision: &Decision, region: RegionId) -> bool {
    let home = decision.trail.home.expect("a request that proceeds has a home");
    let user = home.jurisdiction();
    let there = Jurisdiction::Named(policy.region(region).jurisdiction);
    decision.trail.classes.iter().all(|class| {
        let rule = &policy.class(class).rule;
        let known = match home.evidence() {
            Some(evidence) => evidence >= rule.needs,
            None => true,
        };
        let stays = match rule.stays {
            Stays::Anywhere => true,
            Stays::In(set) => set.contains(there),
            Stays::Home => user == there,
        };
        let mut excepted = false;
        for transfer in &rule.transfers {
            excepted |= transfer.from == user && transfer.to.contains(there) && transfer.until >= today();
        }
        rule.mode == Mode::Report || (known && (stays || excepted))
    })
}

#[test]
fn an_itinerary_never_leaves_its_clearance_nor_the_law() {
    in_every_world(|policy, _, decision, at| {
        assert!(stops(decision).is_subset_of(decision.trail.clearance), "{at}");
        for region in stops(decision).iter() {
            assert!(is_lawful(policy, decision, region), "{at}: {}", policy.region_name(region));
        }
        if let Verdict::Redirect(region) = decision.verdict {
            assert!(is_lawful(policy, decision, region) && policy.region(region).has_url, "{at}");
        }
    });
}

#[test]
fn no_region_carries_data_that_it_may_not_carry() {
    in_every_world(|policy, world, decision, at| {
        let carrier = match world.ingress {
            Ingress::Client => policy.local,
            Ingress::Peer(peer) => peer,
        };
        if !matches!(decision.verdict, Verdict::Proceed(_)) || is_lawful(policy, decision, carrier) {
            return;
        }
        let place = Jurisdiction::Named(policy.region(carrier).jurisdiction);
        for class in decision.trail.classes.iter() {
            let rule = &policy.class(class).rule;
            let may_carry = match rule.carried_by {
                Carriers::Anyone => true,
                Carriers::Only(set) => set.contains(place),
                Carriers::Nobody => false,
            };
            assert!(may_carry || rule.mode == Mode::Report, "{at}");
        }
    });
}

#[test]
fn taking_a_region_away_never_adds_another() {
    in_every_world(|policy, world, decision, at| {
        for region in stops(decision).iter() {
            let mut vitals = world.vitals.clone();
            vitals.set(region, RegionVitals { health: Health::Down, ..*vitals.region(region) });
            let without = decide(&world.facts(policy, &vitals), policy);
            let rest = if matches!(world.ingress, Ingress::Client) { stops(decision).without(region) } else { stops(decision) };
            assert!(stops(&without).is_subset_of(rest), "{at}");
        }
    });
}

#[test]
fn a_dead_or_draining_region_is_never_tried() {
    in_every_world(|_, world, decision, at| {
        if world.ingress == Ingress::Client {
            assert!(stops(decision).is_subset_of(world.vitals.taking_requests(RegionSet::EMPTY.complement())), "{at}");
        }
    });
}

#[test]
fn a_peers_request_is_served_here_or_nowhere() {
    in_every_world(|policy, world, decision, at| {
        if let Ingress::Peer(_) = world.ingress {
            assert!(stops(decision).is_subset_of(RegionSet::only(policy.local)), "{at}");
            assert!(!matches!(decision.verdict, Verdict::Redirect(_)), "{at}");
        }
    });
}

#[test]
fn an_owned_write_goes_home_or_nowhere() {
    in_every_world(|_, world, decision, at| {
        let owner = decision.trail.home.and_then(|home| home.region());
        if let (false, Some(owner), Verdict::Proceed(itinerary)) = (world.is_read, owner, &decision.verdict) {
            assert_eq!(itinerary.regions().collect::<Vec<_>>(), [owner], "{at}");
        }
    });
}

#[test]
fn an_owned_request_that_may_go_home_goes_home_first() {
    in_every_world(|_, world, decision, at| {
        let owner = decision.trail.home.and_then(|home| home.region());
        if let (Ingress::Client, Some(owner), Verdict::Proceed(itinerary)) = (world.ingress, owner, &decision.verdict) {
            let alive = world.vitals.taking_requests(RegionSet::EMPTY.complement()).contains(owner);
            assert_eq!(itinerary.first() == owner, alive, "{at}");
        }
    });
}

#[test]
fn the_same_input_gives_the_same_decision() {
    in_every_world(|policy, world, decision, at| assert_eq!(world.decide(policy), *decision, "{at}"));
}

#[test]
fn a_dead_directory_never_turns_into_a_guess_for_what_must_stay() {
    in_every_world(|policy, world, decision, at| {
        let Some(route) = decision.trail.route.map(|id| policy.routes.route(id)) else { return };
        let asked = route.chain.first() == Some(&Step::Directory) && world.directory == Lookup::Unavailable;
        let movable =
            world.is_read && decision.trail.classes.iter().all(|class| policy.class(class).rule.stays == Stays::Anywhere);
        if asked && !movable && decision.refusal() != Some(Code::ClassUnknown) {
            assert_eq!(decision.refusal(), Some(Code::DirectoryUnavailable), "{at}");
        }
    });
}
