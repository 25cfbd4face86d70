//! A request as it is judged: everything that judgement reads of it, and nothing else.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;

use crate::decision::facts::{Credential, Ingress};
use crate::decision::policy::route::Method;
use crate::model::user::Proof;
use crate::peer::Envelope;
use crate::session::Hint;
use crate::tokens::Verified;

/// The question of one request: where may it go?
pub struct Question {
    pub ingress: Ingress,
    /// The method of the request; of a CORS preflight the method that it asks about, because it is judged as that request.
    pub method: Method,
    /// In lower case, without port or trailing dot.
    pub host: String,
    /// In canonical form.
    pub path: String,
    /// A GET or HEAD without an upgrade.
    pub is_read: bool,
    pub client: IpAddr,
    pub identity: Identity,
    /// A peer disagreed with what the sealed cookie remembers: from then on the cookie does not count.
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
    /// Our sealed cookie, if it is this caller's.
    pub hint: Option<Hint>,
    /// The key was proven by something else than the hint: then a new hint may be issued.
    pub is_fresh: bool,
}
