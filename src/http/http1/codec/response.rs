//! Reads response heads: a response passes only if it was requested and its end is unambiguous.

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use http::response::Parts;
use http::{Response, StatusCode, Version};

use super::body::BodyDecoder;
use super::head::{Blanks, Fields, Framing, find_end};
use crate::model::outcome::Code;

/// Bytes of a response head: twice the default limit for requests, because cookies and security policies are long.
const MAX_HEAD: usize = 64 << 10;
pub const MAX_RESPONSE_FIELDS: usize = 256;

/// Maximum number of informational responses before the final response.
pub const MAX_INFORMATIONAL: usize = 16;

/// The kind of request, on which the framing of its response depends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestKind {
    /// A HEAD request: the response has no body.
    Head,
    /// An upgrade: 101 is a valid final response.
    Upgrade,
    /// CONNECT: a 2xx response opens a tunnel.
    Connect,
    Other,
}

/// A valid response head.
pub struct ResponseHead {
    pub parts: Parts,
    pub body: BodyDecoder,
    /// The connection may carry another request after this response.
    pub keeps_alive: bool,
    /// HTTP ends after this head.
    pub opens_tunnel: bool,
}

/// Reads the heads of the responses to one request.
pub struct ResponseReader {
    asked: RequestKind,
    seen: usize,
    informational: usize,
}

impl ResponseReader {
    pub const fn to(asked: RequestKind) -> Self {
        Self { asked, seen: 0, informational: 0 }
    }

    /// Takes the next head from the start of `bytes`; `None` if it is incomplete. Informational responses come before the final
    /// one, and have a status below 200.
    #[inline(never)] // a stage of benches/stages
    pub fn read(&mut self, bytes: &mut BytesMut) -> Result<Option<ResponseHead>, Code> {
        let end = match find_end(bytes, self.seen)? {
            None if bytes.len() <= MAX_HEAD => {
                self.seen = bytes.len();
                return Ok(None);
            }
            Some(end) if end <= MAX_HEAD => end,
            None | Some(_) => return Err(Code::UpstreamBad),
        };
        self.seen = 0;
        let head = bytes.split_to(end).freeze();
        self.finish(head).map(Some)
    }

    fn finish(&mut self, mut head: Bytes) -> Result<ResponseHead, Code> {
        let line_end = memchr::memchr(b'\n', &head).ok_or(Code::UpstreamBad)?;
        let lines = head.split_off(line_end + 1);
        let (is_http11, status) = status_line(&head[..line_end - 1])?;
        let mut fields = Fields::read(&lines, is_http11, MAX_RESPONSE_FIELDS, Blanks::Removed)?;
        let keeps_alive = if is_http11 { !fields.closes } else { fields.keeps_alive && !fields.closes };
        let is_unframed = fields.framing.is_none();
        let (mut body, mut opens_tunnel, mut is_clean) = (BodyDecoder::Ended, false, true);
        match status.as_u16() {
            101 => {
                let is_switch = fields.upgrades && fields.map.contains_key(UPGRADE);
                opens_tunnel = self.asked == RequestKind::Upgrade && is_unframed && is_http11 && is_switch;
                if !opens_tunnel {
                    return Err(Code::UpstreamBad);
                }
            }
            100..=199 => {
                self.informational += 1;
                if !is_unframed || self.informational > MAX_INFORMATIONAL {
                    return Err(Code::UpstreamBad);
                }
            }
            200..=299 if self.asked == RequestKind::Connect => {
                if !is_unframed {
                    return Err(Code::UpstreamBad);
                }
                opens_tunnel = true;
            }
            204 | 304 => {
                // Neither has a body (RFC 9112 section 6.3). A server that frames one may also send it, so the connection closes.
                is_clean = match fields.framing {
                    None | Some(Framing::Length(0)) => true,
                    Some(Framing::Length(_)) => status == StatusCode::NOT_MODIFIED,
                    Some(Framing::Chunked) => false,
                };
                if !is_clean || status == StatusCode::NO_CONTENT {
                    fields.map.remove(CONTENT_LENGTH);
                    fields.map.remove(TRANSFER_ENCODING);
                }
            }
            _ if self.asked == RequestKind::Head => {}
            _ => {
                body = match fields.framing {
                    Some(Framing::Length(0)) => BodyDecoder::Ended,
                    Some(Framing::Length(left)) => BodyDecoder::Length(left),
                    Some(Framing::Chunked) => BodyDecoder::chunked(),
                    None => BodyDecoder::UntilClose,
                }
            }
        }
        let keeps_alive = keeps_alive && is_clean && !matches!(body, BodyDecoder::UntilClose);
        let (mut parts, ()) = Response::new(()).into_parts();
        parts.status = status;
        parts.version = if is_http11 { Version::HTTP_11 } else { Version::HTTP_10 };
        parts.headers = fields.map;
        Ok(ResponseHead { parts, body, keeps_alive, opens_tunnel })
    }
}

/// Checks `HTTP/1.x SP 3DIGIT [SP reason]`. The space before the reason is optional, because many servers omit both.
fn status_line(line: &[u8]) -> Result<(bool, StatusCode), Code> {
    let is_http11 = match line.get(..9) {
        Some(b"HTTP/1.1 ") => true,
        Some(b"HTTP/1.0 ") => false,
        _ => return Err(Code::UpstreamBad),
    };
    let (status, reason) = line[9..].split_at_checked(3).ok_or(Code::UpstreamBad)?;
    let printable = |byte: &u8| matches!(byte, b'\t' | 0x20..=0x7e | 0x80..);
    let good_reason = reason.is_empty() || (reason[0] == b' ' && reason.iter().all(printable));
    let status = StatusCode::from_bytes(status).map_err(|_| Code::UpstreamBad)?;
    if good_reason { Ok((is_http11, status)) } else { Err(Code::UpstreamBad) }
}
