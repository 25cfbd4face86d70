//! Decodes bodies.

use bytes::BytesMut;

use super::chunked::Chunked;
use super::decoded::{BodyError, Decoded};

/// Finds the end of a body.
pub enum BodyDecoder {
    /// There is no body, or it has ended.
    Ended,
    /// As many bytes are left.
    Length(u64),
    Chunked(Box<Chunked>),
    /// The body ends with the connection.
    UntilClose,
}

impl BodyDecoder {
    pub(super) fn chunked() -> Self {
        Self::Chunked(Box::default())
    }

    pub const fn has_ended(&self) -> bool {
        matches!(self, Self::Ended)
    }

    /// The number of bytes that are left, if it is known.
    pub const fn left(&self) -> Option<u64> {
        match self {
            Self::Ended => Some(0),
            Self::Length(left) => Some(*left),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }

    /// Takes the next piece from the start of `bytes`. Data is not copied.
    ///
    /// INVARIANT: the concatenated result does not depend on how the input is split.
    pub fn decode(&mut self, bytes: &mut BytesMut) -> Result<Decoded, BodyError> {
        match self {
            Self::Ended => Ok(Decoded::Ended),
            Self::Length(_) | Self::UntilClose if bytes.is_empty() => Ok(Decoded::Incomplete),
            Self::Length(left) => {
                let step = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= step as u64;
                if *left == 0 {
                    *self = Self::Ended;
                }
                Ok(Decoded::Data(bytes.split_to(step).freeze()))
            }
            Self::UntilClose => Ok(Decoded::Data(bytes.split().freeze())),
            Self::Chunked(chunked) => {
                let decoded = chunked.decode(bytes)?;
                if chunked.has_ended() {
                    *self = Self::Ended;
                }
                Ok(decoded)
            }
        }
    }

    /// The end of the connection: the end of a body that has no other, and an error for any other body.
    pub fn close(&mut self) -> Result<(), BodyError> {
        match self {
            Self::Ended => Ok(()),
            Self::UntilClose => {
                *self = Self::Ended;
                Ok(())
            }
            Self::Length(_) | Self::Chunked(_) => Err(BodyError::Incomplete),
        }
    }
}
