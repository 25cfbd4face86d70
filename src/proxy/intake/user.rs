//! The key that names the user.

use http::HeaderMap;

use crate::engine::path::usable_key;
use crate::model::outcome::{Code, Rule};
use crate::model::user::Proof;
use crate::tokens::Verified;

use super::KeySource;

/// The first key that is present, and how well it is proven. A request that names two users is malformed, because
/// the proxy and an upstream could choose different ones.
pub(super) fn key(
    headers: &HeaderMap,
    is_trusted: bool,
    token: Option<&Verified>,
    sources: &[KeySource],
) -> Result<Option<(String, Proof)>, Code> {
    for source in sources {
        let claimed;
        let (key, proof) = match source {
            KeySource::Header(name) if is_trusted => {
                (only(headers.get_all(name).iter().map(http::HeaderValue::as_bytes))?, Proof::Proven)
            }
            KeySource::Header(_) => (None, Proof::Claimed),
            KeySource::Token(claim) => {
                claimed = token.and_then(|token| token.claim(claim));
                (claimed.as_deref().map(str::as_bytes), Proof::Proven)
            }
            KeySource::Cookie(name) => (only(cookies(headers, name))?, Proof::Claimed),
        };
        if let Some(key) = key.filter(|key| !key.is_empty()) {
            let key = std::str::from_utf8(key).ok().and_then(usable_key).ok_or(Code::Malformed(Rule::User))?;
            return Ok(Some((key, proof)));
        }
    }
    Ok(None)
}

/// The common value of all items; an error if they differ.
fn only<'h>(mut values: impl Iterator<Item = &'h [u8]>) -> Result<Option<&'h [u8]>, Code> {
    let Some(first) = values.next() else { return Ok(None) };
    if values.all(|other| other == first) { Ok(Some(first)) } else { Err(Code::Malformed(Rule::User)) }
}

/// The values of a cookie, as bytes, so that invalid characters in another cookie do not hide it.
pub fn cookies<'h>(headers: &'h HeaderMap, name: &'h str) -> impl Iterator<Item = &'h [u8]> {
    let pairs = headers.get_all(http::header::COOKIE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
    pairs.filter_map(move |pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        let (found, value) = (pair[..at].trim_ascii(), pair[at + 1..].trim_ascii());
        let value = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value);
        (found == name.as_bytes()).then_some(value)
    })
}
