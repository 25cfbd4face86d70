//! The pieces of a body.

use bytes::Bytes;
use http::HeaderMap;

/// A piece of a body.
#[derive(PartialEq, Eq, Debug)]
pub enum Decoded {
    Data(Bytes),
    Trailers(HeaderMap),
    /// The body has ended.
    Ended,
    /// More bytes are needed.
    Incomplete,
}

/// Why a body cannot be decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the body's framing is malformed")]
    Malformed,
    #[error("the connection closed before the end of the body")]
    Incomplete,
}
