//! Reads a request, and removes header fields that only trusted hops may send.

mod client;
mod credential;
mod identity;
mod target;
mod upgrade;
mod user;

use std::borrow::Cow;
use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

use crate::decision::facts::Ingress;
use crate::decision::policy::route::{Head, KeptCharacters, Method};
use crate::engine::path::{canonical_path_keeping, is_ambiguous, may_keep};
use crate::engine::question::{Identity, Question, read_fields};
use crate::http::http1::is_valid_target;
use crate::http::names::{self, is_framing_look_alike, is_same_name};

use crate::http::tunnel::CONNECT;
use crate::model::outcome::{Code, Rule};
use crate::model::user::Proof;
use crate::peer::{Envelope, fields};

use super::actions::Actions;
use super::{Limits, Snapshot};

pub use client::canonical_network;
pub use credential::is_credential;
pub use identity::{Verifiers, drop_cookies, forward_identity};
pub use upgrade::Upgrade;
pub use user::cookies;

/// The trusted sources for the client's address and the user's key.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Settings {
    /// Networks of the hops that are trusted to report the client and the user; none by default.
    pub trust: Vec<IpNet>,
    pub source: AddressSource,
    /// The locations of the user's key, in order of precedence.
    pub keys: Vec<KeySource>,
}

impl Settings {
    /// Whether a hop with this address is trusted.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.trust.iter().any(|network| network.contains(&address))
    }
}

/// The way in which trusted hops report the client's address.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum AddressSource {
    /// RFC 7239.
    #[default]
    Forwarded,
    XForwardedFor,
    /// The header of the PROXY protocol, on listeners that require it.
    ProxyProtocol,
    /// A header field that contains one address.
    Header(HeaderName),
}

impl AddressSource {
    /// The value of the setting `client_address.from`, in lower case.
    pub fn name(&self) -> String {
        match self {
            Self::Forwarded => names::FORWARDED.to_string(),
            Self::XForwardedFor => names::X_FORWARDED_FOR.to_string(),
            Self::ProxyProtocol => "proxy-protocol".to_owned(),
            Self::Header(name) => name.to_string(),
        }
    }
}

/// A location of the user's key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KeySource {
    /// Used only if the request comes from a trusted hop.
    Header(HeaderName),
    /// Claimed, not proven.
    Cookie(String),
    /// A claim of a verified token.
    Token(String),
}

/// The result of reading a request: the question for judgement, and the data for forwarding.
pub struct Intake {
    pub id: Rc<str>,
    pub question: Rc<Question>,
    /// The host, with the port if the request names one; forwarded as `Host`.
    pub authority: String,
    /// The `Origin` of the request, if it is a CORS preflight.
    pub preflight: Option<http::HeaderValue>,
    pub upgrade: Option<Upgrade>,
    pub is_https: bool,
    /// The certificate (DER) with which the client authenticated to the sending peer.
    pub certificate: Option<Vec<u8>>,
    /// The sending peer only asks whether this region accepts the request.
    pub is_peer_question: bool,
}

/// The connection on which a request arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub ingress: Ingress,
    /// The remote address of the connection, or the source address in its PROXY protocol header.
    pub remote: IpAddr,
    pub port: u16,
    /// The local address of the connection.
    pub local: SocketAddr,
    pub is_tls: bool,
}

impl Arrival {
    /// Adds the port to a client's address. The port is 0 if a hop forwarded the request, because the client's port is
    /// then unknown.
    pub fn client(&self, address: IpAddr) -> SocketAddr {
        SocketAddr::new(address, if address == self.remote { self.port } else { 0 })
    }
}

/// Reads a request, and removes the headers about the client and the user that did not come from a trusted hop.
///
/// `id` identifies the request, unless a peer has already given it an id.
#[inline(never)] // a stage of benches/stages
pub fn read(
    parts: &mut Parts,
    id: &Rc<str>,
    has_body: bool,
    arrival: &Arrival,
    verifiers: &Verifiers<'_>,
) -> Result<Intake, Code> {
    let snapshot = verifiers.snapshot;
    check_message(parts, arrival, &snapshot.limits)?;
    let upgrade = read_upgrade(parts, &snapshot.actions)?;
    let method = Method::of(parts.method.as_str());
    let envelope = match arrival.ingress {
        Ingress::Client => None,
        Ingress::Peer(_) => Some(read_envelope(&parts.headers)?),
    };
    let authority =
        target::authority_of(parts).or_else(|| target::address_of(parts, arrival.local)).ok_or(Code::Malformed(Rule::Host))?;
    let is_connect = upgrade.as_ref().is_some_and(Upgrade::is_connect);
    if is_connect && authority.port.is_none() {
        return Err(Code::Malformed(Rule::Host));
    }
    let (path, kept) = read_path(parts, method, is_connect, snapshot)?;
    let is_upgrade = upgrade.is_some() || parts.headers.contains_key(http::header::UPGRADE);
    let client = OriginatingClient::of(parts, arrival, envelope.as_ref(), &snapshot.intake);
    let mut identity = verifiers.identify(parts, client.is_from_trusted_hop, client.is_https)?;
    if let Some(envelope) = &envelope {
        identity.caller = vouched_for(envelope, identity.caller.take())?;
    }
    strip_user_headers(&mut parts.headers, client.is_from_trusted_hop || envelope.is_some(), &snapshot.intake);
    let preflight = read_preflight(&parts.headers, method, has_body, &identity);
    // A preflight is judged as the request that it announces.
    let method = preflight.as_ref().map_or(method, |preflight| preflight.method);
    let fields = read_fields(&snapshot.policy().routes.field_names, &parts.headers, parts.uri.query());
    let head = Head { method, host: &authority.host, path: &path, client: client.address, fields: &fields };
    if is_ambiguous(&head, snapshot.policy()) || !may_keep(&head, kept, snapshot.policy()) {
        return Err(Code::Malformed(Rule::Path));
    }
    let is_read = matches!(method, Method::Get | Method::Head) && !is_upgrade;
    let question = Question {
        ingress: arrival.ingress,
        method,
        host: authority.host.clone(),
        path,
        is_preflight: preflight.is_some(),
        is_read,
        client: client.address,
        fields,
        identity,
        ignores_hint: Cell::new(false),
        envelope,
    };
    let (id, certificate, is_peer_question) = match &question.envelope {
        Some(envelope) => (envelope.id.as_str().into(), envelope.certificate.clone(), envelope.is_question),
        None => (Rc::clone(id), None, false),
    };
    Ok(Intake {
        id,
        question: Rc::new(question),
        authority: authority.to_string(),
        preflight: preflight.map(|preflight| preflight.origin),
        upgrade,
        is_https: client.is_https,
        certificate,
        is_peer_question,
    })
}

/// Checks the size limits and the grammar of the head.
fn check_message(parts: &Parts, arrival: &Arrival, limits: &Limits) -> Result<(), Code> {
    if arrival.ingress == Ingress::Client {
        check_size(parts, limits)?;
    }
    check_grammar(parts)
}

fn read_upgrade(parts: &mut Parts, actions: &[Option<Arc<Actions>>]) -> Result<Option<Upgrade>, Code> {
    let upgrade = upgrade::requested_upgrade(parts)?;
    let is_connect = upgrade.as_ref().is_some_and(Upgrade::is_connect);
    if is_connect && !opens_connect(actions) {
        return Err(Code::MethodNotAllowed);
    }
    if upgrade.is_some() && !is_connect {
        parts.method = http::Method::GET;
    }
    Ok(upgrade)
}

/// Replaces the path of the request by its canonical form, and returns it with the characters in it that its route must keep.
fn read_path(parts: &mut Parts, method: Method, is_connect: bool, snapshot: &Snapshot) -> Result<(String, KeptCharacters), Code> {
    let mut kept = KeptCharacters::NONE;
    let path = match parts.uri.path() {
        // CONNECT has no path, so it is judged with the path `/`.
        "" | "/" if is_connect => Cow::Borrowed("/"),
        "*" if method == Method::Options => Cow::Borrowed("*"),
        path => {
            let canonical = canonical_path_keeping(path, snapshot.judging.slashes, KeptCharacters::ALL);
            let (path, used) = canonical.ok_or(Code::Malformed(Rule::Path))?;
            kept = used;
            path
        }
    };
    match path {
        Cow::Borrowed(path) => Ok((path.to_owned(), kept)),
        Cow::Owned(path) => {
            target::replace_path(parts, &path).ok_or(Code::Malformed(Rule::Path))?;
            Ok((path, kept))
        }
    }
}

/// The client that sent the request, possibly through other hops.
struct OriginatingClient {
    address: IpAddr,
    is_https: bool,
    /// The connection comes from a hop that is trusted to report the client.
    is_from_trusted_hop: bool,
}

impl OriginatingClient {
    fn of(parts: &Parts, arrival: &Arrival, envelope: Option<&Envelope>, settings: &Settings) -> Self {
        if let Some(envelope) = envelope {
            return Self { address: envelope.client, is_https: envelope.is_https, is_from_trusted_hop: false };
        }
        let is_from_trusted_hop = settings.trust.iter().any(|network| network.contains(&arrival.remote));
        let (address, position) = client::find(&parts.headers, arrival.remote, settings);
        let is_https = arrival.is_tls || (is_from_trusted_hop && client::client_used_https(&parts.headers, position, settings));
        Self { address, is_https, is_from_trusted_hop }
    }
}

/// The caller of a peer's request. A key that this region verifies is proven. A key that only the peer states is at
/// most vouched for. It must not contradict a verified key or, if it is from a plain cookie, the cookie that the app reads.
fn vouched_for(envelope: &Envelope, own: Option<(String, Proof)>) -> Result<Option<(String, Proof)>, Code> {
    match (own, &envelope.user) {
        (Some((own, proof)), Some((stated, as_proven))) if own != *stated && proof >= *as_proven => Err(Code::PeerMalformed),
        (Some((own, Proof::Proven)), _) => Ok(Some((own, Proof::Proven))),
        (_, stated) => Ok(stated.clone().map(|(key, proof)| (key, proof.min(Proof::Vouched)))),
    }
}

/// A CORS preflight. Browsers send it without a body, cookies or credentials (Fetch standard).
struct Preflight {
    method: Method,
    origin: http::HeaderValue,
}

fn read_preflight(headers: &HeaderMap, method: Method, has_body: bool, identity: &Identity) -> Option<Preflight> {
    use http::header::{ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, COOKIE, ORIGIN};
    let is_bare = method == Method::Options && !has_body && identity.caller.is_none();
    if !is_bare || headers.contains_key(COOKIE) || headers.contains_key(AUTHORIZATION) {
        return None;
    }
    let asked = headers.get(ACCESS_CONTROL_REQUEST_METHOD)?.to_str().ok()?;
    Some(Preflight { method: Method::of(asked), origin: headers.get(ORIGIN)?.clone() })
}

/// Whether any route allows CONNECT.
fn opens_connect(actions: &[Option<Arc<Actions>>]) -> bool {
    actions.iter().flatten().any(|actions| actions.upgrades.allow(CONNECT))
}

fn read_envelope(headers: &HeaderMap) -> Result<Envelope, Code> {
    let mut values = headers.get_all(fields::REQUEST).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(Code::PeerMalformed) };
    value.to_str().ok().and_then(|value| Envelope::read(value).ok()).ok_or(Code::PeerMalformed)
}

impl Settings {
    /// Whether a header field is configured to contain the user or the client's address, in any spelling, such as
    /// `x_user_id` for `x-user-id`.
    pub fn is_identity_header(&self, field: &str) -> bool {
        let is = |name: &HeaderName| is_same_name(name, field);
        let by_key = self.keys.iter().any(|key| matches!(key, KeySource::Header(name) if is(name)));
        by_key || matches!(&self.source, AddressSource::Header(name) if is(name))
    }
}

/// Removes the headers that name the user or the client's address, because a forged one would deceive the upstream.
/// From a trusted hop, the header that names the user is kept in the spelling that was read.
fn strip_user_headers(headers: &mut HeaderMap, is_trusted: bool, settings: &Settings) {
    let is_read = |name: &HeaderName| settings.keys.iter().any(|key| matches!(key, KeySource::Header(key) if key == name));
    let forged: Vec<HeaderName> = headers
        .keys()
        .filter(|name| settings.is_identity_header(name.as_str()) && !(is_trusted && is_read(name)))
        .cloned()
        .collect();
    for name in forged {
        headers.remove(name);
    }
}

/// Checks the size of a client's request. Peers' requests are exempt, because the sending peer has checked the size and
/// then added headers.
fn check_size(parts: &Parts, limits: &Limits) -> Result<(), Code> {
    if parts.uri.path_and_query().is_some_and(|target| target.as_str().len() > limits.target_bytes) {
        return Err(Code::TargetTooLong);
    }
    if parts.headers.len() > limits.headers { Err(Code::HeadTooLarge) } else { Ok(()) }
}

/// Applies the rules of the HTTP/1 codec to HTTP/2 as well, because the request may be forwarded as HTTP/1.
fn check_grammar(parts: &Parts) -> Result<(), Code> {
    if !parts.uri.path_and_query().is_none_or(|target| is_valid_target(target.as_str().as_bytes())) {
        return Err(Code::Malformed(Rule::Target));
    }
    let has_two_lengths = parts.headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some();
    if has_two_lengths || parts.headers.keys().any(is_framing_look_alike) { Err(Code::Malformed(Rule::Length)) } else { Ok(()) }
}

/// A request id of 128 random bits: unique without coordination, and it reveals nothing.
pub fn new_id() -> Rc<str> {
    let mut digits = [0; 32];
    hex::encode_to_slice(fastrand::u128(..).to_ne_bytes(), &mut digits).expect("two digits for each byte");
    std::str::from_utf8(&digits).expect("digits are ASCII").into()
}

#[cfg(test)]
mod tests;
