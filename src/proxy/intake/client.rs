//! The client's true address: read from the right, through the hops that are trusted, and no further.

use std::net::IpAddr;

use http::HeaderMap;
use ipnet::IpNet;

use crate::http::lists;

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
    let mut hops: Vec<Option<IpAddr>> = match source {
        AddressSource::XForwardedFor => {
            let hop = |member| std::str::from_utf8(member).ok().and_then(read_address);
            values(headers, "x-forwarded-for").flat_map(lists::tokens).map(hop).collect()
        }
        AddressSource::Forwarded => {
            values(headers, "forwarded").flat_map(elements).map(|element| element.and_then(forwarded_for)).collect()
        }
        // The connection itself said it, before the first request.
        AddressSource::ProxyProtocol => Vec::new(),
        AddressSource::Header(name) => {
            let mut values = values(headers, name.as_str());
            match (values.next(), values.next()) {
                (Some(value), None) => vec![std::str::from_utf8(value).ok().and_then(read_address)],
                (_, _) => vec![None],
            }
        }
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

/// The values of a field, from the left. A value with other bytes than visible ASCII becomes one that no reader understands.
fn values<'h>(headers: &'h HeaderMap, name: &str) -> impl Iterator<Item = &'h [u8]> + use<'h> {
    headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?").as_bytes())
}

/// The elements of one value of `Forwarded`, each written by one hop. A value whose quotes do not match counts as one element
/// that cannot be read: neither it nor any element to its left is believed.
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

/// The first `for` of one element of `Forwarded`, if it is an address. Brackets and quotes may be missing, as many hops leave
/// them out.
pub(super) fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    read_address(&parameter(element, "for")?)
}

/// Whether the hop that took the client's connection says that it came by HTTPS, in the field that trusted hops are trusted to write:
/// the element that stands as far from the right as the one that names the client, or the last on the way there.
pub(super) fn came_by_https(headers: &HeaderMap, remote: IpAddr, settings: &Settings) -> bool {
    let (_, away) = find(headers, remote, settings);
    let proto = match settings.source {
        AddressSource::Forwarded => {
            let elements: Vec<_> = values(headers, "forwarded").flat_map(elements).collect();
            from_right(&elements, away).flatten().and_then(|element| parameter(element, "proto"))
        }
        AddressSource::XForwardedFor | AddressSource::Header(_) => {
            let protos: Vec<_> = values(headers, "x-forwarded-proto").flat_map(lists::tokens).collect();
            from_right(&protos, away).and_then(lists::unquote).and_then(|proto| String::from_utf8(proto.into_owned()).ok())
        }
        AddressSource::ProxyProtocol => None,
    };
    proto.is_some_and(|proto| proto.eq_ignore_ascii_case("https"))
}

/// The item that is `away` from the last one, or the first if there are fewer.
fn from_right<T: Copy>(items: &[T], away: usize) -> Option<T> {
    items.iter().rev().take(away + 1).last().copied()
}
