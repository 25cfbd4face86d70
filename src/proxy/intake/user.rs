//! The key that names the user.

use http::HeaderMap;

use crate::model::user::Proof;

use super::KeySource;

/// The longest key that is looked up, in bytes; no directory has a longer one.
const MAX_KEY: usize = 256;

/// The first key that is present, and how well it is proven.
pub(super) fn key(headers: &HeaderMap, is_trusted: bool, sources: &[KeySource]) -> Option<(String, Proof)> {
    sources.iter().find_map(|source| match source {
        KeySource::Header(name) if is_trusted => {
            let mut values = headers.get_all(name).iter();
            let (Some(value), None) = (values.next(), values.next()) else { return None };
            usable(value.to_str().ok()?).map(|key| (key, Proof::Proven))
        }
        KeySource::Header(_) => None,
        KeySource::Cookie(name) => cookie(headers, name).and_then(usable).map(|key| (key, Proof::Claimed)),
    })
}

/// The value of a cookie; none if it is there twice with different values, for two servers may pick differently.
fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let pairs =
        headers.get_all(http::header::COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
    let mut values = pairs.filter_map(|pair| {
        let (found, value) = pair.split_once('=')?;
        (found.trim() == name).then(|| value.trim().trim_matches('"'))
    });
    let first = values.next()?;
    values.all(|other| other == first).then_some(first)
}

fn usable(key: &str) -> Option<String> {
    let fits = !key.is_empty() && key.len() <= MAX_KEY && !key.contains(char::is_control);
    fits.then(|| key.to_owned())
}

/// The user that a path segment names: its escapes are decoded, as the directory's keys have none.
pub fn decode_segment(segment: &str) -> Option<String> {
    let mut bytes = segment.bytes();
    let mut out = Vec::with_capacity(segment.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = [bytes.next()?, bytes.next()?];
        out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    usable(&String::from_utf8(out).ok()?)
}
