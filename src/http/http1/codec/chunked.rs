//! The grammar of a chunked body (RFC 9112 section 7.1), without the leniences of the RFC.

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use super::decoded::{BodyError, Decoded};
use super::head::{Blanks, field};

/// Maximum bytes of all chunk extensions of one body, and of all its trailers.
const EXTENSION_BUDGET: usize = 16 << 10;
const TRAILER_BUDGET: usize = 16 << 10;

/// The same as the default limit for the fields of a head.
const MAX_TRAILERS: usize = 100;

/// Maximum bytes of a size line with its extensions, or of a trailer line. A line is buffered until it is complete.
const MAX_LINE: usize = 8 << 10;

/// Chunks smaller than this are merged, up to a size of [`MERGED`].
const SMALL: usize = 4 << 10;
const MERGED: usize = 16 << 10;

/// The position in a chunked body.
#[derive(Default)]
pub struct Chunked {
    part: Part,
    /// How many bytes of the incomplete line are known not to contain its end.
    seen: usize,
    extensions: usize,
    trailers: HeaderMap,
    trailer_bytes: usize,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Part {
    #[default]
    SizeLine,
    Data {
        left: u64,
    },
    DataEnd,
    TrailerLine,
    Ended,
    Malformed,
}

impl Chunked {
    /// Whether the body has ended and its trailers have been returned.
    pub(super) fn has_ended(&self) -> bool {
        self.part == Part::Ended && self.trailers.is_empty()
    }

    /// Takes the next piece of the body from the start of `bytes`.
    ///
    /// INVARIANT: the result does not depend on how the input is split into reads, because a line is read only as a whole.
    pub(super) fn decode(&mut self, bytes: &mut BytesMut) -> Result<Decoded, BodyError> {
        if !matches!(self.part, Part::Data { .. }) {
            self.read_lines(bytes);
        }
        match self.part {
            Part::Data { .. } if bytes.is_empty() => Ok(Decoded::Incomplete),
            Part::Data { left } => {
                let data = self.take(left, bytes);
                Ok(Decoded::Data(if data.len() < SMALL { self.merged(data, bytes) } else { data.freeze() }))
            }
            Part::SizeLine | Part::DataEnd | Part::TrailerLine => Ok(Decoded::Incomplete),
            Part::Ended if self.trailers.is_empty() => Ok(Decoded::Ended),
            Part::Ended => Ok(Decoded::Trailers(std::mem::take(&mut self.trailers))),
            Part::Malformed => Err(BodyError::Malformed),
        }
    }

    /// Takes data of the current chunk, and reads on behind its end, so that the last data and the end of the body can leave in one
    /// write.
    fn take(&mut self, left: u64, bytes: &mut BytesMut) -> BytesMut {
        let step = left.min(bytes.len() as u64);
        let data = bytes.split_to(step as usize);
        if step == left {
            self.part = Part::DataEnd;
            self.read_lines(bytes);
        } else {
            self.part = Part::Data { left: left - step };
        }
        data
    }

    /// Appends the small chunks behind `data` that have arrived, because each piece costs a write.
    fn merged(&mut self, mut data: BytesMut, bytes: &mut BytesMut) -> Bytes {
        while let Part::Data { left } = self.part
            && !bytes.is_empty()
            && left < SMALL as u64
            && data.len() < MERGED
        {
            let more = self.take(left, bytes);
            data.extend_from_slice(&more);
        }
        data.freeze()
    }

    /// Reads lines up to the next data, to the end of the body or to a malformed line, if they are complete.
    fn read_lines(&mut self, bytes: &mut BytesMut) {
        loop {
            match self.part {
                Part::Data { .. } | Part::Ended | Part::Malformed => return,
                Part::DataEnd => match **bytes {
                    [] | [b'\r'] => return,
                    [b'\r', b'\n', ..] => {
                        bytes.advance(2);
                        self.part = Part::SizeLine;
                    }
                    _ => self.part = Part::Malformed,
                },
                Part::SizeLine | Part::TrailerLine => {
                    let Some(end) = memchr::memchr(b'\n', &bytes[self.seen..]) else {
                        self.seen = bytes.len();
                        if bytes.len() > MAX_LINE {
                            self.part = Part::Malformed;
                        }
                        return;
                    };
                    let end = std::mem::take(&mut self.seen) + end;
                    let line = bytes.split_to(end + 1);
                    let line = line[..end].strip_suffix(b"\r").filter(|line| !line.contains(&b'\r') && line.len() < MAX_LINE);
                    if line.is_none_or(|line| self.end_line(line).is_err()) {
                        self.part = Part::Malformed;
                    }
                }
            }
        }
    }

    /// Reads a complete line without its line ending.
    fn end_line(&mut self, line: &[u8]) -> Result<(), BodyError> {
        if self.part == Part::SizeLine {
            let size = self.size(line)?;
            self.part = if size == 0 { Part::TrailerLine } else { Part::Data { left: size } };
            return Ok(());
        }
        if line.is_empty() {
            self.part = Part::Ended;
            return Ok(());
        }
        let line = Bytes::copy_from_slice(line);
        let (name, value) = field(&line, 0..line.len(), Blanks::Refused).map_err(|_| BodyError::Malformed)?;
        self.trailer_bytes += line.len();
        let is_too_much = self.trailers.len() >= MAX_TRAILERS || self.trailer_bytes > TRAILER_BUDGET;
        if is_too_much || self.trailers.try_append(name, value).is_err() { Err(BodyError::Malformed) } else { Ok(()) }
    }

    fn size(&mut self, line: &[u8]) -> Result<u64, BodyError> {
        let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
        let (size, extension) = line.split_at(digits);
        let printable = |byte: &u8| matches!(byte, b'\t' | 0x20..=0x7e);
        let is_extension = extension.is_empty() || (extension[0] == b';' && extension.iter().all(printable));
        self.extensions += extension.len();
        if !is_extension || self.extensions > EXTENSION_BUDGET || !(1..=15).contains(&size.len()) {
            return Err(BodyError::Malformed);
        }
        let size = std::str::from_utf8(size).map_err(|_| BodyError::Malformed)?;
        u64::from_str_radix(size, 16).map_err(|_| BodyError::Malformed)
    }
}
