//! Which responses are compressed, and the header fields of a compressed one.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName,
    HeaderValue, VARY,
};
use http::response::Parts;
use http::{Method, StatusCode, Version};
use http_body::{Body as _, Frame};

use crate::http::body::{Body, BodyError};
use crate::http::compression::{Coding, Compressed};
use crate::http::lists;

use super::super::admission::Admitted;

/// Smaller responses fit in one packet anyway.
const MIN_BYTES: u64 = 256;

/// Types that compress well, besides `text/*` and the types that end in `+json`, `+xml` or `+text`. Event streams are left out,
/// because a client reads each event alone.
const TYPES: [&str; 12] = [
    "application/json",
    "application/javascript",
    "application/x-javascript",
    "application/xml",
    "application/x-ndjson",
    "application/wasm",
    "application/graphql-response",
    "application/rtf",
    "application/vnd.ms-fontobject",
    "font/otf",
    "font/ttf",
    "image/bmp",
];

/// Hashes of the uncompressed content (RFC 9530 and its predecessors).
const DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

/// Compresses a response if that is useful and allowed. `coding` is what the client accepts, if it accepts any of the route's.
///
/// `admit` counts the response as one that is compressed until its body ends; without it, the response stays as it is.
pub fn compress(
    head: &mut Parts,
    body: Body,
    method: Option<&Method>,
    coding: Option<Coding>,
    admit: impl FnOnce() -> Option<Admitted>,
) -> Body {
    let is_small = body.size_hint().exact().is_some_and(|size| size < MIN_BYTES);
    if is_small || !is_eligible(head, method) {
        return body;
    }
    add_vary(&mut head.headers);
    let Some((coding, admitted)) = coding.and_then(|coding| Some((coding, admit()?))) else { return body };
    head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.as_str()));
    for name in [CONTENT_LENGTH, ACCEPT_RANGES].iter().chain(&DIGESTS) {
        head.headers.remove(name);
    }
    weaken_etag(&mut head.headers);
    Body::streamed(Counted { body: Compressed::new(body, coding), _admitted: admitted })
}

/// A body that counts as one that is compressed.
struct Counted {
    body: Compressed,
    _admitted: Admitted,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }
}

/// Whether a response may be compressed (RFC 9110 section 7.7, RFC 9111 section 5.2.2.6), and is worth it.
fn is_eligible(head: &Parts, method: Option<&Method>) -> bool {
    let has_body = head.status.is_success() || head.status.is_client_error() || head.status.is_server_error();
    let has_none = [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::PARTIAL_CONTENT].contains(&head.status);
    let length = head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let is_coded = head.headers.get_all(CONTENT_ENCODING).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"));
    let stays = || {
        let values = head.headers.get_all(CACHE_CONTROL).iter();
        values.flat_map(|value| lists::tokens(value.as_bytes())).any(|member| member.eq_ignore_ascii_case(b"no-transform"))
    };
    has_body
        && !has_none
        && method != Some(&Method::HEAD)
        && length.is_none_or(|length| length >= MIN_BYTES)
        && !is_coded
        && !head.headers.contains_key(CONTENT_RANGE)
        && is_compressible(&head.headers)
        && !stays()
}

fn is_compressible(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_text = kind.starts_with("text/") && kind != "text/event-stream";
    // Every message of a gRPC call has a length, and its client has its own compression.
    if kind.starts_with("application/grpc") {
        return false;
    }
    is_text || ["+json", "+xml", "+text"].iter().any(|ending| kind.ends_with(ending)) || TYPES.contains(&&*kind)
}

fn add_vary(headers: &mut HeaderMap) {
    let names = |value: &HeaderValue| {
        lists::tokens(value.as_bytes()).any(|name| name == b"*" || name.eq_ignore_ascii_case(b"accept-encoding"))
    };
    if !headers.get_all(VARY).iter().any(names) {
        headers.append(VARY, HeaderValue::from_static("accept-encoding"));
    }
}

/// A compressed response is another representation, so that a strong validator would be wrong (RFC 9110 section 8.8.1).
fn weaken_etag(headers: &mut HeaderMap) {
    if let Some(etag) = headers.get(ETAG)
        && !etag.as_bytes().starts_with(b"W/")
        && let Ok(weak) = HeaderValue::from_bytes(&[b"W/", etag.as_bytes()].concat())
    {
        headers.insert(ETAG, weak);
    }
}

/// Whether the version of HTTP lets a response end without its length being known.
pub fn may_stream(version: Version) -> bool {
    version >= Version::HTTP_11
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::super::admission::Gauge;
    use super::*;

    fn head(status: u16, fields: &[(&'static str, &'static str)]) -> Parts {
        let mut response = http::Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        for (name, value) in fields {
            response.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        response.into_parts().0
    }

    const JSON: (&str, &str) = ("content-type", "application/json");

    #[test]
    fn only_uncompressed_text_of_some_size_is_compressed() {
        for (status, fields, method, expected) in [
            (200, &[JSON][..], Method::GET, true),
            (404, &[("content-type", "Text/HTML; charset=utf-8"), ("content-length", "256")], Method::GET, true),
            (200, &[("content-type", "application/problem+json")], Method::POST, true),
            (200, &[JSON, ("content-length", "255")], Method::GET, false),
            (200, &[JSON], Method::HEAD, false),
            (204, &[JSON], Method::GET, false),
            (206, &[JSON], Method::GET, false),
            (304, &[JSON], Method::GET, false),
            (200, &[JSON, ("content-encoding", "br")], Method::GET, false),
            (200, &[JSON, ("content-encoding", "identity")], Method::GET, true),
            (200, &[JSON, ("cache-control", "public, No-Transform")], Method::GET, false),
            (200, &[JSON, ("content-range", "bytes 0-1/2")], Method::GET, false),
            (200, &[("content-type", "image/png")], Method::GET, false),
            (200, &[("content-type", "text/event-stream")], Method::GET, false),
            (200, &[("content-type", "application/grpc+json")], Method::POST, false),
            (200, &[], Method::GET, false),
        ] {
            assert_eq!(is_eligible(&head(status, fields), Some(&method)), expected, "{status} {fields:?} {method}");
        }
    }

    #[test]
    fn the_header_fields_describe_the_compressed_response() {
        let fields = [
            JSON,
            ("content-length", "1000"),
            ("etag", "\"a\""),
            ("vary", "Origin"),
            ("accept-ranges", "bytes"),
            ("content-md5", "x"),
        ];
        let slots = Arc::<Gauge>::default();
        let mut compressed = head(200, &fields);
        let body = compress(&mut compressed, Body::whole("x".repeat(1000)), Some(&Method::GET), Some(Coding::Gzip), || {
            Admitted::enter(&slots, 1)
        });
        assert!(!body.is_whole());
        assert_eq!(slots.count(), 1);
        let names = ["content-encoding", "etag", "content-length", "accept-ranges", "content-md5"];
        let values = names.map(|name| compressed.headers.get(name).map(|value| value.to_str().unwrap()));
        assert_eq!(values, [Some("gzip"), Some("W/\"a\""), None, None, None]);
        let vary: Vec<_> = compressed.headers.get_all(VARY).iter().collect();
        assert_eq!(vary, ["Origin", "accept-encoding"]);
        // Neither a client without a coding nor one more than the limit gets a compressed response.
        for (coding, most) in [(None, 2), (Some(Coding::Gzip), 1)] {
            let mut plain = head(200, &fields);
            let text = Body::whole("x".repeat(1000));
            assert!(compress(&mut plain, text, Some(&Method::GET), coding, || Admitted::enter(&slots, most)).is_whole());
            assert_eq!((plain.headers.get_all(VARY).iter().count(), plain.headers.contains_key("content-encoding")), (2, false));
        }
        drop(body);
        assert_eq!(slots.count(), 0);
    }
}
