//! HTTP/1: the codec, which knows no socket, and the connections that use it.
//!
//! Each side of a request is driven by the task of the client's connection: there is no second task, no channel and no copy of a
//! head between the two. A body streams from one connection to the other without being copied.

mod client;
mod codec;
mod server;

pub use client::{ClientConnection, ExchangeError, IdleConnections, Outcome};
pub use codec::{
    BodyDecoder, BodyError, Decoded, HeadLimits, MAX_INFORMATIONAL, MAX_RESPONSE_FIELDS, RequestHead, RequestKind, ResponseHead,
    ResponseReader, is_valid_target, read_request,
};
pub use server::{Ended, ServerConnection};
