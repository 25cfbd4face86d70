//! HTTP messages and the connections that carry them.
//!
//! Promises: HTTP/1 bytes are validated before hyper parses them; bodies stream through bounded buffers; a pool belongs to
//! one thread and needs no lock. Never: routing, policy, the meaning of a header. Start reading at `pool`.

pub mod body;
pub mod framing;
pub mod http2;
pub mod lists;
pub mod names;
pub mod pool;
pub mod tunnel;
pub mod window;
