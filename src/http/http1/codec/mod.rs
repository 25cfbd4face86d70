//! The HTTP/1 codec (RFC 9112): bytes in, messages out, and back. It knows no socket and no clock.
//!
//! The codec is strict about the end of a message: a head passes only if there is exactly one way to find the end of its body, so
//! that this proxy and the next hop find the same end. It refuses several `Transfer-Encoding` fields, a `Content-Length` beside
//! `Transfer-Encoding`, two `Host` fields, folded lines, bare line feeds, and names that some servers read as framing fields.

mod body;
mod chunked;
mod decoded;
mod encode;
mod head;
mod request;
mod response;

pub use body::BodyDecoder;
pub use decoded::{BodyError, Decoded};
pub use encode::{Asked, BodyEncoder, informational_head, request_head, response_head};
pub use request::{HeadLimits, RequestHead, is_valid_target, read_request};
pub use response::{MAX_INFORMATIONAL, MAX_RESPONSE_FIELDS, RequestKind, ResponseHead, ResponseReader};

#[cfg(test)]
mod tests;
