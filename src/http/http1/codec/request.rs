//! Reads request heads.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::header::{EXPECT, TE};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Request, Uri, Version};

use super::super::super::lists::tokens;
use super::body::BodyDecoder;
use super::head::{Blanks, Fields, Framing, find_end};
use crate::model::outcome::{Code, Rule};

/// The limits on a request head, and the timeouts of its connection.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes of the request line and all header lines.
    pub bytes: usize,
    pub fields: usize,
    pub target_bytes: usize,
    /// From the first byte of a head to its last. For the first head, the time starts with the connection.
    pub timeout: Duration,
    /// Between a response and the next request.
    pub keep_alive: Duration,
}

/// A valid request head.
pub struct RequestHead {
    pub parts: Parts,
    pub body: BodyDecoder,
    /// The client allows further requests on the connection.
    pub keeps_alive: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// The client accepts trailers that `Trailer` does not announce.
    pub takes_trailers: bool,
}

/// Takes a request head from the start of `bytes`; `None` if it is incomplete. `seen` is how many bytes an earlier call has
/// looked at.
#[inline(never)] // a stage of benches/stages
pub fn read_request(bytes: &mut BytesMut, seen: &mut usize, limits: &HeadLimits) -> Result<Option<RequestHead>, Code> {
    let end = match find_end(bytes, *seen)? {
        None if bytes.len() <= limits.bytes => {
            *seen = bytes.len();
            return Ok(None);
        }
        Some(end) if end <= limits.bytes => end,
        None | Some(_) => return Err(Code::HeadTooLarge),
    };
    *seen = 0;
    let mut head = bytes.split_to(end).freeze();
    if head.starts_with(b"\r\n") {
        head.advance(2);
    }
    let line_end = memchr::memchr(b'\n', &head).ok_or(Code::Malformed(Rule::Line))?;
    let lines = head.split_off(line_end + 1);
    head.truncate(line_end - 1);
    let (method, target, is_http11) = request_line(&head, limits)?;
    let mut uri = Uri::from_maybe_shared(head.slice_ref(target)).map_err(|_| Code::Malformed(Rule::Target))?;
    if method == Method::OPTIONS && is_whole_server(target) {
        uri = for_whole_server(uri).ok_or(Code::Malformed(Rule::Target))?;
    }
    let fields = Fields::read(&lines, is_http11, limits.fields, Blanks::Refused)?;
    if fields.hosts > 1 || (is_http11 && fields.hosts == 0) {
        return Err(Code::Malformed(Rule::Host));
    }
    // CONNECT has no content (RFC 9110 section 9.3.6). It would be taken for bytes of the tunnel.
    if method == Method::CONNECT && !matches!(fields.framing, None | Some(Framing::Length(0))) {
        return Err(Code::Malformed(Rule::Length));
    }
    Ok(Some(assemble(method, uri, is_http11, fields)))
}

fn assemble(method: Method, uri: Uri, is_http11: bool, fields: Fields) -> RequestHead {
    let body = match fields.framing {
        None | Some(Framing::Length(0)) => BodyDecoder::Ended,
        Some(Framing::Length(left)) => BodyDecoder::Length(left),
        Some(Framing::Chunked) => BodyDecoder::chunked(),
    };
    let expects = |value: &http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    let takes = |value: &http::HeaderValue| tokens(value.as_bytes()).any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
    let keeps_alive = if is_http11 { !fields.closes } else { fields.keeps_alive && !fields.closes };
    let expects_continue = is_http11 && !body.has_ended() && fields.map.get(EXPECT).is_some_and(expects);
    let takes_trailers = is_http11 && fields.map.get_all(TE).iter().any(takes);
    let (mut parts, ()) = Request::new(()).into_parts();
    (parts.method, parts.uri, parts.headers) = (method, uri, fields.map);
    parts.version = if is_http11 { Version::HTTP_11 } else { Version::HTTP_10 };
    RequestHead { parts, body, keeps_alive, expects_continue, takes_trailers }
}

/// Reads `METHOD SP TARGET SP HTTP/1.x` with single spaces; returns the method, the target, and whether the version is HTTP/1.1.
fn request_line<'l>(line: &'l [u8], limits: &HeadLimits) -> Result<(Method, &'l [u8], bool), Code> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(Code::Malformed(Rule::Line));
    };
    if target.len() > limits.target_bytes {
        return Err(Code::TargetTooLong);
    }
    if target.is_empty() || !is_valid_target(target) || !is_form(method, target) {
        return Err(Code::Malformed(Rule::Target));
    }
    let method = Method::from_bytes(method).map_err(|_| Code::Malformed(Rule::Line))?;
    match version {
        b"HTTP/1.1" => Ok((method, target, true)),
        b"HTTP/1.0" => Ok((method, target, false)),
        _ => Err(Code::Malformed(Rule::Line)),
    }
}

/// Whether a request target has only visible characters of ASCII. A query may hold bytes outside ASCII too, because programs
/// send them and app servers read them; `Uri` requires that they are UTF-8.
pub fn is_valid_target(target: &[u8]) -> bool {
    let (path, query) = target.split_at(memchr::memchr(b'?', target).unwrap_or(target.len()));
    path.iter().all(|byte| matches!(byte, 0x21..=0x7e)) && query.iter().all(|byte| matches!(byte, 0x21..=0x7e | 0x80..))
}

/// Whether the target has a form that the method allows (RFC 9112 section 3.2): a path, an `http` or `https` URL, an
/// authority for CONNECT, `*` for OPTIONS.
fn is_form(method: &[u8], target: &[u8]) -> bool {
    let starts_with = |scheme: &[u8]| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    match target {
        b"*" => method == b"OPTIONS",
        _ if method == b"CONNECT" => !target.contains(&b'/'),
        _ => target.starts_with(b"/") || starts_with(b"http://") || starts_with(b"https://"),
    }
}

/// Whether a target is a URL without a path and a query. With OPTIONS, it asks about the whole server (RFC 9112 section 3.2.4).
fn is_whole_server(target: &[u8]) -> bool {
    let authority = memchr::memmem::find(target, b"://").map(|at| &target[at + 3..]);
    !target.starts_with(b"/") && authority.is_some_and(|authority| !authority.iter().any(|byte| b"/?#".contains(byte)))
}

/// The same URL with the path `*`.
fn for_whole_server(uri: Uri) -> Option<Uri> {
    let mut parts = uri.into_parts();
    parts.path_and_query = Some(PathAndQuery::from_static("*"));
    Uri::from_parts(parts).ok()
}
