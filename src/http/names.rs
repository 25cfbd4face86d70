//! Names of header fields: those that are not constants of the crate `http`, and lists of fields that are treated alike. The names
//! in lists are in normal form: in lower case, with `-` for every punctuation character.

use std::borrow::Cow;

use http::HeaderName;
use http::header;

/// RFC 7239.
pub const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// The method and the target of a request that an authorization service is asked about.
pub const X_FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
pub const X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// RFC 9440.
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
/// RFC 9209.
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
pub const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// W3C Trace Context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
pub const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// gRPC over HTTP/2.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Whether a name is not `Content-Length` or `Transfer-Encoding`, but some servers read it as one of them: servers behind a gateway
/// interface such as CGI do not distinguish `Content_Length` from `Content-Length`.
pub fn is_framing_look_alike(name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    let spelled = |wanted: &[u8]| {
        let is_same = |(a, b): (&u8, &u8)| a == b || (!a.is_ascii_alphanumeric() && *b == b'-');
        name.len() == wanted.len() && name != wanted && name.iter().zip(wanted).all(is_same)
    };
    spelled(b"content-length") || spelled(b"transfer-encoding")
}

/// Replaces every punctuation character of a field name by `-`, because CGI-like servers turn punctuation into `_` and so cannot
/// distinguish such names (RFC 3875 section 4.1.18).
pub fn normalized_name(name: &str) -> Cow<'_, str> {
    if name.bytes().all(|byte| normalized(byte) == byte) {
        return name.into();
    }
    name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "-").into()
}

const fn normalized(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte } else { b'-' }
}

/// Whether two field names are the same, in any spelling.
pub fn is_same_name(one: &HeaderName, other: &str) -> bool {
    let (one, other) = (one.as_str().as_bytes(), other.as_bytes());
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| normalized(*one) == normalized(*other))
}

/// A set of names and of beginnings of names.
pub struct NameSet {
    names: &'static [&'static str],
    prefixes: &'static [&'static str],
    beginnings: Beginnings,
}

/// A filter of the first three bytes of the names in a set, because most fields of most messages are in none.
struct Beginnings([u64; 16]);

impl Beginnings {
    const fn of(names: &[&str], prefixes: &[&str]) -> Self {
        let (mut bits, mut at) = ([0; 16], 0);
        while at < names.len() + prefixes.len() {
            let text = if at < names.len() { names[at] } else { prefixes[at - names.len()] };
            let place = Self::place(text.as_bytes());
            bits[place / 64] |= 1 << (place % 64);
            at += 1;
        }
        Self(bits)
    }

    /// The bit of a text. A text of fewer than three bytes, which can only be a whole name, counts as followed by zeros.
    const fn place(text: &[u8]) -> usize {
        let (mut place, mut at) = (0, 0);
        while at < 3 {
            let byte = if at < text.len() { text[at] } else { 0 };
            place = place * 11 + byte as usize;
            at += 1;
        }
        place % 1024
    }

    const fn may_contain(&self, text: &[u8]) -> bool {
        let place = Self::place(text);
        self.0[place / 64] & (1 << (place % 64)) != 0
    }
}

impl NameSet {
    /// `prefixes` have at least three bytes.
    const fn of(names: &'static [&'static str], prefixes: &'static [&'static str]) -> Self {
        Self { names, prefixes, beginnings: Beginnings::of(names, prefixes) }
    }

    /// Whether a name is in the set, in any spelling.
    pub fn contains_any_spelling(&self, name: &str) -> bool {
        let mut beginning = [0; 3];
        for (to, from) in beginning.iter_mut().zip(name.bytes()) {
            *to = normalized(from);
        }
        self.beginnings.may_contain(&beginning) && self.contains(&normalized_name(name))
    }

    /// Whether a name in normal form is in the set.
    pub fn contains(&self, name: &str) -> bool {
        if !self.beginnings.may_contain(name.as_bytes()) {
            return false;
        }
        // No prefix begins with another, so that only the last one that is not greater than the name can be its beginning.
        let after = self.prefixes.partition_point(|prefix| *prefix <= name);
        let has_prefix = after > 0 && name.starts_with(self.prefixes[after - 1]);
        has_prefix || self.names.binary_search(&name).is_ok()
    }
}

const fn sorted<const N: usize>(mut names: [&'static str; N]) -> [&'static str; N] {
    let mut end = 1;
    while end < N {
        let mut at = end;
        while at > 0 && is_less(names[at].as_bytes(), names[at - 1].as_bytes()) {
            names.swap(at, at - 1);
            at -= 1;
        }
        end += 1;
    }
    names
}

const fn is_less(one: &[u8], other: &[u8]) -> bool {
    let mut at = 0;
    while at < one.len() && at < other.len() {
        if one[at] != other[at] {
            return one[at] < other[at];
        }
        at += 1;
    }
    one.len() < other.len()
}

/// Fields that apply to one connection only.
pub static HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    // The proxy itself sends `100 Continue`, when it wants the body.
    header::EXPECT,
    KEEP_ALIVE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    PROXY_CONNECTION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Fields with which proxies describe the client and its request to an upstream. A client can forge all of them.
pub static FORGEABLE: NameSet = NameSet::of(&FORGEABLE_NAMES, &FORGEABLE_PREFIXES);

const FORGEABLE_NAMES: [&str; 58] = sorted([
    "forwarded",
    "forwarded-for",
    "forwarded-for-ip",
    "x-forwarded",
    "x-forward-for",
    "x-real-ip",
    "x-client-ip",
    "x-clientip",
    "x-cluster-client-ip",
    "x-original-remote-addr",
    "x-originating-ip",
    "x-remote-ip",
    "x-remote-addr",
    "x-remote-user",
    "remote-addr",
    "remote-user",
    "client-ip",
    "http-client-ip",
    "proxy-client-ip",
    "wl-proxy-client-ip",
    "true-client-ip",
    "x-true-client-ip",
    "fly-client-ip",
    "fly-region",
    "x-nf-client-connection-ip",
    "x-appengine-user-ip",
    "x-original-url",
    "x-original-uri",
    "x-original-host",
    "x-rewrite-url",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-host",
    "client-cert",
    "client-cert-chain",
    "x-client-dn",
    "x-country",
    "x-country-code",
    "x-country-name",
    "x-real-client-ip",
    "x-remote-address",
    "x-proxyuser-ip",
    "x-nf-geo",
    "do-connecting-ip",
    "ali-cdn-real-ip",
    "cdn-src-ip",
    "cdn-requestcountrycode",
    "cdn-requeststatecode",
    "cloudfront-forwarded-proto",
    "front-end-https",
    "x-scheme",
    "x-url-scheme",
    "ssl-cert",
    "client-verify",
    "client-dn",
    "x-forward-proto",
    // Replaced by our own, in any spelling.
    "x-request-id",
]);

/// Prefixes of further forgeable fields: forwarding, geography, client certificates and routing, by vendor.
const FORGEABLE_PREFIXES: [&str; 34] = sorted([
    "x-original-forwarded-",
    "x-azure-",
    "x-arr-",
    "x-amzn-oidc-",
    "x-ms-client-principal",
    "eo-",
    "incap-",
    "x-forwarded-",
    "domicile-",
    "cf-",
    "x-envoy-",
    "cloudfront-viewer-",
    "cloudfront-is-",
    "fastly-",
    "x-akamai-",
    "x-appengine-",
    "x-vercel-",
    "x-amzn-mtls-",
    "x-geoip-",
    "x-geo-",
    "geoip-",
    "x-client-geo-",
    "x-ip-country",
    "x-ssl-",
    "ssl-client-",
    "ssl-server-",
    "x-client-cert",
    "x-client-verify",
    "x-tls-client-",
    "x-sucuri-",
    "x-goog-authenticated-",
    "x-client-ssl-",
    "x-client-region",
    "x-client-city",
]);

/// Fields that are not allowed in trailers (RFC 9110 section 6.5.1), because they control framing, routing or processing, or
/// identify a user.
pub static HEADER_ONLY: NameSet = NameSet::of(&HEADER_ONLY_NAMES, &["if-"]);

const HEADER_ONLY_NAMES: [&str; 27] = sorted([
    "age",
    "authorization",
    "cache-control",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "cookie2",
    "date",
    "expires",
    "host",
    "http2-settings",
    "location",
    "max-forwards",
    "pragma",
    "range",
    "retry-after",
    "set-cookie",
    "set-cookie2",
    "strict-transport-security",
    "trailer",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "x-http-method",
]);

/// Tracing headers of common vendors. They link the requests of a user, and can carry any data.
pub static TRACING: NameSet = NameSet::of(&TRACING_NAMES, &TRACING_PREFIXES);

const TRACING_NAMES: [&str; 33] = sorted([
    "traceresponse",
    "tracestate",
    "baggage",
    "correlation-context",
    "b3",
    "uber-trace-id",
    "jaeger-debug-id",
    "jaeger-baggage",
    "sentry-trace",
    "x-cloud-trace-context",
    "grpc-trace-bin",
    "elastic-apm-traceparent",
    "x-amzn-trace-id",
    "x-amzn-requestid",
    "newrelic",
    "x-newrelic-id",
    "x-newrelic-transaction",
    "x-instana-t",
    "x-instana-s",
    "x-instana-l",
    "x-dynatrace",
    "x-correlation-id",
    "x-trace-id",
    "sw8",
    "sw6",
    "request-id",
    "request-context",
    "singularityheader",
    "x-honeycomb-trace",
    "x-client-trace-id",
    "x-b3",
    "eagleeye-traceid",
    "eagleeye-rpcid",
]);

/// Prefixes of further tracing headers.
const TRACING_PREFIXES: [&str; 12] = sorted([
    "pinpoint-",
    "x-wf-",
    "x-dynatrace-",
    "x-b3-",
    "uberctx-",
    "x-datadog-",
    "x-ot-span-context",
    "ot-tracer-",
    "ot-baggage-",
    "elastic-apm-",
    "sw8-",
    "x-dd-",
]);

/// Header fields in which apps expect credentials.
pub static CREDENTIALS: NameSet = NameSet::of(&CREDENTIAL_NAMES, &[]);

const CREDENTIAL_NAMES: [&str; 9] = sorted([
    "authorization",
    "x-authorization",
    "x-api-key",
    "api-key",
    "apikey",
    "x-apikey",
    "x-auth-token",
    "x-access-token",
    "private-token",
]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_contains_its_names_and_all_names_with_its_prefixes() {
        for set in [&FORGEABLE, &HEADER_ONLY, &TRACING, &CREDENTIALS] {
            assert!(set.names.is_sorted() && set.prefixes.is_sorted());
            assert!(set.prefixes.iter().all(|prefix| prefix.len() >= 3));
            for name in set.names {
                assert!(set.contains(name), "{name}");
            }
            for (at, prefix) in set.prefixes.iter().enumerate() {
                assert!(
                    set.contains(prefix) && set.contains(&format!("{prefix}zz")) && set.contains(&format!("{prefix}-")),
                    "{prefix}"
                );
                let is_redundant =
                    set.prefixes.iter().enumerate().any(|(other, longer)| other != at && longer.starts_with(prefix));
                assert!(!is_redundant, "another prefix begins with `{prefix}`");
            }
            for name in ["", "x", "zzz", "accept", "user-agent"] {
                assert!(!set.contains(name), "{name}");
            }
        }
    }
}
