//! The client's true address: read from the right, through the hops that are trusted, and no further.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;

use super::{AddressSource, Settings};

/// The most hops that are looked at: a longer chain is no chain but an attack.
const MAX_HOPS: usize = 32;

/// The address of the client: the first from the right that no trusted hop has.
///
/// Where a trusted hop's word cannot be read, that hop is as far as anyone can see.
pub(super) fn address(headers: &HeaderMap, remote: IpAddr, settings: &Settings) -> IpAddr {
    let trusted = |address: IpAddr| settings.trust.iter().any(|network| network.contains(&address));
    let mut client = remote.to_canonical();
    if !trusted(client) {
        return client;
    }
    for hop in hops(headers, &settings.source).into_iter().take(MAX_HOPS) {
        let Some(address) = hop else { break };
        client = address;
        if !trusted(client) {
            break;
        }
    }
    client
}

/// The addresses that hops wrote, the nearest first; `None` for one that is no address.
fn hops(headers: &HeaderMap, source: &AddressSource) -> Vec<Option<IpAddr>> {
    let values = |name: &str| -> Vec<&str> { headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?")).collect() };
    let mut hops: Vec<Option<IpAddr>> = match source {
        AddressSource::XForwardedFor => {
            values("x-forwarded-for").iter().flat_map(|value| value.split(',')).map(read_address).collect()
        }
        AddressSource::Forwarded => {
            values("forwarded").iter().flat_map(|value| elements(value)).map(|element| forwarded_for(&element)).collect()
        }
        AddressSource::Header(name) => match values(name.as_str()).as_slice() {
            [value] => vec![read_address(value)],
            _ => vec![None],
        },
    };
    hops.reverse();
    hops
}

/// An address as `X-Forwarded-For` and `Forwarded` write it: bare, in brackets, with or without a port.
fn read_address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse::<IpAddr>().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address| address.to_canonical())
}

/// Splits a list at the commas that are not inside quotes.
fn elements(value: &str) -> Vec<String> {
    let (mut out, mut current, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false);
    for c in value.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => {
                out.push(std::mem::take(&mut current));
                continue;
            }
            _ => {}
        }
        current.push(c);
    }
    out.push(current);
    out
}

/// The `for` of one element of `Forwarded` (RFC 7239 section 4), if it is an address and stands once.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut found = element.split(';').filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| value.trim())
    });
    let (Some(value), None) = (found.next(), found.next()) else { return None };
    let is_quoted = value.starts_with('"');
    let value = value.strip_prefix('"').map_or(Some(value), |rest| rest.strip_suffix('"'))?;
    // IPv6 stands in brackets and in quotes.
    if value.contains(':') && (!is_quoted || (value.matches(':').count() > 1 && !value.starts_with('['))) {
        return None;
    }
    read_address(value)
}

/// Whether the nearest hop says that the client came by HTTPS.
pub(super) fn came_by_https(headers: &HeaderMap) -> bool {
    let last = headers.get_all("x-forwarded-proto").iter().next_back().and_then(|value| value.to_str().ok());
    let by_x = last.is_some_and(|value| value.rsplit(',').next().is_some_and(|proto| proto.trim().eq_ignore_ascii_case("https")));
    let last = headers.get_all("forwarded").iter().next_back().and_then(|value| value.to_str().ok());
    let by_forwarded = last
        .is_some_and(|value| elements(value).last().is_some_and(|element| element.to_ascii_lowercase().contains("proto=https")));
    by_x || by_forwarded
}
