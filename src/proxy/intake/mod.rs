//! What a request is, once what must not be believed is out of it.

mod client;
mod identity;
mod target;
mod upgrade;
mod user;

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

use crate::decision::facts::Ingress;
use crate::decision::policy::Policy;
use crate::decision::route::Method;
use crate::envelope::Envelope;
use crate::http::framing::FAULT_HEADER;
use crate::http::tunnel::CONNECT;
use crate::model::outcome::Code;

use super::Limits;
use super::headers::folded;

pub use client::unfolded;
pub use identity::{Identity, Verifiers};
pub use target::{Slashes, canonical_path};
pub use upgrade::Upgrade;
pub use user::decode_segment;

/// Whom to believe about clients and users.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Settings {
    /// Networks of the hops that may speak for a client; nobody by default.
    pub trust: Vec<IpNet>,
    pub source: AddressSource,
    /// Where the user's key is; the first that is present names the user.
    pub keys: Vec<KeySource>,
    pub slashes: Slashes,
}

/// Where trusted hops write the client's address.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum AddressSource {
    /// RFC 7239.
    #[default]
    Forwarded,
    XForwardedFor,
    /// The header of the PROXY protocol, on listeners that demand it.
    ProxyProtocol,
    /// A field that holds one address.
    Header(HeaderName),
}

/// Where a user's key may stand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KeySource {
    /// Counts only from trusted hops.
    Header(HeaderName),
    /// Claimed, not proven.
    Cookie(String),
    /// A claim of a verified token.
    Token(String),
}

/// A request as it is judged.
pub struct Intake {
    pub id: String,
    pub method: Method,
    /// In lower case, without port or trailing dot.
    pub host: String,
    /// The host with its port, where one was named: what is forwarded.
    pub authority: String,
    /// Canonical; what is judged is what is forwarded.
    pub path: String,
    /// GET or HEAD, and no upgrade.
    pub is_read: bool,
    /// A browser asks whether it may ask (CORS).
    pub is_preflight: bool,
    pub upgrade: Option<Upgrade>,
    pub client: IpAddr,
    /// The caller; a route's `{user}` outranks its key.
    pub identity: Identity,
    /// What the peer says, for a peer's request.
    pub envelope: Option<Envelope>,
    pub is_https: bool,
}

/// Where a request came in.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub ingress: Ingress,
    /// The other end of the connection, or whom it speaks for (PROXY protocol).
    pub remote: IpAddr,
    pub port: u16,
    /// The end that is ours.
    pub local: SocketAddr,
    pub is_tls: bool,
}

impl Arrival {
    /// A client with its port, where that is known: it is the connection's own.
    pub fn client(&self, address: IpAddr) -> SocketAddr {
        SocketAddr::new(address, if address == self.remote { self.port } else { 0 })
    }
}

/// Reads the intake of a request, and takes out of its head what no stranger may tell an upstream.
pub fn read(parts: &mut Parts, has_body: bool, arrival: &Arrival, verifiers: &Verifiers<'_>) -> Result<Intake, Code> {
    let (settings, limits) = (&verifiers.snapshot.intake, &verifiers.snapshot.limits);
    if let Some(fault) = parts.headers.get(FAULT_HEADER) {
        let code = Code::ALL.iter().find(|code| fault == code.as_str() && code.as_str().starts_with("request."));
        return Err(*code.unwrap_or(&Code::RequestMalformed));
    }
    if arrival.ingress == Ingress::Client {
        check_size(parts, limits)?;
    }
    check_grammar(parts)?;
    let upgrade = upgrade::wanted(parts)?;
    let is_connect = upgrade.as_ref().is_some_and(Upgrade::is_connect);
    if is_connect && !opens_connect(&verifiers.snapshot.policy) {
        return Err(Code::MethodNotAllowed);
    }
    if upgrade.is_some() && !is_connect {
        parts.method = http::Method::GET;
    }
    let method = Method::of(parts.method.as_str());
    let envelope = match arrival.ingress {
        Ingress::Client => None,
        Ingress::Peer(_) => Some(read_envelope(&parts.headers)?),
    };
    let authority = target::authority_of(parts).ok_or(Code::RequestMalformed)?;
    if is_connect && authority.port.is_none() {
        return Err(Code::RequestMalformed);
    }
    let path = match parts.uri.path() {
        // It has none, so it is asked for at the root.
        "" | "/" if is_connect => Cow::Borrowed("/"),
        "*" if method == Method::Options => Cow::Borrowed("*"),
        path => canonical_path(path, settings.slashes).ok_or(Code::RequestMalformed)?,
    };
    let is_upgrade = upgrade.is_some() || parts.headers.contains_key(http::header::UPGRADE);
    let is_trusted = settings.trust.iter().any(|network| network.contains(&arrival.remote));
    let (id, client, identity, is_https) = match &envelope {
        Some(envelope) => {
            let token = verifiers.snapshot.tokens.as_ref().and_then(|tokens| verifiers.token(&parts.headers, tokens));
            let identity = Identity { user: envelope.user.clone(), token, ..Identity::default() };
            (envelope.id.clone(), envelope.client, identity, envelope.is_https)
        }
        None => {
            let is_https = arrival.is_tls || (is_trusted && client::came_by_https(&parts.headers, arrival.remote, settings));
            let identity = verifiers.identify(&parts.headers, is_trusted, is_https)?;
            (new_id(), client::address(&parts.headers, arrival.remote, settings), identity, is_https)
        }
    };
    let path = match path {
        Cow::Borrowed(path) => path.to_owned(),
        Cow::Owned(path) => {
            target::replace_path(parts, &path).ok_or(Code::RequestMalformed)?;
            path
        }
    };
    identity::strip_hint(&mut parts.headers);
    strip_user_headers(&mut parts.headers, is_trusted || envelope.is_some(), settings);
    let is_preflight = method == Method::Options && !has_body && identity.user.is_none() && is_bare_preflight(&parts.headers);
    let is_read = matches!(method, Method::Get | Method::Head) && !is_upgrade;
    let (host, authority) = (authority.host.clone(), authority.to_string());
    Ok(Intake { id, method, host, authority, path, is_read, is_preflight, upgrade, client, identity, envelope, is_https })
}

/// Whether any route opens what CONNECT asks for.
fn opens_connect(policy: &Policy) -> bool {
    policy.routes.all().iter().any(|route| route.upgrades.iter().any(|upgrade| **upgrade == *CONNECT))
}

/// What the Fetch standard sends before a request that needs leave, which has no body: no cookies, no credentials.
fn is_bare_preflight(headers: &HeaderMap) -> bool {
    use http::header::{ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, COOKIE, ORIGIN};
    let has = |name| headers.contains_key(name);
    has(ORIGIN) && has(ACCESS_CONTROL_REQUEST_METHOD) && !has(COOKIE) && !has(AUTHORIZATION)
}

fn read_envelope(headers: &HeaderMap) -> Result<Envelope, Code> {
    let mut values = headers.get_all("domicile-request").iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(Code::PeerMalformed) };
    value.to_str().ok().and_then(|value| Envelope::read(value).ok()).ok_or(Code::PeerMalformed)
}

impl Settings {
    /// Whether a field names the user or the client's address, in any spelling.
    pub fn names_a_client(&self, field: &str) -> bool {
        let field = folded(field);
        let is = |name: &HeaderName| folded(name.as_str()) == field;
        let by_key = self.keys.iter().any(|key| matches!(key, KeySource::Header(name) if is(name)));
        by_key || matches!(&self.source, AddressSource::Header(name) if is(name))
    }
}

/// A header that names the user counts from trusted hops; from anyone else it would deceive the upstream as well. From
/// trusted hops, the one spelling that was read is kept.
fn strip_user_headers(headers: &mut HeaderMap, is_trusted: bool, settings: &Settings) {
    let is_read = |name: &HeaderName| settings.keys.iter().any(|key| matches!(key, KeySource::Header(key) if key == name));
    let forged: Vec<HeaderName> =
        headers.keys().filter(|name| settings.names_a_client(name.as_str()) && !(is_trusted && is_read(name))).cloned().collect();
    for name in forged {
        headers.remove(name);
    }
}

/// A peer's request has grown on its way, and was measured where it came in.
fn check_size(parts: &Parts, limits: &Limits) -> Result<(), Code> {
    if parts.uri.path_and_query().is_some_and(|target| target.as_str().len() > limits.target_bytes) {
        return Err(Code::TargetTooLong);
    }
    if parts.headers.len() > limits.headers { Err(Code::HeadTooLarge) } else { Ok(()) }
}

/// What the gate judges in HTTP/1 holds for HTTP/2 as well, for it may go on as HTTP/1.
fn check_grammar(parts: &Parts) -> Result<(), Code> {
    let is_visible = |target: &PathAndQuery| target.as_str().bytes().all(|byte| matches!(byte, 0x21..=0x7e));
    let is_look_alike = |name: &HeaderName| {
        let plain = folded(name.as_str());
        plain != name.as_str() && matches!(&*plain, "content-length" | "transfer-encoding")
    };
    let one_length = parts.headers.get_all(CONTENT_LENGTH).iter().nth(1).is_none();
    let is_sound = parts.uri.path_and_query().is_none_or(is_visible) && one_length && !parts.headers.keys().any(is_look_alike);
    if is_sound { Ok(()) } else { Err(Code::RequestMalformed) }
}

/// 128 random bits: unique without asking anyone, and telling nothing.
pub fn new_id() -> String {
    format!("{:032x}", fastrand::u128(..))
}

#[cfg(test)]
mod tests;
