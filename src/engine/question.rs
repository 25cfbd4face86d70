//! The parts of a request that judgement reads.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use percent_encoding::percent_decode_str;

use crate::decision::facts::{Credential, Ingress};
use crate::decision::policy::route::{FieldNames, Fields, Method};
use crate::model::user::Proof;
use crate::peer::Envelope;
use crate::session::Hint;
use crate::tokens::Verified;

/// The parts of one request that judgement reads.
pub struct Question {
    pub ingress: Ingress,
    /// The method of the request. For a CORS preflight it is the method of the announced request, because the preflight is
    /// judged as that request.
    pub method: Method,
    /// In lower case, without port or trailing dot.
    pub host: String,
    /// In canonical form.
    pub path: String,
    /// A CORS preflight: a browser's question whether a page may send the announced request.
    pub is_preflight: bool,
    /// A GET or HEAD without an upgrade.
    pub is_read: bool,
    pub client: IpAddr,
    /// The fields that the conditions of routes read.
    pub fields: Fields,
    pub identity: Identity,
    /// Ignore the sealed cookie, because a peer disagreed with its record.
    pub ignores_hint: Cell<bool>,
    /// The peer's envelope, for a peer's request.
    pub envelope: Option<Envelope>,
}

/// The values of the fields with these names: header fields as they are, query parameters decoded like a form's.
pub fn read_fields(names: &FieldNames, headers: &HeaderMap, query: Option<&str>) -> Fields {
    let header = |name: &str| {
        let values = headers.get_all(name).iter().map(|value| value.as_bytes().into());
        (name.into(), values.collect())
    };
    let decoded = |text: &str| percent_decode_str(&text.replace('+', " ")).collect::<Vec<u8>>();
    let parameter = |name: &str| {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let values = pairs.filter(|(key, _)| decoded(key) == name.as_bytes()).map(|(_, value)| decoded(value).into());
        (name.into(), values.collect())
    };
    Fields {
        headers: names.headers.iter().map(|name| header(name)).collect(),
        query: names.query.iter().map(|name| parameter(name)).collect(),
    }
}

/// The identity that a caller presents.
#[derive(Default)]
pub struct Identity {
    /// The caller's key, and how well it is proven.
    pub caller: Option<(String, Proof)>,
    pub token: Option<Arc<Verified>>,
    pub credential: Credential,
    /// The contents of our sealed cookie, if it belongs to this caller.
    pub hint: Option<Hint>,
    /// The key was proven without the hint, so that a new hint may be issued.
    pub is_fresh: bool,
}
