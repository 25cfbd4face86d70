//! Strict gates for HTTP/1: they check the bytes of client requests and upstream responses before hyper parses them.
//!
//! A gate wraps the connection's IO and does not replace hyper's codec. hyper's HTTP/1 machine (keep-alive, pipelining,
//! `Expect`, upgrades, graceful shutdown) is well maintained, but lenient about the end of a message: it accepts several
//! `Transfer-Encoding` lines, drops a conflicting `Content-Length` and keeps a second `Host`. A header that hyper has
//! dropped can no longer be checked, so the gate checks the raw bytes. A message passes only if there is exactly one way
//! to find its end, so that hyper and the next hop find the same end. The cost is one more scan of each head; a body of
//! known length is read straight into hyper's buffer.
//!
//! The gate replaces a refused request head by a harmless request that carries [`FAULT_HEADER`]. The error response then
//! follows the responses to earlier pipelined requests, and the connection closes. A malformed request body is an IO error,
//! and so is any fault in a response; in both cases the connection is not used again.

mod chunked;
mod connection_state;
mod head;
mod request;
mod response;
mod stall;

use std::time::Duration;

pub use connection_state::{ConnectionState, ExchangeInFlight, Handover};
pub use request::RequestGate;
pub use response::{ExchangeState, MAX_INFORMATIONAL, RequestKind, ResponseGate};

/// Carries the error code of a refused head to the request handler. A client that sends this header itself gets its request
/// refused.
pub const FAULT_HEADER: &str = "domicile-fault";

const READ_SIZE: usize = 16 << 10;

/// Size limits of a request head, and timeouts of the connection.
#[derive(Clone, Copy, Debug)]
pub struct RequestGateLimits {
    /// Bytes of the request line and all header lines.
    pub bytes: usize,
    pub fields: usize,
    pub target_bytes: usize,
    /// From the first byte of a head to its last. For the first head, the time starts with the connection.
    pub timeout: Duration,
    /// Between a response and the next request.
    pub keep_alive: Duration,
    /// How long a write may wait for the client to read.
    pub write_stall: Duration,
}

#[cfg(test)]
mod tests;
