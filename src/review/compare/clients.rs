//! Differences in the homes of clients that have no record: by network, country and continent.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use crate::decision::policy::Policy;
use crate::decision::policy::chain::Step;
use crate::decision::policy::geography::{Network, Prefix};
use crate::decision::policy::route::{Route, RouteId};
use crate::decision::verdict::Finding;
use crate::model::country::CountryCode;
use crate::model::day::Day;
use crate::model::place::Place;

use super::examples::{Person, trail_of};
use super::rules::few;
use super::{About, Change};

pub(super) fn changes(old: &Policy, new: &Policy, today: Day) -> Vec<Change> {
    let mut changes = networks(old, new);
    changes.extend(countries(old, new, today));
    changes
}

/// Networks with a home or a country that differs.
fn networks(old: &Policy, new: &Policy) -> Vec<Change> {
    let all = |policy: &Policy| {
        let in_words = |network: &Network| match network.country {
            Some(country) => format!("home {}, country {}", policy.region_name(network.home), country.as_str()),
            None => format!("home {}", policy.region_name(network.home)),
        };
        policy.geo.networks.all().map(|(prefix, network)| (prefix, in_words(network))).collect::<BTreeMap<_, _>>()
    };
    let (before, after) = (all(old), all(new));
    let both: BTreeMap<_, _> = before.iter().chain(&after).collect();
    let change = |prefix: &(u8, u128)| {
        let text = match (before.get(prefix), after.get(prefix)) {
            (was, is) if was == is => return None,
            (None, Some(is)) => format!("new: {is}"),
            (Some(was), None) => format!("gone: {was}"),
            (Some(was), Some(is)) => format!("now {is}; was {was}"),
            (None, None) => return None,
        };
        let network = Prefix::of_bits(prefix.0, prefix.1);
        let about = About { client: Some(network.first()), ..About::default() };
        Some(Change { about, ..Change::new(format!("network {network}"), text) })
    };
    both.keys().filter_map(|prefix| change(prefix)).collect()
}

/// Countries whose clients have another home, if a route of both policies finds homes by address.
fn countries(old: &Policy, new: &Policy, today: Day) -> Vec<Change> {
    let (Some(earlier), Some(later)) = (route_by_address(old), route_by_address(new)) else { return Vec::new() };
    let places = CountryCode::all().map(Some).chain([None]);
    let mut groups: BTreeMap<(String, String), Vec<Option<CountryCode>>> = BTreeMap::new();
    for country in places {
        let home = |policy: &Policy, route| home_by_address(policy, route, country, today);
        let (before, after) = (home(old, earlier), home(new, later));
        if before != after {
            groups.entry((before, after)).or_default().push(country);
        }
    }
    let change = |((before, after), countries): ((String, String), Vec<Option<CountryCode>>)| {
        let codes: Vec<_> =
            countries.iter().map(|country| country.as_ref().map_or("no known country", CountryCode::as_str)).collect();
        let country = countries.first().copied().flatten();
        let about = About { country, is_unplaced: country.is_none(), ..About::default() };
        Change { about, ..Change::new(format!("clients in {}", few(&codes)), format!("home now {after}; was {before}")) }
    };
    groups.into_iter().map(change).collect()
}

fn route_by_address(policy: &Policy) -> Option<RouteId> {
    let by_address = |route: &Route| {
        let before = route.chain.iter().take_while(|step| **step != Step::GeoIp);
        route.chain.contains(&Step::GeoIp) && before.into_iter().all(|step| matches!(step, Step::Directory | Step::Token))
    };
    policy.routes.all().iter().position(by_address).map(RouteId::new)
}

/// The home of a client in a country, from an address that no network contains; `next` if the address gives none.
fn home_by_address(policy: &Policy, route: RouteId, country: Option<CountryCode>, today: Day) -> String {
    let person = Person::without_record(outside(policy), country.map(Place::in_country));
    let trail = trail_of(policy, route, &person, today);
    let found = trail.steps().find(|(step, _)| *step == Step::GeoIp);
    match found {
        Some((_, Finding::Unplaced { .. })) | None => "none".to_owned(),
        Some(_) => {
            trail.home.and_then(|home| home.region()).map_or("none".into(), |region| policy.region_name(region).to_owned())
        }
    }
}

/// An address outside the operator's networks, if there is one.
fn outside(policy: &Policy) -> IpAddr {
    let candidates = (0..=255_u8).map(|first| IpAddr::V4(Ipv4Addr::new(first, 255, 255, 254)));
    candidates
        .into_iter()
        .find(|address| policy.geo.networks.find(*address).is_none())
        .unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}
