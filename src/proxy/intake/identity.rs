//! Finds the caller from a verified token, a trusted hop's header, our own sealed cookie, or a plain cookie.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderMap;
use http::header::{COOKIE, HeaderValue};
use http::request::Parts;

use crate::decision::facts::{Credential, Ingress};
use crate::engine::question::{Identity, Question};
use crate::metrics::WorkerMetrics;
use crate::model::outcome::Code;
use crate::model::user::Proof;
use crate::session;
use crate::tokens::{self, TokenLocation, Tokens, Verified};

use super::super::Snapshot;
use super::credential::{PresentedToken, is_token, presented};
use super::{KeySource, Settings, user};

/// The state that is needed to verify the credentials of a request.
pub struct Verifiers<'a> {
    pub snapshot: &'a Snapshot,
    pub tokens: &'a RefCell<tokens::Cache>,
    pub metrics: &'a WorkerMetrics,
    pub now: SystemTime,
}

impl Verifiers<'_> {
    pub(super) fn identify(&self, parts: &Parts, is_trusted: bool, is_https: bool) -> Result<Identity, Code> {
        let headers = &parts.headers;
        let (token, credential) = match &self.snapshot.tokens {
            Some(tokens) => self.credential(parts, tokens),
            None => (None, Credential::Absent),
        };
        let caller = user::key(headers, is_trusted, token.as_deref(), &self.snapshot.intake.keys)?;
        let is_fresh = matches!(caller, Some((_, Proof::Proven)));
        // A hint counts only over HTTPS, because it is issued only there, and not beside a token that does not verify.
        let counts = is_https && credential != Credential::Unverifiable;
        let hint = self.snapshot.seal.as_ref().filter(|_| counts).and_then(|seal| {
            let value = user::cookies(headers, session::COOKIE).next()?;
            seal.open(std::str::from_utf8(value).ok()?, self.now)
        });
        // The hint is bound to its user, so it does not count if the request names another user.
        let hint = hint.filter(|hint| caller.as_ref().is_none_or(|(key, _)| *key == hint.user));
        let caller = match &hint {
            Some(hint) => Some((hint.user.clone(), Proof::Proven)),
            None => caller,
        };
        Ok(Identity { caller, token, credential, hint, is_fresh })
    }

    fn credential(&self, parts: &Parts, tokens: &Arc<Tokens>) -> (Option<Arc<Verified>>, Credential) {
        let (found, has_other) = presented(parts, &tokens.settings.location);
        let text = match found {
            PresentedToken::Nothing if has_other => return (None, Credential::Unread),
            PresentedToken::Nothing => return (None, Credential::Absent),
            PresentedToken::Other => return (None, Credential::Unread),
            PresentedToken::Malformed => {
                self.metrics.token(tokens::Fault::Malformed.as_str());
                return (None, Credential::Unverifiable);
            }
            PresentedToken::Token(text) => text,
        };
        let outcome = self.tokens.borrow_mut().verify(tokens, text, self.now);
        self.metrics.token(match &outcome {
            Ok((_, tokens::How::Verified)) => "verified",
            Ok((_, tokens::How::Remembered)) => "remembered",
            Err(fault) => fault.as_str(),
        });
        match outcome {
            // The app may read the other credential and identify another user.
            Ok((verified, _)) if has_other => (Some(verified), Credential::Unread),
            Ok((verified, _)) => (Some(verified), Credential::Verified),
            Err(_) => (None, Credential::Unverifiable),
        }
    }
}

/// Prepares the credentials of a request for an app server: removes our own cookie and a token that does not verify,
/// and writes the judged caller into the headers that name the user.
pub fn forward_identity(headers: &mut HeaderMap, question: &Question, settings: &Settings, tokens: Option<&Tokens>) {
    drop_cookies(headers, |name| name == session::COOKIE.as_bytes());
    if let (Credential::Unverifiable, Some(tokens)) = (question.identity.credential, tokens) {
        match &tokens.settings.location {
            location @ TokenLocation::Header(_) => {
                let token: Vec<_> = headers.keys().filter(|name| is_token(name.as_str(), location)).cloned().collect();
                token.into_iter().for_each(|name| drop(headers.remove(name)));
            }
            TokenLocation::Cookie(cookie) => drop_cookies(headers, |name| name == cookie.as_bytes()),
        }
    }
    rebuild_user_headers(headers, question, settings);
}

/// Replaces the user in headers that a trusted hop or a peer wrote by the judged caller, so that the app server and the
/// proxy use the same user.
fn rebuild_user_headers(headers: &mut HeaderMap, question: &Question, settings: &Settings) {
    let caller = question.identity.caller.as_ref().filter(|(_, proof)| *proof > Proof::Claimed);
    if caller.is_none() && question.ingress == Ingress::Client {
        return;
    }
    for source in &settings.keys {
        let KeySource::Header(name) = source else { continue };
        if headers.remove(name).is_none() {
            continue;
        }
        if let Some(value) = caller.and_then(|(key, _)| HeaderValue::from_str(key).ok()) {
            headers.insert(name, value);
        }
    }
}

fn cookie_name(pair: &[u8]) -> &[u8] {
    pair.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii()
}

/// Removes the cookies for whose names `is_dropped` is true. The other cookies keep their order and form.
pub fn drop_cookies(headers: &mut HeaderMap, is_dropped: impl Fn(&[u8]) -> bool) {
    let is_there = headers
        .get_all(COOKIE)
        .iter()
        .any(|value| value.as_bytes().split(|byte| *byte == b';').any(|pair| is_dropped(cookie_name(pair))));
    if !is_there {
        return;
    }
    let mut kept = Vec::new();
    for value in headers.get_all(COOKIE) {
        let pairs: Vec<_> = value.as_bytes().split(|byte| *byte == b';').filter(|pair| !is_dropped(cookie_name(pair))).collect();
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
    fn our_own_cookie_goes_to_no_app_server() {
        let mut headers = HeaderMap::new();
        for value in ["a=1; __Host-domicile-home=sealed; b=2", "__Host-domicile-home=other", "c=3"] {
            headers.append(COOKIE, value.parse().unwrap());
        }
        drop_cookies(&mut headers, |name| name == session::COOKIE.as_bytes());
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2", "c=3"]);
    }
}
