//! Writes heads and frames bodies.

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderValue, TE, TRAILER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, Method, StatusCode, Uri, Version};

use super::super::super::lists::tokens;

/// Frames the body of one message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BodyEncoder {
    /// The message has no body.
    Empty,
    /// As many bytes are left.
    Length(u64),
    Chunked {
        takes_trailers: bool,
    },
    /// The end of the connection ends the body.
    UntilClose,
}

/// The body has more or fewer bytes than its head announced.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the body has another length than its head announced")]
pub struct WrongLength;

/// Data up to this size is copied behind what is already in the buffer, so that both leave in one write.
const COPY_BELOW: usize = 4 << 10;

/// Most heads fit into this many bytes.
const USUAL_HEAD: usize = 1 << 10;

impl BodyEncoder {
    /// Writes data to `out`; returns it instead if it is too large to be copied: it then follows `out`, and [`Self::after`] follows
    /// it.
    pub fn data(&mut self, data: Bytes, out: &mut BytesMut) -> Result<Option<Bytes>, WrongLength> {
        match self {
            Self::Empty if data.is_empty() => return Ok(None),
            Self::Empty => return Err(WrongLength),
            Self::Length(left) => *left = left.checked_sub(data.len() as u64).ok_or(WrongLength)?,
            // A chunk of size zero would end the body.
            Self::Chunked { .. } if data.is_empty() => return Ok(None),
            Self::Chunked { .. } => put_hex(data.len(), out),
            Self::UntilClose => {}
        }
        if data.len() > COPY_BELOW {
            return Ok(Some(data));
        }
        out.extend_from_slice(&data);
        out.extend_from_slice(self.after());
        Ok(None)
    }

    /// The bytes that follow data.
    pub const fn after(&self) -> &'static [u8] {
        if matches!(self, Self::Chunked { .. }) { b"\r\n" } else { b"" }
    }

    /// Ends the body.
    pub fn end(&mut self, trailers: Option<&HeaderMap>, out: &mut BytesMut) -> Result<(), WrongLength> {
        match std::mem::replace(self, Self::Empty) {
            Self::Empty | Self::Length(0) | Self::UntilClose => Ok(()),
            Self::Length(_) => Err(WrongLength),
            Self::Chunked { takes_trailers } => {
                out.extend_from_slice(b"0\r\n");
                if let Some(trailers) = trailers.filter(|_| takes_trailers) {
                    put_fields(trailers, out);
                }
                out.extend_from_slice(b"\r\n");
                Ok(())
            }
        }
    }
}

fn put_hex(size: usize, out: &mut BytesMut) {
    let digits = (usize::BITS - (size | 1).leading_zeros()).div_ceil(4);
    for digit in (0..digits).rev() {
        out.put_u8(b"0123456789abcdef"[size >> (4 * digit) & 15]);
    }
    out.extend_from_slice(b"\r\n");
}

fn put_field(name: &HeaderName, value: &HeaderValue, out: &mut BytesMut) {
    let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn put_fields(fields: &HeaderMap, out: &mut BytesMut) {
    fields.iter().for_each(|(name, value)| put_field(name, value, out));
}

fn put_number(number: u64, out: &mut BytesMut) {
    let mut digits = [0; 20];
    let (mut at, mut rest) = (digits.len(), number);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn put_length(length: u64, out: &mut BytesMut) {
    out.extend_from_slice(b"content-length: ");
    put_number(length, out);
    out.extend_from_slice(b"\r\n");
}

/// Whether the head announces trailers.
fn announces(fields: &HeaderMap) -> bool {
    fields.contains_key(TRAILER)
}

/// Writes a request head in origin form (authority form for CONNECT), and returns how its body is framed. `length` is the exact
/// length of the body, if it is known.
#[inline(never)] // a stage of benches/stages
pub fn request_head(method: &Method, target: &Uri, fields: &HeaderMap, length: Option<u64>, out: &mut BytesMut) -> BodyEncoder {
    out.reserve(USUAL_HEAD);
    out.extend_from_slice(method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    match target.path_and_query() {
        Some(target) if *method != Method::CONNECT => out.extend_from_slice(target.as_str().as_bytes()),
        _ => out.extend_from_slice(target.authority().map_or("/", |authority| authority.as_str()).as_bytes()),
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if let Some(host) = fields.get(HOST) {
        put_field(&HOST, host, out);
    }
    let is_framed = |name: &HeaderName| [HOST, CONTENT_LENGTH, TRANSFER_ENCODING].contains(name);
    fields.iter().filter(|(name, _)| !is_framed(name)).for_each(|(name, value)| put_field(name, value, out));
    if fields.contains_key(TE) {
        // `TE` is a hop-by-hop field, which `Connection` must list (RFC 9110 section 10.1.4).
        out.extend_from_slice(b"connection: te\r\n");
    }
    let encoder = match length {
        Some(0) => {
            // Servers expect a length where the method usually has a body (RFC 9110 section 8.6).
            let usually_has_body = [Method::POST, Method::PUT, Method::PATCH].contains(method);
            if usually_has_body || fields.contains_key(CONTENT_LENGTH) {
                put_length(0, out);
            }
            BodyEncoder::Empty
        }
        Some(length) => {
            put_length(length, out);
            BodyEncoder::Length(length)
        }
        None => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            BodyEncoder::Chunked { takes_trailers: announces(fields) }
        }
    };
    out.extend_from_slice(b"\r\n");
    encoder
}

/// The request that a response answers, as far as the response's form depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub is_head: bool,
    pub version: Version,
    /// The client accepts trailers that `Trailer` does not announce.
    pub takes_trailers: bool,
    /// The connection stays open for another request, if the response allows it.
    pub keeps_alive: bool,
    /// The response opens a tunnel, so that it has no body and no length.
    pub opens_tunnel: bool,
}

/// Writes the head of a final response, and returns how its body is framed, and whether the connection stays open after it.
/// `length` is the exact length of the body, if it is known.
#[inline(never)] // a stage of benches/stages
pub fn response_head(
    status: StatusCode,
    fields: &HeaderMap,
    length: Option<u64>,
    asked: Asked,
    out: &mut BytesMut,
) -> (BodyEncoder, bool) {
    // The small body follows the head in the same buffer.
    let body = length.and_then(|length| usize::try_from(length).ok()).filter(|length| *length <= COPY_BELOW);
    out.reserve(USUAL_HEAD + body.unwrap_or(0));
    put_status(status, out);
    let is_framed = |name: &HeaderName| [CONTENT_LENGTH, TRANSFER_ENCODING].contains(name);
    fields.iter().filter(|(name, _)| !is_framed(name)).for_each(|(name, value)| put_field(name, value, out));
    let opens_tunnel = asked.opens_tunnel;
    let has_no_body = asked.is_head || opens_tunnel || matches!(status.as_u16(), 204 | 304);
    let encoder = match length {
        _ if has_no_body => {
            if status != StatusCode::NO_CONTENT && !opens_tunnel {
                fields.get_all(CONTENT_LENGTH).iter().for_each(|length| put_field(&CONTENT_LENGTH, length, out));
            }
            BodyEncoder::Empty
        }
        Some(length) => {
            put_length(length, out);
            BodyEncoder::Length(length)
        }
        None if asked.version == Version::HTTP_11 => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            BodyEncoder::Chunked { takes_trailers: asked.takes_trailers || announces(fields) }
        }
        None => BodyEncoder::UntilClose,
    };
    let said_close = fields.get_all(CONNECTION).iter().any(|value| tokens(value.as_bytes()).any(|token| token == b"close"));
    let keeps_alive = asked.keeps_alive && !said_close && encoder != BodyEncoder::UntilClose;
    if !opens_tunnel && !keeps_alive && !said_close {
        out.extend_from_slice(b"connection: close\r\n");
    } else if keeps_alive && asked.version < Version::HTTP_11 {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    }
    out.extend_from_slice(b"\r\n");
    (encoder, keeps_alive)
}

/// Writes an informational response.
pub fn informational_head(status: StatusCode, fields: &HeaderMap, out: &mut BytesMut) {
    put_status(status, out);
    put_fields(fields, out);
    out.extend_from_slice(b"\r\n");
}

fn put_status(status: StatusCode, out: &mut BytesMut) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
}
