//! Finds the client's address: reads the forwarding header from right to left, and stops at the first address that is
//! not trusted, because the client could have written everything to its left.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

use crate::http::{lists, names};

use super::{AddressSource, Settings};

/// The maximum number of hops that are read, because a longer chain is an attack.
const MAX_HOPS: usize = 32;

/// The address of the client: the first address from the right that is not in a trusted network; and the position of its element,
/// counted from the right.
///
/// If the element that a trusted hop wrote is malformed, this is the address of that hop.
pub(super) fn find(headers: &HeaderMap, remote: IpAddr, settings: &Settings) -> (IpAddr, usize) {
    let trusted = |address: IpAddr| settings.trust.iter().any(|network| network.contains(&address));
    let (mut client, mut position) = (remote.to_canonical(), 0);
    if !trusted(client) {
        return (client, 0);
    }
    for (index, hop) in hops(headers, &settings.source).into_iter().take(MAX_HOPS).enumerate() {
        let Some(address) = hop else { break };
        (client, position) = (address, index);
        if !trusted(client) {
            break;
        }
    }
    (client, position)
}

/// The addresses that the hops wrote, nearest hop first; `None` for an element that is not an address.
pub(super) fn hops(headers: &HeaderMap, source: &AddressSource) -> Vec<Option<IpAddr>> {
    let mut hops: Vec<Option<IpAddr>> = match source {
        AddressSource::XForwardedFor => {
            let hop = |member| std::str::from_utf8(member).ok().and_then(read_address);
            values(headers, &names::X_FORWARDED_FOR).flat_map(lists::tokens).map(hop).collect()
        }
        AddressSource::Forwarded => {
            values(headers, &names::FORWARDED).flat_map(elements).map(|element| element.and_then(forwarded_for)).collect()
        }
        // The PROXY protocol header has already set the address of the connection.
        AddressSource::ProxyProtocol => Vec::new(),
        AddressSource::Header(name) => {
            let mut values = values(headers, name);
            match (values.next(), values.next()) {
                (Some(value), None) => vec![std::str::from_utf8(value).ok().and_then(read_address)],
                (_, _) => vec![None],
            }
        }
    };
    hops.reverse();
    hops
}

/// Parses an address in the forms of `X-Forwarded-For` and `Forwarded`: bare or in brackets, with or without a zone and
/// a port. Returns `None` for the unspecified address.
pub(super) fn read_address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0,
        // A single colon precedes a port; several colons belong to an IPv6 address.
        None if text.matches(':').count() == 1 => text.split_once(':')?.0,
        None => text,
    };
    // A zone is only meaningful on the host that wrote it.
    let bare = bare.split_once('%').map_or(bare, |(address, _)| address);
    let address = bare.parse::<IpAddr>().ok()?.to_canonical();
    (!address.is_unspecified()).then_some(address)
}

/// Converts a network of IPv4-mapped IPv6 addresses to an IPv4 network, because addresses are compared in that form.
pub fn canonical_network(network: IpNet) -> IpNet {
    match network {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
            Some(address) => IpNet::new(address.into(), v6.prefix_len() - 96).unwrap_or(network),
            None => network,
        },
        IpNet::V4(_) | IpNet::V6(_) => network,
    }
}

/// The values of a header field, from left to right. A value that is not visible ASCII is replaced by `?`, which no
/// parser accepts.
fn values<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h [u8]> + use<'h> {
    headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?").as_bytes())
}

/// The elements of one value of `Forwarded`, each written by one hop. A value with unmatched quotes is one malformed
/// element (`None`), so that neither it nor any element to its left is used.
fn elements(value: &[u8]) -> Vec<Option<&[u8]>> {
    match lists::members(value) {
        Ok(elements) => elements.into_iter().map(Some).collect(),
        Err(lists::Malformed) => vec![None],
    }
}

/// The first parameter of this name in one element of `Forwarded` (RFC 7239 section 4), without quotes.
fn parameter(element: &[u8], name: &str) -> Option<String> {
    let value = lists::parameters(element).ok()?.into_iter().find_map(|pair| {
        let mut halves = pair.splitn(2, |byte| *byte == b'=');
        let (found, value) = (halves.next()?, halves.next()?);
        found.trim_ascii().eq_ignore_ascii_case(name.as_bytes()).then(|| value.trim_ascii())
    })?;
    String::from_utf8(lists::unquote(value)?.into_owned()).ok()
}

/// The first `for` parameter of one element of `Forwarded`, if it is an address. Brackets and quotes are optional,
/// because many proxies omit them.
pub(super) fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    read_address(&parameter(element, "for")?)
}

/// Whether the hop that accepted the client's connection reports HTTPS. Reads only the header that trusted hops are
/// configured to write: the element at the position of the client's address, or the leftmost one if there are fewer
/// elements. `position` is that of the client's address.
pub(super) fn client_used_https(headers: &HeaderMap, position: usize, settings: &Settings) -> bool {
    let proto = match settings.source {
        AddressSource::Forwarded => {
            let elements: Vec<_> = values(headers, &names::FORWARDED).flat_map(elements).collect();
            from_right(&elements, position).flatten().and_then(|element| parameter(element, "proto"))
        }
        AddressSource::XForwardedFor | AddressSource::Header(_) => {
            let protos: Vec<_> = values(headers, &names::X_FORWARDED_PROTO).flat_map(lists::tokens).collect();
            from_right(&protos, position).and_then(lists::unquote).and_then(|proto| String::from_utf8(proto.into_owned()).ok())
        }
        AddressSource::ProxyProtocol => None,
    };
    proto.is_some_and(|proto| proto.eq_ignore_ascii_case("https"))
}

/// The item at `position`, counted from the right, or the leftmost item if there are fewer.
fn from_right<T: Copy>(items: &[T], position: usize) -> Option<T> {
    items.iter().rev().take(position + 1).last().copied()
}
