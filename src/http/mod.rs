//! Wire: HTTP messages and the connections that carry them.
//!
//! Promises: HTTP/1 bytes are judged before anyone parses them; bodies stream with bounded buffers; pools belong to one
//! thread and need no lock. Never: routing, policy, the meaning of a header. Start reading at `pool`.

pub mod body;
pub mod framing;
pub mod http2;
pub mod pool;
pub mod tunnel;
pub mod window;
