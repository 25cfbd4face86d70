//! The names of our own header fields, all of them (structured fields, RFC 9651). They are removed from every message of
//! anyone who is not a proven peer, and before every response to a client.

use http::HeaderName;

/// Every field of ours begins with this.
pub const PREFIX: &str = "domicile-";

/// The envelope of a request.
pub const REQUEST: HeaderName = HeaderName::from_static("domicile-request");

/// The code of a refusal, from the owner to the sender.
pub const CODE: HeaderName = HeaderName::from_static("domicile-code");

/// The data classes of a response: from an app server, and from the owner to the sender.
pub const DATA_CLASS: HeaderName = HeaderName::from_static("domicile-data-class");

/// The app server declined the upgrade, with a status of 2xx that opens no tunnel.
pub const DECLINED: HeaderName = HeaderName::from_static("domicile-declined");

/// Marks a request as a probe.
pub const PROBE: HeaderName = HeaderName::from_static("domicile-probe");

/// The hash of the policy by which a peer judges.
pub const POLICY: HeaderName = HeaderName::from_static("domicile-policy");

/// The version of a peer's user table.
pub const DIRECTORY: HeaderName = HeaderName::from_static("domicile-directory");

/// Whether a peer takes no new requests.
pub const DRAINING: HeaderName = HeaderName::from_static("domicile-draining");

/// Whether any upstream of a peer is up.
pub const SERVING: HeaderName = HeaderName::from_static("domicile-serving");

/// Smoothed response time of a peer's upstreams, in microseconds.
pub const UPSTREAM_MICROS: HeaderName = HeaderName::from_static("domicile-upstream-micros");
