//! Every result of the lookups that a route can tell apart.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::decision::decide;
use crate::decision::facts::{Facts, Lookup, PeerStatement};
use crate::decision::home::Home;
use crate::decision::policy::Policy;
use crate::decision::policy::chain::Step;
use crate::decision::policy::geography::{Network, Otherwise};
use crate::decision::policy::route::RouteId;
use crate::model::country::CountryCode;
use crate::model::jurisdiction::Jurisdiction;
use crate::model::place::Place;
use crate::model::region::RegionId;
use crate::model::user::{Evidence, Proof, Record};

/// The sources of facts that the settings outside the policy allow.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Sources {
    /// A user's key may come from a plain cookie.
    pub claimed_keys: bool,
    /// Sealed cookies hold homes.
    pub hints: bool,
    /// A database gives places.
    pub places: bool,
    /// The database has a `max_age`, and may be older.
    pub old_places: bool,
}

/// The results of the lookups for one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lookups {
    directory: Lookup<Record>,
    proof: Proof,
    hint: Option<Record>,
    caller: Lookup<Record>,
    caller_proof: Proof,
    token: Lookup<RegionId>,
    caller_token: Lookup<RegionId>,
    from: Origin,
}

/// Where a request comes from, as far as lookups tell.
#[derive(Clone, Copy, Debug)]
struct Origin {
    client: IpAddr,
    place: Lookup<Place>,
    is_stale: bool,
    peer: Option<PeerStatement>,
}

impl Lookups {
    const NOTHING: Self = Self {
        directory: Lookup::NoKey,
        proof: Proof::Proven,
        hint: None,
        caller: Lookup::NotAsked,
        caller_proof: Proof::Proven,
        token: Lookup::NoKey,
        caller_token: Lookup::NotAsked,
        from: Origin { client: IpAddr::V4(Ipv4Addr::UNSPECIFIED), place: Lookup::NotAsked, is_stale: false, peer: None },
    };

    const fn is_origin_only(&self) -> bool {
        matches!((self.directory, self.token), (Lookup::NoKey, Lookup::NoKey))
    }

    /// The facts of a request with these results.
    pub fn facts<'a>(&'a self, rest: Facts<'a>) -> Facts<'a> {
        Facts {
            client: self.from.client,
            directory: self.directory,
            caller: self.caller,
            caller_proof: self.caller_proof,
            token: self.token,
            caller_token: self.caller_token,
            hint: self.hint,
            proof: self.proof,
            place: self.from.place,
            place_is_stale: self.from.is_stale,
            peer: self.from.peer.as_ref(),
            ..rest
        }
    }
}

/// Lookups that lead to homes with the same evidence and jurisdictions, so that rules do not tell them apart.
pub(super) struct Found {
    /// One home, or that of the caller and that of the user whom the path names, with the region of the first lookups.
    pub homes: Vec<Home>,
    /// Lookups for each region that owns the request.
    pub lookups: BTreeMap<Option<usize>, Lookups>,
}

/// Everything that a route can find. `rest` are the other facts of a request of the route.
pub(super) fn homes(policy: &Policy, route: RouteId, sources: Sources, is_peer: bool, rest: &Facts<'_>) -> Vec<Found> {
    let mut found: BTreeMap<Vec<(usize, usize)>, Found> = BTreeMap::new();
    // Returns the step that found a home. Steps before it found none, whatever comes after.
    let visit = |lookups: Lookups, found: &mut BTreeMap<_, Found>| {
        let trail = decide(&lookups.facts(*rest), policy).trail;
        let homes: Vec<Home> = trail.homes().copied().collect();
        if let Some(home) = homes.first() {
            let region = home.region().map(RegionId::index);
            let same = found.entry(homes.iter().map(code).collect()).or_insert_with(|| Found { homes, lookups: BTreeMap::new() });
            same.lookups.entry(region).or_insert(lookups);
        }
        trail.home.and(trail.steps().last()).map(|(step, _)| step)
    };
    let chain = &policy.routes.route(route).chain;
    let names_a_user = policy.routes.route(route).pattern.user_segment().is_some();
    let origins = if is_peer { stated_origins(policy) } else { origins(policy, sources) };
    let tokens = if chain.contains(&Step::Token) { regions(policy).map(Lookup::Found).collect() } else { Vec::new() };
    let tokens: Vec<_> = std::iter::once(Lookup::NoKey).chain(tokens).collect();
    for directory in records(policy, chain, sources) {
        'tokens: for token in &tokens {
            for from in &origins {
                match visit(Lookups { token: *token, from: *from, ..directory }, &mut found) {
                    Some(Step::Directory) => break 'tokens,
                    Some(Step::Token) => continue 'tokens,
                    Some(Step::GeoIp | Step::Latency | Step::Region(_) | Step::Refuse) | None => {}
                }
            }
        }
    }
    if names_a_user {
        // Without records and tokens, these origins lead to every home that the rest of the chain finds.
        let distinct: Vec<_> = found
            .values()
            .flat_map(|found| found.lookups.values())
            .filter(|one| one.is_origin_only())
            .map(|one| one.from)
            .collect();
        let absent = Lookups { directory: Lookup::Absent, ..Lookups::NOTHING };
        let by_record = records(policy, chain, sources).into_iter().map(|own| Lookups {
            caller: own.directory,
            caller_proof: own.proof,
            ..absent
        });
        let by_token = tokens.iter().map(|token| Lookups { caller_token: *token, ..absent });
        for caller in by_record.chain(by_token) {
            for from in &distinct {
                visit(Lookups { from: *from, ..caller }, &mut found);
            }
        }
    }
    found.into_values().collect()
}

/// A number for each jurisdiction and each evidence of a home.
fn code(home: &Home) -> (usize, usize) {
    let place = match home.jurisdiction() {
        Jurisdiction::Named(id) => id.index(),
        Jurisdiction::Elsewhere => 64,
        Jurisdiction::Unknown => 65,
    };
    (home.evidence().map_or(usize::MAX, |evidence| evidence as usize), place)
}

fn regions(policy: &Policy) -> impl Iterator<Item = RegionId> {
    policy.regions.iter()
}

/// What the directory may say of a user, and a sealed cookie.
fn records(policy: &Policy, chain: &[Step], sources: Sources) -> Vec<Lookups> {
    let mut all = vec![Lookups::NOTHING];
    if !chain.contains(&Step::Directory) {
        return all;
    }
    let jurisdictions = || std::iter::once(None).chain(policy.jurisdictions().map(|(id, _)| Some(id)));
    let records = regions(policy).flat_map(|home| jurisdictions().map(move |jurisdiction| Record { home, jurisdiction }));
    for record in records {
        for proof in [Proof::Proven, Proof::Vouched, Proof::Claimed] {
            if proof != Proof::Claimed || sources.claimed_keys {
                all.push(Lookups { directory: Lookup::Found(record), proof, ..Lookups::NOTHING });
            }
        }
        if sources.hints {
            all.push(Lookups { directory: Lookup::Unavailable, hint: Some(record), ..Lookups::NOTHING });
        }
    }
    all
}

/// One country of each kind that the policy can tell apart.
fn countries(policy: &Policy) -> Vec<CountryCode> {
    let mut kinds = BTreeMap::new();
    for country in CountryCode::all() {
        let listed = policy.geo.countries.iter().find(|(code, _)| *code == country).map(|(_, home)| home.index());
        let continent = country.country().continent;
        let of_continent = policy.geo.continents.iter().find(|(code, _)| *code == continent).map(|(_, home)| home.index());
        let jurisdiction = match policy.jurisdiction_of_country(Some(country)) {
            Jurisdiction::Named(id) => Some(id.index()),
            Jurisdiction::Elsewhere | Jurisdiction::Unknown => None,
        };
        let has_centre = country.country().centre.is_some();
        kinds.entry((listed, of_continent, jurisdiction, has_centre)).or_insert(country);
    }
    kinds.into_values().collect()
}

/// An address in each kind of network that the operator lists, and one outside all of them if there is one.
fn addresses(policy: &Policy) -> Vec<(IpAddr, Option<Network>)> {
    let networks = &policy.geo.networks;
    // Where one network ends, another begins, or the one around it goes on.
    let edges = networks.all().flat_map(|((length, first), _)| {
        let last = first | u128::MAX.checked_shr(length.into()).unwrap_or(0);
        [first, first.wrapping_sub(1), last.wrapping_add(1)]
    });
    let mut kinds = BTreeMap::new();
    for bits in std::iter::once(0).chain(edges) {
        let address = Ipv6Addr::from(bits).to_canonical();
        let network = networks.find(address).copied();
        let kind = network.map(|network| (network.home.index(), network.country.map(CountryCode::slot)));
        kinds.entry(kind).or_insert((address, network));
    }
    kinds.into_values().collect()
}

/// The origins of clients.
fn origins(policy: &Policy, sources: Sources) -> Vec<Origin> {
    let found = |client, place| Origin { client, place: Lookup::Found(place), is_stale: false, peer: None };
    let mut all = Vec::new();
    for (client, network) in addresses(policy) {
        if let Some(country) = network.and_then(|network| network.country) {
            all.push(found(client, Place::in_country(country)));
            continue;
        }
        all.push(Origin { client, place: Lookup::Absent, is_stale: false, peer: None });
        if !sources.places {
            continue;
        }
        for country in countries(policy) {
            let place = Place::in_country(country);
            all.push(found(client, place));
            if policy.geo.otherwise == Otherwise::Nearest {
                let near = |region| found(client, Place { coordinates: Some(policy.region(region).at), ..place });
                all.extend(regions(policy).map(near));
            }
        }
        let of_continent = |(continent, _): &_| found(client, Place { continent: Some(*continent), ..Place::default() });
        all.extend(policy.geo.continents.iter().map(of_continent));
    }
    let stale: Vec<_> = all.iter().filter(|_| sources.old_places).map(|origin| Origin { is_stale: true, ..*origin }).collect();
    all.extend(stale);
    all
}

/// The origins that peers state.
fn stated_origins(policy: &Policy) -> Vec<Origin> {
    let countries: Vec<_> = std::iter::once(None).chain(countries(policy).into_iter().map(Some)).collect();
    let homes: Vec<_> = std::iter::once(None).chain(regions(policy).map(Some)).collect();
    let mut all = Vec::new();
    for (client, _) in addresses(policy) {
        for country in &countries {
            let place = country.map_or(Lookup::Absent, |country| Lookup::Found(Place::in_country(country)));
            for home in &homes {
                let evidence = home.map(|_| Evidence::Inferred);
                let peer = Some(PeerStatement { home: *home, evidence, country: *country });
                all.push(Origin { client, place, is_stale: false, peer });
            }
        }
    }
    all
}
