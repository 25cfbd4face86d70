//! The grammar of a chunked body (RFC 9112 section 7.1), without the leniences of the RFC.

use crate::model::outcome::Code;

use super::head::field;

/// Maximum bytes of all chunk extensions of one body, and of all its trailers.
const EXTENSION_BUDGET: usize = 16 << 10;
const TRAILER_BUDGET: usize = 16 << 10;

/// The same as the default limit for the fields of a head.
const MAX_TRAILERS: usize = 100;

/// Maximum bytes of a size line with its extensions, or of a trailer line. A line is buffered until it is complete.
const MAX_LINE: usize = 8 << 10;

/// The position in a chunked body up to which the bytes are checked.
pub(super) struct Chunked {
    part: Part,
    /// How many bytes of the incomplete line are known not to contain its end.
    seen: usize,
    extensions: usize,
    trailers: usize,
    trailer_bytes: usize,
}

#[derive(Clone, Copy)]
enum Part {
    SizeLine,
    Data { left: u64 },
    DataEnd,
    TrailerLine,
}

/// The result of checking a part of a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// The body is incomplete.
    Open,
    Ended,
    /// The next bytes are malformed.
    Malformed,
}

impl Default for Chunked {
    fn default() -> Self {
        Self { part: Part::SizeLine, seen: 0, extensions: 0, trailers: 0, trailer_bytes: 0 }
    }
}

impl Chunked {
    /// Checks `bytes`; returns how many of them are valid bytes of the body, and the outcome. The caller passes the other
    /// bytes again, together with later ones.
    ///
    /// INVARIANT: the result does not depend on how the input is split into reads, because a line passes only as a whole.
    pub(super) fn judge(&mut self, bytes: &[u8]) -> (usize, Outcome) {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match self.part {
                Part::Data { left } => {
                    let step = left.min(rest.len() as u64);
                    at += step as usize;
                    self.part = if step == left { Part::DataEnd } else { Part::Data { left: left - step } };
                }
                Part::DataEnd => match rest {
                    [b'\r'] => return (at, Outcome::Open),
                    [b'\r', b'\n', ..] => {
                        at += 2;
                        self.part = Part::SizeLine;
                    }
                    _ => return (at, Outcome::Malformed),
                },
                Part::SizeLine | Part::TrailerLine => {
                    let Some(end) = rest[self.seen..].iter().position(|byte| *byte == b'\n') else {
                        self.seen = rest.len();
                        let outcome = if rest.len() > MAX_LINE { Outcome::Malformed } else { Outcome::Open };
                        return (at, outcome);
                    };
                    let end = std::mem::take(&mut self.seen) + end;
                    match self.end_line(&rest[..end]) {
                        Ok(true) => return (at + end + 1, Outcome::Ended),
                        Ok(false) => at += end + 1,
                        Err(_) => return (at, Outcome::Malformed),
                    }
                }
            }
        }
        (at, Outcome::Open)
    }

    /// Checks a complete line without its line feed; returns whether it ends the body.
    fn end_line(&mut self, line: &[u8]) -> Result<bool, Code> {
        let line = line.strip_suffix(b"\r").filter(|line| !line.contains(&b'\r') && line.len() < MAX_LINE);
        let line = line.ok_or(Code::RequestMalformed)?;
        if matches!(self.part, Part::TrailerLine) {
            if line.is_empty() {
                return Ok(true);
            }
            field(line)?;
            (self.trailers, self.trailer_bytes) = (self.trailers + 1, self.trailer_bytes + line.len());
            let is_too_much = self.trailers > MAX_TRAILERS || self.trailer_bytes > TRAILER_BUDGET;
            return if is_too_much { Err(Code::RequestMalformed) } else { Ok(false) };
        }
        let size = self.size(line)?;
        self.part = if size == 0 { Part::TrailerLine } else { Part::Data { left: size } };
        Ok(false)
    }

    fn size(&mut self, line: &[u8]) -> Result<u64, Code> {
        let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
        let (size, extension) = line.split_at(digits);
        let printable = |byte: &u8| matches!(byte, b'\t' | 0x20..=0x7e);
        let is_extension = extension.is_empty() || (extension[0] == b';' && extension.iter().all(printable));
        self.extensions += extension.len();
        if !is_extension || self.extensions > EXTENSION_BUDGET || !(1..=15).contains(&size.len()) {
            return Err(Code::RequestMalformed);
        }
        let size = std::str::from_utf8(size).map_err(|_| Code::RequestMalformed)?;
        u64::from_str_radix(size, 16).map_err(|_| Code::RequestMalformed)
    }
}
