//! Hosts and paths in the one form in which they are judged and forwarded (RFC 3986 section 6).

use std::borrow::Cow;

use http::Uri;
use http::request::Parts;

/// Whom a request is for.
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

/// Whom a request is for: its target says so, else its `Host` (RFC 9112 section 3.2.2, RFC 9113 section 8.3.1); `None` if it names
/// nobody, or two.
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

fn plain_authority(text: &str) -> Option<Authority> {
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
        Some(_) => port.is_some(),
        None => !text.contains(']') || text.ends_with(']'),
    };
    let is_sound = !host.is_empty() && (is_name || is_literal) && good_port;
    is_sound.then(|| Authority { host: host.to_ascii_lowercase(), port })
}

/// What becomes of repeated slashes in a path.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Slashes {
    /// They mean one to nearly every server.
    #[default]
    Merge,
    /// They are empty segments, which no `{name}` and no literal of a route matches.
    Keep,
    Refuse,
}

/// The canonical form of a path: what may stand in a segment as it is, is decoded; all else is escaped, in upper case; dot
/// segments are resolved, repeated slashes as they are to be. `None` for what two servers may read differently: escaped slashes and backslashes, control
/// characters, bytes that are no UTF-8, a second layer of escapes, path parameters, or a way out at the top.
pub fn canonical_path(path: &str, slashes: Slashes) -> Option<Cow<'_, str>> {
    if !path.starts_with('/') || (slashes == Slashes::Refuse && path.contains("//")) {
        return None;
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,=:@".contains(&byte);
    if path.bytes().all(is_plain) && !path.contains("//") && !path.contains("/.") {
        return Some(Cow::Borrowed(path));
    }
    resolve(&decode(path)?, slashes).map(Cow::Owned)
}

fn decode(path: &str) -> Option<String> {
    let mut out = String::with_capacity(path.len());
    let mut octets = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let (octet, is_escaped) = match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                (hex(digits)?, true)
            }
            byte => (byte, false),
        };
        octets.push(octet);
        // Where RFC 3986 allows a character in a segment, its escape means the same to nearly every server.
        let is_plain = octet.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&octet);
        match octet {
            b'\\' | 0..=0x1f | 0x7f => return None,
            b'/' | b'%' if is_escaped => return None,
            b';' if !is_escaped => return None,
            b'/' => out.push('/'),
            octet if is_plain => out.push(octet as char),
            octet if is_escaped || octet.is_ascii_graphic() => out.push_str(&format!("%{octet:02X}")),
            _ => return None,
        }
    }
    std::str::from_utf8(&octets).ok().map(|_| out)
}

fn hex(digits: [u8; 2]) -> Option<u8> {
    let value = |digit: u8| (digit as char).to_digit(16);
    Some((value(digits[0])? * 16 + value(digits[1])?) as u8)
}

fn resolve(path: &str, slashes: Slashes) -> Option<String> {
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_in_slash = false;
    let mut rest = path.split('/').skip(1).peekable();
    while let Some(segment) = rest.next() {
        ends_in_slash = matches!(segment, "" | "." | "..");
        match segment {
            // What follows the last slash is no segment.
            "" if slashes == Slashes::Keep && rest.peek().is_some() => segments.push(""),
            "" | "." => {}
            ".." => drop(segments.pop()?),
            segment => segments.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &segments {
        out.push('/');
        out.push_str(segment);
    }
    if ends_in_slash || out.is_empty() {
        out.push('/');
    }
    Some(out)
}

/// Puts the canonical path into the target, its query kept.
pub(super) fn replace_path(parts: &mut Parts, path: &str) -> Option<()> {
    let target = match parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut pieces = std::mem::take(&mut parts.uri).into_parts();
    pieces.path_and_query = Some(target.parse().ok()?);
    parts.uri = Uri::from_parts(pieces).ok()?;
    Some(())
}
