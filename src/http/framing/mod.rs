//! The strict gates for HTTP/1: bytes are judged here before hyper parses them, requests of clients and answers of upstreams.
//!
//! Why around the connection's IO, and not a codec of our own: hyper's HTTP/1 machine (keep-alive, pipelining, expect,
//! upgrades, graceful shutdown) is well kept, but lenient in how it finds the end of a message (it takes several
//! `Transfer-Encoding` lines, drops a conflicting `Content-Length`, keeps a second `Host`), and what it has dropped
//! cannot be judged afterwards. The gate sees the bytes themselves. It lets a message pass only if there is exactly one
//! way to find its end, so hyper and the next hop must agree with it. A head costs one more scan; a body of known length
//! is read straight into hyper's buffer.
//!
//! A head of a request that is refused is replaced by one that hyper reads as a harmless request carrying [`FAULT_HEADER`]:
//! the answer takes its turn behind earlier pipelined ones, and then the connection closes. A body that is refused is an IO
//! error, and so is everything that is wrong with an answer: its connection is never used again.

mod answer;
mod chunked;
mod connection_state;
mod head;
mod request;
mod stall;

use std::time::Duration;

pub use answer::{AnswerGate, Asked, Link, MOST_INTERIM};
pub use connection_state::{ConnectionState, Handover, InFlight};
pub use request::Gate;

/// Carries the code of a refused head to whoever answers it. A client that sends it itself refuses itself.
pub const FAULT_HEADER: &str = "domicile-fault";

const READ_SIZE: usize = 16 << 10;

/// What a head may be, and how long it may take.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes of the request line and all fields.
    pub bytes: usize,
    pub fields: usize,
    pub target_bytes: usize,
    /// From the first byte of a head to its last; and until the first byte of a connection.
    pub timeout: Duration,
    /// Between an answer and the next request.
    pub keep_alive: Duration,
    /// How long the other end may take nothing of what is written.
    pub write_stall: Duration,
}

#[cfg(test)]
mod tests;
