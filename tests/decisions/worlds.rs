//! Random policies and situations as types of the checker, and their conversion to types of the program.
//!
//! Every value derives from a seed. A policy has overlapping routes, disjoint jurisdictions, and data classes with every kind of
//! rule. Parts of a situation that the program reads separately may contradict each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::UNIX_EPOCH;

use domicile::decision::facts::{Credential, Ingress};
use domicile::decision::policy::chain::{Failover, Reads, Step, Writes};
use domicile::decision::policy::class::ClassId;
use domicile::decision::policy::geography::{GeoRules, Network, Networks, Otherwise};
use domicile::decision::policy::route::{
    Conditions, FieldCondition, Fields, HostPattern, Method, MethodSet, PathPattern, Pattern, Route, Segment,
};
use domicile::decision::policy::rule::{Carriers, Mode, ResidencyRule, Stays, Transfer};
use domicile::decision::policy::{DataClass, Draft, Policy, Region};
use domicile::decision::verdict::{Decision, Verdict};
use domicile::engine::question::{Identity, Question};
use domicile::model::coordinates::Coordinates;
use domicile::model::country::{Continent, CountryCode};
use domicile::model::day::Day;
use domicile::model::jurisdiction::{Jurisdiction, JurisdictionId, JurisdictionSet};
use domicile::model::region::{RegionId, Registry};
use domicile::model::service::ServiceId;
use domicile::model::user::{Evidence, Proof};
use domicile::model::vitals::{Health, PolicyHash, RegionVitals, TableVersion, Vitals};
use domicile::peer::Envelope;
use domicile::session::Hint;
use domicile::tokens::Verified;
use fastrand::Rng;

use crate::checker::{self, Outcome, Situation};
use crate::support::{self, Table, address_in, noon};

/// The countries of clients: the bundled database has addresses in each of them.
const COUNTRIES: [&str; 8] = ["DE", "FR", "US", "JP", "BR", "GB", "ZA", "IN"];

/// A country without a centre, to which no region is the nearest.
const WITHOUT_CENTRE: &str = "BV";

/// The coordinates of regions. No two cities are almost equally far from the centre of a country, because the program computes
/// distances in `f32` and the checker in `f64`.
const CITIES: [(f32, f32); 10] = [
    (53.35, -6.26),
    (50.11, 8.68),
    (39.04, -77.49),
    (35.68, 139.77),
    (-23.55, -46.63),
    (19.08, 72.88),
    (-33.92, 18.42),
    (45.52, -122.68),
    (1.35, 103.82),
    (-33.87, 151.21),
];

/// The keys of users, as written in the directory and in a path.
const USERS: [(&str, &str); 5] = [("u1", "u1"), ("u2", "u2"), ("u3", "u3"), ("zoë", "zo%C3%AB"), ("ann b", "ann%20b")];

/// Segments that name no usable user: bytes that are not UTF-8, and a control character.
const UNUSABLE: [&str; 2] = ["%FF", "%C2%80"];

/// The hosts of requests, and the domains of host patterns; `example.com` is no subdomain of itself.
const HOSTS: [&str; 4] = ["www.example.com", "a.b.example.com", "example.com", "notexample.com"];
const DOMAINS: [&str; 3] = ["example.com", "b.example.com", "com"];

/// The methods of requests, and of routes that take some methods only. The last is not a standard method.
const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PURGE"];

/// The values of the header field on which routes match.
const VARIANTS: [&str; 2] = ["one", "two"];

const LITERALS: [&str; 3] = ["a", "b", "users"];

/// The number of services; every region has the first.
pub const SERVICES: usize = 3;

pub const TODAY: &str = "2026-06-01";

fn days_of(date: &str) -> i32 {
    let seconds = noon(date).duration_since(UNIX_EPOCH).unwrap().as_secs();
    i32::try_from(seconds / 86_400).unwrap()
}

fn one_of<T: Clone>(random: &mut Rng, items: &[T]) -> T {
    items[random.usize(..items.len())].clone()
}

/// True once in `times`.
fn once_in(random: &mut Rng, times: usize) -> bool {
    random.usize(..times) == 0
}

fn some_of(random: &mut Rng, count: usize) -> Vec<usize> {
    (0..count).filter(|_| random.bool()).collect()
}

fn maybe<T>(random: &mut Rng, make: impl FnOnce(&mut Rng) -> T) -> Option<T> {
    random.bool().then(|| make(random))
}

/// A random policy with its user table.
pub fn world(random: &mut Rng) -> checker::World {
    let (regions, jurisdictions, classes) = (random.usize(1..8), random.usize(1..5), random.usize(1..6));
    let mut cities = CITIES;
    random.shuffle(&mut cities);
    let mut countries = vec![Vec::new(); jurisdictions];
    for country in COUNTRIES.iter().chain([&WITHOUT_CENTRE]) {
        // A country that no jurisdiction lists is `elsewhere`.
        if let Some(listing) = countries.get_mut(random.usize(..=jurisdictions)) {
            listing.push((*country).to_owned());
        }
    }
    let region = |random: &mut Rng| random.usize(..regions);
    let user = |random: &mut Rng| (region(random), maybe(random, |random| random.usize(..jurisdictions)));
    let mut users = BTreeMap::from([("somebody".to_owned(), user(random))]);
    for (key, _) in USERS {
        if random.usize(..5) < 3 {
            users.insert(key.to_owned(), user(random));
        }
    }
    let mut routes: Vec<_> = (0..random.usize(1..5)).map(|_| route(random, regions, classes)).collect();
    if random.bool() {
        routes.push(checker::Route { segments: Vec::new(), open_ended: true, ..route(random, regions, classes) });
    }
    checker::World {
        local: region(random),
        regions: (0..regions)
            .map(|index| checker::Region {
                jurisdiction: random.usize(..jurisdictions),
                at: cities[index],
                has_url: !once_in(random, 3),
                has_gateway: !once_in(random, 4),
                services: (0..SERVICES).filter(|service| *service == 0 || !once_in(random, 10)).collect(),
            })
            .collect(),
        jurisdictions: countries,
        classes: (0..classes).map(|index| class(random, index, jurisdictions)).collect(),
        routes,
        networks: networks(random, regions),
        countries: listed(random, &COUNTRIES, regions),
        continents: listed(random, &Continent::ALL.map(Continent::code), regions),
        otherwise: match random.u8(..4) {
            0 => checker::Otherwise::Next,
            1 => checker::Otherwise::Region(region(random)),
            _ => checker::Otherwise::Nearest,
        },
        unknown: maybe(random, region),
        users,
        directory_available: !once_in(random, 8),
        refuses_other_credentials: random.bool(),
        geoip_stale: once_in(random, 6),
        today: days_of(TODAY),
        country_facts: country_facts(),
    }
}

fn country_facts() -> BTreeMap<String, (String, Option<(f32, f32)>)> {
    let facts = |code: &&str| {
        let country = code_of(code).country();
        let centre = country.centre.map(|at| (at.latitude, at.longitude));
        ((*code).to_owned(), (country.continent.code().to_owned(), centre))
    };
    COUNTRIES.iter().chain([&WITHOUT_CENTRE]).map(facts).collect()
}

/// A table that lists about a quarter of the codes.
fn listed(random: &mut Rng, codes: &[&str], regions: usize) -> Vec<(String, usize)> {
    let chosen: Vec<_> = codes.iter().filter(|_| once_in(random, 4)).collect();
    chosen.into_iter().map(|code| ((*code).to_owned(), random.usize(..regions))).collect()
}

fn evidence(random: &mut Rng) -> checker::Evidence {
    use checker::Evidence::{Asserted, Inferred, Recorded};
    one_of(random, &[Inferred, Inferred, Inferred, Asserted, Recorded])
}

fn class(random: &mut Rng, index: usize, jurisdictions: usize) -> checker::Class {
    let transfer = |random: &mut Rng| checker::Transfer {
        from: match random.u8(..5) {
            0 => checker::User::Elsewhere,
            1 => checker::User::Unknown,
            _ => checker::User::Named(random.usize(..jurisdictions)),
        },
        to: some_of(random, jurisdictions),
        until: days_of(one_of(random, &["2026-05-31", TODAY, "2030-01-01"])),
    };
    checker::Class {
        name: format!("c{index}"),
        stays: match random.u8(..5) {
            0 => checker::Stays::Anywhere,
            1 | 2 => checker::Stays::In(some_of(random, jurisdictions)),
            _ => checker::Stays::Home,
        },
        needs: evidence(random),
        carried_by: match random.u8(..4) {
            0 | 1 => checker::Carriers::Anyone,
            2 => checker::Carriers::Only(some_of(random, jurisdictions)),
            _ => checker::Carriers::Nobody,
        },
        transfers: (0..random.usize(..3)).map(|_| transfer(random)).collect(),
        report_only: once_in(random, 5),
    }
}

fn route(random: &mut Rng, regions: usize, classes: usize) -> checker::Route {
    let mut segments: Vec<_> =
        (0..random.usize(..4)).map(|_| checker::Segment::Literal(one_of(random, &LITERALS).to_owned())).collect();
    if !segments.is_empty() && random.bool() {
        let place = random.usize(..segments.len());
        segments[place] = checker::Segment::User;
    }
    let mut chain = Vec::new();
    if random.usize(..4) < 3 {
        chain.push(checker::Step::Directory);
    }
    if once_in(random, 4) {
        chain.push(checker::Step::Token);
    }
    if random.usize(..3) < 2 {
        chain.push(checker::Step::GeoIp);
    }
    if once_in(random, 3) {
        random.shuffle(&mut chain);
    }
    match random.u8(..8) {
        0 => {}
        1 | 2 => chain.push(checker::Step::Refuse),
        3 | 4 => chain.push(checker::Step::Latency),
        _ => chain.push(checker::Step::Region(random.usize(..regions))),
    }
    let aliases = one_of(random, &[&[][..], &["me"], &["me", "u3"]]);
    checker::Route {
        host: match random.u8(..12) {
            0 => checker::Host::Exact(one_of(random, &HOSTS).to_owned()),
            1 => checker::Host::Below(one_of(random, &DOMAINS).to_owned()),
            _ => checker::Host::Any,
        },
        methods: once_in(random, 10).then(|| METHODS.iter().filter(|_| random.bool()).copied().collect()),
        segments,
        open_ended: random.bool(),
        class: random.usize(..classes),
        service: random.usize(..SERVICES),
        chain,
        claim: Some("home_region".to_owned()),
        aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        reads_fail_over: random.bool(),
        variant: once_in(random, 6).then(|| one_of(random, &VARIANTS).to_owned()),
    }
}

/// The clients: an address in each country, and addresses without a country.
fn clients() -> Vec<(IpAddr, Option<&'static str>)> {
    let nowhere = ["203.0.113.1", "10.1.2.3", "2001:db8::1"].map(|address| (address.parse().unwrap(), None));
    COUNTRIES.into_iter().map(|code| (address_in(code_of(code)), Some(code))).chain(nowhere).collect()
}

/// Networks around the clients' addresses, each stated once.
fn networks(random: &mut Rng, regions: usize) -> Vec<checker::Network> {
    let mut stated = BTreeSet::new();
    let mut networks = Vec::new();
    for _ in 0..random.usize(..4) {
        let (address, _) = one_of(random, &clients());
        let (address, length) = match address {
            IpAddr::V4(v4) if once_in(random, 4) => (v4.to_ipv6_mapped().into(), one_of(random, &[96, 112, 128])),
            IpAddr::V4(_) => (address, one_of(random, &[0, 8, 16, 24, 32])),
            IpAddr::V6(_) => (address, one_of(random, &[0, 32, 48, 128])),
        };
        let (bits, prefix) = match address {
            IpAddr::V4(v4) => (v4.to_ipv6_mapped().to_bits(), length + 96),
            IpAddr::V6(v6) => (v6.to_bits(), length),
        };
        if stated.insert((bits.checked_shr(128 - u32::from(prefix)), prefix)) {
            networks.push((address, length, random.usize(..regions), maybe(random, country)));
        }
    }
    networks
}

fn country(random: &mut Rng) -> String {
    if once_in(random, 10) { WITHOUT_CENTRE.to_owned() } else { one_of(random, &COUNTRIES).to_owned() }
}

/// A random request to a world.
pub fn situation(random: &mut Rng, world: &checker::World) -> Situation {
    let regions = world.regions.len();
    let region = |random: &mut Rng| random.usize(..regions);
    let peer = if once_in(random, 4) { Some(region(random)).filter(|peer| *peer != world.local) } else { None };
    let (client, country_of_client) = one_of(random, &clients());
    let is_preflight = once_in(random, 25);
    let caller = (!is_preflight && random.usize(..4) < 3).then(|| {
        use checker::Proof::{Claimed, Proven, Vouched};
        (one_of(random, &USERS).0.to_owned(), one_of(random, &[Claimed, Vouched, Proven, Proven]))
    });
    let credential = {
        use checker::Credential::{Absent, Unread, Unverifiable, Verified};
        let usual = if random.bool() { Absent } else { Verified };
        match once_in(random, 10) {
            _ if is_preflight => Absent,
            true => one_of(random, &[Unverifiable, Unread]),
            false => usual,
        }
    };
    let hinted = if once_in(random, 4) { caller.as_ref().map(|(key, _)| key.clone()) } else { None };
    let mut nearest: Vec<_> = (0..regions).collect();
    random.shuffle(&mut nearest);
    Situation {
        peer,
        host: one_of(random, &HOSTS).to_owned(),
        path: path(random, world),
        method: if random.bool() { "GET" } else { one_of(random, &METHODS) },
        is_preflight,
        is_upgrade: !is_preflight && once_in(random, 20),
        variant: random.bool().then(|| one_of(random, &VARIANTS).to_owned()),
        client,
        country: country_of_client.map(str::to_owned),
        caller,
        token: (credential == checker::Credential::Verified).then(|| claims(random, regions)),
        credential,
        hint: hinted.map(|user| hint(random, world, user)),
        // Every peer sends an envelope. The program ignores an envelope in a client's request.
        statement: peer.map(|_| checker::Statement {
            home: (random.usize(..4) < 3).then(|| region(random)),
            evidence: (random.usize(..4) < 3).then(|| evidence(random)),
            country: maybe(random, country),
            classes: labels(random, world),
        }),
        labels: if once_in(random, 4) { labels(random, world) } else { Vec::new() },
        down: (0..regions).filter(|_| once_in(random, 5)).collect(),
        recovering: (0..regions).filter(|_| once_in(random, 5)).collect(),
        down_services: (0..regions)
            .flat_map(|region| (0..SERVICES).map(move |service| (region, service)))
            .filter(|_| once_in(random, 25))
            .collect(),
        nearest,
    }
}

/// A hint that was issued from the table in use says the same as the table.
fn hint(random: &mut Rng, world: &checker::World, user: String) -> checker::Hint {
    match world.users.get(&user) {
        Some((home, jurisdiction)) if random.bool() => {
            checker::Hint { user, home: *home, jurisdiction: *jurisdiction, is_current: true }
        }
        Some(_) | None => checker::Hint {
            user,
            home: random.usize(..world.regions.len()),
            jurisdiction: maybe(random, |random| random.usize(..world.jurisdictions.len())),
            is_current: false,
        },
    }
}

fn claims(random: &mut Rng, regions: usize) -> BTreeMap<String, String> {
    let name = match random.u8(..8) {
        0 => return BTreeMap::new(),
        1 => one_of(random, &["", "R0", "r00", "r63", "nowhere"]).to_owned(),
        _ => format!("r{}", random.usize(..regions)),
    };
    BTreeMap::from([("home_region".to_owned(), name)])
}

fn labels(random: &mut Rng, world: &checker::World) -> Vec<String> {
    if once_in(random, 20) {
        return vec!["unheard-of".to_owned()];
    }
    (0..random.usize(..3)).map(|_| one_of(random, &world.classes).name).collect()
}

/// Usually a path of one of the routes, sometimes any path.
fn path(random: &mut Rng, world: &checker::World) -> String {
    let mut segments: Vec<String> = Vec::new();
    if once_in(random, 8) {
        segments.extend((0..random.usize(..4)).map(|_| one_of(random, &["a", "b", "users", "u1", "u2", "me"]).to_owned()));
    } else {
        let route = one_of(random, &world.routes);
        segments.extend(route.segments.iter().map(|segment| match segment {
            checker::Segment::Literal(literal) => literal.clone(),
            checker::Segment::User => user_segment(random),
        }));
        if route.open_ended {
            segments.extend((0..random.usize(..3)).map(|_| one_of(random, &["a", "users", "u1", "x"]).to_owned()));
        }
    }
    if segments.is_empty() {
        // The path `//` is left out, because the program reads it as `/` and the checker as one empty segment. The program
        // judges it only under a policy that keeps repeated slashes.
        return "/".to_owned();
    }
    if once_in(random, 40) {
        segments.insert(random.usize(..segments.len()), String::new());
    }
    let slash = if once_in(random, 6) { "/" } else { "" };
    format!("/{}{slash}", segments.join("/"))
}

fn user_segment(random: &mut Rng) -> String {
    match random.u8(..40) {
        0 => one_of(random, &UNUSABLE).to_owned(),
        1 => "a".repeat(one_of(random, &[256, 257])),
        2..10 => "me".to_owned(),
        _ => one_of(random, &USERS).1.to_owned(),
    }
}

// Conversion to the types of the program.

fn code_of(country: &str) -> CountryCode {
    CountryCode::parse(country).expect("a country of the bundled table")
}

pub fn region_id(index: usize) -> RegionId {
    RegionId::new(index).expect("few regions")
}

fn service_id(index: usize) -> ServiceId {
    ServiceId::new(index).expect("few services")
}

fn jurisdiction_id(index: usize) -> JurisdictionId {
    JurisdictionId::new(index).expect("few jurisdictions")
}

fn jurisdiction_set(indexes: &[usize]) -> JurisdictionSet {
    indexes.iter().fold(JurisdictionSet::default(), |set, index| set.with(Jurisdiction::Named(jurisdiction_id(*index))))
}

fn program_evidence(evidence: checker::Evidence) -> Evidence {
    match evidence {
        checker::Evidence::Inferred => Evidence::Inferred,
        checker::Evidence::Asserted => Evidence::Asserted,
        checker::Evidence::Recorded => Evidence::Recorded,
    }
}

/// The world in the types of the program.
pub fn program(world: &checker::World) -> support::World {
    let mut registry = Registry::default();
    for index in 0..world.regions.len() {
        assert_eq!(registry.regions.number(&format!("r{index}")), Some(index));
    }
    for index in 0..world.jurisdictions.len() {
        assert_eq!(registry.jurisdictions.number(&format!("j{index}")), Some(index));
    }
    let policy = Policy::compile(draft(world), |_| PolicyHash::default());
    let table = if world.directory_available { Table::Text(table(world)) } else { Table::Unavailable };
    let vitals = Vitals::unmeasured(policy.nearest_first());
    support::World::new(policy, &registry, &table, world.geoip_stale, noon(TODAY), vitals)
}

fn table(world: &checker::World) -> String {
    let row = |(key, (home, column)): (&String, &(usize, Option<usize>))| {
        let column = column.map(|index| format!("j{index}")).unwrap_or_default();
        format!("{key},r{home},{column}\n")
    };
    format!("user,home,jurisdiction\n{}", world.users.iter().map(row).collect::<String>())
}

fn draft(world: &checker::World) -> Draft {
    let region = |(index, region): (usize, &checker::Region)| {
        let region = Region {
            name: format!("r{index}").into(),
            jurisdiction: jurisdiction_id(region.jurisdiction),
            at: Coordinates { latitude: region.at.0, longitude: region.at.1 },
            has_url: region.has_url,
            has_gateway: region.has_gateway,
            services: region.services.iter().map(|service| service_id(*service)).collect(),
        };
        (region_id(index), region)
    };
    let jurisdiction = |(index, countries): (usize, &Vec<String>)| {
        (jurisdiction_id(index), format!("j{index}").into(), countries.iter().map(|code| code_of(code)).collect())
    };
    Draft {
        local: region_id(world.local),
        regions: world.regions.iter().enumerate().map(region).collect(),
        jurisdictions: world.jurisdictions.iter().enumerate().map(jurisdiction).collect(),
        services: (0..SERVICES).map(|service| (service_id(service), format!("s{service}").into())).collect(),
        classes: world.classes.iter().map(data_class).collect(),
        routes: world.routes.iter().map(program_route).collect(),
        geo: geo_rules(world),
        refuses_unread_credentials: world.refuses_other_credentials,
        identification: Vec::new(),
    }
}

fn data_class(class: &checker::Class) -> DataClass {
    let transfer = |transfer: &checker::Transfer| Transfer {
        from: match transfer.from {
            checker::User::Named(index) => Jurisdiction::Named(jurisdiction_id(index)),
            checker::User::Elsewhere => Jurisdiction::Elsewhere,
            checker::User::Unknown => Jurisdiction::Unknown,
        },
        to: jurisdiction_set(&transfer.to),
        basis: "contract".into(),
        record: None,
        until: Day::of(UNIX_EPOCH + std::time::Duration::from_secs(u64::try_from(transfer.until).unwrap() * 86_400)),
    };
    let rule = ResidencyRule {
        stays: match &class.stays {
            checker::Stays::Home => Stays::Home,
            checker::Stays::In(jurisdictions) => Stays::In(jurisdiction_set(jurisdictions)),
            checker::Stays::Anywhere => Stays::Anywhere,
        },
        needs: program_evidence(class.needs),
        carried_by: match &class.carried_by {
            checker::Carriers::Anyone => Carriers::Anyone,
            checker::Carriers::Only(jurisdictions) => Carriers::Only(jurisdiction_set(jurisdictions)),
            checker::Carriers::Nobody => Carriers::Nobody,
        },
        transfers: class.transfers.iter().map(transfer).collect(),
        mode: if class.report_only { Mode::Report } else { Mode::Enforce },
    };
    DataClass { name: class.name.as_str().into(), rule }
}

fn program_route(route: &checker::Route) -> Route {
    let segment = |segment: &checker::Segment| match segment {
        checker::Segment::Literal(text) => Segment::Literal(text.as_str().into()),
        checker::Segment::User => Segment::User,
    };
    let step = |step: &checker::Step| match step {
        checker::Step::Directory => Step::Directory,
        checker::Step::Token => Step::Token,
        checker::Step::GeoIp => Step::GeoIp,
        checker::Step::Latency => Step::Latency,
        checker::Step::Region(index) => Step::Region(region_id(*index)),
        checker::Step::Refuse => Step::Refuse,
    };
    let path = PathPattern { segments: route.segments.iter().map(segment).collect(), open_ended: route.open_ended };
    let host = match &route.host {
        checker::Host::Any => HostPattern::Any,
        checker::Host::Exact(name) => HostPattern::Exact(name.as_str().into()),
        checker::Host::Below(domain) => HostPattern::Below(domain.as_str().into()),
    };
    let methods = match &route.methods {
        None => MethodSet::ALL,
        Some(methods) => methods.iter().fold(MethodSet::NONE, |set, method| set.with(Method::of(method))),
    };
    let condition = |value: &String| FieldCondition { name: "x-variant".into(), values: vec![value.as_str().into()] };
    let headers = route.variant.iter().map(condition).collect();
    let conditions = Conditions { headers, ..Conditions::default() };
    let reads = if route.reads_fail_over { Reads::Nearest } else { Reads::Never };
    Route {
        name: "route".into(),
        pattern: Pattern { hosts: vec![host], paths: vec![path], methods, conditions },
        class: ClassId::new(route.class).expect("few classes"),
        service: Some(service_id(route.service)),
        chain: route.chain.iter().map(step).collect(),
        aliases: route.aliases.iter().map(|alias| alias.as_str().into()).collect(),
        claim: route.claim.as_deref().map(Into::into),
        failover: Failover { reads, writes: Writes::Never },
        keeps: Default::default(),
    }
}

fn geo_rules(world: &checker::World) -> GeoRules {
    let network = |(address, length, home, country): &checker::Network| {
        (*address, *length, Network { home: region_id(*home), country: country.as_deref().map(code_of) })
    };
    let continent = |code: &str| Continent::parse(code).expect("a continent");
    GeoRules {
        networks: Networks::build(world.networks.iter().map(network)),
        countries: world.countries.iter().map(|(code, region)| (code_of(code), region_id(*region))).collect(),
        continents: world.continents.iter().map(|(code, region)| (continent(code), region_id(*region))).collect(),
        otherwise: match world.otherwise {
            checker::Otherwise::Nearest => Otherwise::Nearest,
            checker::Otherwise::Region(index) => Otherwise::Region(region_id(index)),
            checker::Otherwise::Next => Otherwise::Next,
        },
        unknown: world.unknown.map(region_id),
    }
}

/// Judges the situation with the function that judges live traffic.
pub fn judge(program: &support::World, situation: &Situation) -> Decision {
    let labels: Vec<Box<str>> = situation.labels.iter().map(|label| label.as_str().into()).collect();
    program.judge_with(&question(situation, program.table_version()), &labels, &vitals(situation))
}

fn vitals(situation: &Situation) -> Vitals {
    let mut vitals = Vitals::unmeasured(situation.nearest.iter().map(|index| region_id(*index)).collect());
    for index in &situation.nearest {
        let is_recovering = situation.recovering.contains(index);
        let health = match (situation.down.contains(index), index % 2) {
            (false, _) if is_recovering => Health::Recovering,
            (true, 0) => Health::Down,
            (true, _) => Health::Draining,
            (false, 0) => Health::Up,
            (false, _) => Health::Unmeasured,
        };
        vitals.set(region_id(*index), RegionVitals { health, ..RegionVitals::default() });
    }
    for (region, service) in &situation.down_services {
        vitals.set_down(service_id(*service), region_id(*region));
    }
    vitals
}

fn question(situation: &Situation, table: TableVersion) -> Question {
    let proof = |proof| match proof {
        checker::Proof::Claimed => Proof::Claimed,
        checker::Proof::Vouched => Proof::Vouched,
        checker::Proof::Proven => Proof::Proven,
    };
    let caller = situation.caller.as_ref().map(|(key, how)| (key.clone(), proof(*how)));
    let claims = |claims: &BTreeMap<String, String>| {
        Verified::saying(&claims.iter().map(|(name, value)| (name.clone(), value.clone())).collect::<Vec<_>>())
    };
    let hint = situation.hint.as_ref().map(|hint| Hint {
        user: hint.user.clone(),
        home: format!("r{}", hint.home),
        jurisdiction: hint.jurisdiction.map(|index| format!("j{index}")),
        table: if hint.is_current { table } else { TableVersion([1; 16]) },
        expires: noon("2100-01-01"),
    });
    let identity = Identity {
        caller: caller.clone(),
        token: situation.token.as_ref().map(|token| claims(token).into()),
        credential: match situation.credential {
            checker::Credential::Absent => Credential::Absent,
            checker::Credential::Verified => Credential::Verified,
            checker::Credential::Unverifiable => Credential::Unverifiable,
            checker::Credential::Unread => Credential::Unread,
        },
        hint,
        is_fresh: false,
    };
    Question {
        ingress: situation.peer.map_or(Ingress::Client, |peer| Ingress::Peer(region_id(peer))),
        method: Method::of(situation.method),
        host: situation.host.clone(),
        path: situation.path.clone(),
        is_read: situation.is_read(),
        client: situation.client,
        fields: fields(situation),
        identity,
        is_preflight: situation.is_preflight,
        ignores_hint: Default::default(),
        envelope: situation.statement.as_ref().map(|statement| envelope(statement, situation.client, caller)),
    }
}

/// The header field that conditions read; `None` is a request without it.
fn fields(situation: &Situation) -> Fields {
    let values = situation.variant.iter().map(|value| value.as_bytes().into()).collect();
    Fields { headers: vec![("x-variant".into(), values)], query: Vec::new() }
}

fn envelope(statement: &checker::Statement, client: IpAddr, caller: Option<(String, Proof)>) -> Envelope {
    Envelope {
        id: "case".into(),
        client,
        user: caller,
        home: statement.home.map(|index| format!("r{index}")),
        evidence: statement.evidence.map(program_evidence),
        country: statement.country.as_deref().map(code_of),
        classes: statement.classes.clone(),
        policy: PolicyHash::default(),
        directory: None,
        certificate: None,
        is_https: true,
        is_question: false,
        is_retry: false,
    }
}

/// The program's verdict as a type of the checker.
pub fn outcome(decision: &Decision) -> Outcome {
    match &decision.verdict {
        Verdict::Proceed(itinerary) => Outcome::Proceed(itinerary.regions().map(RegionId::index).collect()),
        Verdict::Redirect(region) => Outcome::Redirect(region.index()),
        Verdict::Refuse(code) => Outcome::Refuse(code.as_str()),
    }
}

/// Whether the request may go to its destination only because of report-only mode.
pub fn is_only_reported(decision: &Decision) -> bool {
    match &decision.verdict {
        Verdict::Proceed(itinerary) => decision.trail.is_only_reported(itinerary.first()),
        Verdict::Redirect(region) => decision.trail.is_redirect_only_reported(*region),
        Verdict::Refuse(_) => false,
    }
}

#[test]
fn no_two_cities_are_almost_equally_far_from_a_country() {
    for code in COUNTRIES {
        let centre = code_of(code).country().centre.expect("a centre");
        let mut distances: Vec<_> = CITIES
            .iter()
            .map(|(latitude, longitude)| centre.distance_km(Coordinates { latitude: *latitude, longitude: *longitude }))
            .collect();
        distances.sort_by(f32::total_cmp);
        assert!(distances.windows(2).all(|pair| pair[1] - pair[0] > 5.0), "{code}: {distances:?}");
    }
}
