//! The actions of a route on a judged request: client networks, rate limits, authorization, fixed responses, rewriting, headers.
//!
//! Promises: an action never changes a decision, because `decision` does not know the type [`Actions`]; actions on messages run at
//! the region that serves the request, after its last judgement. Never: an action that sends a request to another region. Start
//! reading at [`Actions`].

mod answer;
mod compress;
mod cors;
mod edits;
mod rewrite;
mod split;
mod summary;
mod template;

use std::path::PathBuf;

use base64::prelude::{BASE64_STANDARD, Engine};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::http::compression::Coding;
use crate::http::names::is_same_name;
use crate::http::tunnel::WEBSOCKET;
use crate::model::service::ServiceId;

use super::Limits;
use super::admission::overload::Priority;
use super::admission::rate_limit::RateLimit;

pub use answer::{Answer, FixedResponse, Redirection};
pub use compress::{compress, may_stream};
pub use cors::Cors;
pub use edits::{Edits, is_editable, remove_in_any_spelling};
pub use rewrite::{PathRewrite, Rewrite, set_path};
pub use split::Split;
pub use template::{Template, TemplateError, Values};

/// The actions of one route.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Actions {
    /// Under overload, requests of low priority are refused first.
    pub priority: Priority,
    pub clients: ClientNetworks,
    pub rate_limits: Vec<RateLimit>,
    pub split: Option<Split>,
    pub mirror: Option<Mirror>,
    pub upgrades: Upgrades,
    pub auth: Option<Auth>,
    pub cors: Option<Cors>,
    /// The response of the proxy itself, instead of one of an app server.
    pub answer: Option<Answer>,
    pub rewrite: Rewrite,
    pub request_headers: Edits,
    pub response_headers: Edits,
    /// The codings with which responses are compressed, the preferred one first.
    pub compress: Vec<Coding>,
    /// The limits of the route, if they differ from the common ones. They apply in every region that a request passes.
    pub limits: Option<Limits>,
}

impl Actions {
    /// The services that get requests, besides that of the route.
    pub fn services(&self) -> impl Iterator<Item = ServiceId> {
        let auth = match &self.auth {
            Some(Auth::Forward(auth)) => Some(auth.service),
            Some(Auth::Basic(_)) | None => None,
        };
        let split = self.split.iter().flat_map(Split::services);
        split.chain(auth).chain(self.mirror.map(|mirror| mirror.service))
    }

    /// Whether the route decides about this field of a request, so that a client cannot set it, for example in a trailer.
    pub fn govern_request_field(&self, name: &str) -> bool {
        let copied = self.auth.iter().flat_map(|auth| match auth {
            Auth::Forward(auth) => &auth.copy[..],
            Auth::Basic(auth) => auth.header.as_slice(),
        });
        let edits = &self.request_headers;
        let mut names = copied.chain(&edits.remove).chain(edits.set.iter().map(|(name, _)| name));
        names.any(|governed| is_same_name(governed, name))
    }
}

/// The clients that may use a route.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ClientNetworks {
    /// Empty for all.
    pub allow: Vec<IpNet>,
    pub deny: Vec<IpNet>,
}

impl ClientNetworks {
    /// Whether the client may use the route. `deny` wins over `allow`.
    pub fn admit(&self, client: std::net::IpAddr) -> bool {
        let is_in = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&client));
        (self.allow.is_empty() || is_in(&self.allow)) && !is_in(&self.deny)
    }
}

/// The protocols to which a request may upgrade its connection, in lower case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upgrades(pub Vec<Box<str>>);

impl Default for Upgrades {
    fn default() -> Self {
        Self(vec![WEBSOCKET.into()])
    }
}

impl Upgrades {
    pub fn allow(&self, protocol: &str) -> bool {
        self.0.iter().any(|allowed| **allowed == *protocol)
    }
}

/// Another service that gets copies of reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mirror {
    /// A service of the same region.
    pub service: ServiceId,
    /// The share of the reads.
    pub percent: u8,
}

/// The check that decides whether a request may pass.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Auth {
    Forward(ForwardAuth),
    Basic(BasicAuth),
}

/// User names and passwords (RFC 7617).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BasicAuth {
    pub file: PathBuf,
    /// The value of `WWW-Authenticate`.
    pub challenge: HeaderValue,
    /// The field that names the user to the app server.
    pub header: Option<HeaderName>,
}

impl BasicAuth {
    /// The user name and the password of a request (RFC 7617 section 2); `None` if it has none, or several.
    pub fn presented(&self, headers: &HeaderMap) -> Option<(String, String)> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let value = values.next().filter(|_| values.next().is_none())?.to_str().ok()?;
        let (scheme, encoded) = value.split_once(' ')?;
        let decoded = BASE64_STANDARD.decode(encoded.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
        let (user, password) =
            String::from_utf8(decoded).ok()?.split_once(':').map(|(user, password)| (user.into(), password.into()))?;
        Some((user, password))
    }
}

/// A service that decides whether a request may pass.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ForwardAuth {
    /// A service of the same region.
    pub service: ServiceId,
    pub path: Box<str>,
    /// The fields of its response that the app server gets. The client cannot set them.
    pub copy: Vec<HeaderName>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of a request for the tests of the actions.
    pub fn values<'a>(path: &'a str, query: Option<&'a str>) -> Values<'a> {
        Values {
            client: [192, 0, 2, 1].into(),
            country: Some("DE"),
            host: "a.test:81",
            method: "GET",
            path,
            query,
            is_https: true,
            home: Some("eu-west"),
            region: "us-east",
            route: "api",
            request_id: "id",
            pseudonym: &|| Some("p".into()),
        }
    }

    #[test]
    fn clients_are_admitted_by_their_networks_and_deny_wins() {
        let networks = |list: &[&str]| list.iter().map(|network| network.parse().unwrap()).collect();
        let admits = |allow: &[&str], deny: &[&str], client: &str| {
            ClientNetworks { allow: networks(allow), deny: networks(deny) }.admit(client.parse().unwrap())
        };
        assert!(admits(&[], &[], "192.0.2.1"));
        assert!(admits(&["10.0.0.0/8"], &[], "10.1.2.3") && !admits(&["10.0.0.0/8"], &[], "192.0.2.1"));
        assert!(!admits(&["10.0.0.0/8"], &["10.1.0.0/16"], "10.1.2.3") && admits(&["10.0.0.0/8"], &["10.1.0.0/16"], "10.2.2.3"));
        assert!(!admits(&["10.0.0.0/8"], &[], "2001:db8::1") && admits(&["2001:db8::/32"], &[], "2001:db8::1"));
    }
}
