//! The client's true address: read from the right, through the hops that are trusted, and no further.

use std::net::IpAddr;

use http::HeaderMap;
use ipnet::IpNet;

use super::{AddressSource, Settings};

/// The most hops that are looked at: a longer chain is no chain but an attack.
const MAX_HOPS: usize = 32;

/// The address of the client: the first from the right that no trusted hop has.
///
/// Where a trusted hop's word cannot be read, that hop is as far as anyone can see.
pub(super) fn address(headers: &HeaderMap, remote: IpAddr, settings: &Settings) -> IpAddr {
    find(headers, remote, settings).0
}

/// The address of the client, and by how many elements from the right the one that names it is away.
fn find(headers: &HeaderMap, remote: IpAddr, settings: &Settings) -> (IpAddr, usize) {
    let trusted = |address: IpAddr| settings.trust.iter().any(|network| network.contains(&address));
    let (mut client, mut away) = (remote.to_canonical(), 0);
    if !trusted(client) {
        return (client, 0);
    }
    for (index, hop) in hops(headers, &settings.source).into_iter().take(MAX_HOPS).enumerate() {
        let Some(address) = hop else { break };
        (client, away) = (address, index);
        if !trusted(client) {
            break;
        }
    }
    (client, away)
}

/// The addresses that hops wrote, the nearest first; `None` for one that is no address.
pub(super) fn hops(headers: &HeaderMap, source: &AddressSource) -> Vec<Option<IpAddr>> {
    let values = |name: &str| -> Vec<&str> { headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?")).collect() };
    let mut hops: Vec<Option<IpAddr>> = match source {
        AddressSource::XForwardedFor => {
            values("x-forwarded-for").iter().flat_map(|value| value.split(',')).map(read_address).collect()
        }
        AddressSource::Forwarded => values("forwarded").iter().flat_map(|value| elements(value)).map(forwarded_for).collect(),
        // The connection itself said it, before the first request.
        AddressSource::ProxyProtocol => Vec::new(),
        AddressSource::Header(name) => match values(name.as_str()).as_slice() {
            [value] => vec![read_address(value)],
            _ => vec![None],
        },
    };
    hops.reverse();
    hops
}

/// An address as `X-Forwarded-For` and `Forwarded` write it: bare or in brackets, with or without a zone and a port. The
/// address that stands for none is none.
pub(super) fn read_address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0,
        // One colon comes before a port, several belong to the address.
        None if text.matches(':').count() == 1 => text.split_once(':')?.0,
        None => text,
    };
    // A zone means something on the host that wrote it, and nowhere else.
    let bare = bare.split_once('%').map_or(bare, |(address, _)| address);
    let address = bare.parse::<IpAddr>().ok()?.to_canonical();
    (!address.is_unspecified()).then_some(address)
}

/// A network of IPv4 addresses that is written in IPv6, as one of IPv4: addresses are compared unfolded.
pub fn unfolded(network: IpNet) -> IpNet {
    match network {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
            Some(address) => IpNet::new(address.into(), v6.prefix_len() - 96).unwrap_or(network),
            None => network,
        },
        IpNet::V4(_) | IpNet::V6(_) => network,
    }
}

/// The elements of a list, each written by one hop. A comma ends an element even inside quotes: what a stranger left open
/// on the left must not swallow what a trusted hop wrote behind it.
fn elements(value: &str) -> impl Iterator<Item = &str> {
    value.split(',')
}

/// The first `for` of one element of `Forwarded` (RFC 7239 section 4), if it is an address. Brackets and quotes may be
/// missing, as many hops leave them out.
pub(super) fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut found = element.split(';').filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| value.trim())
    });
    let value = found.next()?;
    let value = value.strip_prefix('"').map_or(Some(value), |rest| rest.strip_suffix('"'))?;
    read_address(value)
}

/// Whether the hop that took the client's connection says that it came by HTTPS, in the field that trusted hops are trusted to write:
/// the element that stands as far from the right as the one that names the client, or the last on the way there.
pub(super) fn came_by_https(headers: &HeaderMap, remote: IpAddr, settings: &Settings) -> bool {
    let (_, away) = find(headers, remote, settings);
    let said = |name: &str| {
        let values: Vec<_> = headers.get_all(name).iter().flat_map(|value| elements(value.to_str().unwrap_or("?"))).collect();
        values.len().checked_sub(1).map(|last| values[last - away.min(last)])
    };
    let is_https = |proto: &str| proto.trim().trim_matches('"').eq_ignore_ascii_case("https");
    match settings.source {
        AddressSource::Forwarded => said("forwarded").is_some_and(|element| {
            let mut pairs = element.split(';').filter_map(|pair| pair.split_once('='));
            pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("proto")).is_some_and(|(_, proto)| is_https(proto))
        }),
        AddressSource::XForwardedFor | AddressSource::Header(_) => said("x-forwarded-proto").is_some_and(is_https),
        AddressSource::ProxyProtocol => false,
    }
}
