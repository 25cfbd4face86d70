//! The sections about the client and the user.

use std::time::Duration;

use ipnet::IpNet;

use crate::directory;
use crate::proxy::intake::{AddressSource, KeySource, canonical_network};
use crate::session;
use crate::tokens::{self, TokenLocation};

use super::super::reader::Field;
use super::path;

/// The settings in the `users` section.
#[derive(Default)]
pub(super) struct Users {
    pub keys: Vec<KeySource>,
    pub directory: Option<directory::Settings>,
    pub tokens: Option<tokens::Settings>,
    pub seal: Option<session::Settings>,
    pub uniform_refusals: bool,
}

impl Users {
    /// The names of the cookies that identify users.
    pub fn cookies(&self) -> impl Iterator<Item = String> {
        let of_keys = self.keys.iter().filter_map(|source| match source {
            KeySource::Cookie(name) => Some(name.clone()),
            KeySource::Header(_) | KeySource::Token(_) => None,
        });
        let of_token = self.tokens.as_ref().and_then(|tokens| match &tokens.location {
            tokens::TokenLocation::Cookie(name) => Some(name.clone()),
            tokens::TokenLocation::Header(_) => None,
        });
        of_keys.chain(of_token)
    }
}

pub(super) fn read_users(field: &Field<'_>) -> Option<Users> {
    let section = field.section()?;
    let keys = section.optional("key").map_or(Vec::new(), |field| field.one_or_many());
    let keys: Vec<_> = keys.iter().filter_map(read_key).collect();
    let directory = section.optional("directory").map(|field| {
        let section = field.section()?;
        let file = section.required("file", "name the CSV or YAML file of users and their homes").and_then(|field| path(&field));
        let max_loss = section.optional("max_loss").map_or(Some(directory::DEFAULT_MAX_LOSS), |field| field.percent());
        let stale_after = section.optional("stale_after").map_or(Some(None), |field| field.positive_duration().map(Some));
        section.finish();
        Some(directory::Settings { file: file?, max_loss: max_loss?, stale_after: stale_after? })
    });
    let has_tokens = section.optional("token").is_some();
    let tokens = section.optional("token").map_or(Some(None), |field| read_token(&field).map(Some));
    let seal = section.optional("hint").map_or(Some(None), |field| read_hint(&field).map(Some));
    let uniform_refusals = section.optional("uniform_refusals").map_or(Some(false), |field| field.flag());
    section.finish();
    if !has_tokens && keys.iter().any(|key| matches!(key, KeySource::Token(_))) {
        return field.report(
            "`key` reads a token, but no issuer is configured; add `token: { keys: jwks.json, issuer: …, audience: … }`",
        );
    }
    Some(Users {
        keys,
        directory: directory.map_or(Some(None), |settings| settings.map(Some))?,
        tokens: tokens?,
        seal: seal?,
        uniform_refusals: uniform_refusals?,
    })
}

fn read_token(field: &Field<'_>) -> Option<tokens::Settings> {
    let section = field.section()?;
    let keys = section.required("keys", "name the JWKS file of the issuer's keys").and_then(|field| path(&field));
    let text = |key, what: &str| section.required(key, what).and_then(|field| field.text().map(str::to_owned));
    let issuer = text("issuer", "write the `iss` claim of the tokens to accept");
    let audience = text("audience", "write the `aud` claim of the tokens to accept");
    let header = section.optional("header").map(|field| header_name(&field).map(TokenLocation::Header));
    let cookie = section.optional("cookie").map(|field| cookie_name(&field).map(TokenLocation::Cookie));
    let words = [("refuse", tokens::Others::Refuse), ("ignore", tokens::Others::Ignore)];
    let others = section.optional("others").map_or(Some(tokens::Others::Refuse), |field| field.word(&words));
    let leeway = section.optional("leeway").map_or(Some(Duration::from_secs(60)), |field| field.duration());
    section.finish();
    let location = match (header, cookie) {
        (None, None) => Some(TokenLocation::Header(http::header::AUTHORIZATION)),
        (Some(location), None) | (None, Some(location)) => location,
        (Some(_), Some(_)) => field.report("a token is read from one place: write `header` or `cookie`, not both"),
    };
    Some(tokens::Settings {
        keys: keys?,
        issuer: issuer?,
        audience: audience?,
        location: location?,
        leeway: leeway?,
        others: others?,
    })
}

fn read_hint(field: &Field<'_>) -> Option<session::Settings> {
    let section = field.section()?;
    let keys = section
        .required("keys", "name the file of the keys that seal the hint cookie; use the same keys in every region")
        .and_then(|field| path(&field));
    let lifetime = section.optional("lifetime").map_or(Some(Duration::from_secs(300)), |field| field.positive_duration());
    section.finish();
    Some(session::Settings { keys: keys?, lifetime: lifetime? })
}

pub(super) fn cookie_name(field: &Field<'_>) -> Option<String> {
    let name = field.text()?;
    let token = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&byte));
    if token {
        Some(name.to_owned())
    } else {
        field.report(format!("`{name}` is not a valid cookie name; write a name such as `uid`"))
    }
}

fn read_key(field: &Field<'_>) -> Option<KeySource> {
    let section = field.section()?;
    let header = section.optional("header").and_then(|field| header_name(&field));
    let cookie = section.optional("cookie").and_then(|field| cookie_name(&field));
    let token = section.optional("token").and_then(|field| field.text());
    section.finish();
    match (header, cookie, token) {
        (Some(name), None, None) => Some(KeySource::Header(name)),
        (None, Some(name), None) => Some(KeySource::Cookie(name)),
        (None, None, Some(claim)) => Some(KeySource::Token(claim.to_owned())),
        _ => field.report("write exactly one of `token: CLAIM`, `header: NAME` and `cookie: NAME`"),
    }
}

pub(super) fn header_name(field: &Field<'_>) -> Option<http::HeaderName> {
    let text = field.text()?;
    let name = text.to_ascii_lowercase().parse().ok();
    name.or_else(|| field.report(format!("`{text}` is not a valid header name; write a name such as `x-user-id`")))
}

pub(super) fn read_client_address(field: &Field<'_>) -> Option<(Vec<IpNet>, AddressSource)> {
    let section = field.section()?;
    let trust = section.optional("trust").map_or(Vec::new(), |field| field.one_or_many());
    let trust = trust.iter().map(network).collect::<Option<Vec<_>>>();
    let source = section.optional("from").map_or(Some(AddressSource::Forwarded), |field| match field.text()? {
        "forwarded" => Some(AddressSource::Forwarded),
        "x-forwarded-for" => Some(AddressSource::XForwardedFor),
        "proxy-protocol" => Some(AddressSource::ProxyProtocol),
        _ => header_name(&field).map(AddressSource::Header),
    });
    section.finish();
    Some((trust?, source?))
}

pub(super) fn network(field: &Field<'_>) -> Option<IpNet> {
    let text = field.text()?;
    let host = text.parse::<std::net::IpAddr>().ok().map(IpNet::from);
    text.parse().ok().or(host).map(canonical_network).or_else(|| {
        field.report(format!("`{text}` is not a valid network; write a network such as `10.0.0.0/8`, or one address"))
    })
}
