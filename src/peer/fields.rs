//! The names of all header fields of Domicile (structured fields, RFC 9651). They are removed from every message of a sender
//! that is not an authenticated peer, and from every response to a client.

use http::HeaderName;

/// The prefix of all header fields of Domicile.
pub const PREFIX: &str = "domicile-";

/// The envelope of a request.
pub const REQUEST: HeaderName = HeaderName::from_static("domicile-request");

/// The code of a refusal, from the owning region to the sender.
pub const CODE: HeaderName = HeaderName::from_static("domicile-code");

/// The data classes of a response: from an app server, and from the owning region to the sender.
pub const DATA_CLASS: HeaderName = HeaderName::from_static("domicile-data-class");

/// Marks a 2xx response with which the app server declined the upgrade, so that it opens no tunnel.
pub use crate::http::tunnel::DECLINED;

/// The id of a request, in every response to a client.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("domicile-request-id");

/// The region that served a request, in responses to clients that may see it.
pub const REGION: HeaderName = HeaderName::from_static("domicile-region");

/// The evidence of the home, or the code of the refusal, in responses to clients that may see it.
pub const REASON: HeaderName = HeaderName::from_static("domicile-reason");

/// Marks a request as a probe.
pub const PROBE: HeaderName = HeaderName::from_static("domicile-probe");

/// The hash of the policy by which a peer judges.
pub const POLICY: HeaderName = HeaderName::from_static("domicile-policy");

/// The version of a peer's user table.
pub const DIRECTORY: HeaderName = HeaderName::from_static("domicile-directory");

/// Whether a peer accepts no new requests.
pub const DRAINING: HeaderName = HeaderName::from_static("domicile-draining");

/// Whether any upstream of a peer is up.
pub const SERVING: HeaderName = HeaderName::from_static("domicile-serving");

/// The services of a peer of which no upstream is up.
pub const DOWN_SERVICES: HeaderName = HeaderName::from_static("domicile-down-services");

/// Smoothed response time of a peer's upstreams, in microseconds.
pub const UPSTREAM_MICROS: HeaderName = HeaderName::from_static("domicile-upstream-micros");

/// The requests that global rate limits have admitted.
pub const RATES: HeaderName = HeaderName::from_static("domicile-rates");
