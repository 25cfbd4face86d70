//! Example requests: for each route a request that matches it, by users and clients of every kind.

use std::net::{IpAddr, Ipv4Addr};

use crate::decision::facts::{Credential, Facts, Ingress, Lookup};
use crate::decision::policy::Policy;
use crate::decision::policy::chain::Step;
use crate::decision::policy::class::ClassSet;
use crate::decision::policy::geography::Prefix;
use crate::decision::policy::route::{
    Conditions, FieldCondition, Fields, Head, HostPattern, Method, PathPattern, Route, RouteId, RouteMatch, Segment,
};
use crate::decision::verdict::{Decision, Trail};
use crate::decision::{decide, match_route, narrate};
use crate::model::country::CountryCode;
use crate::model::day::Day;
use crate::model::jurisdiction::Jurisdiction;
use crate::model::place::Place;
use crate::model::region::RegionId;
use crate::model::user::{Proof, Record};
use crate::model::vitals::Vitals;

use super::{About, Example, routes};

/// The most routes, of each policy, for whose requests an example is looked for.
const MAX_ROUTES: usize = 500;

/// The most requests of one route.
const MAX_SAMPLES: usize = 16;

/// A request that matches a route.
pub(super) struct Sample {
    method: Method,
    host: String,
    path: String,
    client: Option<IpAddr>,
    fields: Fields,
}

/// A user or a client.
pub(super) struct Person {
    text: String,
    address: IpAddr,
    place: Option<Place>,
    /// The recorded home, which the user's token names as well.
    home: Option<RegionId>,
}

impl Person {
    pub fn without_record(address: IpAddr, place: Option<Place>) -> Self {
        let country = place.and_then(|place| place.country);
        let text = country.map_or_else(|| "a client at an unknown place".into(), |code| format!("a client in {}", code.as_str()));
        Self { text, address, place, home: None }
    }

    fn recorded(policy: &Policy, home: RegionId) -> Self {
        let text = format!("a user whose home is {}", policy.region_name(home));
        Self { text, address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), place: None, home: Some(home) }
    }
}

/// The requests of two policies, with the policies as each region has them.
pub(super) struct Samples {
    old: Policy,
    new: Policy,
    samples: Vec<Sample>,
    persons: Vec<Person>,
    today: Day,
}

impl Samples {
    pub fn of(old: &Policy, new: &Policy, today: Day) -> Self {
        let of_policy = |policy: &Policy| {
            let routes = policy.routes.all().len().min(MAX_ROUTES);
            (0..routes).flat_map(|index| samples_of(policy, index)).collect::<Vec<_>>()
        };
        let mut samples: Vec<_> = routes::swapped(old, new).iter().filter_map(|(one, other)| shared_sample(one, other)).collect();
        samples.extend(of_policy(new));
        samples.extend(of_policy(old));
        let mut persons: Vec<_> = new.regions.iter().map(|home| Person::recorded(new, home)).collect();
        persons.extend(old.regions.iter().filter(|home| !new.regions.contains(*home)).map(|home| Person::recorded(old, home)));
        Self { old: old.clone(), new: new.clone(), samples, persons, today }
    }

    /// A request that the policies judge differently, among those that a difference is about.
    /// Requests come first that nothing else judges differently: those of the same route with the same data.
    pub fn example(&self, about: &About) -> Option<Example> {
        if about.is_detail {
            return None;
        }
        let by_this_alone = if about.route.is_some() { None } else { self.search(about, true) };
        by_this_alone.or_else(|| self.search(about, false))
    }

    fn search(&self, about: &About, is_only_cause: bool) -> Option<Example> {
        let day = about.day.unwrap_or(self.today);
        let (mut old, mut new) = (self.old.clone(), self.new.clone());
        let mut clients = clients(&self.old, &self.new, about.country);
        clients.extend(
            about
                .client
                .map(|address| Person { text: format!("a client at {address}"), ..Person::without_record(address, None) }),
        );
        let arrivals = self.old.regions.intersection(self.new.regions);
        for local in arrivals.iter() {
            (old.local, new.local) = (local, local);
            let is_wanted = |sample: &&Sample| {
                let (before, after) = (is_about(sample, about, &old), is_about(sample, about, &new));
                let by_address = about.country.is_some() || about.client.is_some() || about.is_unplaced;
                if by_address && !sample.reads_addresses(&old) && !sample.reads_addresses(&new) {
                    return false;
                }
                if is_only_cause { before && after && sample.is_alike(&old, &new) } else { before || after }
            };
            for sample in self.samples.iter().filter(is_wanted) {
                let reads_records = sample.reads_records(&old) || sample.reads_records(&new);
                let is_wanted = |person: &&Person| {
                    let (before, after) = (concerns(person, about, &old), concerns(person, about, &new));
                    // Data of users of a jurisdiction: those who are in it under both policies.
                    let is_concerned = if about.class.is_some() { before && after } else { before || after };
                    (person.home.is_none() || reads_records) && is_concerned
                };
                for person in self.persons.iter().chain(&clients).filter(is_wanted) {
                    let (before, after) = (sample.outcome(&old, person, day), sample.outcome(&new, person, day));
                    if before != after {
                        let at = new.region_name(local).to_owned();
                        return Some(Example {
                            request: sample.text(),
                            by: person.text.clone(),
                            at,
                            on: about.day,
                            before,
                            after,
                        });
                    }
                }
            }
        }
        None
    }
}

/// Whether the route of a sample has the properties.
fn is_about(sample: &Sample, about: &About, policy: &Policy) -> bool {
    let Some(route) = sample.matched(policy) else { return false };
    about.class.as_ref().is_none_or(|class| *policy.class(route.class).name == **class)
        && about.route.as_ref().is_none_or(|name| *route.name == **name)
}

/// Whether a person is one of those that a difference is about.
fn concerns(person: &Person, about: &About, policy: &Policy) -> bool {
    let country = person.place.and_then(|place| place.country);
    let own = match person.home {
        Some(home) if policy.regions.contains(home) => Some(policy.jurisdiction_of(home)),
        Some(_) => None,
        None => Some(policy.jurisdiction_of_country(country)),
    };
    about.jurisdiction.is_none_or(|wanted| Some(wanted) == own)
        && about.client.is_none_or(|wanted| person.address == wanted)
        && about.country.is_none_or(|wanted| country == Some(wanted))
        && (!about.is_unplaced || person.place.is_none() && person.home.is_none())
        && about.region.is_none_or(|wanted| person.home.is_none_or(|home| home == wanted))
}

/// A client in one country of each jurisdiction of either policy, in one of no jurisdiction, at an unknown place, and in `also`.
fn clients(old: &Policy, new: &Policy, also: Option<CountryCode>) -> Vec<Person> {
    let mut seen: Vec<(Jurisdiction, Jurisdiction)> = Vec::new();
    let first_of_each = |country: &CountryCode| {
        let kind = (old.jurisdiction_of_country(Some(*country)), new.jurisdiction_of_country(Some(*country)));
        let is_new = !seen.contains(&kind);
        seen.push(kind);
        is_new
    };
    let mut kinds: Vec<_> = CountryCode::all().filter(first_of_each).collect();
    // Countries without a jurisdiction come last, because operators know the others better.
    kinds.sort_by_key(|country| old.jurisdiction_of_country(Some(*country)) == Jurisdiction::Elsewhere);
    let countries = also.into_iter().chain(kinds);
    let address = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let at = |country| Person::without_record(address, Some(Place::in_country(country)));
    countries.map(at).chain([Person::without_record(address, None)]).collect()
}

/// Requests that match the route at a position: one for each host, path and method, if no earlier route takes it.
fn samples_of(policy: &Policy, index: usize) -> Vec<Sample> {
    let id = RouteId::new(index);
    let route = policy.routes.route(id);
    let conditions = &route.pattern.conditions;
    let fields = example_fields(&[conditions]);
    let client = conditions.clients.first().map(Prefix::first);
    let mut samples = Vec::new();
    for method in route.pattern.methods.iter() {
        for path in &route.pattern.paths {
            for host in &route.pattern.hosts {
                let (host, path) = (example_host(host), example_path(path));
                let sample = Sample { method, host, path, client, fields: fields.clone() };
                if samples.len() < MAX_SAMPLES && sample.find(policy).id == Some(id) {
                    samples.push(sample);
                }
            }
        }
    }
    samples
}

/// A request that two routes match.
fn shared_sample(one: &Route, other: &Route) -> Option<Sample> {
    let (hosts, paths) = (pairs(&one.pattern.hosts, &other.pattern.hosts), pairs(&one.pattern.paths, &other.pattern.paths));
    let (first, second) = hosts.into_iter().find(|(first, second)| first.overlaps(second))?;
    let host = example_host(if first.covers(second) { second } else { first });
    let (left, right) = paths.into_iter().find(|(left, right)| left.overlaps(right))?;
    let both = left.segments.len().max(right.segments.len());
    let segment = |at: usize| match (left.segments.get(at), right.segments.get(at)) {
        (Some(literal @ Segment::Literal(_)), _) | (_, Some(literal @ Segment::Literal(_))) => example_segment(literal),
        (Some(segment), _) | (None, Some(segment)) => example_segment(segment),
        (None, None) => String::new(),
    };
    let path: String = (0..both).map(segment).collect();
    let method = one.pattern.methods.intersection(other.pattern.methods).iter().next()?;
    let conditions = [&one.pattern.conditions, &other.pattern.conditions];
    let client =
        conditions.iter().flat_map(|conditions| &conditions.clients).max_by_key(|network| network.length()).map(Prefix::first);
    Some(Sample {
        method,
        host,
        path: if path.is_empty() { "/".into() } else { path },
        client,
        fields: example_fields(&conditions),
    })
}

fn pairs<'p, T>(one: &'p [T], other: &'p [T]) -> Vec<(&'p T, &'p T)> {
    one.iter().flat_map(|first| other.iter().map(move |second| (first, second))).collect()
}

fn example_fields(conditions: &[&Conditions]) -> Fields {
    let value = |condition: &FieldCondition| {
        let value = condition.values.first().map_or("1", |value| value);
        (condition.name.clone(), vec![value.as_bytes().into()])
    };
    Fields {
        headers: conditions.iter().flat_map(|conditions| &conditions.headers).map(value).collect(),
        query: conditions.iter().flat_map(|conditions| &conditions.query).map(value).collect(),
    }
}

fn example_host(host: &HostPattern) -> String {
    match host {
        HostPattern::Any => "any.example".to_owned(),
        HostPattern::Exact(host) => host.to_string(),
        HostPattern::Below(domain) => format!("any.{domain}"),
    }
}

fn example_path(path: &PathPattern) -> String {
    let path: String = path.segments.iter().map(example_segment).collect();
    if path.is_empty() { "/".to_owned() } else { path }
}

fn example_segment(segment: &Segment) -> String {
    match segment {
        Segment::Literal(text) => format!("/{text}"),
        Segment::Any => "/1".to_owned(),
        Segment::User => "/example-user".to_owned(),
    }
}

impl Sample {
    fn find<'s>(&'s self, policy: &Policy) -> RouteMatch<'s> {
        let client = self.client.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let Self { method, host, path, fields, .. } = self;
        match_route(&Head { method: *method, host, path, client, fields }, policy)
    }

    fn matched<'p>(&self, policy: &'p Policy) -> Option<&'p Route> {
        self.find(policy).id.map(|id| policy.routes.route(id))
    }

    /// Whether the route looks users up.
    fn reads_records(&self, policy: &Policy) -> bool {
        self.matched(policy).is_some_and(|route| route.chain.iter().any(|step| matches!(step, Step::Directory | Step::Token)))
    }

    /// Whether the route finds homes by address.
    fn reads_addresses(&self, policy: &Policy) -> bool {
        self.matched(policy).is_some_and(|route| route.chain.contains(&Step::GeoIp))
    }

    /// Whether the route has the same name and the same data under both policies.
    fn is_alike(&self, old: &Policy, new: &Policy) -> bool {
        let (Some(before), Some(after)) = (self.matched(old), self.matched(new)) else { return false };
        before.name == after.name && old.class(before.class).name == new.class(after.class).name
    }

    /// Method and URL.
    fn text(&self) -> String {
        let value =
            |value: Option<&Box<[u8]>>| value.map_or_else(String::new, |value| String::from_utf8_lossy(value).into_owned());
        let pairs: Vec<_> = self.fields.query.iter().map(|(name, values)| format!("{name}={}", value(values.first()))).collect();
        let query = if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) };
        let headers: String =
            self.fields.headers.iter().map(|(name, values)| format!(" with {name}: {}", value(values.first()))).collect();
        format!("{} https://{}{}{query}{headers}", self.method.as_str(), self.host, self.path)
    }

    fn outcome(&self, policy: &Policy, person: &Person, today: Day) -> String {
        let address = self.client.unwrap_or(person.address);
        let is_read = matches!(self.method, Method::Get | Method::Head);
        narrate::outcome(&judge(policy, self.find(policy), person, address, is_read, today), policy)
    }
}

/// The trail of a read of a route.
pub(super) fn trail_of(policy: &Policy, route: RouteId, person: &Person, today: Day) -> Trail {
    judge(policy, RouteMatch { id: Some(route), user: None }, person, person.address, true, today).trail
}

fn judge(policy: &Policy, route: RouteMatch<'_>, person: &Person, client: IpAddr, is_read: bool, today: Day) -> Decision {
    let chain = route.id.map_or(&[][..], |id| &policy.routes.route(id).chain);
    let record = person.home.map(|home| Record { home, jurisdiction: None });
    let vitals = Vitals::unmeasured(policy.nearest_first());
    let facts = Facts {
        route,
        ingress: Ingress::Client,
        is_preflight: false,
        is_read,
        today,
        client,
        directory: match record {
            _ if !chain.contains(&Step::Directory) => Lookup::NotAsked,
            Some(record) => Lookup::Found(record),
            None => Lookup::Absent,
        },
        caller: Lookup::NotAsked,
        caller_proof: Proof::Proven,
        token: person.home.map_or(Lookup::NoKey, Lookup::Found),
        caller_token: Lookup::NotAsked,
        credential: Credential::Absent,
        hint: None,
        proof: Proof::Proven,
        place: person.place.map_or(Lookup::Absent, Lookup::Found),
        place_is_stale: false,
        peer: None,
        claimed: Some(ClassSet::EMPTY),
        vitals: &vitals,
    };
    decide(&facts, policy)
}
