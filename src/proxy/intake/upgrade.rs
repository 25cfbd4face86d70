//! Upgrade requests: HTTP/1.1 upgrades (RFC 9110 section 7.8), extended CONNECT over HTTP/2 (RFC 8441), and plain
//! CONNECT. The first two are judged as GET requests, plain CONNECT as CONNECT.

use h2::ext::Protocol;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{Method, Version};

use crate::http::tunnel::{CONNECT, WEBSOCKET, WEBSOCKET_VERSION};
use crate::model::outcome::{Code, Rule};

use super::super::headers::members;

/// The protocol to which a request asks to upgrade its connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upgrade {
    /// In lower case.
    pub protocol: Box<str>,
    /// The `Sec-WebSocket-Key` of a handshake over HTTP/1.1, from which the response computes `Sec-WebSocket-Accept`.
    pub key: Option<HeaderValue>,
}

impl Upgrade {
    /// Whether this is plain CONNECT, whose target is a host and a port.
    pub fn is_connect(&self) -> bool {
        *self.protocol == *CONNECT
    }
}

/// The upgrade that a request asks for; `None` if there is none, or if a server may ignore it.
pub(super) fn requested_upgrade(parts: &Parts) -> Result<Option<Upgrade>, Code> {
    if parts.method == Method::CONNECT {
        let protocol = parts.extensions.get::<Protocol>().map(|protocol| protocol.as_str().to_ascii_lowercase());
        return match protocol {
            Some(name) if name == CONNECT => Err(Code::UpgradeRefused),
            Some(name) => {
                if name == WEBSOCKET {
                    check_version(parts)?;
                }
                Ok(Some(Upgrade { protocol: name.into(), key: None }))
            }
            None => Ok(Some(Upgrade { protocol: CONNECT.into(), key: None })),
        };
    }
    if parts.version == Version::HTTP_2 {
        return Ok(None);
    }
    let has_body =
        parts.headers.contains_key(TRANSFER_ENCODING) || parts.headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
    if parts.version != Version::HTTP_11 || parts.method != Method::GET || has_body || !nominates_upgrade(parts) {
        return Ok(None);
    }
    let offers = members(&parts.headers, &UPGRADE).filter_map(|offer| std::str::from_utf8(offer).ok());
    let offers: Vec<String> = offers.map(str::to_ascii_lowercase).collect();
    let is_websocket = |offer: &&String| *offer == WEBSOCKET;
    let Some(protocol) = offers.iter().find(is_websocket).or_else(|| offers.iter().find(|offer| is_tunnel(offer))) else {
        return Ok(None);
    };
    let key = if protocol == WEBSOCKET {
        check_version(parts)?;
        Some(websocket_key(parts)?)
    } else {
        None
    };
    Ok(Some(Upgrade { protocol: protocol.as_str().into(), key }))
}

fn nominates_upgrade(parts: &Parts) -> bool {
    members(&parts.headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case(b"upgrade"))
}

/// Whether the proxy may open a tunnel for this protocol. HTTP and TLS are excluded, because requests in the tunnel
/// could not be judged.
fn is_tunnel(offer: &str) -> bool {
    !offer.is_empty() && offer != CONNECT && offer != "h2c" && !offer.starts_with("http/") && !offer.starts_with("tls/")
}

/// The key of a WebSocket handshake (RFC 6455 section 4.2.1): exactly one key of 16 bytes in base64.
fn websocket_key(parts: &Parts) -> Result<HeaderValue, Code> {
    let only = |name| {
        let mut values = parts.headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())
    };
    let key = only("sec-websocket-key").filter(|key| key.len() == 24 && key.as_bytes().ends_with(b"=="));
    key.cloned().ok_or(Code::Malformed(Rule::Upgrade))
}

/// RFC 6455 section 4.4: the response to another version names the supported one.
fn check_version(parts: &Parts) -> Result<(), Code> {
    let mut versions = parts.headers.get_all(SEC_WEBSOCKET_VERSION).iter();
    let is_only = versions.next().is_some_and(|version| version == WEBSOCKET_VERSION) && versions.next().is_none();
    if is_only { Ok(()) } else { Err(Code::WebSocketVersion) }
}
