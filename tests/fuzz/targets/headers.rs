//! Headers for the next hop contain no forged field, in any spelling.

use domicile::proxy::headers::{Forwarded, rebuild, scrub_trailers};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::Target;

pub const HEADERS: Target = Target { name: "headers", words: WORDS, seeds, check, most: 1024 };

const WORDS: &[&[u8]] = &[
    b"x-forwarded-for: 6.6.6.6\n",
    b"X_Forwarded-For: 6.6.6.6\n",
    b"forwarded: for=6.6.6.6\n",
    b"connection: ",
    b"close, ",
    b"x-forwarded-proto",
    b"domicile-request: x\n",
    b"domicile_request: x\n",
    b"cf-ipcountry: DE\n",
    b"client-cert: :x:\n",
    b"te: trailers\n",
    b"upgrade: h2c\n",
    b"host: b\n",
    b"via: 1.1 x\n",
    b"cookie: a=b\n",
    b"_",
    b"-",
    b"\n",
    b": ",
];

fn forwarded() -> Forwarded<'static> {
    Forwarded {
        request_id: "id",
        client: "192.0.2.1".parse().unwrap(),
        is_https: true,
        authority: "a.test",
        version: http::Version::HTTP_11,
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let seeds: [&[u8]; 4] = [
        b"accept: */*\nx-forwarded-for: 6.6.6.6\nconnection: x-a, keep-alive\nx-a: b\n",
        b"te: trailers\nhost: a.test\nx_real_ip: 6.6.6.6\n",
        b"domicile-request: forged\nvia: 1.0 a\n",
        b"connection: \xff, X-B ,cookie\nx-b: c\nconnection: x-a\nx-a: d\ncookie: e\n",
    ];
    seeds.map(<[u8]>::to_vec).into()
}

/// The fields of an input, one per line; lines that are not valid fields are skipped.
fn fields(bytes: &[u8]) -> Vec<(HeaderName, HeaderValue)> {
    let lines = bytes.split(|byte| *byte == b'\n').filter_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        Some((HeaderName::from_bytes(&line[..colon]).ok()?, value))
    });
    lines.collect()
}

/// The fields that an app server reads: serializes the head, and parses it with httparse.
fn fields_at_server(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let mut head = b"GET / HTTP/1.1\r\n".to_vec();
    for (name, value) in headers {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    let mut slots = vec![httparse::EMPTY_HEADER; headers.len() + 1];
    let mut request = httparse::Request::new(&mut slots);
    let read = request.parse(&head).expect("rebuilt headers form a valid head");
    assert_eq!(read, httparse::Status::Complete(head.len()), "the head ends at its empty line");
    request.headers.iter().map(|field| (field.name.to_owned(), field.value.to_vec())).collect()
}

/// The name of a field in a CGI variable (RFC 3875 section 4.1.18), which does not distinguish `_` from `-`.
fn cgi_name(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_")
}

/// The members of a list-based field (RFC 9110 section 5.6.1), in lower case.
fn members<'a>(fields: &'a [(HeaderName, HeaderValue)], list: &'a str) -> impl Iterator<Item = Vec<u8>> + 'a {
    let values = fields.iter().filter(move |(name, _)| name == list);
    values.flat_map(|(_, value)| {
        value.as_bytes().split(|byte| *byte == b',').map(|member| member.trim_ascii().to_ascii_lowercase())
    })
}

/// End-to-end fields, which a proxy must forward unchanged (RFC 9110 section 7.6).
fn is_end_to_end(name: &str) -> bool {
    const NAMES: [&str; 14] = [
        "accept",
        "authorization",
        "cache-control",
        "content-type",
        "cookie",
        "origin",
        "range",
        "referer",
        "user-agent",
        "priority",
        "traceparent",
        "x-a",
        "x-b",
        "if-none-match",
    ];
    NAMES.contains(&name)
}

/// Hop-by-hop fields, and fields that describe the client to an app server.
fn may_not_pass(name: &str) -> bool {
    let folded = name.replace('_', "-");
    let of_the_connection = ["connection", "keep-alive", "upgrade", "transfer-encoding", "proxy-connection", "expect"];
    let of_the_client = ["forwarded", "x-real-ip", "client-cert"];
    let families = ["x-forwarded-", "domicile-", "cf-"];
    of_the_connection.contains(&name)
        || of_the_client.contains(&&*folded)
        || families.iter().any(|family| folded.starts_with(family))
}

fn check(bytes: &[u8]) {
    let fields = fields(bytes);
    let mut headers: HeaderMap = fields.iter().cloned().collect();
    let mut trailers = headers.clone();
    rebuild(&mut headers, &forwarded());
    let read = fields_at_server(&headers);
    let ours = [
        ("FORWARDED", "for=192.0.2.1;host=\"a.test\";proto=https"),
        ("X_FORWARDED_FOR", "192.0.2.1"),
        ("X_FORWARDED_HOST", "a.test"),
        ("X_FORWARDED_PROTO", "https"),
        ("X_REQUEST_ID", "id"),
    ];
    for (name, expected) in ours {
        let values: Vec<_> = read.iter().filter(|(field, _)| cgi_name(field) == name).map(|(_, value)| &**value).collect();
        assert_eq!(values, [expected.as_bytes()], "{name}");
    }
    for (name, value) in &read {
        let is_ours = ours.iter().any(|(ours, _)| cgi_name(name) == *ours);
        assert!(is_ours || !may_not_pass(name), "{name}: {}", value.escape_ascii());
    }
    let connection_options: Vec<_> = members(&fields, "connection").collect();
    for (name, _) in &fields {
        let sent = fields.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_bytes());
        let arrived: Vec<_> = read.iter().filter(|(other, _)| other == name.as_str()).map(|(_, value)| &**value).collect();
        let is_named = connection_options.contains(&name.as_str().as_bytes().to_vec());
        match name.as_str() {
            // `Connection` cannot remove the credentials of a request.
            "cookie" | "authorization" => assert!(sent.eq(arrived), "{name}"),
            name if is_named && is_end_to_end(name) => assert!(arrived.is_empty(), "{name} is hop-by-hop"),
            name if is_end_to_end(name) => assert!(sent.eq(arrived), "{name}"),
            _ => {}
        }
    }
    scrub_trailers(&mut trailers, |_| false);
    for name in trailers.keys() {
        let header_only = ["host", "content-length", "cookie", "te"];
        assert!(!header_only.contains(&name.as_str()) && !may_not_pass(name.as_str()), "{name}");
    }
}
