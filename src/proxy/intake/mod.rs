//! What a request is, once what must not be believed is out of it.

mod client;
mod target;
mod user;

use std::borrow::Cow;
use std::net::IpAddr;

use http::request::Parts;
use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

use crate::decision::facts::Ingress;
use crate::decision::route::Method;
use crate::envelope::Envelope;
use crate::model::outcome::Code;
use crate::model::user::Proof;
use crate::transport::framing::FAULT_HEADER;

pub use target::canonical_path;
pub use user::decode_segment;

/// Whom to believe about clients and users.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Settings {
    /// Networks of the hops that may speak for a client; nobody by default.
    pub trust: Vec<IpNet>,
    pub source: AddressSource,
    /// Where the user's key is; the first that is present names the user.
    pub keys: Vec<KeySource>,
}

/// Where trusted hops write the client's address.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum AddressSource {
    /// RFC 7239.
    #[default]
    Forwarded,
    XForwardedFor,
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
}

/// A request as it is judged.
pub struct Intake {
    pub id: String,
    pub method: Method,
    /// In lower case, without port or trailing dot.
    pub host: String,
    /// Canonical; what is judged is what is forwarded.
    pub path: String,
    /// GET or HEAD, and no upgrade.
    pub is_read: bool,
    pub client: IpAddr,
    /// The caller's own key; a route's `{user}` outranks it.
    pub user: Option<(String, Proof)>,
    /// What the peer says, for a peer's request.
    pub envelope: Option<Envelope>,
    pub is_https: bool,
}

/// Where a request came in.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub ingress: Ingress,
    /// The other end of the connection.
    pub remote: IpAddr,
    pub is_tls: bool,
}

/// Reads the intake of a request, and takes out of its head what no stranger may tell an upstream.
pub fn read(parts: &mut Parts, arrival: &Arrival, settings: &Settings) -> Result<Intake, Code> {
    if let Some(fault) = parts.headers.get(FAULT_HEADER) {
        let code = Code::ALL.iter().find(|code| fault == code.as_str());
        return Err(*code.unwrap_or(&Code::RequestMalformed));
    }
    let method = Method::of(parts.method.as_str());
    if method == Method::Connect {
        return Err(Code::MethodNotAllowed);
    }
    let envelope = match arrival.ingress {
        Ingress::Client => None,
        Ingress::Peer(_) => Some(read_envelope(&parts.headers)?),
    };
    let host = target::host_of(parts).ok_or(Code::RequestMalformed)?;
    let path = canonical_path(parts.uri.path()).ok_or(Code::RequestMalformed)?;
    let is_upgrade = parts.headers.contains_key(http::header::UPGRADE);
    let is_trusted = settings.trust.iter().any(|network| network.contains(&arrival.remote));
    let (id, client, user, is_https) = match &envelope {
        Some(envelope) => (envelope.id.clone(), envelope.client, envelope.user.clone(), true),
        None => (
            new_id(),
            client::address(&parts.headers, arrival.remote, settings),
            user::key(&parts.headers, is_trusted, &settings.keys),
            arrival.is_tls || (is_trusted && client::came_by_https(&parts.headers)),
        ),
    };
    let path = match path {
        Cow::Borrowed(path) => path.to_owned(),
        Cow::Owned(path) => {
            target::replace_path(parts, &path).ok_or(Code::RequestMalformed)?;
            path
        }
    };
    strip_user_headers(&mut parts.headers, is_trusted || envelope.is_some(), &settings.keys);
    let is_read = matches!(method, Method::Get | Method::Head) && !is_upgrade;
    Ok(Intake { id, method, host, path, is_read, client, user, envelope, is_https })
}

fn read_envelope(headers: &HeaderMap) -> Result<Envelope, Code> {
    let mut values = headers.get_all("domicile-request").iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(Code::PeerMalformed) };
    value.to_str().ok().and_then(|value| Envelope::read(value).ok()).ok_or(Code::PeerMalformed)
}

/// A header that names the user counts from trusted hops; from anyone else it would deceive the upstream as well.
fn strip_user_headers(headers: &mut HeaderMap, is_trusted: bool, keys: &[KeySource]) {
    if is_trusted {
        return;
    }
    for key in keys {
        if let KeySource::Header(name) = key {
            headers.remove(name);
        }
    }
}

/// 128 random bits: unique without asking anyone, and telling nothing.
pub fn new_id() -> String {
    format!("{:032x}", fastrand::u128(..))
}

#[cfg(test)]
mod tests;
