//! The fields of a message at the border between hops: what is dropped, what is rebuilt (RFC 9110 section 7.6).

use std::borrow::Cow;
use std::net::IpAddr;

use base64::prelude::{BASE64_STANDARD, Engine};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::http::lists::{self, Malformed};
use crate::peer::fields;
use crate::session;

/// Fields that concern one connection only.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    // Answered here: the body is asked for when it is wanted.
    "expect",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Fields by which a hop tells an upstream who the client is and what it asked: anyone could have written them.
const FORGEABLE: [&str; 58] = [
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
    // Replaced by ours, whatever it is spelled like.
    "x-request-id",
];

/// The same by prefix, for vendors with many: forwarding, geography, client certificates, routing.
const FORGEABLE_PREFIXES: [&str; 34] = [
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
];

/// Whether a field concerns one connection only, or tells what a stranger must not.
fn is_forgeable(name: &str) -> bool {
    let name = &*folded(name);
    FORGEABLE.contains(&name) || FORGEABLE_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// A field's name as servers behind a gateway interface see it (RFC 3875 section 4.1.18): some cannot tell `_` from `-`, some no
/// sign from another.
pub fn folded(name: &str) -> Cow<'_, str> {
    let is_sign = |c: char| !c.is_ascii_alphanumeric() && c != '-';
    if name.contains(is_sign) { name.replace(is_sign, "-").into() } else { name.into() }
}

/// The members of a list without quoted strings (RFC 9110 section 5.6.1), whatever bytes stand beside them.
pub fn members<'a>(headers: &'a HeaderMap, list: &HeaderName) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    headers.get_all(list).into_iter().flat_map(|value| lists::tokens(value.as_bytes()))
}

/// The members of a list that may contain quoted strings.
pub fn quoted_members<'a>(headers: &'a HeaderMap, list: &HeaderName) -> Result<Vec<&'a [u8]>, Malformed> {
    let mut found = Vec::new();
    for value in headers.get_all(list) {
        found.extend(lists::members(value.as_bytes())?);
    }
    Ok(found)
}

/// Drops what concerned the last connection, and what its `Connection` field names. Nobody can name our own fields or
/// `Host` away: they are set afterwards, or kept.
pub fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let is_relied_on =
        |name: &HeaderName| [header::HOST, header::CONTENT_LENGTH, header::COOKIE, header::AUTHORIZATION].contains(name);
    let nominated = members(headers, &header::CONNECTION).filter_map(|name| HeaderName::from_bytes(name).ok());
    let nominated: Vec<_> = nominated.filter(|name| !is_relied_on(name)).collect();
    for name in nominated {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// The truth about a request, which replaces what a stranger could have forged.
pub struct Truth<'a> {
    pub request_id: &'a str,
    pub client: IpAddr,
    pub is_https: bool,
    /// The host with its port, where one was named.
    pub authority: &'a str,
}

/// Makes a request's header fields fit for the next hop: nothing of the last connection, nothing forged, the truth about
/// the client in their place.
pub fn rebuild(headers: &mut HeaderMap, truth: &Truth<'_>) {
    let wants_trailers = quoted_members(headers, &header::TE)
        .is_ok_and(|codings| codings.iter().any(|coding| coding.eq_ignore_ascii_case(b"trailers")));
    drop_hop_by_hop(headers);
    let forged: Vec<HeaderName> = headers.keys().filter(|name| is_forgeable(name.as_str())).cloned().collect();
    for name in forged {
        headers.remove(name);
    }
    if wants_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    let scheme = if truth.is_https { "https" } else { "http" };
    let client = truth.client;
    let node = if client.is_ipv6() { format!("\"[{client}]\"") } else { client.to_string() };
    // A host was checked to be a name or an address with a port, so it needs quotes only for its colons.
    let host = truth.authority;
    set(headers, "forwarded", &format!("for={node};host=\"{host}\";proto={scheme}"));
    set(headers, "x-forwarded-for", &client.to_string());
    set(headers, "x-forwarded-host", host);
    set(headers, "x-forwarded-proto", scheme);
    set(headers, "x-request-id", truth.request_id);
    append_via(headers);
}

/// Tells an upstream what a client has proven (RFC 9440 section 2.2).
pub fn set_client_certificate(headers: &mut HeaderMap, certificate: Option<&[u8]>) {
    if let Some(certificate) = certificate {
        set(headers, "client-cert", &format!(":{}:", BASE64_STANDARD.encode(certificate)));
    }
}

fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// RFC 9110 section 7.6.3, with a pseudonym: the topology is nobody's business.
fn append_via(headers: &mut HeaderMap) {
    headers.append(header::VIA, HeaderValue::from_static("1.1 domicile"));
}

/// Fields that are valid in a head alone (RFC 9110 section 6.5.1): they frame, route or change a message, or name somebody.
const FOR_HEADS: [&str; 27] = [
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
];

/// Takes out of trailers what belongs in a head: nothing is left that frames, routes or names anyone, in any spelling.
pub fn scrub_trailers(trailers: &mut HeaderMap, names_a_client: impl Fn(&str) -> bool) {
    let is_for_heads = |name: &str| {
        let plain = &*folded(name);
        let is_condition = plain.starts_with("if-");
        is_condition || FOR_HEADS.contains(&plain) || HOP_BY_HOP.contains(&plain) || is_forgeable(name) || names_a_client(name)
    };
    let bad: Vec<HeaderName> = trailers.keys().filter(|name| is_for_heads(name.as_str())).cloned().collect();
    for name in bad {
        trailers.remove(name);
    }
}

/// How often this request has passed a Domicile before.
pub fn passes(headers: &HeaderMap) -> usize {
    members(headers, &header::VIA).filter(|hop| hop.ends_with(b" domicile")).count()
}

/// Makes a response's header fields fit for the client or peer: nothing of the last connection, none of our own, and no
/// cookie by our name.
pub fn scrub_response(headers: &mut HeaderMap) {
    drop_hop_by_hop(headers);
    let own: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with(fields::PREFIX)).cloned().collect();
    for name in own {
        headers.remove(name);
    }
    drop_own_cookie(headers);
    append_via(headers);
}

/// An app server must not set the cookie that only this proxy seals.
fn drop_own_cookie(headers: &mut HeaderMap) {
    let is_ours = |value: &HeaderValue| {
        let name = value.as_bytes().split(|byte| *byte == b'=').next().unwrap_or_default();
        name.trim_ascii().eq_ignore_ascii_case(session::COOKIE.as_bytes())
    };
    if headers.get_all(header::SET_COOKIE).iter().any(is_ours) {
        let kept: Vec<_> = headers.get_all(header::SET_COOKIE).iter().filter(|value| !is_ours(value)).cloned().collect();
        headers.remove(header::SET_COOKIE);
        for value in kept {
            headers.append(header::SET_COOKIE, value);
        }
    }
}

/// Tracing header fields of the vendors in use: they tie a user's requests together, and can carry any data.
const TRACING: [&str; 23] = [
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
];

/// The same by prefix, for vendors with many.
const TRACING_PREFIXES: [&str; 9] =
    ["x-b3-", "uberctx-", "x-datadog-", "x-ot-span-context", "ot-tracer-", "ot-baggage-", "elastic-apm-", "sw8-", "x-dd-"];

/// Whether a field carries tracing context, `traceparent` aside.
pub fn is_tracing(name: &str) -> bool {
    let plain = &*folded(name);
    TRACING.contains(&plain) || TRACING_PREFIXES.iter().any(|prefix| plain.starts_with(prefix))
}

/// Removes tracing fields before a request crosses a border, those in `allowed` aside. `traceparent` goes on with a new
/// parent id, so that both sides can still be joined by the trace id and by nothing else.
pub fn drop_tracing(headers: &mut HeaderMap, allowed: &[HeaderName]) {
    let is_dropped = |name: &&HeaderName| is_tracing(name.as_str()) && !allowed.contains(name);
    let dropped: Vec<HeaderName> = headers.keys().filter(is_dropped).cloned().collect();
    for name in dropped {
        headers.remove(name);
    }
    let continued = headers.get("traceparent").and_then(|value| continued(value.to_str().ok()?));
    headers.remove("traceparent");
    if let Some(value) = continued {
        set(headers, "traceparent", &value);
    }
}

/// The same trace under a new parent id (W3C Trace Context section 3.2); `None` for what is no `traceparent` of version 00.
fn continued(traceparent: &str) -> Option<String> {
    let mut parts = traceparent.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex =
        |text: &str, length: usize| text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_zero = |text: &str| text.bytes().all(|byte| byte == b'0');
    let is_sound = version == "00" && parts.next().is_none() && is_hex(trace, 32) && is_hex(parent, 16) && is_hex(flags, 2);
    (is_sound && !is_zero(trace) && !is_zero(parent)).then(|| format!("00-{trace}-{:016x}-{flags}", fastrand::u64(1..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth() -> Truth<'static> {
        Truth { request_id: "id", client: "2001:db8::1".parse().unwrap(), is_https: true, authority: "a.test" }
    }

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn what_a_stranger_could_forge_is_replaced_by_the_truth() {
        let mut headers = map(&[
            ("x-forwarded-for", "6.6.6.6"),
            ("x_forwarded_for", "6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("cf-ipcountry", "DE"),
            ("domicile-request", "forged"),
            ("domicile-data-class", "public"),
            ("x-original-url", "/admin"),
            ("accept", "*/*"),
        ]);
        rebuild(&mut headers, &truth());
        assert!(headers.values().all(|value| value != "6.6.6.6" && value != "forged"));
        assert_eq!(headers["x-forwarded-for"], "2001:db8::1");
        assert_eq!(headers["forwarded"], "for=\"[2001:db8::1]\";host=\"a.test\";proto=https");
        assert_eq!(headers["accept"], "*/*");
        for gone in ["x_forwarded_for", "x-real-ip", "cf-ipcountry", "domicile-request", "domicile-data-class", "x-original-url"]
        {
            assert!(!headers.contains_key(gone), "{gone}");
        }
    }

    /// Names by which proxies, content networks and platforms tell servers who a client is, each in the spelling of its documentation.
    const TOLD_OF_CLIENTS: &str = "Forwarded Forwarded-For X-Forwarded X-Forward-For X-Forwarded-For X-Forwarded-Host X-Forwarded-Proto
        X-Forwarded-Port X-Forwarded-Prefix X-Forwarded-Server X-Forwarded-Scheme X-Forwarded-Ssl X-Forwarded-Client-Cert
        X-Forwarded-Tls-Client-Cert X-Original-Forwarded-For X-Real-IP X-Client-IP X-Cluster-Client-IP X-Originating-IP X-Remote-IP
        X-Remote-Addr X-Remote-User Client-IP Proxy-Client-IP WL-Proxy-Client-IP HTTP-Client-IP True-Client-IP CF-Connecting-IP
        CF-IPCountry CF-Visitor CF-Region-Code CF-IPCity CF-Worker CF-Ray Fastly-Client-IP Fastly-Geo-Country Fastly-SSL
        X-Azure-ClientIP X-Azure-SocketIP X-Appengine-User-IP X-Appengine-Country X-Appengine-City Fly-Client-IP
        X-NF-Client-Connection-IP X-Vercel-Forwarded-For X-Vercel-IP-Country CloudFront-Viewer-Country CloudFront-Viewer-Address
        CloudFront-Is-Mobile-Viewer X-Akamai-Edgescape X-Envoy-External-Address X-Envoy-Original-Path X-Envoy-Internal X-Geo-Country
        X-GeoIP-Country X-Client-Geo-Location GeoIP-Country-Code X-Country X-Country-Code X-IP-Country Client-Cert Client-Cert-Chain
        X-Client-Cert X-Client-Cert-Sha1 X-Client-DN X-Client-Verify X-SSL-Client-Cert X-SSL-Client-S-DN X-SSL-Client-Verify
        SSL-Client-Cert SSL-Client-Verify SSL-Client-Subject-DN X-Amzn-Mtls-Clientcert X-ARR-ClientCert X-Original-URL X-Original-Host
        X-Rewrite-URL X-HTTP-Method X-HTTP-Method-Override X-Method-Override X-Host Domicile-Request Domicile-Code
        Domicile-Data-Class Domicile-Probe DO-Connecting-IP EO-Client-IP EO-Connecting-IP Ali-CDN-Real-IP Incap-Client-IP
        X-Sucuri-ClientIP X-Sucuri-Country Cdn-Src-Ip CDN-RequestCountryCode X-ProxyUser-Ip X-Real-Client-IP X-Remote-Address X-NF-Geo
        X-Client-Region X-Client-City X-Client-City-Lat-Long X-Country-Name CloudFront-Forwarded-Proto Front-End-Https X-Scheme
        X-Url-Scheme X-Goog-Authenticated-User-Email X-Client-SSL-Cert SSL-Cert X-Azure-FDID X-ARR-SSL X-Original-Forwarded-Host
        X-Amzn-Oidc-Identity X-MS-Client-Principal-Name EO-Client-IPCountry Incap-Country-Code X-Request-ID";

    #[test]
    fn trailers_hold_nothing_that_belongs_in_a_head() {
        const HEADS_ALONE: &str = "Host Content-Length Content-Type Content-Encoding Content-Range Transfer-Encoding TE Trailer Connection
            Upgrade Expect Authorization Proxy-Authorization WWW-Authenticate Proxy-Authenticate Cookie Set-Cookie Via Cache-Control
            Pragma Max-Forwards Range If-Match If-None-Match If-Range If-Modified-Since Age Date Expires Location Retry-After Vary
            X-Request-ID Domicile-Data-Class";
        for name in HEADS_ALONE.split_whitespace() {
            for spelling in [name, &name.replace('-', "_"), &name.replace('-', ".")] {
                let mut trailers = map(&[(spelling, "x"), ("grpc-status", "0"), ("etag", "y"), ("x-checksum", "z")]);
                scrub_trailers(&mut trailers, |_| false);
                let mut left: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
                left.sort_unstable();
                assert_eq!(left, ["etag", "grpc-status", "x-checksum"], "{spelling}");
            }
        }
    }

    #[test]
    fn nothing_that_tells_of_clients_is_believed_in_any_spelling() {
        let names = || TOLD_OF_CLIENTS.split_whitespace();
        assert!(names().count() > 100);
        for name in names() {
            let underscored = name.replace('-', "_");
            let mixed = name.replacen('-', "_", 1);
            for spelling in [name, &underscored, &mixed, &name.replace('-', "."), &name.replace('-', "~")] {
                let mut headers = map(&[(spelling, "forged")]);
                rebuild(&mut headers, &truth());
                assert!(headers.values().all(|value| value != "forged"), "{spelling}");
                let mut trailers = map(&[(spelling, "forged")]);
                scrub_trailers(&mut trailers, |_| false);
                assert!(trailers.is_empty(), "{spelling}");
            }
        }
    }

    #[test]
    fn nobody_nominates_away_what_others_rely_on() {
        let mut headers = map(&[
            ("connection", "close, x-private, x-forwarded-for, cookie, authorization, host"),
            ("x-private", "1"),
            ("cookie", "uid=a"),
            ("authorization", "b"),
            ("host", "a.test"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
        ]);
        rebuild(&mut headers, &truth());
        assert!(!headers.contains_key("x-private") && !headers.contains_key("connection") && !headers.contains_key("upgrade"));
        assert!(headers.contains_key("cookie") && headers.contains_key("authorization") && headers.contains_key("host"));
        assert_eq!(headers["x-forwarded-for"], "2001:db8::1");
        assert_eq!(headers["te"], "trailers");
    }

    #[test]
    fn a_coding_in_a_quoted_string_is_not_a_coding() {
        for (te, is_kept) in
            [("trailers", true), ("gzip;q=0.5,, Trailers", true), ("x;a=\"b, trailers, c\"", false), ("trailers, x;a=\"b", false)]
        {
            let mut headers = map(&[("te", te)]);
            rebuild(&mut headers, &truth());
            assert_eq!(headers.contains_key("te"), is_kept, "{te}");
        }
    }

    #[test]
    fn passes_are_counted() {
        let headers = map(&[("via", "1.1 domicile, 1.1 other"), ("via", "2.0 domicile")]);
        assert_eq!(passes(&headers), 2);
    }
}
