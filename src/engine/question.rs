//! The parts of a request that judgement reads.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;

use crate::decision::facts::{Credential, Ingress};
use crate::decision::policy::route::Method;
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
    pub identity: Identity,
    /// Ignore the sealed cookie, because a peer disagreed with its record.
    pub ignores_hint: Cell<bool>,
    /// The peer's envelope, for a peer's request.
    pub envelope: Option<Envelope>,
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
