//! The region for a client's address: an operator's network, then its country, its continent, the nearest region.

use std::net::IpAddr;

use crate::model::country::{Continent, CountryCode};
use crate::model::place::Place;
use crate::model::region::{RegionId, RegionSet};
use crate::model::user::Evidence;

use super::super::facts::{Facts, Lookup};
use super::super::policy::Policy;
use super::super::verdict::Finding;
use super::{Answer, inferred};

/// The operator's map of the world.
#[derive(Clone, Default)]
pub struct GeoRules {
    pub networks: Networks,
    pub countries: Vec<(CountryCode, RegionId)>,
    pub continents: Vec<(Continent, RegionId)>,
    pub otherwise: Otherwise,
    /// The region for addresses that cannot be placed; `None` passes to the next step.
    pub unknown: Option<RegionId>,
}

/// What becomes of a country that no table names.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Otherwise {
    #[default]
    Nearest,
    Region(RegionId),
    Next,
}

pub(super) fn ask(facts: &Facts<'_>, policy: &Policy) -> (Finding, Answer) {
    let given = facts.claim.filter(|claim| claim.evidence == Some(Evidence::Inferred)).and_then(|claim| claim.home);
    if let Some(home) = given.filter(|home| policy.regions.contains(*home)) {
        return (Finding::Given { home }, Answer::Home(inferred(home, facts, policy)));
    }
    let place = match facts.place {
        Lookup::Found(place) => place,
        Lookup::NotAsked | Lookup::NoKey | Lookup::Absent | Lookup::Unavailable => Place::default(),
    };
    let finding = locate(facts.client, &place, policy);
    match home_of(finding) {
        Some(home) => (finding, Answer::Home(inferred(home, facts, policy))),
        None => (finding, Answer::Next),
    }
}

fn locate(client: IpAddr, place: &Place, policy: &Policy) -> Finding {
    let rules = &policy.geo;
    let country = place.country;
    if let Some(network) = rules.networks.find(client) {
        return Finding::Network { home: network.home };
    }
    let by_country = country.and_then(|code| rules.countries.iter().find(|(listed, _)| *listed == code));
    if let Some((country, home)) = by_country {
        return Finding::Country { country: *country, home: *home };
    }
    let continent = place.continent.or_else(|| country.map(|code| code.country().continent));
    let by_continent = continent.and_then(|wanted| rules.continents.iter().find(|(listed, _)| *listed == wanted));
    if let Some((_, home)) = by_continent {
        return Finding::Continent { country, home: *home };
    }
    if country.is_none() {
        return rules.unknown.map_or(Finding::Unplaced { country }, |home| Finding::UnknownPlace { home });
    }
    match rules.otherwise {
        Otherwise::Region(home) => Finding::Otherwise { country, home },
        Otherwise::Next => Finding::Unplaced { country },
        Otherwise::Nearest => {
            nearest(place, policy).map_or(Finding::Unplaced { country }, |home| Finding::Nearest { country, home })
        }
    }
}

/// The region nearest to a place, among those of its own jurisdiction where that has any: a nearer region abroad could
/// not serve what stays at home.
fn nearest(place: &Place, policy: &Policy) -> Option<RegionId> {
    let point = place.point()?;
    let own = policy.jurisdiction_of_country(place.country);
    let domestic = policy.regions_where(|jurisdiction| jurisdiction == own);
    let candidates: RegionSet = if domestic.is_empty() { policy.regions } else { domestic };
    let distance = |region: &RegionId| point.distance_km(policy.region(*region).at);
    candidates.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)))
}

fn home_of(finding: Finding) -> Option<RegionId> {
    match finding {
        Finding::Network { home }
        | Finding::Country { home, .. }
        | Finding::Continent { home, .. }
        | Finding::Nearest { home, .. }
        | Finding::Otherwise { home, .. }
        | Finding::UnknownPlace { home } => Some(home),
        Finding::NoKey
        | Finding::Absent
        | Finding::Unavailable { .. }
        | Finding::Recorded { .. }
        | Finding::Hinted { .. }
        | Finding::NoToken
        | Finding::NoClaim
        | Finding::UnknownRegion
        | Finding::Asserted { .. }
        | Finding::Given { .. }
        | Finding::Unplaced { .. }
        | Finding::Unowned
        | Finding::Fixed { .. }
        | Finding::Refused => None,
    }
}

/// An operator's network: the region that owns it and, where the operator says so, the country it is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    pub home: RegionId,
    pub country: Option<CountryCode>,
}

/// Networks by longest prefix. IPv4 addresses are kept as IPv4-mapped IPv6, so that one table serves both.
#[derive(Clone, Default)]
pub struct Networks {
    /// The prefix lengths in use, longest first.
    lengths: Vec<u8>,
    /// Sorted by prefix length and address.
    networks: Vec<((u8, u128), Network)>,
}

impl Networks {
    /// Builds the table from addresses and prefix lengths in bits of their own family.
    pub fn build(networks: impl IntoIterator<Item = (IpAddr, u8, Network)>) -> Self {
        let entry = |(address, length, network)| {
            let length = if matches!(address, IpAddr::V4(_)) { length + 96 } else { length };
            ((length, bits(address) & mask(length)), network)
        };
        let mut networks: Vec<_> = networks.into_iter().map(entry).collect();
        networks.sort_by_key(|(key, _)| *key);
        let mut lengths: Vec<u8> = networks.iter().map(|((length, _), _)| *length).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();
        Self { lengths, networks }
    }

    /// The network with the longest prefix that holds `address`.
    pub fn find(&self, address: IpAddr) -> Option<&Network> {
        let address = bits(address);
        self.lengths.iter().find_map(|length| {
            let key = (*length, address & mask(*length));
            self.networks.binary_search_by_key(&key, |(key, _)| *key).ok().map(|index| &self.networks[index].1)
        })
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

const fn mask(length: u8) -> u128 {
    if length == 0 { 0 } else { u128::MAX << (128 - length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins_and_families_do_not_mix() {
        let network = |index| Network { home: RegionId::new(index).unwrap(), country: None };
        let table = Networks::build([
            ("10.0.0.0".parse().unwrap(), 8, network(0)),
            ("10.1.0.0".parse().unwrap(), 16, network(1)),
            ("2001:db8::".parse().unwrap(), 32, network(2)),
            ("::".parse().unwrap(), 0, network(3)),
        ]);
        let home = |address: &str| table.find(address.parse().unwrap()).map(|network| network.home.index());
        assert_eq!(home("10.1.2.3"), Some(1));
        assert_eq!(home("10.2.0.1"), Some(0));
        assert_eq!(home("2001:db8::1"), Some(2));
        assert_eq!(home("2001:db9::1"), Some(3));
        assert_eq!(Networks::build([("10.0.0.0".parse().unwrap(), 8, network(0))]).find("11.0.0.1".parse().unwrap()), None);
    }
}
