//! The grammar that request heads and response heads share.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::super::super::lists::tokens;
use super::super::super::names::is_framing_look_alike;
use crate::model::outcome::{Code, Rule};

/// Returns the length of the head at the start of `bytes`, with its empty line; `None` if the head is incomplete.
///
/// The first `seen` bytes are known not to contain the end. A line feed without a carriage return is refused at once.
pub(super) fn find_end(bytes: &[u8], seen: usize) -> Result<Option<usize>, Code> {
    let from = seen.saturating_sub(3);
    for offset in memchr::memchr_iter(b'\n', &bytes[from..]) {
        let at = from + offset;
        if at == 0 || bytes[at - 1] != b'\r' {
            return Err(Code::Malformed(Rule::Line));
        }
        // One empty line before the request line is ignored (RFC 9112 section 2.2).
        if at > 3 && bytes[at - 3..at - 1] == *b"\r\n" {
            return Ok(Some(at + 1));
        }
    }
    Ok(None)
}

/// How the head says that the end of the body is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
}

/// The fields of a head, and those of their facts on which the connection depends.
#[derive(Default)]
pub(super) struct Fields {
    pub map: HeaderMap,
    pub hosts: usize,
    pub framing: Option<Framing>,
    /// `Connection` lists `close`.
    pub closes: bool,
    /// `Connection` lists `keep-alive`.
    pub keeps_alive: bool,
    /// `Connection` lists `upgrade`.
    pub upgrades: bool,
}

/// How strictly a field line is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Blanks {
    /// In requests, a blank before the colon is an error, because servers disagree on the name (RFC 9112 section 5.1).
    Refused,
    /// In responses, a proxy removes blanks before the colon (RFC 9112 section 5.1).
    Removed,
}

impl Fields {
    /// Reads the field lines of a complete head; `lines` begins after the start line, and ends with the empty line. At most
    /// `max` fields.
    pub(super) fn read(lines: &Bytes, is_http11: bool, max: usize, blanks: Blanks) -> Result<Self, Code> {
        let mut fields = Self { map: HeaderMap::with_capacity(16), ..Self::default() };
        let (mut start, mut count) = (0, 0);
        for end in memchr::memchr_iter(b'\n', lines) {
            // INVARIANT: `find_end` has seen a carriage return before every line feed.
            let line = start..end - 1;
            start = end + 1;
            if line.is_empty() {
                return Ok(fields);
            }
            if count == max {
                return Err(Code::HeadTooLarge);
            }
            count += 1;
            let (name, value) = field(lines, line, blanks)?;
            fields.note(&name, value.as_bytes(), is_http11)?;
            fields.map.try_append(name, value).map_err(|_| Code::HeadTooLarge)?;
        }
        Err(Code::Malformed(Rule::Header))
    }

    fn note(&mut self, name: &HeaderName, value: &[u8], is_http11: bool) -> Result<(), Code> {
        use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
        match *name {
            HOST => self.hosts += 1,
            CONNECTION => {
                for token in tokens(value) {
                    self.closes |= token.eq_ignore_ascii_case(b"close");
                    self.keeps_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                    self.upgrades |= token.eq_ignore_ascii_case(b"upgrade");
                }
            }
            TRANSFER_ENCODING => {
                if self.framing.is_some() || !is_http11 || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Code::Malformed(Rule::Length));
                }
                self.framing = Some(Framing::Chunked);
            }
            CONTENT_LENGTH => {
                if self.framing.is_some() {
                    return Err(Code::Malformed(Rule::Length));
                }
                self.framing = Some(Framing::Length(length(value).ok_or(Code::Malformed(Rule::Length))?));
            }
            _ if is_framing_look_alike(name) => return Err(Code::Malformed(Rule::Length)),
            _ => {}
        }
        Ok(())
    }
}

/// Splits the field line at `line` into its name and its value. Refuses folded lines and control characters.
pub(super) fn field(lines: &Bytes, line: std::ops::Range<usize>, blanks: Blanks) -> Result<(HeaderName, HeaderValue), Code> {
    let bytes = &lines[line.clone()];
    let colon = memchr::memchr(b':', bytes).ok_or(Code::Malformed(Rule::Header))?;
    let mut name = &bytes[..colon];
    if blanks == Blanks::Removed && !name.starts_with(b" ") && !name.starts_with(b"\t") {
        name = trim_blanks(name);
    }
    let value = trim_blanks(&bytes[colon + 1..]);
    let name = HeaderName::from_bytes(name).map_err(|_| Code::Malformed(Rule::Header))?;
    let value = HeaderValue::from_maybe_shared(lines.slice_ref(value)).map_err(|_| Code::Malformed(Rule::Header))?;
    Ok((name, value))
}

/// Removes spaces and tabs at both ends, which are the only blanks of a field (RFC 9110 section 5.6.3).
fn trim_blanks(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

fn length(value: &[u8]) -> Option<u64> {
    let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    if digits { std::str::from_utf8(value).ok()?.parse().ok() } else { None }
}
