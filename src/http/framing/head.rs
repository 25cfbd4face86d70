//! The grammar of request and response heads, without the leniences of RFC 9112, and how the body is delimited.

use crate::model::outcome::Code;

use super::super::lists::tokens;
use super::RequestGateLimits;

/// How the end of a body is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
}

/// A valid request head.
pub(super) struct Checked {
    pub framing: Framing,
    /// The bytes after the head may not be HTTP, because the request is a CONNECT or an HTTP/1.1 upgrade.
    pub may_tunnel: bool,
}

/// Returns the length of the head at the start of `bytes`, with its empty line; `None` if the head is incomplete.
///
/// The first `seen` bytes are known not to contain the end. A line feed without a carriage return is refused at once.
pub(super) fn find_end(bytes: &[u8], seen: usize) -> Result<Option<usize>, Code> {
    let from = seen.saturating_sub(3);
    for (offset, _) in bytes[from..].iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
        let at = from + offset;
        if at == 0 || bytes[at - 1] != b'\r' {
            return Err(Code::RequestMalformed);
        }
        // One empty line before the request line is ignored (RFC 9112 section 2.2).
        if at >= 3 && bytes[at - 3..at - 1] == *b"\r\n" && at > 3 {
            return Ok(Some(at + 1));
        }
    }
    Ok(None)
}

/// Checks a complete request head and finds how its body is delimited.
pub(super) fn check(head: &[u8], limits: &RequestGateLimits) -> Result<Checked, Code> {
    let head = head.strip_prefix(b"\r\n").unwrap_or(head);
    let lines = head.strip_suffix(b"\r\n\r\n").ok_or(Code::RequestMalformed)?;
    let mut lines = Lines(Some(lines));
    let first = lines.next().ok_or(Code::RequestMalformed)??;
    let is_http11 = request_line(first, limits)?;
    let seen = FramingFields::all(lines, is_http11, limits.fields)?;
    if seen.hosts > 1 || (is_http11 && seen.hosts == 0) {
        return Err(Code::RequestMalformed);
    }
    let framing = match (seen.is_chunked, seen.length) {
        (true, Some(_)) => return Err(Code::RequestMalformed),
        (true, None) => Framing::Chunked,
        (false, length) => Framing::Length(length.unwrap_or(0)),
    };
    Ok(Checked { framing, may_tunnel: first.starts_with(b"CONNECT ") || (is_http11 && seen.upgrade) })
}

/// Checks a complete response head; returns its status and how its body is delimited. `None` if only the end of the
/// connection delimits the body.
pub(super) fn check_answer(head: &[u8], max_fields: usize) -> Result<(u16, Option<Framing>), Code> {
    let lines = head.strip_suffix(b"\r\n\r\n").ok_or(Code::UpstreamBad)?;
    let mut lines = Lines(Some(lines));
    let (is_http11, status) = status_line(lines.next().ok_or(Code::UpstreamBad)??)?;
    let seen = FramingFields::all(lines, is_http11, max_fields)?;
    match (seen.is_chunked, seen.length) {
        (true, Some(_)) => Err(Code::UpstreamBad),
        (true, None) => Ok((status, Some(Framing::Chunked))),
        (false, length) => Ok((status, length.map(Framing::Length))),
    }
}

/// Checks `HTTP/1.x SP 3DIGIT [SP reason]`. The space before the reason is optional, because many servers omit both.
fn status_line(line: &[u8]) -> Result<(bool, u16), Code> {
    let is_http11 = match line.get(..9) {
        Some(b"HTTP/1.1 ") => true,
        Some(b"HTTP/1.0 ") => false,
        _ => return Err(Code::UpstreamBad),
    };
    let (status, reason) = line[9..].split_at_checked(3).ok_or(Code::UpstreamBad)?;
    let printable = |byte: &u8| matches!(byte, b'\t' | 0x20..=0x7e | 0x80..);
    let good_reason = reason.is_empty() || (reason[0] == b' ' && reason.iter().all(printable));
    let digits = status.iter().all(u8::is_ascii_digit) && matches!(status[0], b'1'..=b'9');
    if !digits || !good_reason {
        return Err(Code::UpstreamBad);
    }
    Ok((is_http11, status.iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0'))))
}

/// Splits a head into lines that end in CRLF; a bare CR is an error.
struct Lines<'a>(Option<&'a [u8]>);

impl<'a> Iterator for Lines<'a> {
    type Item = Result<&'a [u8], Code>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.0?;
        let Some(at) = rest.iter().position(|byte| *byte == b'\r') else {
            self.0 = None;
            return Some(Ok(rest));
        };
        if rest.get(at + 1) != Some(&b'\n') {
            self.0 = None;
            return Some(Err(Code::RequestMalformed));
        }
        self.0 = Some(&rest[at + 2..]);
        Some(Ok(&rest[..at]))
    }
}

/// Checks `METHOD SP TARGET SP HTTP/1.x` with single spaces; returns whether the version is HTTP/1.1.
fn request_line(line: &[u8], limits: &RequestGateLimits) -> Result<bool, Code> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(Code::RequestMalformed);
    };
    if target.len() > limits.target_bytes {
        return Err(Code::TargetTooLong);
    }
    let visible = |byte: &u8| matches!(byte, 0x21..=0x7e);
    if !is_token(method) || target.is_empty() || !target.iter().all(visible) || !is_form(method, target) {
        return Err(Code::RequestMalformed);
    }
    match version {
        b"HTTP/1.1" => Ok(true),
        b"HTTP/1.0" => Ok(false),
        _ => Err(Code::RequestMalformed),
    }
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

/// Splits `NAME: VALUE`; refuses folding, space before the colon, and control characters.
pub(super) fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Code> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or(Code::RequestMalformed)?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    let printable = |byte: &u8| matches!(byte, b'\t' | 0x20..=0x7e | 0x80..);
    if is_token(name) && line[colon + 1..].iter().all(printable) { Ok((name, value)) } else { Err(Code::RequestMalformed) }
}

/// Whether `bytes` are a token (RFC 9110 section 5.6.2).
fn is_token(bytes: &[u8]) -> bool {
    let tchar = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !bytes.is_empty() && bytes.iter().all(tchar)
}

/// The header fields that framing depends on.
#[derive(Default)]
struct FramingFields {
    hosts: usize,
    is_chunked: bool,
    length: Option<u64>,
    /// `Upgrade` is present, and `Connection` lists it.
    upgrade: bool,
}

impl FramingFields {
    /// Reads all header lines, at most `max_fields`.
    fn all<'a>(lines: impl Iterator<Item = Result<&'a [u8], Code>>, is_http11: bool, max_fields: usize) -> Result<Self, Code> {
        let mut seen = Self::default();
        let (mut offered, mut nominated) = (false, false);
        for (count, line) in lines.enumerate() {
            if count == max_fields {
                return Err(Code::HeadTooLarge);
            }
            let (name, value) = field(line?)?;
            seen.note(name, value, is_http11)?;
            offered |= name.eq_ignore_ascii_case(b"upgrade");
            nominated |=
                name.eq_ignore_ascii_case(b"connection") && tokens(value).any(|token| token.eq_ignore_ascii_case(b"upgrade"));
        }
        seen.upgrade = offered && nominated;
        Ok(seen)
    }

    fn note(&mut self, name: &[u8], value: &[u8], is_http11: bool) -> Result<(), Code> {
        if name.eq_ignore_ascii_case(b"host") {
            self.hosts += 1;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.is_chunked || !is_http11 || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Code::RequestMalformed);
            }
            self.is_chunked = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            if self.length.is_some() {
                return Err(Code::RequestMalformed);
            }
            self.length = Some(length(value).ok_or(Code::RequestMalformed)?);
        } else if is_look_alike(name) {
            // Some servers behind a gateway interface such as CGI read `Content_Length` as `Content-Length`.
            return Err(Code::RequestMalformed);
        }
        Ok(())
    }
}

fn is_look_alike(name: &[u8]) -> bool {
    let spelled = |wanted: &[u8]| {
        name.len() == wanted.len()
            && name.iter().zip(wanted).all(|(a, b)| a.eq_ignore_ascii_case(b) || (!a.is_ascii_alphanumeric() && *b == b'-'))
    };
    spelled(b"content-length") || spelled(b"transfer-encoding")
}

fn length(value: &[u8]) -> Option<u64> {
    let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    if digits { std::str::from_utf8(value).ok()?.parse().ok() } else { None }
}
