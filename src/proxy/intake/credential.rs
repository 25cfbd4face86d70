//! Finds the credentials of a request: the token that this process verifies, and others that only the app can read.

use http::request::Parts;
use http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;

use crate::http::names::{CREDENTIALS, is_same_name};
use crate::tokens::TokenLocation;

use super::user;

/// Query parameters in which apps expect credentials.
const CREDENTIALS_IN_QUERY: [&str; 4] = ["access_token", "api_key", "apikey", "api-key"];

/// A credential as a request presents it.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum PresentedToken<'h> {
    Nothing,
    Token(&'h str),
    /// A token in an invalid form: presented twice, in a list, or with other whitespace than one space after `Bearer`.
    Malformed,
    /// A credential of another kind.
    Other,
}

/// The token at the configured location, and whether the request has another credential that the app may read.
pub(super) fn presented<'h>(parts: &'h Parts, location: &'h TokenLocation) -> (PresentedToken<'h>, bool) {
    let found = match location {
        TokenLocation::Cookie(name) => in_cookie(&parts.headers, name),
        TokenLocation::Header(name) => in_header(&parts.headers, name),
    };
    let is_read = |name: &HeaderName| matches!(location, TokenLocation::Header(token) if token == name);
    let mut others = parts.headers.iter().filter(|(name, value)| !is_read(name) && !value.is_empty());
    (found, others.any(|(name, _)| is_credential(name.as_str(), Some(location))) || has_credential_in_query(parts))
}

/// Whether a header field contains the token or another credential, in any spelling.
pub fn is_credential(name: &str, location: Option<&TokenLocation>) -> bool {
    CREDENTIALS.contains_any_spelling(name) || location.is_some_and(|location| is_token(name, location))
}

/// Whether a header field contains the token, in any spelling.
pub(super) fn is_token(name: &str, location: &TokenLocation) -> bool {
    matches!(location, TokenLocation::Header(token) if is_same_name(token, name))
}

/// Whether the query contains a credential (RFC 6750 section 2.3, and the usual parameters for API keys).
fn has_credential_in_query(parts: &Parts) -> bool {
    let Some(query) = parts.uri.query() else { return false };
    query.split(['&', ';']).any(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name: Vec<u8> = percent_decode_str(name).map(|byte| byte.to_ascii_lowercase()).collect();
        !value.is_empty() && CREDENTIALS_IN_QUERY.iter().any(|known| name == known.as_bytes())
    })
}

fn in_cookie<'h>(headers: &'h HeaderMap, name: &'h str) -> PresentedToken<'h> {
    let mut values = user::cookies(headers, name).filter(|value| !value.is_empty());
    match (values.next().map(std::str::from_utf8), values.next()) {
        (None, _) => PresentedToken::Nothing,
        (Some(Ok(token)), None) if is_compact(token) => PresentedToken::Token(token),
        (Some(_), _) => PresentedToken::Malformed,
    }
}

/// `NAME: Bearer TOKEN` (RFC 6750 section 2.1), or the token alone.
fn in_header<'h>(headers: &'h HeaderMap, name: &http::HeaderName) -> PresentedToken<'h> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next(), values.next());
    let Some(first) = first else { return PresentedToken::Nothing };
    if second.is_some() {
        return PresentedToken::Malformed;
    }
    let Ok(value) = first.to_str() else { return PresentedToken::Malformed };
    if value.is_empty() {
        return PresentedToken::Nothing;
    }
    let scheme_end = value.bytes().position(|byte| !byte.is_ascii_alphanumeric() && byte != b'-').unwrap_or(value.len());
    let (scheme, rest) = value.split_at(scheme_end);
    if scheme.eq_ignore_ascii_case("bearer") {
        return match rest.strip_prefix(' ') {
            Some(token) if is_compact(token) => PresentedToken::Token(token),
            _ => PresentedToken::Malformed,
        };
    }
    if is_compact(value) {
        return PresentedToken::Token(value);
    }
    PresentedToken::Other
}

/// Whether a text has the form of a compact JWS (RFC 7515 section 3.1): three parts of base64url.
fn is_compact(token: &str) -> bool {
    let is_part = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    token.split('.').count() == 3 && token.split('.').all(is_part)
}

#[cfg(test)]
mod tests {
    use http::header::{AUTHORIZATION, COOKIE};

    use super::*;

    #[test]
    fn a_token_is_presented_once_and_in_one_form() {
        let with = |values: &[&str]| {
            let mut parts = parts_of("/");
            for value in values {
                parts.headers.append(AUTHORIZATION, value.parse().unwrap());
            }
            match presented(&parts, &TokenLocation::Header(AUTHORIZATION)).0 {
                PresentedToken::Nothing => "nothing",
                PresentedToken::Token("a.b.c") => "token",
                PresentedToken::Token(_) | PresentedToken::Malformed => "malformed",
                PresentedToken::Other => "other",
            }
        };
        for (values, found) in [
            (&["Bearer a.b.c"][..], "token"),
            (&["bearer a.b.c"], "token"),
            (&["a.b.c"], "token"),
            (&["Bearer  a.b.c"], "malformed"),
            (&["Bearer a.b.c,d.e.f"], "malformed"),
            (&["Bearer a.b.c, Basic eA=="], "malformed"),
            (&["Bearer\ta.b.c"], "malformed"),
            (&["Bearer"], "malformed"),
            (&["Bearer opaque"], "malformed"),
            (&["Bearer a.b.c", "Bearer a.b.c"], "malformed"),
            (&["Basic dXNlcjpwYXNz", "Bearer a.b.c"], "malformed"),
            (&["Basic dXNlcjpwYXNz"], "other"),
            (&["ApiKey 1234"], "other"),
            (&[""], "nothing"),
            (&[], "nothing"),
        ] {
            assert_eq!(with(values), found, "{values:?}");
        }
    }

    #[test]
    fn a_credential_beside_the_token_cookie_is_another_credential() {
        let mut parts = parts_of("/");
        let location = TokenLocation::Cookie("session".into());
        assert_eq!(presented(&parts, &location), (PresentedToken::Nothing, false));
        parts.headers.insert(AUTHORIZATION, "Basic dXNlcjpwYXNz".parse().unwrap());
        assert_eq!(presented(&parts, &location), (PresentedToken::Nothing, true));
        parts.headers.insert(COOKIE, "session=a.b.c".parse().unwrap());
        assert_eq!(presented(&parts, &location), (PresentedToken::Token("a.b.c"), true));
        parts.headers.append(COOKIE, "session=d.e.f".parse().unwrap());
        assert_eq!(presented(&parts, &location), (PresentedToken::Malformed, true));
    }

    #[test]
    fn api_keys_are_credentials_in_any_spelling_and_place() {
        let location = TokenLocation::Header(HeaderName::from_static("x-session-token"));
        for (target, field, has_other) in [
            ("/", None, false),
            ("/", Some("x-session-token"), false),
            ("/", Some("x_session_token"), true),
            ("/", Some("authorization"), true),
            ("/", Some("x-api-key"), true),
            ("/", Some("x_api.key"), true),
            ("/", Some("x-api-keys"), false),
            ("/?a=1&access_token=k", None, true),
            ("/?Access%5Ftoken=k", None, true),
            ("/?a=1;api_key=k", None, true),
            ("/?access_token=&api_key", None, false),
            ("/?token=k", None, false),
        ] {
            let mut parts = parts_of(target);
            if let Some(field) = field {
                parts.headers.insert(field.parse::<HeaderName>().unwrap(), "a.b.c".parse().unwrap());
            }
            assert_eq!(presented(&parts, &location).1, has_other, "{target} {field:?}");
        }
    }

    fn parts_of(target: &str) -> Parts {
        http::Request::get(target).body(()).unwrap().into_parts().0
    }
}
