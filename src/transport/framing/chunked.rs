//! The grammar of a chunked body (RFC 9112 section 7.1), without its leniences.

use crate::model::outcome::Code;

use super::head::field;

/// Bytes of chunk extensions and of trailers that one body may spend.
const EXTENSION_BUDGET: usize = 16 << 10;
const TRAILER_BUDGET: usize = 16 << 10;

/// A size line, an extension or a trailer line is judged when it is whole.
const MAX_LINE: usize = 8 << 10;

/// Where in a chunked body the judged bytes end.
pub(super) struct Chunked {
    part: Part,
    /// The line that has begun, without its CRLF.
    line: Vec<u8>,
    extensions: usize,
    trailers: usize,
}

#[derive(Clone, Copy)]
enum Part {
    SizeLine,
    Data { left: u64 },
    DataEnd { carriage_return: bool },
    TrailerLine,
}

impl Default for Chunked {
    fn default() -> Self {
        Self { part: Part::SizeLine, line: Vec::new(), extensions: 0, trailers: 0 }
    }
}

impl Chunked {
    /// Judges `bytes`; how many belong to the body and are fine, and whether the body ended with them.
    ///
    /// A line's bytes are passed on as they come: the next hop reads none of them as anything before the line is whole,
    /// and a line that turns out bad breaks the connection.
    pub(super) fn judge(&mut self, bytes: &[u8]) -> Result<(usize, bool), Code> {
        let mut at = 0;
        while at < bytes.len() {
            match self.part {
                Part::Data { left } => {
                    let step = left.min((bytes.len() - at) as u64);
                    at += step as usize;
                    self.part =
                        if step == left { Part::DataEnd { carriage_return: false } } else { Part::Data { left: left - step } };
                }
                Part::DataEnd { carriage_return } => {
                    let expected = if carriage_return { b'\n' } else { b'\r' };
                    if bytes[at] != expected {
                        return Err(Code::RequestMalformed);
                    }
                    at += 1;
                    self.part = if carriage_return { Part::SizeLine } else { Part::DataEnd { carriage_return: true } };
                }
                Part::SizeLine | Part::TrailerLine => {
                    let byte = bytes[at];
                    at += 1;
                    if byte != b'\n' {
                        self.line.push(byte);
                        if self.line.len() > MAX_LINE {
                            return Err(Code::RequestMalformed);
                        }
                    } else if self.end_line()? {
                        return Ok((at, true));
                    }
                }
            }
        }
        Ok((at, false))
    }

    /// Judges a whole line; whether it ended the body.
    fn end_line(&mut self) -> Result<bool, Code> {
        let mut line = std::mem::take(&mut self.line);
        if line.pop() != Some(b'\r') || line.contains(&b'\r') {
            return Err(Code::RequestMalformed);
        }
        if matches!(self.part, Part::TrailerLine) {
            self.trailers += line.len();
            if line.is_empty() {
                return Ok(true);
            }
            field(&line)?;
            return if self.trailers > TRAILER_BUDGET { Err(Code::RequestMalformed) } else { Ok(false) };
        }
        let size = self.size(&line)?;
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
