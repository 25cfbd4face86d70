//! The canonical form of hosts and paths, in which they are judged and forwarded (RFC 3986 section 6).

use std::net::{IpAddr, SocketAddr};

use http::request::Parts;
use http::{Uri, Version};

/// The host and port of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Authority {
    /// In lower case, without trailing dot.
    pub host: String,
    pub port: Option<u16>,
}

impl std::fmt::Display for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

/// The authority of a request: from its target, else from its `Host` (RFC 9112 section 3.2.2, RFC 9113 section 8.3.1).
/// `None` if there is none, if it is malformed, if there are two `Host` fields, or if the target and `Host` differ.
pub(super) fn authority_of(parts: &Parts) -> Option<Authority> {
    let mut fields = parts.headers.get_all(http::header::HOST).iter();
    let (field, second) = (fields.next(), fields.next());
    if second.is_some() {
        return None;
    }
    let field = match field {
        Some(field) => Some(plain_authority(field.to_str().ok()?)?),
        None => None,
    };
    let target = match parts.uri.authority() {
        Some(authority) => Some(plain_authority(authority.as_str())?),
        None => None,
    };
    let usual = if parts.uri.scheme_str() == Some("https") { 443 } else { 80 };
    let is_same =
        |one: &Authority, other: &Authority| one.host == other.host && one.port.unwrap_or(usual) == other.port.unwrap_or(usual);
    match (field, target) {
        (Some(field), Some(target)) if !is_same(&field, &target) => None,
        (field, target) => target.or(field),
    }
}

/// The address that the client connected to, for a request of HTTP/1.0 without a host, such as that of a simple health checker. Only
/// routes for any host match it.
pub(super) fn address_of(parts: &Parts, local: SocketAddr) -> Option<Authority> {
    let names_host = parts.uri.authority().is_some() || parts.headers.contains_key(http::header::HOST);
    if parts.version != Version::HTTP_10 || names_host {
        return None;
    }
    let host = match local.ip().to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    Some(Authority { host, port: Some(local.port()) })
}

fn plain_authority(text: &str) -> Option<Authority> {
    usual_authority(text).or_else(|| any_authority(text))
}

/// Reads the form that most requests have, a name in lower case with or without a port, without the cost of the full grammar.
fn usual_authority(text: &str) -> Option<Authority> {
    let (host, port) = match text.split_once(':') {
        Some((host, digits)) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            (host, Some(digits.parse().ok()?))
        }
        Some(_) => return None,
        None => (text, None),
    };
    let mut before = b'.';
    for byte in host.bytes() {
        let is_usual = matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_') || (byte == b'.' && before != b'.');
        if !is_usual {
            return None;
        }
        before = byte;
    }
    (before != b'.').then(|| Authority { host: host.to_owned(), port })
}

fn any_authority(text: &str) -> Option<Authority> {
    let authority: http::uri::Authority = text.parse().ok()?;
    if text.contains('@') {
        return None;
    }
    let host = authority.host();
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_label =
        |label: &str| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    let is_name = host.split('.').all(is_label);
    let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_literal = literal.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
    let rest =
        text.rsplit_once(']').map_or_else(|| text.split_once(':').map(|(_, port)| port), |(_, rest)| rest.strip_prefix(':'));
    let port = authority.port_u16();
    let good_port = match rest {
        // The parser also accepts a sign.
        Some(digits) => port.is_some() && digits.bytes().all(|byte| byte.is_ascii_digit()),
        None => !text.contains(']') || text.ends_with(']'),
    };
    let is_sound = !host.is_empty() && (is_name || is_literal) && good_port;
    is_sound.then(|| Authority { host: host.to_ascii_lowercase(), port })
}

/// Replaces the path of the request target by the canonical path, and keeps the query.
pub(super) fn replace_path(parts: &mut Parts, path: &str) -> Option<()> {
    let target = match parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.path_and_query = Some(target.parse().ok()?);
    parts.uri = Uri::from_parts(uri).ok()?;
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_form_is_read_as_the_full_grammar_reads_it() {
        let usual = ["a", "a.b", "api.example.com", "a-b_c.d:80", "127.0.0.1:8080", "x:0", "x:65535", "1.2.3"];
        for text in usual {
            assert!(usual_authority(text).is_some(), "{text}");
        }
        let other = [
            "", ".", "a.", ".a", "a..b", "A", "a b", "[::1]", "[::1]:80", "a:", "a:+1", "a:65536", "a:1:2", "u@a", "a/b",
            "\u{e4}",
        ];
        for text in other {
            assert!(usual_authority(text).is_none(), "{text}");
        }
        for text in usual.iter().chain(&other) {
            assert_eq!(plain_authority(text), any_authority(text), "{text}");
        }
    }
}
