//! Paths in the one form in which they are judged and forwarded (RFC 3986 section 6), and the users whom they name.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// The longest key of a user, in bytes; no directory has a longer one.
pub const MAX_USER_KEY: usize = 256;

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

/// The user whom a path segment names: its escapes are decoded, because the directory's keys have none. `None` if the
/// segment cannot be decoded to a usable key.
pub fn decode_segment(segment: &str) -> Option<String> {
    usable_key(&percent_decode_str(segment).decode_utf8().ok()?)
}

/// A key that may be looked up: not empty, not too long, without control characters.
pub fn usable_key(key: &str) -> Option<String> {
    let fits = !key.is_empty() && key.len() <= MAX_USER_KEY && !key.contains(char::is_control);
    fits.then(|| key.to_owned())
}
