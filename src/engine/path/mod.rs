//! The canonical form of paths, in which they are judged and forwarded (RFC 3986 section 6), and the users that they name.

mod folding;
mod kept;

use std::borrow::Cow;

use percent_encoding::{percent_decode, percent_decode_str};

use crate::decision::policy::route::KeptCharacters;

pub use folding::is_ambiguous;
pub use kept::may_keep;

/// Maximum length of a user key in bytes; a directory refuses longer ones.
pub const MAX_USER_KEY: usize = 256;

/// The treatment of repeated slashes in a path.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Slashes {
    /// They become one slash, as nearly every server treats them.
    #[default]
    Merge,
    /// They stay, as empty segments, which no `{name}` and no literal of a route matches.
    Keep,
    Refuse,
}

/// The canonical form of a path: characters that RFC 3986 allows in a segment are decoded, all others are escaped in upper
/// case, dot segments are resolved, and repeated slashes are treated as `slashes` says. `None` for a path that two servers
/// may read differently: with escaped slashes, backslashes, control characters, invalid UTF-8, a second layer of escapes,
/// path parameters, or dot segments that lead above the root.
pub fn canonical_path(path: &str, slashes: Slashes) -> Option<Cow<'_, str>> {
    canonical_path_keeping(path, slashes, KeptCharacters::NONE).map(|(path, _)| path)
}

/// As [`canonical_path`], with characters that are kept as they are: judged as a part of their segment and forwarded. Also returns
/// those of them that the path contains, which its route must allow ([`may_keep`]).
pub fn canonical_path_keeping(path: &str, slashes: Slashes, allowed: KeptCharacters) -> Option<(Cow<'_, str>, KeptCharacters)> {
    if !path.starts_with('/') || (slashes == Slashes::Refuse && path.contains("//")) {
        return None;
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,=:@".contains(&byte);
    if path.bytes().all(is_plain) && !path.contains("//") && !path.contains("/.") {
        return Some((Cow::Borrowed(path), KeptCharacters::NONE));
    }
    let (decoded, used) = decode(path, allowed)?;
    Some((Cow::Owned(resolve(&decoded, slashes)?), used))
}

fn decode(path: &str, allowed: KeptCharacters) -> Option<(String, KeptCharacters)> {
    let mut used = KeptCharacters::NONE;
    let mut out = String::with_capacity(path.len());
    let mut octets = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let (octet, is_escaped) = match byte {
            b'%' => {
                let escape = [b'%', bytes.next()?, bytes.next()?];
                let mut decoded = percent_decode(&escape);
                // A malformed escape decodes to itself.
                let (Some(octet), None) = (decoded.next(), decoded.next()) else { return None };
                (octet, true)
            }
            byte => (byte, false),
        };
        octets.push(octet);
        match octet {
            b'\\' | 0..=0x1f | 0x7f => return None,
            b'/' if is_escaped && allowed.encoded_slash => {
                used.encoded_slash = true;
                out.push_str("%2F");
            }
            b'%' if is_escaped && allowed.encoded_percent => {
                used.encoded_percent = true;
                out.push_str("%25");
            }
            b';' if !is_escaped && allowed.semicolon => {
                used.semicolon = true;
                out.push(';');
            }
            b'/' | b'%' if is_escaped => return None,
            b';' if !is_escaped => return None,
            b'/' => out.push('/'),
            octet if is_escaped || octet.is_ascii_graphic() => push_octet(&mut out, octet),
            _ => return None,
        }
    }
    std::str::from_utf8(&octets).ok().map(|_| (out, used))
}

/// Appends an octet of a segment in canonical form. A character that RFC 3986 allows in a segment is not escaped, because its
/// escape means the same to nearly every server.
fn push_octet(out: &mut String, octet: u8) {
    if octet.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&octet) {
        out.push(octet as char);
    } else {
        out.push_str(&format!("%{octet:02X}"));
    }
}

fn resolve(path: &str, slashes: Slashes) -> Option<String> {
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_in_slash = false;
    let mut rest = path.split('/').skip(1).peekable();
    while let Some(segment) = rest.next() {
        ends_in_slash = matches!(segment, "" | "." | "..");
        match segment {
            // The empty string after the last slash is not a segment.
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

/// The user key in a path segment, decoded because the directory's keys have no escapes. `None` if the segment cannot be
/// decoded to a usable key.
pub fn decode_segment(segment: &str) -> Option<String> {
    usable_key(&percent_decode_str(segment).decode_utf8().ok()?)
}

/// The key, if it may be looked up: it is not empty, not too long, and has no control characters.
pub fn usable_key(key: &str) -> Option<String> {
    let fits = !key.is_empty() && key.len() <= MAX_USER_KEY && !key.contains(char::is_control);
    fits.then(|| key.to_owned())
}
