//! Headers and trailers of forwarded messages: removes hop-by-hop and forgeable fields, and sets the proxy's own (RFC 9110
//! section 7.6).

mod shown;
mod tracing;

use std::fmt::Write as _;
use std::net::IpAddr;

use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use http::Version;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::http::lists::{self, Malformed};
use crate::http::names::{self, FORGEABLE, HEADER_ONLY, HOP_BY_HOP, normalized_name};
use crate::peer::fields;
use crate::session;

pub use shown::{Exposure, Handling, expose, identify};
pub use tracing::{drop_tracing, is_tracing};

/// Whether a field is in [`FORGEABLE`], in any spelling.
fn is_forgeable(name: &str) -> bool {
    FORGEABLE.contains_any_spelling(name)
}

/// The members of a list without quoted strings (RFC 9110 section 5.6.1), even if one of them has invalid bytes.
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

/// Removes hop-by-hop fields and the fields that `Connection` lists. `Host`, `Content-Length`, `Cookie` and `Authorization` stay
/// even if they are listed, because the next hop relies on them. The proxy's own fields are set afterwards.
pub fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let is_protected =
        |name: &HeaderName| [header::HOST, header::CONTENT_LENGTH, header::COOKIE, header::AUTHORIZATION].contains(name);
    let listed = members(headers, &header::CONNECTION).filter_map(|name| HeaderName::from_bytes(name).ok());
    let listed: Vec<_> = listed.filter(|name| !is_protected(name)).collect();
    for name in listed {
        headers.remove(name);
    }
    // Most messages have none of them, so that one pass is enough.
    while let Some(name) = headers.keys().find_map(|name| HOP_BY_HOP.iter().find(|hop_by_hop| *hop_by_hop == name)) {
        headers.remove(name);
    }
}

/// The values of the forwarding headers that replace the forgeable ones.
pub struct Forwarded<'a> {
    pub request_id: &'a str,
    pub client: IpAddr,
    pub is_https: bool,
    /// The host, with the port if the request has one.
    pub authority: &'a str,
    /// The version of HTTP in which the request was received.
    pub version: Version,
}

/// Prepares a request's headers for the next hop: removes hop-by-hop and forgeable fields, and sets the forwarding headers.
#[inline(never)] // a stage of benches/stages
pub fn rebuild(headers: &mut HeaderMap, forwarded: &Forwarded<'_>) {
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
    set_forwarded(headers, forwarded);
    append_via(headers, forwarded.version);
}

/// Sets the forwarding headers. They share one buffer, because each of the others is a part of `Forwarded` or follows it.
fn set_forwarded(headers: &mut HeaderMap, forwarded: &Forwarded<'_>) {
    let Forwarded { request_id, client, is_https, authority, .. } = forwarded;
    let (open, close) = if client.is_ipv6() { ("\"[", "]\"") } else { ("", "") };
    let scheme = if *is_https { "https" } else { "http" };
    let mut text = String::with_capacity(128 + authority.len());
    text.push_str("for=");
    text.push_str(open);
    let start = text.len();
    write!(text, "{client}").expect("writing to a string succeeds");
    let client = start..text.len();
    let mut put = |piece: &str| {
        let start = text.len();
        text.push_str(piece);
        start..text.len()
    };
    put(close);
    put(";host=\"");
    // The host was checked to be a name or an address with a port, so it contains nothing that must be escaped in quotes.
    let host = put(authority);
    put("\";proto=");
    let scheme = put(scheme);
    let whole = 0..scheme.end;
    let request_id = put(request_id);
    let text = Bytes::from(text);
    for (name, range) in [
        (names::FORWARDED, whole),
        (names::X_FORWARDED_FOR, client),
        (names::X_FORWARDED_HOST, host),
        (names::X_FORWARDED_PROTO, scheme),
        (names::X_REQUEST_ID, request_id),
    ] {
        if let Ok(mut value) = HeaderValue::from_maybe_shared(text.slice(range)) {
            // Values that differ from request to request would replace the others in the table of HPACK (RFC 7541 section 7.1.3).
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
}

/// Sets `Client-Cert` to the verified client certificate (RFC 9440 section 2.2).
pub fn set_client_certificate(headers: &mut HeaderMap, certificate: Option<&[u8]>) {
    if let Some(certificate) = certificate {
        set(headers, names::CLIENT_CERT, &format!(":{}:", BASE64_STANDARD.encode(certificate)));
    }
}

pub fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Appends a `Via` entry (RFC 9110 section 7.6.3) with the version in which the message was received, and a pseudonym instead of a
/// host name, because the topology is private.
fn append_via(headers: &mut HeaderMap, version: Version) {
    let entry = match version {
        Version::HTTP_09 => "0.9 domicile",
        Version::HTTP_10 => "1.0 domicile",
        Version::HTTP_2 => "2 domicile",
        Version::HTTP_3 => "3 domicile",
        _ => "1.1 domicile",
    };
    headers.append(header::VIA, HeaderValue::from_static(entry));
}

/// Removes the fields that are not allowed in trailers, in any spelling.
pub fn scrub_trailers(trailers: &mut HeaderMap, is_identity_header: impl Fn(&str) -> bool) {
    let is_header_only = |name: &str| {
        let plain = &*normalized_name(name);
        HEADER_ONLY.contains(plain)
            || HOP_BY_HOP.iter().any(|other| other == plain)
            || FORGEABLE.contains(plain)
            || is_identity_header(name)
    };
    let bad: Vec<HeaderName> = trailers.keys().filter(|name| is_header_only(name.as_str())).cloned().collect();
    for name in bad {
        trailers.remove(name);
    }
}

/// How often the request has passed through a Domicile before, counted in `Via`.
pub fn passes(headers: &HeaderMap) -> usize {
    members(headers, &header::VIA).filter(|hop| hop.ends_with(b" domicile")).count()
}

/// Prepares a response's headers for the client or peer: removes hop-by-hop fields, `Domicile-*` fields and our own cookie. For a
/// response that crosses a border, `border` has the tracing headers that stay; all others are removed.
#[inline(never)] // a stage of benches/stages
pub fn scrub_response(headers: &mut HeaderMap, version: Version, border: Option<&[HeaderName]>) {
    drop_hop_by_hop(headers);
    let own: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with(fields::PREFIX)).cloned().collect();
    for name in own {
        headers.remove(name);
    }
    drop_own_cookie(headers);
    if let Some(allowed) = border {
        drop_tracing(headers, allowed);
    }
    append_via(headers, version);
}

/// Removes the home hint cookie that an app server sets, because only the proxy may set it.
fn drop_own_cookie(headers: &mut HeaderMap) {
    let is_ours = |value: &HeaderValue| {
        // A browser stores `=NAME=VALUE` as a cookie without a name, and sends it back as `NAME=VALUE`.
        let text = value.as_bytes().trim_ascii_start();
        let text = text.strip_prefix(b"=").unwrap_or(text);
        let name = text.split(|byte| matches!(byte, b'=' | b';')).next().unwrap_or_default();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarded() -> Forwarded<'static> {
        Forwarded {
            request_id: "id",
            client: "2001:db8::1".parse().unwrap(),
            is_https: true,
            authority: "a.test",
            version: http::Version::HTTP_11,
        }
    }

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn an_app_server_cannot_set_the_home_hint_in_any_spelling() {
        for cookie in [
            "__Host-domicile-home=x; Path=/",
            " __host-DOMICILE-home =x",
            "=__Host-domicile-home=x",
            "__Host-domicile-home; Path=/",
        ] {
            let mut headers = map(&[("set-cookie", "app=1"), ("set-cookie", cookie), ("set-cookie", "x=__Host-domicile-home")]);
            scrub_response(&mut headers, Version::HTTP_11, None);
            let left: Vec<_> = headers.get_all("set-cookie").iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!(left, ["app=1", "x=__Host-domicile-home"], "{cookie}");
        }
    }

    #[test]
    fn forged_headers_are_replaced() {
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
        rebuild(&mut headers, &forwarded());
        assert!(headers.values().all(|value| value != "6.6.6.6" && value != "forged"));
        assert_eq!(headers["x-forwarded-for"], "2001:db8::1");
        assert_eq!(headers["forwarded"], "for=\"[2001:db8::1]\";host=\"a.test\";proto=https");
        assert_eq!(headers["accept"], "*/*");
        for gone in ["x_forwarded_for", "x-real-ip", "cf-ipcountry", "domicile-request", "domicile-data-class", "x-original-url"]
        {
            assert!(!headers.contains_key(gone), "{gone}");
        }
    }

    /// Fields with which proxies, CDNs and platforms describe the client to servers, spelled as in their documentation.
    const FORGEABLE_NAMES: &str = "Forwarded Forwarded-For X-Forwarded X-Forward-For X-Forwarded-For X-Forwarded-Host X-Forwarded-Proto
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
    fn header_only_fields_are_removed_from_trailers() {
        const NAMES: &str = "Host Content-Length Content-Type Content-Encoding Content-Range Transfer-Encoding TE Trailer Connection
            Upgrade Expect Authorization Proxy-Authorization WWW-Authenticate Proxy-Authenticate Cookie Set-Cookie Via Cache-Control
            Pragma Max-Forwards Range If-Match If-None-Match If-Range If-Modified-Since Age Date Expires Location Retry-After Vary
            X-Request-ID Domicile-Data-Class";
        for name in NAMES.split_whitespace() {
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
    fn forged_fields_are_removed_in_any_spelling() {
        let names = || FORGEABLE_NAMES.split_whitespace();
        assert!(names().count() > 100);
        for name in names() {
            let underscored = name.replace('-', "_");
            let mixed = name.replacen('-', "_", 1);
            for spelling in [name, &underscored, &mixed, &name.replace('-', "."), &name.replace('-', "~")] {
                let mut headers = map(&[(spelling, "forged")]);
                rebuild(&mut headers, &forwarded());
                assert!(headers.values().all(|value| value != "forged"), "{spelling}");
                let mut trailers = map(&[(spelling, "forged")]);
                scrub_trailers(&mut trailers, |_| false);
                assert!(trailers.is_empty(), "{spelling}");
            }
        }
    }

    #[test]
    fn connection_cannot_remove_host_or_credentials() {
        let mut headers = map(&[
            ("connection", "close, x-private, x-forwarded-for, cookie, authorization, host"),
            ("x-private", "1"),
            ("cookie", "uid=a"),
            ("authorization", "b"),
            ("host", "a.test"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
        ]);
        rebuild(&mut headers, &forwarded());
        assert!(!headers.contains_key("x-private") && !headers.contains_key("connection") && !headers.contains_key("upgrade"));
        assert!(headers.contains_key("cookie") && headers.contains_key("authorization") && headers.contains_key("host"));
        assert_eq!(headers["x-forwarded-for"], "2001:db8::1");
        assert_eq!(headers["te"], "trailers");
    }

    #[test]
    fn via_names_the_version_in_which_a_message_was_received() {
        for (version, entry) in
            [(Version::HTTP_10, "1.0 domicile"), (Version::HTTP_11, "1.1 domicile"), (Version::HTTP_2, "2 domicile")]
        {
            let mut headers = map(&[("via", "1.0 fred")]);
            rebuild(&mut headers, &Forwarded { version, ..forwarded() });
            assert_eq!(headers.get_all("via").iter().collect::<Vec<_>>(), ["1.0 fred", entry]);
            let mut headers = HeaderMap::new();
            scrub_response(&mut headers, version, None);
            assert_eq!(headers["via"], entry);
        }
    }

    #[test]
    fn a_coding_in_a_quoted_string_is_not_a_coding() {
        for (te, is_kept) in
            [("trailers", true), ("gzip;q=0.5,, Trailers", true), ("x;a=\"b, trailers, c\"", false), ("trailers, x;a=\"b", false)]
        {
            let mut headers = map(&[("te", te)]);
            rebuild(&mut headers, &forwarded());
            assert_eq!(headers.contains_key("te"), is_kept, "{te}");
        }
    }

    #[test]
    fn passes_are_counted() {
        let headers = map(&[("via", "1.1 domicile, 1.1 other"), ("via", "2.0 domicile")]);
        assert_eq!(passes(&headers), 2);
    }
}
