//! Who the caller is: by a verified token, a trusted hop's header, our own sealed cookie, or a plain cookie's claim.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderMap;
use http::header::{COOKIE, HeaderValue};

use crate::metrics::WorkerMetrics;
use crate::model::outcome::Code;
use crate::model::user::Proof;
use crate::session::{self, Hint};
use crate::tokens::{self, Place, Tokens, Verified};

use super::super::Snapshot;
use super::user;

/// What a caller shows of itself.
#[derive(Default)]
pub struct Identity {
    pub user: Option<(String, Proof)>,
    pub token: Option<Arc<Verified>>,
    /// Our sealed cookie, if it is this user's.
    pub hint: Option<Hint>,
    /// The key was proven by something else than the hint: then a new hint may be given.
    pub is_fresh: bool,
}

/// What verifies.
pub struct Verifiers<'a> {
    pub snapshot: &'a Snapshot,
    pub tokens: &'a RefCell<tokens::Cache>,
    pub metrics: &'a WorkerMetrics,
    pub now: SystemTime,
}

impl Verifiers<'_> {
    pub(super) fn identify(&self, headers: &HeaderMap, is_trusted: bool, is_https: bool) -> Result<Identity, Code> {
        let shows_token = self.snapshot.tokens.as_ref().is_some_and(|tokens| find(headers, &tokens.settings.place).is_some());
        let token = self.snapshot.tokens.as_ref().and_then(|tokens| self.token(headers, tokens));
        let user = user::key(headers, is_trusted, token.as_deref(), &self.snapshot.intake.keys)?;
        let is_fresh = matches!(user, Some((_, Proof::Proven)));
        // It is given by HTTPS alone; and who shows a token that proves nothing is nobody, whatever it has proven before.
        let is_welcome = is_https && (token.is_some() || !shows_token);
        let hint = self.snapshot.seal.as_ref().filter(|_| is_welcome).and_then(|seal| {
            let value = user::cookies(headers, session::COOKIE).next()?;
            seal.open(std::str::from_utf8(value).ok()?, self.now)
        });
        // It is bound to its user; who shows to be somebody else has no use for it.
        let hint = hint.filter(|hint| user.as_ref().is_none_or(|(key, _)| *key == hint.user));
        let user = match &hint {
            Some(hint) => Some((hint.user.clone(), Proof::Proven)),
            None => user,
        };
        Ok(Identity { user, token, hint, is_fresh })
    }

    /// A verified token. What cannot be verified is no identity.
    pub(super) fn token(&self, headers: &HeaderMap, tokens: &Arc<Tokens>) -> Option<Arc<Verified>> {
        let found = find(headers, &tokens.settings.place)?;
        let outcome = self.tokens.borrow_mut().verify(tokens, found, self.now);
        self.metrics.token(match &outcome {
            Ok((_, tokens::How::Verified)) => "verified",
            Ok((_, tokens::How::Remembered)) => "remembered",
            Err(fault) => fault.as_str(),
        });
        outcome.ok().map(|(verified, _)| verified)
    }
}

/// The one token of a request; none if there are several.
fn find<'h>(headers: &'h HeaderMap, place: &'h Place) -> Option<&'h str> {
    match place {
        Place::Cookie(name) => {
            let mut values = user::cookies(headers, name);
            let value = values.next().filter(|_| values.next().is_none())?;
            std::str::from_utf8(value).ok()
        }
        Place::Header(name) => {
            let mut values = headers.get_all(name).iter();
            let value = values.next().filter(|_| values.next().is_none())?.to_str().ok()?;
            let scheme = value.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("bearer "));
            Some(if scheme.is_some() { value[7..].trim() } else { value.trim() }).filter(|token| !token.contains(' '))
        }
    }
}

/// Takes our own cookie out: it is between the client and us.
pub(super) fn strip_hint(headers: &mut HeaderMap) {
    let prefix = session::COOKIE.as_bytes();
    if !headers.get_all(COOKIE).iter().any(|value| value.as_bytes().windows(prefix.len()).any(|window| window == prefix)) {
        return;
    }
    let is_ours =
        |pair: &[u8]| pair.trim_ascii().strip_prefix(prefix).is_some_and(|rest| rest.trim_ascii_start().starts_with(b"="));
    let mut kept = Vec::new();
    for value in headers.get_all(COOKIE) {
        let pairs: Vec<_> = value.as_bytes().split(|byte| *byte == b';').filter(|pair| !is_ours(pair)).collect();
        let rest = pairs.join(&b';');
        kept.extend(HeaderValue::from_bytes(rest.trim_ascii()).ok().filter(|value| !value.is_empty()));
    }
    headers.remove(COOKIE);
    for value in kept {
        headers.append(COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_cookie_goes_no_further() {
        let mut headers = HeaderMap::new();
        for value in ["a=1; __Host-domicile-home=sealed; b=2", "__Host-domicile-home=other", "c=3"] {
            headers.append(COOKIE, value.parse().unwrap());
        }
        strip_hint(&mut headers);
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2", "c=3"]);
    }

    #[test]
    fn a_token_is_found_once_or_not_at_all() {
        let with = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(http::header::AUTHORIZATION, value.parse().unwrap());
            }
            find(&headers, &Place::Header(http::header::AUTHORIZATION)).map(str::to_owned)
        };
        assert_eq!(with(&["Bearer a.b.c"]).as_deref(), Some("a.b.c"));
        assert_eq!(with(&["bearer a.b.c"]).as_deref(), Some("a.b.c"));
        assert_eq!(with(&["Basic dXNlcjpwYXNz"]), None);
        assert_eq!(with(&["Bearer a", "Bearer b"]), None);
        assert_eq!(with(&[]), None);
    }
}
