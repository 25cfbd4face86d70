//! The operator's geographic tables: networks, countries and continents, and the regions they belong to.

use std::net::{IpAddr, Ipv6Addr};

use crate::model::country::{Continent, CountryCode};
use crate::model::region::RegionId;

/// The operator's geographic tables.
#[derive(Clone, Default)]
pub struct GeoRules {
    pub networks: Networks,
    pub countries: Vec<(CountryCode, RegionId)>,
    pub continents: Vec<(Continent, RegionId)>,
    pub otherwise: Otherwise,
    /// The region for addresses without a known location; `None` passes to the next step of the chain.
    pub unknown: Option<RegionId>,
}

/// The region for a country that no table lists.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Otherwise {
    /// The nearest region, preferring the country's own jurisdiction.
    #[default]
    Nearest,
    Region(RegionId),
    /// No region: the next step of the chain follows.
    Next,
}

/// A network in the operator's table: the region that owns it and, if the operator gives one, its country.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    pub home: RegionId,
    pub country: Option<CountryCode>,
}

/// Networks by longest prefix. IPv4 addresses are stored as IPv4-mapped IPv6, so that one table serves both.
#[derive(Clone, Default)]
pub struct Networks {
    /// The prefix lengths in use, longest first.
    lengths: Vec<u8>,
    /// Sorted by prefix length and address.
    networks: Vec<((u8, u128), Network)>,
}

impl Networks {
    /// Builds the table from addresses and prefix lengths. A length counts bits of the address's own family.
    pub fn build(networks: impl IntoIterator<Item = (IpAddr, u8, Network)>) -> Self {
        let entry = |(address, length, network): (IpAddr, u8, Network)| {
            let length = if matches!(address, IpAddr::V4(_)) { length.saturating_add(96) } else { length };
            ((length, bits(address) & mask(length)), network)
        };
        let mut networks: Vec<_> = networks.into_iter().map(entry).collect();
        networks.sort_by_key(|(key, _)| *key);
        let mut lengths: Vec<u8> = networks.iter().map(|((length, _), _)| *length).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();
        Self { lengths, networks }
    }

    /// Every network with its prefix: the length in bits and the address, both as IPv6.
    pub fn all(&self) -> impl Iterator<Item = ((u8, u128), &Network)> {
        self.networks.iter().map(|(prefix, network)| (*prefix, network))
    }

    /// The network with the longest prefix that contains `address`.
    pub fn find(&self, address: IpAddr) -> Option<&Network> {
        let address = bits(address);
        self.lengths.iter().find_map(|length| {
            let key = (*length, address & mask(*length));
            let index = self.networks.binary_search_by_key(&key, |(key, _)| *key).ok()?;
            self.networks.get(index).map(|(_, network)| network)
        })
    }
}

/// A network: an address and the length of its prefix, both as IPv6.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Prefix {
    length: u8,
    address: u128,
}

impl Prefix {
    /// `length` counts bits of the address's own family.
    pub fn new(address: IpAddr, length: u8) -> Self {
        let length = if matches!(address, IpAddr::V4(_)) { length.saturating_add(96) } else { length };
        Self { length, address: bits(address) & mask(length) }
    }

    /// A network as the configuration writes it; the length counts bits of an IPv6 address, as in [`Networks::all`].
    pub const fn of_bits(length: u8, address: u128) -> Self {
        Self { length, address }
    }

    /// The number of bits that the addresses of the network share, of an IPv6 address.
    pub const fn length(&self) -> u8 {
        self.length
    }

    /// The first address of the network.
    pub fn first(&self) -> IpAddr {
        Ipv6Addr::from(self.address).to_canonical()
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        bits(address) & mask(self.length) == self.address
    }

    /// Whether every address in `other` is in this network.
    pub const fn covers(&self, other: &Self) -> bool {
        self.length <= other.length && other.address & mask(self.length) == self.address
    }
}

/// As the configuration writes it, such as `10.0.0.0/8`.
impl std::fmt::Display for Prefix {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.first(), self.length.checked_sub(96)) {
            (IpAddr::V4(address), Some(length)) => write!(out, "{address}/{length}"),
            (IpAddr::V4(_) | IpAddr::V6(_), _) => write!(out, "{}/{}", Ipv6Addr::from(self.address), self.length),
        }
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

const fn mask(length: u8) -> u128 {
    match 128_u32.checked_sub(length as u32) {
        Some(128) => 0,
        Some(host_bits) => u128::MAX << host_bits,
        None => u128::MAX,
    }
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
