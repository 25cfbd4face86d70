//! The grammar of a chunked body (RFC 9112 section 7.1), without its leniences.

use crate::model::outcome::Code;

use super::head::field;

/// Bytes of chunk extensions and of trailers that one body may spend.
const EXTENSION_BUDGET: usize = 16 << 10;
const TRAILER_BUDGET: usize = 16 << 10;

/// As many as a head has fields, unless it is told otherwise.
const MOST_TRAILERS: usize = 100;

/// A size line, an extension or a trailer line is judged when it is whole.
const MAX_LINE: usize = 8 << 10;

/// Where in a chunked body the judged bytes end.
pub(super) struct Chunked {
    part: Part,
    /// How many bytes of the line that has begun are known to hold no end.
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

/// What the bytes up to a point have shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// More is to come.
    Open,
    Ended,
    /// What follows breaks the rules.
    Malformed,
}

impl Default for Chunked {
    fn default() -> Self {
        Self { part: Part::SizeLine, seen: 0, extensions: 0, trailers: 0, trailer_bytes: 0 }
    }
}

impl Chunked {
    /// Judges `bytes`: how many of them belong to the body and are fine, and what follows. The rest is to be shown again,
    /// with what came since.
    ///
    /// INVARIANT: what passes does not depend on the pieces in which it comes. A line passes when it is whole, or not at all.
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

    /// Judges a whole line without its line feed; whether it ended the body.
    fn end_line(&mut self, line: &[u8]) -> Result<bool, Code> {
        let line = line.strip_suffix(b"\r").filter(|line| !line.contains(&b'\r') && line.len() < MAX_LINE);
        let line = line.ok_or(Code::RequestMalformed)?;
        if matches!(self.part, Part::TrailerLine) {
            if line.is_empty() {
                return Ok(true);
            }
            field(line)?;
            (self.trailers, self.trailer_bytes) = (self.trailers + 1, self.trailer_bytes + line.len());
            let is_too_much = self.trailers > MOST_TRAILERS || self.trailer_bytes > TRAILER_BUDGET;
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
