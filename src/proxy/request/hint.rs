//! The home hint: a sealed cookie that proves the user to whom it was issued, and saves the next directory look-up.

use std::time::SystemTime;

use http::HeaderMap;
use http::header::{CACHE_CONTROL, EXPIRES, HeaderValue, SET_COOKIE};

use crate::engine::judge::Judged;
use crate::model::jurisdiction::Jurisdiction;
use crate::session::{self, Hint};

use super::super::headers;
use super::super::intake::Intake;
use super::context::Context;

/// Adds a cookie with the sealed directory record of a proven caller, if the response may contain one user's cookie.
pub(super) fn issue(context: &Context, intake: &Intake, judged: &Judged, response: &mut HeaderMap) {
    let identity = &intake.question.identity;
    let (Some(seal), Some((caller, _))) = (&context.snapshot.seal, &identity.caller) else { return };
    let is_for_client = !context.is_peer() && intake.is_https && identity.is_fresh;
    let is_callers_data = judged.user.as_ref().is_some_and(|(user, _)| user == caller);
    let (Some(record), Some(table)) = (judged.record, judged.moment.snapshot.table_version()) else { return };
    let (policy, now) = (judged.moment.policy(), SystemTime::now());
    if !is_for_client || !is_callers_data || !policy.regions.contains(record.home) {
        return;
    }
    // A hint is replaced once half of its lifetime is over.
    let is_good = |hint: &Hint| hint.table == table && hint.expires > now + seal.settings.lifetime / 2;
    if identity.hint.as_ref().is_some_and(is_good) || !may_be_private(response) {
        return;
    }
    // The hint does not outlive the token for which it is issued.
    let latest = now + seal.settings.lifetime;
    let expires = identity.token.as_ref().map_or(latest, |token| token.expires().min(latest));
    let lifetime = expires.duration_since(now).unwrap_or_default().as_secs();
    let jurisdiction = record.jurisdiction.map(|id| policy.jurisdiction_name(Jurisdiction::Named(id)).to_owned());
    let hint = Hint { user: caller.clone(), home: policy.region_name(record.home).to_owned(), jurisdiction, table, expires };
    let cookie = seal.seal(&hint).filter(|_| lifetime > 0).and_then(|sealed| {
        let attributes = format!("Max-Age={lifetime}; Path=/; Secure; HttpOnly; SameSite=Lax");
        HeaderValue::from_str(&format!("{}={sealed}; {attributes}", session::COOKIE)).ok()
    });
    if let Some(cookie) = cookie {
        response.append(SET_COOKIE, cookie);
    }
}

/// Whether a response may contain one user's cookie. A response without cache directives is made private. A response
/// that shared caches may store, or whose directives are malformed, gets no cookie.
fn may_be_private(response: &mut HeaderMap) -> bool {
    if !response.contains_key(CACHE_CONTROL) && !response.contains_key(EXPIRES) {
        response.insert(CACHE_CONTROL, HeaderValue::from_static("private"));
    }
    let Ok(directives) = headers::quoted_members(response, &CACHE_CONTROL) else { return false };
    let found = directives.into_iter().filter_map(|directive| directive.split(|byte| *byte == b'=').next());
    let found: Vec<_> = found.map(<[u8]>::to_ascii_lowercase).collect();
    let has_any = |names: &[&str]| names.iter().any(|name| found.iter().any(|directive| directive == name.as_bytes()));
    has_any(&["private", "no-store"])
        || !response.contains_key(EXPIRES) && !has_any(&["public", "max-age", "s-maxage", "must-revalidate", "immutable"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directive_in_a_quoted_string_is_not_a_directive() {
        for (value, may) in [
            ("private", true),
            ("max-age=5,, PRIVATE", true),
            ("max-age=5", false),
            ("max-age=5, x=\"a, private, b\"", false),
            ("private=\"set-cookie\"", true),
            ("private, x=\"a", false),
        ] {
            let mut response = HeaderMap::new();
            response.insert(CACHE_CONTROL, value.parse().unwrap());
            assert_eq!(may_be_private(&mut response), may, "{value}");
        }
    }
}
